"""The training objective: a weighted sum of named terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.batch import ConversationBatch, TaskTargets
from ercfusion.batch.kinds import KINDS, task_kind
from ercfusion.batch.split import Split
from ercfusion.batch.task import TaskSpec
from ercfusion.config import sections
from ercfusion.config.terms import TEACHER_TERMS, TERMS
from ercfusion.losses import SetConcordance, class_balanced_weights, cooccurrence_penalties
from ercfusion.losses.concordance import SetRows
from ercfusion.losses.terms import RepresentationTerm
from ercfusion.models.base import LabelLoss
from ercfusion.ops.processes import Shares
from ercfusion.tasks.heads import check_class_weights, check_dimension_weights
from ercfusion.tasks.heads import class_weights as weights_of_classes
from ercfusion.tasks.recognizer import Recognized, Recognizer
from ercfusion.tasks.teaching import Taught, TeacherTerms, build_teacher_terms


class Objective(nn.Module):
    """The task loss and auxiliary terms, each times its weight.

    Terms:

    - ``task``: loss of the first task;
    - the name of a further task: its loss;
    - ``unimodal``: sum of these losses on a head per modality (for a further task, times its weight); with
      ``missing.policy=skip`` over the utterances with the modality;
    - auxiliary losses of the architecture;
    - representation terms of :mod:`ercfusion.losses.terms`, on the first task's targets;
    - terms with a teacher, of :mod:`ercfusion.tasks.teaching`.

    :func:`build_objective` creates one from a configuration.

    Args:
        weights: By term; default: the architecture's ``loss_weights``, 1 for other terms. 0 turns a term off.
        class_weights: (C) or None, see :func:`ercfusion.tasks.heads.class_weights`; of the first task.
        others: Class weights of further tasks by name.
        gamma: Focal loss of single-label tasks; 0 is cross-entropy.
        loss: Loss of the tasks with this loss; the others have their default.
        penalties: (C, C) of the first task, from :func:`ercfusion.losses.cooccurrence_penalties`; stored in
            checkpoints.
        terms: Representation terms. Their parameters are trained and stored in checkpoints, but not in saved models.
        settings: Further arguments of :meth:`ercfusion.tasks.heads.Head.loss`.
        over_set: Concordance over the training set for each regression head; None for the batch.
        teaching: Terms with a teacher, trained and stored like ``terms``.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        class_weights: Tensor | None = None,
        *,
        gamma: float = 0.0,
        loss: str = "cross_entropy",
        penalties: Tensor | None = None,
        terms: Iterable[RepresentationTerm] = (),
        others: Mapping[str, Tensor | None] = MappingProxyType({}),
        settings: Mapping[str, Any] = MappingProxyType({}),
        over_set: OverSet | None = None,
        teaching: TeacherTerms | None = None,
    ) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.settings = dict(settings)
        self.over_set = over_set
        self.teaching = teaching
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.others = {name: f"class_weights of {name}" for name in others}
        for name, buffer in self.others.items():
            self.register_buffer(buffer, others[name], persistent=False)
        self.register_buffer("penalties", penalties)
        self.gamma = gamma
        self.loss = loss
        self.terms = nn.ModuleDict({term.name: term for term in terms})

    def forward(
        self, recognizer: Recognizer, recognized: Recognized, batch: ConversationBatch, taught: Taught | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total (a scalar), and the unweighted terms by name.

        Without ``taught``, the outputs of a teacher, the terms with a teacher are left out.

        In distributed training the outputs of the whole batch are collected first (see :mod:`ercfusion.ops.processes`),
        so that terms are computed as in one process.
        """
        shares = Shares(batch.packing, batch.stand_in)
        own = batch.targets[recognizer.task.name]
        targets = TaskTargets(shares.gather(own.value), shares.gather(own.valid))
        rows = None if self.over_set is None else shares.gather(self.over_set.rows(batch))
        terms: dict[str, Tensor] = {}
        unimodal: list[Tensor] = []
        for name, logits in recognized.of(recognizer).items():
            if name == recognizer.task.name:
                term, labels, weight = "task", targets, 1.0
            else:
                other = batch.targets[name]
                term, labels = name, TaskTargets(shares.gather(other.value), shares.gather(other.valid))
                weight = self.weights.get(name, 1.0)
            terms[term] = self._task_loss(recognizer, name, shares.gather(logits.logits), labels, rows)
            own_heads = []
            for modality, output in logits.unimodal.items():
                counted = labels
                if recognizer.policy == "skip" and modality in batch.features:
                    present = shares.gather(batch.present[:, batch.column(modality)])
                    counted = replace(labels, valid=labels.valid & present)
                own_heads.append(self._task_loss(recognizer, name, shares.gather(output), counted, rows, modality))
            unimodal += own_heads if weight == 1 else [weight * loss for loss in own_heads]
        if unimodal:
            terms["unimodal"] = torch.stack(unimodal).sum()
        for name, value in self._auxiliary(recognizer, recognized, shares).items():
            if name in recognized.others:
                raise ConfigError(f"the auxiliary loss {name!r} of the architecture has the name of a task. Rename it.")
            terms[name] = value
        further = self._representation_losses(recognized, batch, targets, shares)
        if self.teaching is not None and taught is not None:
            options = {name: self._settings_of(recognizer, name) for name in recognized.of(recognizer)}
            further |= self.teaching(recognizer, recognized, batch, shares, taught, self.weights, options)
        for name, value in further.items():
            if name in terms:
                raise ConfigError(
                    f"the auxiliary loss {name!r} of the architecture has the name of a term. Rename it, or set "
                    f"objective.weights.{name}=0 to omit the term."
                )
            terms[name] = value
        built = () if self.teaching is None else self.teaching.settings
        known = (*TERMS, *TEACHER_TERMS)
        off = [name for name in known if name not in terms and (self.weights.get(name) == 0 or name in built)]
        # A configuration names all losses of the architecture, even those that its options leave out.
        defaults = recognizer.architecture.loss_weights
        optional = ("task", "unimodal", *off, *defaults)
        unknown = [name for name in self.weights if name not in terms and name not in optional]
        if unknown:
            advice = did_you_mean(unknown[0], dict.fromkeys([*terms, *known]))
            raise ConfigError(f"objective.weights: no term {unknown[0]!r}. {advice}")
        weights = {**defaults, **self.weights}
        total = torch.stack([weights.get(name, 1.0) * value for name, value in terms.items()]).sum()
        if self.teaching is not None and taught is None:
            total = total + self.teaching.idle(recognized.encoded.hidden)
        return total, terms

    def _task_loss(
        self,
        recognizer: Recognizer,
        task: str,
        logits: Tensor,
        targets: TaskTargets,
        rows: Tensor | None,
        modality: str = "",
    ) -> Tensor:
        settings = self._settings_of(recognizer, task)
        if self.over_set is not None and rows is not None:
            settings["concordance"] = self.over_set.of(task, modality, rows[targets.valid])
        return _mean(*recognizer.heads(task).head.loss(logits, targets, **settings))

    def _settings_of(self, recognizer: Recognizer, task: str) -> dict[str, Any]:
        # Arguments of Head.loss.
        weights: Tensor | None = getattr(self, self.others[task]) if task in self.others else None
        penalties = None
        if task == recognizer.task.name:
            weights, penalties = self.class_weights, self.penalties  # type: ignore[assignment]
        known = recognizer.heads(task).task.rules.losses
        loss = self.loss if self.loss in known else "cross_entropy"
        own = {"weights": weights, "gamma": self.gamma, "loss": loss, "penalties": penalties}
        return {**own, **self.settings}

    def _auxiliary(self, recognizer: Recognizer, recognized: Recognized, shares: Shares) -> dict[str, Tensor]:
        terms = {}
        for name, loss in recognized.encoded.losses.items():
            if isinstance(loss, Tensor) and shares.size > 1:
                raise ConfigError(
                    f"the auxiliary loss {name!r} of the architecture covers only this process's part of the batch. "
                    "Use an ercfusion.models.base.BatchLoss, or train in one process."
                )
            if isinstance(loss, LabelLoss):
                terms[name] = loss(shares, **self._settings_of(recognizer, recognizer.task.name))
            else:
                terms[name] = loss if isinstance(loss, Tensor) else loss(shares)
        return terms

    def _representation_losses(
        self, recognized: Recognized, batch: ConversationBatch, targets: TaskTargets, shares: Shares
    ) -> dict[str, Tensor]:
        if not self.terms:
            return {}
        hidden, mask = shares.gather(recognized.encoded.hidden), shares.gather(batch.present)
        modalities = {name: shares.gather(vectors) for name, vectors in recognized.encoded.modalities.items()}
        present = {name: mask[:, batch.column(name)] for name in modalities if name in batch.features}
        return {
            name: torch.stack(
                [
                    _mean(total, count)
                    for total, count in term(hidden, modalities, targets.value, targets.valid, present)
                ]
            ).sum()
            for name, term in self.terms.items()
        }


class OverSet(nn.Module):
    """Concordance over the training set, one :class:`ercfusion.losses.SetConcordance` per regression head.

    Args:
        recognizer: With the heads.
        train: The training split.
    """

    def __init__(self, recognizer: Recognizer, train: Split) -> None:
        super().__init__()
        self._rows = SetRows(train.conversation_ids, train.lengths)
        self.heads = nn.ModuleDict()
        for task in recognizer.tasks:
            if task.rules.representation == "numbers":
                for modality in ("", *recognizer.heads(task.name).unimodal_heads):
                    self.heads[_head_key(task.name, modality)] = SetConcordance(self._rows.size, task.size)

    def rows(self, batch: ConversationBatch) -> Tensor:
        """(N) positions of the utterances of a training batch in the set."""
        return self._rows.of(batch.ids, batch.packing.lengths, batch.device)

    def of(self, task: str, modality: str, rows: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The concordance for one head (``modality`` empty: of all modalities); None if it is not a regression."""
        key = _head_key(task, modality)
        return partial(self.heads[key], rows=rows) if key in self.heads else None


def _head_key(task: str, modality: str) -> str:
    return f"head {task} {modality}"


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / count.clamp(min=1e-12)


def check_objective(settings: sections.Objective) -> None:
    """Raise :class:`ConfigError` for contradictory settings of the section ``objective``."""
    check_class_weights(settings.class_weights)
    if settings.loss == "class_balanced" and settings.class_weights != "none":
        raise ConfigError(
            "objective.loss=class_balanced has its own class weights. Set objective.class_weights=none, or use "
            "objective.loss=focal."
        )
    if settings.ccc_over != "batch" and settings.regression_loss != "ccc":
        raise ConfigError(
            f"objective.ccc_over={settings.ccc_over} is for objective.regression_loss=ccc, but it is "
            f"{settings.regression_loss}. Set objective.ccc_over=batch."
        )
    if settings.gaussian_beta and settings.regression_loss != "gaussian":
        raise ConfigError(
            f"objective.gaussian_beta is for objective.regression_loss=gaussian, but it is {settings.regression_loss}. "
            "Set objective.gaussian_beta=0."
        )
    for name in TERMS:
        RepresentationTerm(name, settings.parts[name])
    others = [weight for name, weight in settings.weights.items() if name not in ("task", "unimodal")]
    if settings.probe and not any(others):
        raise ConfigError(
            "objective.probe=true: without a weight on another term the architecture learns nothing. Add one, for "
            "example objective.weights.triplet=1, or set objective.probe=false."
        )


def build_objective(
    settings: sections.Objective,
    recognizer: Recognizer,
    targets: TaskTargets,
    class_weights: Tensor | None = None,
    others: Mapping[str, TaskTargets] = MappingProxyType({}),
    train: Split | None = None,
    *,
    complete: bool = False,
    teacher: int | None = None,
) -> Objective:
    """Create the objective of a configuration.

    Args:
        settings: The section ``objective``; representation terms with weight 0 are omitted.
        recognizer: The recognizer to train.
        targets: Of the training split, for the loss ``class_balanced``.
        class_weights: (C) or None, from :func:`ercfusion.tasks.heads.class_weights`.
        others: Training targets of further tasks. Weights by label apply to the first task only; a further task without
            this loss uses its default.
        train: The training split, for ``objective.ccc_over=set``.
        complete, teacher: See :func:`ercfusion.tasks.teaching.build_teacher_terms`.

    Raises:
        ConfigError: See :func:`check_objective`; or a loss or term that does not fit the task or architecture.
    """
    check_objective(settings)
    check_dimension_weights(settings.dimension_weights, recognizer.tasks)
    task, weights, loss = recognizer.task, settings.weights, settings.loss
    if loss not in task.rules.losses:
        fits = " and ".join(name for name in KINDS if loss in task_kind(name).losses)
        raise ConfigError(
            f"objective.loss={loss} is for {fits} tasks; {task.name!r} is {task.kind}. "
            "Use cross_entropy, the default loss of every task kind."
        )
    gamma = settings.parts[loss].gamma if loss in settings.parts else 0.0
    if gamma and "focal" not in task.rules.losses:
        raise ConfigError(
            f"objective.{loss}.gamma is for single-label tasks; {task.name!r} is {task.kind}. Set "
            f"objective.{loss}.gamma=0."
        )
    if loss == "class_balanced":
        class_weights = _class_balance(targets, task, settings.parts[loss].beta)
    terms = []
    for name in TERMS:
        if weights.get(name, 0.0) != 0:
            term = RepresentationTerm(name, settings.parts[name])
            term.check_task(task)
            modalities = {} if term.settings.of == "hidden" else recognizer.representation_widths()
            terms.append(term.build(recognizer.architecture.hidden_size, modalities))
    scheme = settings.class_weights if isinstance(settings.class_weights, str) else "none"
    further: dict[str, Tensor | None] = {}
    for name, labels in others.items():
        other = recognizer.heads(name).task
        if loss == "class_balanced" and loss in other.rules.losses:
            further[name] = _class_balance(labels, other, settings.parts[loss].beta)
        else:
            further[name] = weights_of_classes(labels, other, scheme)
    penalties = _penalties(targets, task) if settings.penalty else None
    over_set = None
    if settings.ccc_over == "set":
        if train is None:
            raise ConfigError("objective.ccc_over=set needs the training split. Pass train=, or set ccc_over=batch.")
        over_set = OverSet(recognizer, train)
    teaching = build_teacher_terms(weights, settings.parts, recognizer, complete=complete, teacher=teacher)
    own = {"dimension_weights": dict(settings.dimension_weights), "gaussian_beta": settings.gaussian_beta}
    return Objective(
        weights,
        class_weights,
        gamma=gamma,
        loss=loss,
        penalties=penalties,
        terms=terms,
        others=further,
        settings=own,
        over_set=over_set,
        teaching=teaching,
    )


def _class_balance(targets: TaskTargets, task: TaskSpec, beta: float | None) -> Tensor:
    counts = task.rules.balance_counts(targets.value[targets.valid], task)
    if beta is None:
        total = max(int(targets.valid.sum()), 1)
        beta = (total - 1) / total
    return class_balanced_weights(counts, beta).float()


def _penalties(targets: TaskTargets, task: TaskSpec) -> Tensor:
    if not task.rules.penalty:
        kinds = " and ".join(name for name in KINDS if task_kind(name).penalty)
        raise ConfigError(
            f"objective.penalty is for {kinds} tasks; {task.name!r} is {task.kind}. Set objective.penalty=false."
        )
    valid = targets.valid
    chosen = task.rules.chosen(targets.value[valid]) if targets.votes is None else targets.votes[valid] > 0
    if chosen is None:
        raise ConfigError(
            f"objective.penalty: the corpus has no votes for the {task.kind} task {task.name!r}, so no labels occur "
            "together. Set objective.penalty=false."
        )
    return cooccurrence_penalties(chosen).float()
