"""The objective: a weighted sum of named terms."""

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
from ercfusion.ops.processes import Shares
from ercfusion.tasks.heads import check_class_weights
from ercfusion.tasks.heads import class_weights as weights_of_classes
from ercfusion.tasks.recognizer import Recognized, Recognizer


class Objective(nn.Module):
    """What training minimises: the task's loss and every auxiliary term, each times its weight.

    Terms: ``task`` (the head's loss), the loss of each further task under the task's own name, ``unimodal`` (the sum of
    the same losses on a head for each modality's representation; that of a further task times the task's weight),
    whatever auxiliary losses the architecture names, and the representation terms of :mod:`ercfusion.losses.terms` that
    are given; these read the first task's targets. :func:`build_objective` makes one from a configuration.

    Args:
        weights: By term; a term without a weight counts 1, a weight of 0 switches it off.
        class_weights: (C) or None, see :func:`ercfusion.tasks.heads.class_weights`; of the first task.
        others: The same for further tasks by name.
        gamma: Of the focal loss, for single-label tasks; 0 is cross-entropy.
        terms: Representation terms, built for the recognizer. Their parameters are trained with the recognizer's and
            belong to the objective: checkpoints hold them, saved models do not.
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
        """The total, a scalar, and the unweighted terms by name.

        In distributed training the outputs for the whole batch are collected first, and all that follows is computed
        as in a single process (see :mod:`ercfusion.ops.processes`): a term need not know about processes.
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
                found = batch.targets[name]
                term, labels = name, TaskTargets(shares.gather(found.value), shares.gather(found.valid))
                weight = self.weights.get(name, 1.0)
            terms[term] = self._task_loss(recognizer, name, shares.gather(logits.logits), labels)
            own_heads = [
                self._task_loss(recognizer, name, shares.gather(output), labels) for output in logits.unimodal.values()
            ]
            unimodal += own_heads if weight == 1 else [weight * loss for loss in own_heads]
        if unimodal:
            terms["unimodal"] = torch.stack(unimodal).sum()
        for name, value in _auxiliary(recognized, shares).items():
            if name in recognized.others:
                raise ConfigError(f"the architecture names an auxiliary loss {name!r}, which is a task too")
            terms[name] = value
        for name, value in self._representation_losses(recognized, batch, targets, shares).items():
            if name in terms:
                raise ConfigError(
                    f"the architecture names an auxiliary loss {name!r}, which is a term of the objective too: "
                    f"set objective.weights.{name}=0 for its own alone, or rename it"
                )
            terms[name] = value
        off = [name for name in TERMS if name not in terms and self.weights.get(name) == 0]
        unknown = [name for name in self.weights if name not in terms and name not in ("task", "unimodal", *off)]
        if unknown:
            known = dict.fromkeys([*terms, *TERMS])
            raise ConfigError(f"objective.weights names the term {unknown[0]!r}. {did_you_mean(unknown[0], known)}")
        total = torch.stack([self.weights.get(name, 1.0) * value for name, value in terms.items()]).sum()
        return total, terms

    def _task_loss(self, recognizer: Recognizer, task: str, logits: Tensor, targets: TaskTargets) -> Tensor:
        weights: Tensor | None = getattr(self, self.others[task]) if task in self.others else None
        if task == recognizer.task.name:
            weights = self.class_weights  # type: ignore[assignment]
        return _mean(*recognizer.heads(task).head.loss(logits, targets, weights, gamma=self.gamma))

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


def _auxiliary(recognized: Recognized, shares: Shares) -> dict[str, Tensor]:
    terms = {}
    for name, loss in recognized.encoded.losses.items():
        if isinstance(loss, Tensor) and shares.size > 1:
            raise ConfigError(
                f"the architecture's auxiliary loss {name!r} is a number for this process's share of the batch. To "
                "train in several processes, return an ercfusion.models.base.BatchLoss, or train in one process"
            )
        terms[name] = loss if isinstance(loss, Tensor) else loss(shares)
    return terms


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / count.clamp(min=1e-12)


# From a configuration


def check_objective(settings: sections.Objective) -> None:
    """Raise :class:`ConfigError` for settings of the section ``objective`` that do not go together."""
    check_class_weights(settings.class_weights)
    if settings.loss == "class_balanced" and settings.class_weights != "none":
        raise ConfigError(
            "objective.loss=class_balanced brings weights of its own: set objective.class_weights=none, or choose "
            "objective.loss=focal with class weights"
        )
    for name in TERMS:
        RepresentationTerm(name, settings.parts[name])
    others = [weight for name, weight in settings.weights.items() if name not in ("task", "unimodal")]
    if settings.probe and not any(others):
        raise ConfigError(
            "objective.probe=true: the classifier sends no gradient back, and no other term has a weight, so that the "
            "architecture would learn nothing. Give one, for example objective.weights.triplet=1, or take probe=false."
        )


def build_objective(
    settings: sections.Objective,
    recognizer: Recognizer,
    targets: TaskTargets,
    class_weights: Tensor | None = None,
    others: Mapping[str, TaskTargets] = MappingProxyType({}),
) -> Objective:
    """The objective that a configuration asks for.

    Args:
        settings: The section ``objective``; a representation term without a weight, or with 0, is not built.
        recognizer: That it will train; asked for widths.
        targets: Of the training split, for the loss ``class_balanced``.
        class_weights: (C) or None, what :func:`ercfusion.tasks.heads.class_weights` makes of the setting of that name.
        others: Of the training split, for further tasks. Weights by label are those of the first task's labels, and a
            loss that a further task does not know is its usual one.

    Raises:
        ConfigError: see :func:`check_objective`; or a loss or term that does not fit the task or the architecture.
    """
    check_objective(settings)
    task, weights, loss = recognizer.task, settings.weights, settings.loss
    if loss not in task.rules.losses:
        fits = " and ".join(name for name in KINDS if loss in task_kind(name).losses)
        raise ConfigError(
            f"objective.loss={loss} is for {fits} tasks; {task.name!r} is {task.kind}. "
            "Leave it at cross_entropy, which stands for the usual loss of every task."
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
    for name, found in others.items():
        other = recognizer.heads(name).task
        if loss == "class_balanced" and loss in other.rules.losses:
            further[name] = _class_balance(found, other, settings.parts[loss].beta)
        else:
            further[name] = weights_of_classes(found, other, scheme)
    return Objective(weights, class_weights, gamma=gamma, terms=terms, others=further)


def _class_balance(targets: TaskTargets, task: TaskSpec, beta: float) -> Tensor:
    mass = task.rules.class_mass(targets.value[targets.valid], task)
    assert mass is not None
    return class_balanced_weights(mass.sum(0), beta).float()
