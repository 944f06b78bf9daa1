"""The objective: a weighted sum of named terms."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ercfusion.data.batch import ConversationBatch
from ercfusion.errors import ConfigError, did_you_mean
from ercfusion.tasks.recognizer import Recognized, Recognizer


class Objective(nn.Module):
    """What training minimises: the task's loss and every auxiliary term, each times its weight.

    Terms: ``task`` (the head's loss), ``unimodal`` (the sum of the same loss on a head for each modality's
    representation), and whatever auxiliary losses the architecture names.

    Args:
        weights: By term; a term without a weight counts 1, a weight of 0 switches it off.
        class_weights: (C) or None, see :func:`ercfusion.tasks.heads.class_weights`.
    """

    def __init__(self, weights: Mapping[str, float], class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(
        self, recognizer: Recognizer, recognized: Recognized, batch: ConversationBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, a scalar, and the unweighted terms by name."""
        targets = batch.targets[recognizer.task.name]
        weights: Tensor | None = self.class_weights  # type: ignore[assignment]
        terms = {"task": mean_over_processes(*recognizer.head.loss(recognized.logits, targets, weights))}
        if recognized.unimodal:
            losses = [
                mean_over_processes(*recognizer.head.loss(logits, targets, weights))
                for logits in recognized.unimodal.values()
            ]
            terms["unimodal"] = torch.stack(losses).sum()
        terms.update(recognized.encoded.losses)
        unknown = [name for name in self.weights if name not in terms and name not in ("task", "unimodal")]
        if unknown:
            raise ConfigError(f"objective.weights names the term {unknown[0]!r}. {did_you_mean(unknown[0], terms)}")
        total = torch.stack([self.weights.get(name, 1.0) * value for name, value in terms.items()]).sum()
        return total, terms


def mean_over_processes(total: Tensor, count: Tensor) -> Tensor:
    """``total / count``, where in distributed training the count is that of all processes.

    Data-parallel training averages the gradients of W processes. Dividing each process's sum by (count of all) / W
    makes that average the gradient of the mean over all utterances, however unevenly they are spread.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = count.detach().clone()
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return total / count.clamp(min=1e-12)
