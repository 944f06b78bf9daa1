"""Supervised contrast of latent vectors per label and modality (CARAT; Peng et al., AAAI 2024).

N utterances, S stages of reconstruction, M modalities, C labels, Z width of a latent vector.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from ercfusion.losses._common import unit
from ercfusion.losses.contrastive import Memory, MemoryQueue, supervised_contrastive
from ercfusion.losses.log_sums import Anchors


def label_classes(positive: Tensor, modalities: int) -> Tensor:
    """Class of each latent vector: modality, polarity and label; 2 * M * C classes.

    Shapes:
        (N, C) bool -> (N, M, C) long, (2 m + polarity) C + c.

    Args:
        positive: Whether the utterance has the label.
        modalities: M.
    """
    C = positive.shape[1]
    m = torch.arange(modalities, device=positive.device)[:, None]
    c = torch.arange(C, device=positive.device)
    return (2 * m + positive.long()[:, None]) * C + c


def label_contrastive(
    latents: Tensor,
    positive: Tensor,
    *,
    temperature: float = 0.07,
    anchors: Anchors = "all",
    valid: Tensor | None = None,
    memory: Memory | None = None,
) -> tuple[Tensor, Tensor]:
    """Supervised contrastive loss of latent vectors with the classes of :func:`label_classes`.

    Computed by :func:`ercfusion.losses.supervised_contrastive`; anchors without another of their class count with loss
    0, as in the released code.

    Args:
        latents: (N, S, M, C, Z), scaled to length 1 here.
        positive: (N, C) bool, whether the utterance has the label; arbitrary if not ``valid``.
        temperature: Divisor of the similarities, above 0.
        anchors: ``all``: rows of ``memory`` are anchors too, as in the released code; or ``batch``.
        valid: (N) bool, the labelled utterances, or (N, M) bool per modality; None for all.
        memory: Unit vectors (Q, Z) and classes (Q) of earlier utterances.

    Returns:
        The sum over anchors, and their number.

    Raises:
        ValueError: shapes do not match, or a setting is out of range.
    """
    if latents.ndim != 5 or positive.shape != (latents.shape[0], latents.shape[3]):
        raise ValueError(
            f"expected latents (N, S, M, C, Z) and positive (N, C), found {tuple(latents.shape)} and "
            f"{tuple(positive.shape)}. Give one row of labels per utterance."
        )
    vectors, classes = _rows(latents, positive, valid)
    return supervised_contrastive(
        vectors,
        classes,
        temperature=temperature,
        include_lonely=True,
        memory=memory,
        anchors=anchors,
        classes=2 * latents.shape[2] * latents.shape[3],
    )


def _rows(latents: Tensor, positive: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Latent vectors (N S M C, Z) of the valid utterances, and their classes."""
    classes = label_classes(positive, latents.shape[2])[:, None].expand(latents.shape[:4])
    if valid is not None and valid.ndim == 2:
        counted = valid[:, None, :, None].expand(classes.shape).flatten().nonzero().squeeze(1)
        return latents.flatten(0, 3).index_select(0, counted), classes.flatten().index_select(0, counted)
    if valid is not None:
        rows = valid.nonzero().squeeze(1)
        latents, classes = latents.index_select(0, rows), classes.index_select(0, rows)
    return latents.flatten(0, 3), classes.flatten()


class LabelContrast(nn.Module):
    """:func:`label_contrastive` with a queue of earlier latent vectors.

    In train mode, the vectors of a batch enter the queue after its loss. The queue is empty at first and part of the
    state, so a resumed training continues with it. In distributed training call it with the whole batch in every
    process (:class:`ercfusion.models.base.BatchLoss`): the queues stay equal.

    Args:
        width: Z.
        queue: Number of earlier vectors; 0 for none.
        temperature: Divisor of the similarities, above 0.
        anchors: ``all`` or ``batch``, see :func:`label_contrastive`.

    Raises:
        ValueError: ``anchors`` is unknown.
    """

    def __init__(self, width: int, *, queue: int = 8192, temperature: float = 0.07, anchors: Anchors = "all") -> None:
        super().__init__()
        if anchors not in get_args(Anchors):
            raise ValueError(f"anchors must be one of {', '.join(get_args(Anchors))}; found {anchors!r}. Choose one.")
        self.temperature = temperature
        self.anchors: Anchors = anchors
        self.queue = MemoryQueue(queue, width) if queue else None

    def forward(self, latents: Tensor, positive: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mean over anchors, a scalar; 0 without valid utterances.

        Shapes:
            latents (N, S, M, C, Z), positive (N, C) bool, valid (N) or (N, M) bool -> ().
        """
        memory = None if self.queue is None else self.queue.content()
        total, number = label_contrastive(
            latents, positive, temperature=self.temperature, anchors=self.anchors, valid=valid, memory=memory
        )
        if self.training and self.queue is not None:
            vectors, classes = _rows(latents.detach(), positive, valid)
            self.queue.push(unit(vectors.to(self.queue.vectors)), classes)
        return total / number.clamp(min=1)
