"""Heads: from an architecture's vectors to the outputs and the loss of a task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError, CorpusFormatError, did_you_mean
from ercfusion.batch.batch import TaskTargets
from ercfusion.batch.task import TaskSpec
from ercfusion.config.sections import REGRESSION_LOSSES
from ercfusion.tasks.label_similarity import LabelSimilarity

CLASS_WEIGHTS = ("none", "balanced", "effective")


def check_class_weights(scheme: str | Mapping[str, float], task: TaskSpec | None = None) -> dict[str, float] | None:
    """Check the setting ``objective.class_weights``.

    Args:
        scheme: A name in :data:`CLASS_WEIGHTS`, or a weight per label.
        task: Task with the labels; None skips checks of labels.

    Returns:
        Weights by the schema's label names, or None for a named scheme.

    Raises:
        ConfigError: An unknown name, a label without a weight, or a weight below 0; the message lists all such labels.
    """
    key = "objective.class_weights"
    if isinstance(scheme, str):
        if scheme not in CLASS_WEIGHTS:
            raise ConfigError(
                f"{key} must be one of {', '.join(CLASS_WEIGHTS)}; found {scheme!r}. Choose one, or give a weight "
                "per label: {joy: 2, anger: 1}"
            )
        return None
    if not isinstance(scheme, Mapping):
        raise ConfigError(
            f"{key} must be one of {', '.join(CLASS_WEIGHTS)}, or weights by label; found {scheme!r}. Correct it."
        )
    wrong = [
        f"{label}: {weight!r}"
        for label, weight in scheme.items()
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf
    ]
    if wrong:
        raise ConfigError(f"{key}: weights must be numbers of at least 0; found {', '.join(wrong)}. Correct them.")
    if not any(weight > 0 for weight in scheme.values()):
        raise ConfigError(f"{key}: no label has a weight above 0. Give one.")
    if task is None:
        return None
    if task.schema is None:
        raise ConfigError(
            f"{key} has weights by label, but the {task.kind} task {task.name!r} has no labels. Use {key}=none."
        )
    named: dict[str, float] = {}
    problems = []
    for spelling, weight in scheme.items():
        try:
            label = task.schema.canonical(str(spelling))
        except CorpusFormatError:
            problems.append(f"{spelling!r} is not a label. {did_you_mean(str(spelling), task.schema.labels)}")
            continue
        if label in named:
            problems.append(f"{label!r} has two weights.")
        named[label] = float(weight)
    missing = [label for label in task.schema.labels if label not in named]
    if missing:
        problems.append(f"Without a weight: {', '.join(missing)}.")
    if problems:
        raise ConfigError(
            f"{key} does not fit the labels {task.schema.name}. Give one weight per label. {' '.join(problems)}"
        )
    return named


def class_weights(targets: TaskTargets, task: TaskSpec, scheme: str | Mapping[str, float]) -> Tensor | None:
    """Class weights from the counts of a training split, or as given.

    Args:
        targets: Of the training split.
        task: Single-label, multi-label or distribution.
        scheme: ``none``; ``balanced``: proportional to 1 / n_c; ``effective``: proportional to (1 - b) / (1 - b ** n_c)
            with b = (N - 1) / N (Cui et al., CVPR 2019), where n_c sums probabilities for a distribution task; or a
            weight per label, used unchanged.

    Returns:
        (C) weights, or None. Weights from counts have mean 1 over the labelled utterances, and 0 for absent classes.
    """
    given = check_class_weights(scheme, task)
    if given is not None and task.schema is not None:
        return torch.tensor([given[label] for label in task.schema.labels])
    if scheme == "none" or task.schema is None:
        return None
    value = targets.value[targets.valid]
    mass = task.rules.class_mass(value, task)
    if mass is None:
        return None
    count = mass.double().sum(0)
    total = float(len(mass))
    raw = 1 / count.clamp(min=1) if scheme == "balanced" else 1 / (total * (1 - ((total - 1) / total) ** count))
    raw = torch.where(count > 0, raw, 0.0)
    return (raw * count.sum() / (raw * count).sum()).float()


class Head(nn.Module):
    """A linear layer with the output, loss and prior of one task.

    Args:
        task: The task.
        width: Width of the input vectors.
        label_smoothing: For single-label tasks and distributions.
        regression_loss: ``mse``, ``mae``, ``ccc`` (1 - concordance correlation over the labelled utterances of the
            batch), or ``gaussian`` (likelihood of a predicted mean and variance), averaged over the dimensions.
        label_dimension: Width of label vectors: tasks with one logit per label then have a
            :class:`ercfusion.tasks.label_similarity.LabelSimilarity` instead of the linear layer.
        linear: False: the architecture computes the logits, and the head only has their outputs and loss.

    Shapes:
        hidden (N, width) -> logits (N, L), where L is :meth:`ercfusion.batch.kinds.TaskKind.num_logits` of ``rules``.
    """

    def __init__(
        self,
        task: TaskSpec,
        width: int,
        *,
        label_smoothing: float = 0.0,
        regression_loss: str = "mse",
        label_dimension: int | None = None,
        linear: bool = True,
    ) -> None:
        super().__init__()
        if regression_loss not in REGRESSION_LOSSES:
            raise ConfigError(
                f"objective.regression_loss must be one of {', '.join(REGRESSION_LOSSES)}; found {regression_loss!r}. "
                "Choose one of them."
            )
        self.task = task
        self.label_smoothing = label_smoothing
        self.regression_loss = regression_loss
        self.rules = task.rules.with_settings(regression_loss=regression_loss)
        logits = self.rules.num_logits(task)
        self.linear: nn.Linear | LabelSimilarity | None = None
        if linear and label_dimension and task.schema is not None and logits == task.size:
            offset = self.rules.probabilities == "independent"
            self.linear = LabelSimilarity(width, logits, label_dimension, offset=offset)
        elif linear:
            self.linear = nn.Linear(width, logits)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, L) logits."""
        assert self.linear is not None, "the architecture computes the logits"
        return self.linear(hidden)

    @torch.no_grad()
    def start_from_prior(self, targets: TaskTargets) -> None:
        """Set the bias so that the output without evidence is the distribution of the training labels.

        Without a linear layer there is nothing to set.
        """
        if not isinstance(self.linear, nn.Linear):
            return
        value = targets.value[targets.valid]
        self.linear.bias.copy_(self.rules.prior(value, self.task))

    def outputs(self, logits: Tensor) -> Tensor:
        """(N, K) probabilities, or numbers clamped to the task's range."""
        return self.rules.outputs(logits, self.task)

    def spread(self, logits: Tensor) -> Tensor | None:
        """(N, K) predicted standard deviations; None for heads without."""
        return self.rules.spread(logits, self.task)

    def loss(
        self,
        logits: Tensor,
        targets: TaskTargets,
        weights: Tensor | None = None,
        *,
        gamma: float = 0.0,
        loss: str = "cross_entropy",
        penalties: Tensor | None = None,
        **settings: Any,
    ) -> tuple[Tensor, Tensor]:
        """Weighted sum of the losses of the labelled utterances, and the sum of their weights.

        The quotient is the loss of the batch. Separate sums give the exact loss over several processes or batches.

        Args:
            logits: (N, L).
            targets: Of the N utterances; values of unlabelled ones are ignored.
            weights: (C) from :func:`class_weights`: weights of single-label utterances by class, of distributions by
                the mean over classes, or of the labels of a multi-label task.
            gamma: Focal loss of single-label tasks; 0 is cross-entropy.
            loss: A loss of the task's kind; ``cross_entropy`` is its default.
            penalties: (C, C) from :func:`ercfusion.losses.cooccurrence_penalties`, or None.
            settings: Further ones of :meth:`ercfusion.batch.kinds.TaskKind.loss`.
        """
        valid = targets.valid
        return self.rules.loss(
            logits.float()[valid],
            targets.value[valid],
            self.task,
            weights=weights,
            gamma=gamma,
            label_smoothing=self.label_smoothing,
            regression_loss=self.regression_loss,
            loss=loss,
            penalties=penalties,
            **settings,
        )

    def divergence(self, logits: Tensor, teacher: Tensor, **settings: Any) -> Tensor:
        """(N) divergence of the outputs from a teacher's; see :meth:`ercfusion.batch.kinds.TaskKind.divergence`.

        Args:
            logits: (N, L).
            teacher: (N, L) of the teacher.
            settings: ``temperature``, and those of :meth:`loss`.
        """
        return self.rules.divergence(logits.float(), teacher.float(), self.task, **settings)


def check_dimension_weights(weights: Mapping[str, float], tasks: Sequence[TaskSpec]) -> None:
    """Check the setting ``objective.dimension_weights``.

    Raises:
        ConfigError: A name that is not a dimension of a task, or a task whose dimensions all have weight 0.
    """
    key = "objective.dimension_weights"
    known = list(dict.fromkeys(name for task in tasks for name in task.dimensions))
    for name in weights:
        if name not in known:
            if not known:
                raise ConfigError(f"{key} names {name!r}, but no task of the run is a regression. Remove the setting.")
            raise ConfigError(f"{key}: no task of the run has a dimension {name!r}. {did_you_mean(name, known)}")
    for task in tasks:
        if task.dimensions and not any(weights.get(name, 1.0) for name in task.dimensions):
            raise ConfigError(f"{key}: all dimensions of the task {task.name!r} have weight 0. Give one a weight.")
