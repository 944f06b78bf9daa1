"""The training objective: a weighted sum of named terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.batch import ConversationBatch, TaskTargets
from ercfusion.batch.kinds import KINDS, task_kind
from ercfusion.batch.task import TaskSpec
from ercfusion.config import sections
from ercfusion.config.terms import TERMS
from ercfusion.losses import class_balanced_weights
from ercfusion.losses.terms import RepresentationTerm
from ercfusion.models.base import LabelLoss
from ercfusion.ops.processes import Shares
from ercfusion.tasks.heads import check_class_weights
from ercfusion.tasks.heads import class_weights as weights_of_classes
from ercfusion.tasks.recognizer import Recognized, Recognizer


class Objective(nn.Module):
    """The task loss and auxiliary terms, each times its weight.

    Terms:

    - ``task``: loss of the first task;
    - the name of a further task: its loss;
    - ``unimodal``: sum of these losses on a head per modality (for a further task, times its weight);
    - auxiliary losses of the architecture;
    - representation terms of :mod:`ercfusion.losses.terms`, on the first task's targets.

    :func:`build_objective` creates one from a configuration.

    Args:
        weights: By term; default: the architecture's ``loss_weights``, 1 for other terms. 0 turns a term off.
        class_weights: (C) or None, see :func:`ercfusion.tasks.heads.class_weights`; of the first task.
        others: Class weights of further tasks by name.
        gamma: Focal loss of single-label tasks; 0 is cross-entropy.
        terms: Representation terms. Their parameters are trained and stored in checkpoints, but not in saved models.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        class_weights: Tensor | None = None,
        *,
        gamma: float = 0.0,
        terms: Iterable[RepresentationTerm] = (),
        others: Mapping[str, Tensor | None] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.others = {name: f"class_weights of {name}" for name in others}
        for name, buffer in self.others.items():
            self.register_buffer(buffer, others[name], persistent=False)
        self.gamma = gamma
        self.terms = nn.ModuleDict({term.name: term for term in terms})

    def forward(
        self, recognizer: Recognizer, recognized: Recognized, batch: ConversationBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total (a scalar), and the unweighted terms by name.

        In distributed training the outputs of the whole batch are collected first (see :mod:`ercfusion.ops.processes`),
        so that terms are computed as in one process.
        """
        shares = Shares(batch.packing, batch.stand_in)
        own = batch.targets[recognizer.task.name]
        targets = TaskTargets(shares.gather(own.value), shares.gather(own.valid))
        terms: dict[str, Tensor] = {}
        unimodal: list[Tensor] = []
        for name, logits in recognized.of(recognizer).items():
            if name == recognizer.task.name:
                term, labels, weight = "task", targets, 1.0
            else:
                further = batch.targets[name]
                term, labels = name, TaskTargets(shares.gather(further.value), shares.gather(further.valid))
                weight = self.weights.get(name, 1.0)
            terms[term] = self._task_loss(recognizer, name, shares.gather(logits.logits), labels)
            own_heads = [
                self._task_loss(recognizer, name, shares.gather(output), labels) for output in logits.unimodal.values()
            ]
            unimodal += own_heads if weight == 1 else [weight * loss for loss in own_heads]
        if unimodal:
            terms["unimodal"] = torch.stack(unimodal).sum()
        for name, value in self._auxiliary(recognized, shares).items():
            if name in recognized.others:
                raise ConfigError(f"the auxiliary loss {name!r} of the architecture has the name of a task. Rename it.")
            terms[name] = value
        for name, value in self._representation_losses(recognized, batch, targets, shares).items():
            if name in terms:
                raise ConfigError(
                    f"the auxiliary loss {name!r} of the architecture has the name of a term. Rename it, or set "
                    f"objective.weights.{name}=0 to omit the term."
                )
            terms[name] = value
        off = [name for name in TERMS if name not in terms and self.weights.get(name) == 0]
        # A configuration names all losses of the architecture, even those that its options leave out.
        defaults = recognizer.architecture.loss_weights
        optional = ("task", "unimodal", *off, *defaults)
        unknown = [name for name in self.weights if name not in terms and name not in optional]
        if unknown:
            known = dict.fromkeys([*terms, *TERMS])
            raise ConfigError(f"objective.weights: no term {unknown[0]!r}. {did_you_mean(unknown[0], known)}")
        weights = {**defaults, **self.weights}
        total = torch.stack([weights.get(name, 1.0) * value for name, value in terms.items()]).sum()
        return total, terms

    def _task_loss(self, recognizer: Recognizer, task: str, logits: Tensor, targets: TaskTargets) -> Tensor:
        weights: Tensor | None = getattr(self, self.others[task]) if task in self.others else None
        if task == recognizer.task.name:
            weights = self.class_weights  # type: ignore[assignment]
        return _mean(*recognizer.heads(task).head.loss(logits, targets, weights, gamma=self.gamma))

    def _auxiliary(self, recognized: Recognized, shares: Shares) -> dict[str, Tensor]:
        terms = {}
        for name, loss in recognized.encoded.losses.items():
            if isinstance(loss, Tensor) and shares.size > 1:
                raise ConfigError(
                    f"the auxiliary loss {name!r} of the architecture covers only this process's part of the batch. "
                    "Use an ercfusion.models.base.BatchLoss, or train in one process."
                )
            if isinstance(loss, LabelLoss):
                terms[name] = loss(shares, weights=self.class_weights, gamma=self.gamma)
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
) -> Objective:
    """Create the objective of a configuration.

    Args:
        settings: The section ``objective``; representation terms with weight 0 are omitted.
        recognizer: The recognizer to train.
        targets: Of the training split, for the loss ``class_balanced``.
        class_weights: (C) or None, from :func:`ercfusion.tasks.heads.class_weights`.
        others: Training targets of further tasks. Weights by label apply to the first task only; a further task without
            this loss uses its default.

    Raises:
        ConfigError: See :func:`check_objective`; or a loss or term that does not fit the task or architecture.
    """
    check_objective(settings)
    task, weights, loss = recognizer.task, settings.weights, settings.loss
    if loss not in task.rules.losses:
        fits = " and ".join(name for name in KINDS if loss in task_kind(name).losses)
        raise ConfigError(
            f"objective.loss={loss} is for {fits} tasks; {task.name!r} is {task.kind}. "
            "Use cross_entropy, the default loss of every task kind."
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
    gamma = settings.parts[loss].gamma if loss in settings.parts else 0.0
    scheme = settings.class_weights if isinstance(settings.class_weights, str) else "none"
    further: dict[str, Tensor | None] = {}
    for name, labels in others.items():
        other = recognizer.heads(name).task
        if loss == "class_balanced" and loss in other.rules.losses:
            further[name] = _class_balance(labels, other, settings.parts[loss].beta)
        else:
            further[name] = weights_of_classes(labels, other, scheme)
    return Objective(weights, class_weights, gamma=gamma, terms=terms, others=further)


def _class_balance(targets: TaskTargets, task: TaskSpec, beta: float) -> Tensor:
    mass = task.rules.class_mass(targets.value[targets.valid], task)
    assert mass is not None
    return class_balanced_weights(mass.sum(0), beta).float()
