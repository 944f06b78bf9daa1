"""The objective: a weighted sum of named terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError, did_you_mean
from ercfusion.batch.batch import ConversationBatch, TaskTargets
from ercfusion.batch.kinds import KINDS, task_kind
from ercfusion.batch.task import TaskSpec
from ercfusion.losses import class_balanced_weights
from ercfusion.losses.terms import TERMS, RepresentationTerm, term_settings
from ercfusion.ops.processes import Shares
from ercfusion.tasks.heads import check_class_weights
from ercfusion.tasks.recognizer import Recognized, Recognizer

LOSSES: dict[str, dict[str, float]] = {
    "cross_entropy": {},
    "focal": {"gamma": 2.0},
    "class_balanced": {"beta": 0.999, "gamma": 0.0},
}
"""Losses of a single-label task by name, with their settings; ``cross_entropy`` is the usual loss of every task."""

_PLAIN = ("weights", "class_weights", "label_smoothing", "regression_loss", "loss", "probe")


class Objective(nn.Module):
    """What training minimises: the task's loss and every auxiliary term, each times its weight.

    Terms: ``task`` (the head's loss), ``unimodal`` (the sum of the same loss on a head for each modality's
    representation), whatever auxiliary losses the architecture names, and the representation terms of
    :mod:`ercfusion.losses.terms` that are given. :func:`build_objective` makes one from a configuration.

    Args:
        weights: By term; a term without a weight counts 1, a weight of 0 switches it off.
        class_weights: (C) or None, see :func:`ercfusion.tasks.heads.class_weights`.
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
    ) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.register_buffer("class_weights", class_weights, persistent=False)
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
        terms = {"task": self._task_loss(recognizer, shares.gather(recognized.logits), targets)}
        if recognized.unimodal:
            outputs = map(shares.gather, recognized.unimodal.values())
            terms["unimodal"] = torch.stack([self._task_loss(recognizer, logits, targets) for logits in outputs]).sum()
        terms.update(_auxiliary(recognized, shares))
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

    def _task_loss(self, recognizer: Recognizer, logits: Tensor, targets: TaskTargets) -> Tensor:
        weights: Tensor | None = self.class_weights  # type: ignore[assignment]
        return _mean(*recognizer.head.loss(logits, targets, weights, gamma=self.gamma))

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


def check_objective(settings: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for a loss or term that does not exist, or a setting of one that cannot be used.

    Args:
        settings: The section ``objective`` of a configuration.
    """
    _task_settings(settings)
    known = [*_PLAIN, *(name for name in LOSSES if LOSSES[name]), *TERMS]
    for key in settings:
        if key not in known:
            raise ConfigError(f"objective has no setting {key!r}. {did_you_mean(key, known)}")
    for name in TERMS:
        _make_term(name, settings)
    probe, weights = settings.get("probe", False), settings.get("weights") or {}
    if not isinstance(probe, bool):
        raise ConfigError(f"objective.probe must be true or false, found {probe!r}")
    if probe and not any(weight != 0 for name, weight in weights.items() if name not in ("task", "unimodal")):
        raise ConfigError(
            "objective.probe=true: the classifier sends no gradient back, and no other term has a weight, so that the "
            "architecture would learn nothing. Give one, for example objective.weights.triplet=1, or take probe=false."
        )


def _task_settings(settings: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """The task's loss and its settings, checked."""
    check_class_weights(settings.get("class_weights", "none"))
    name = settings.get("loss", "cross_entropy")
    if name not in LOSSES:
        raise ConfigError(f"objective.loss must be one of {', '.join(LOSSES)}; found {name!r}")
    given = settings.get(name) or {}
    for key in given:
        if key not in LOSSES[name]:
            raise ConfigError(f"objective.{name} has no setting {key!r}. {did_you_mean(key, LOSSES[name])}")
    values = {**LOSSES[name], **given}
    if not 0 <= values.get("gamma", 0.0) < float("inf"):
        raise ConfigError(f"objective.{name}.gamma must be at least 0, found {values['gamma']}")
    if not 0 <= values.get("beta", 0.0) < 1:
        raise ConfigError(f"objective.{name}.beta must be at least 0 and below 1, found {values['beta']}")
    if name == "class_balanced" and settings.get("class_weights", "none") != "none":
        raise ConfigError(
            "objective.loss=class_balanced brings weights of its own: set objective.class_weights=none, or choose "
            "objective.loss=focal with class weights"
        )
    return name, values


def _make_term(name: str, settings: Mapping[str, Any]) -> RepresentationTerm:
    return RepresentationTerm(name, **(settings.get(name) or {}))


def build_objective(
    settings: Mapping[str, Any], recognizer: Recognizer, targets: TaskTargets, class_weights: Tensor | None = None
) -> Objective:
    """The objective that a configuration asks for.

    Args:
        settings: The section ``objective``: ``weights`` by term; ``loss`` and a section of its name; and a section for
            each representation term. What is left out has its default; a representation term without a weight, or with
            0, is not built.
        recognizer: That it will train; asked for widths.
        targets: Of the training split, for the loss ``class_balanced``.
        class_weights: (C) or None, what :func:`ercfusion.tasks.heads.class_weights` makes of the setting of that name.

    Raises:
        ConfigError: see :func:`check_objective`; or a loss or term that does not fit the task or the architecture.
    """
    check_objective(settings)
    task, weights = recognizer.task, settings["weights"]
    loss, values = _task_settings(settings)
    if loss not in task.rules.losses:
        fits = " and ".join(name for name in KINDS if loss in task_kind(name).losses)
        raise ConfigError(
            f"objective.loss={loss} is for {fits} tasks; {task.name!r} is {task.kind}. "
            "Leave it at cross_entropy, which stands for the usual loss of every task."
        )
    if loss == "class_balanced":
        class_weights = _class_balance(targets, task, values["beta"])
    terms = []
    for name in TERMS:
        if weights.get(name, 0.0) != 0:
            term = _make_term(name, settings)
            term.check_task(task)
            modalities = {} if term.of == "hidden" else recognizer.representation_widths()
            terms.append(term.build(recognizer.architecture.hidden_size, modalities))
    return Objective(weights, class_weights, gamma=values.get("gamma", 0.0), terms=terms)


def _class_balance(targets: TaskTargets, task: TaskSpec, beta: float) -> Tensor:
    mass = task.rules.class_mass(targets.value[targets.valid], task)
    assert mass is not None
    return class_balanced_weights(mass.sum(0), beta).float()


def objective_settings() -> dict[str, dict[str, Any]]:
    """Every section of settings with its defaults: of the losses that have any, and of the representation terms."""
    losses: dict[str, dict[str, Any]] = {name: dict(values) for name, values in LOSSES.items() if values}
    return losses | {name: term_settings(name) for name in TERMS}
