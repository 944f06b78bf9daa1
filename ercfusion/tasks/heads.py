"""Heads: from an architecture's vectors to the outputs of a task, and the loss that trains them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError, CorpusFormatError, did_you_mean
from ercfusion.batch.batch import TaskTargets
from ercfusion.batch.task import TaskSpec
from ercfusion.config.sections import REGRESSION_LOSSES

CLASS_WEIGHTS = ("none", "balanced", "effective")


def check_class_weights(scheme: str | Mapping[str, float], task: TaskSpec | None = None) -> dict[str, float] | None:
    """Check the setting ``objective.class_weights``.

    Args:
        scheme: A name of :data:`CLASS_WEIGHTS`, or a weight for every label by its name.
        task: Whose labels they are; None checks what can be checked without knowing them.

    Returns:
        Weights by the schema's own label names where ``scheme`` gives them, otherwise None.

    Raises:
        ConfigError: an unknown name, a label without a weight, or a weight that is not a number of at least 0; one
            message names all such labels.
    """
    key = "objective.class_weights"
    if isinstance(scheme, str):
        if scheme not in CLASS_WEIGHTS:
            raise ConfigError(
                f"{key} must be one of {', '.join(CLASS_WEIGHTS)}; found {scheme!r}. It may also give a weight for "
                "every label by name: {joy: 2, anger: 1}"
            )
        return None
    if not isinstance(scheme, Mapping):
        raise ConfigError(f"{key} must be one of {', '.join(CLASS_WEIGHTS)}, or weights by label; found {scheme!r}")
    wrong = [
        f"{label}: {weight!r}"
        for label, weight in scheme.items()
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf
    ]
    if wrong:
        raise ConfigError(f"{key}: weights must be numbers of at least 0; found {', '.join(wrong)}")
    if not any(weight > 0 for weight in scheme.values()):
        raise ConfigError(f"{key}: no label has a weight above 0")
    if task is None:
        return None
    if task.schema is None:
        raise ConfigError(f"{key} gives weights by label, but the {task.kind} task {task.name!r} has no labels")
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
        raise ConfigError(f"{key} does not fit the labels {task.schema.name}: {' '.join(problems)}")
    return named


def class_weights(targets: TaskTargets, task: TaskSpec, scheme: str | Mapping[str, float]) -> Tensor | None:
    """Weights of the classes, from the counts of a training split or as given.

    Args:
        targets: Of the training split only.
        task: Single-label, multi-label or distribution.
        scheme: ``none``; ``balanced``, proportional to 1 / n_c; ``effective``, proportional to (1 - b) / (1 - b ** n_c)
            with b = (N - 1) / N (Cui et al., CVPR 2019); n_c sums probabilities for a distribution task. Or a weight
            for every label by its name, taken as it is.

    Returns:
        (C) weights, or None. Those from counts have mean 1 over the labelled utterances (a class that never occurs gets
        0).
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
        task: What is predicted.
        width: Of the vectors it reads.
        label_smoothing: For single-label tasks.
        regression_loss: ``mse``, ``mae`` or ``ccc`` (1 - concordance correlation over all labelled utterances of the
            batch, averaged over the dimensions).

    Shapes:
        hidden (N, width) -> logits (N, L), where L is :meth:`ercfusion.batch.kinds.TaskKind.num_logits`.
    """

    def __init__(
        self, task: TaskSpec, width: int, *, label_smoothing: float = 0.0, regression_loss: str = "mse"
    ) -> None:
        super().__init__()
        if regression_loss not in REGRESSION_LOSSES:
            raise ConfigError(
                f"objective.regression_loss must be one of {', '.join(REGRESSION_LOSSES)}; found {regression_loss!r}"
            )
        self.task = task
        self.label_smoothing = label_smoothing
        self.regression_loss = regression_loss
        self.linear = nn.Linear(width, task.rules.num_logits(task))

    def forward(self, hidden: Tensor) -> Tensor:
        """See the class."""
        return self.linear(hidden)

    @torch.no_grad()
    def start_from_prior(self, targets: TaskTargets) -> None:
        """Set the bias so that, without evidence, the head answers with the distribution of the training labels."""
        value = targets.value[targets.valid]
        self.linear.bias.copy_(self.task.rules.prior(value, self.task))

    def outputs(self, logits: Tensor) -> Tensor:
        """(N, K) probabilities, or numbers kept within the task's range."""
        return self.task.rules.outputs(logits, self.task)

    def loss(
        self, logits: Tensor, targets: TaskTargets, weights: Tensor | None = None, *, gamma: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Weighted sum of the losses of the labelled utterances, and the sum of their weights.

        The quotient is the batch's loss; the two are kept apart so that a loss over several processes, or several
        batches, is the loss over all their utterances and not a mean of means.

        Args:
            logits: (N, L).
            targets: Of the N utterances; the content of unlabelled ones never matters.
            weights: (C) from :func:`class_weights`. A single-label utterance weighs as much as its class, a
                distribution as the mean over its classes; for multi-label tasks they weigh the labels.
            gamma: Of the focal loss, for single-label tasks only; 0 is cross-entropy.
        """
        valid = targets.valid
        return self.task.rules.loss(
            logits.float()[valid],
            targets.value[valid],
            self.task,
            weights=weights,
            gamma=gamma,
            label_smoothing=self.label_smoothing,
            regression_loss=self.regression_loss,
        )
