"""Contrastive losses over the utterances of a batch.

Each is a sum over anchors (or pairs) and their number. :mod:`ercfusion.losses.reference` has plain loops.
"""

from __future__ import annotations

from functools import partial
from typing import get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ercfusion.losses._common import check_above_zero, check_labels, distances, in_full_precision, rows_of, unit
from ercfusion.losses.earlier import EarlierBatches
from ercfusion.losses.log_sums import LOWEST_TEMPERATURE, Anchors, log_sums

# Similarities per chunk of anchors: 16 MiB in float32.
_ENTRIES = 1 << 22

Memory = tuple[Tensor, Tensor]


@in_full_precision
def supervised_contrastive(
    vectors: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.07,
    include_lonely: bool = False,
    normalize: bool = True,
    valid: Tensor | None = None,
    memory: Memory | None = None,
    anchors: Anchors = "batch",
    classes: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Supervised contrastive loss (Khosla et al., NeurIPS 2020, equation 2).

    .. math:: L_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \frac{\exp(z_i z_p / t)}{\sum_{k \ne i} \exp(z_i z_k / t)}

    P_i are the other keys (utterances and ``memory``) with label i. Denominators are computed in chunks, again in the
    backward pass, so memory grows with N, not N^2.

    Args:
        vectors: z (N, D).
        labels: (N) class indices; arbitrary if not ``valid``.
        temperature: t, above 0.
        include_lonely: Count anchors without a positive, with loss 0.
        normalize: Scale the vectors to length 1 first.
        valid: (N) bool, the anchors and keys; None for all.
        memory: Vectors (Q, D), not divided by t, and labels (Q) of earlier utterances (:class:`MemoryQueue`): keys
            without gradient. With ``normalize`` they must have length 1.
        anchors: ``batch``, or ``all``: the rows of ``memory`` too. Their losses move the keys of the batch.
        classes: Number of classes; None for the largest label + 1, which a GPU has to report first.

    Returns:
        The sum over anchors, and their number.

    Raises:
        ValueError: ``temperature`` is not above 0, ``anchors`` is unknown, or shapes do not match.
    """
    if anchors not in get_args(Anchors):
        raise ValueError(
            f"anchors must be one of {', '.join(get_args(Anchors))}; found {anchors!r}. Choose one of them."
        )
    return _contrast(
        vectors,
        labels,
        temperature,
        include_lonely,
        normalize,
        valid,
        memory,
        others_only=False,
        anchors=anchors,
        classes=classes,
    )


@in_full_precision
def inter_class_contrastive(
    vectors: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.07,
    include_lonely: bool = False,
    normalize: bool = True,
    valid: Tensor | None = None,
    memory: Memory | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Contrast against other classes only: positives do not repel each other.

    .. math:: L_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \frac{z_i z_p}{t} + \log \sum_{k: y_k \ne y_i} \exp(z_i z_k / t)

    The denominator is that of decoupled contrastive learning (Yeh et al., ECCV 2022). The idea follows Shi et al. (ICIC
    2024), whose equations were not available. The minimum is -2 / t + log(number of keys of other classes).

    Args:
        vectors, labels, temperature, normalize, valid, memory: As for :func:`supervised_contrastive`.
        include_lonely: Count anchors without a positive or a key of another class, with loss 0.

    Returns:
        The sum over anchors, and their number.

    Raises:
        ValueError: As for :func:`supervised_contrastive`.
    """
    return _contrast(vectors, labels, temperature, include_lonely, normalize, valid, memory, others_only=True)


def _contrast(
    vectors: Tensor,
    labels: Tensor,
    temperature: float,
    include_lonely: bool,
    normalize: bool,
    valid: Tensor | None,
    memory: Memory | None,
    *,
    others_only: bool,
    anchors: Anchors = "batch",
    classes: int | None = None,
) -> tuple[Tensor, Tensor]:
    check_above_zero("temperature", temperature)
    check_labels(vectors, labels)
    vectors, labels = rows_of(valid, vectors, labels)
    number = len(vectors)
    if normalize:
        vectors = unit(vectors)
    keys, key_labels = vectors, labels
    if memory is not None:
        check_labels(*memory)
        keys = torch.cat([vectors, memory[0].detach().to(vectors)])
        key_labels = torch.cat([labels, memory[1]])
    if number == 0:
        return vectors.sum(), vectors.new_zeros(())
    if classes is None:
        classes = int(key_labels.max()) + 1
    member = (key_labels[:, None] == torch.arange(classes, device=labels.device)).to(keys)
    sums, queries = member.t() @ keys, vectors
    if anchors == "all":
        queries, labels, number = keys, key_labels, len(keys)
    # The sum of a class includes the anchor itself.
    positives = member.sum(0).index_select(0, labels) - 1
    others = len(keys) - 1 - positives
    scaled = queries / temperature
    attraction = (scaled * (sums.index_select(0, labels) - queries)).sum(1)
    if anchors == "all" and normalize and temperature >= LOWEST_TEMPERATURE:
        repulsion = log_sums(vectors, keys[len(vectors) :], temperature)
    else:
        repulsion = _log_sums_in_chunks(scaled, labels, keys, key_labels, others_only)
    included = (positives > 0) & (others > 0) if others_only else positives > 0
    losses = torch.where(included, repulsion - attraction / positives.clamp(min=1), 0.0)
    return losses.sum(), losses.new_tensor(float(number)) if include_lonely else included.sum().to(losses)


def _log_sums_in_chunks(anchors: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, others_only: bool) -> Tensor:
    number, rows = len(anchors), max(1, _ENTRIES // len(keys))
    if rows >= number:
        return _log_sum(anchors, labels, keys, key_labels, 0, others_only)
    return torch.cat(
        [
            checkpoint(
                partial(_log_sum, start=start, others_only=others_only),
                anchors[start : start + rows],
                labels[start : start + rows],
                keys,
                key_labels,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, number, rows)
        ]
    )


def _log_sum(
    anchors: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, start: int, others_only: bool
) -> Tensor:
    """Log-denominator of the anchors from row ``start`` on; 0 without keys."""
    if others_only:
        keep = labels[:, None] != key_labels
    else:
        rows_of_anchors = torch.arange(start, start + len(anchors), device=anchors.device)
        keep = rows_of_anchors[:, None] != torch.arange(len(keys), device=anchors.device)
    has_key = keep.any(1, keepdim=True)
    # Rows without keys keep all, and the result is discarded: the gradient of log(0) is NaN.
    logits = (anchors @ keys.t()).masked_fill(~keep & has_key, -torch.inf)
    return torch.where(has_key.squeeze(1), logits.logsumexp(1), 0.0)


class MemoryQueue(EarlierBatches):
    """The last utterances, as keys without gradient.

    The content is part of the state, so a resumed training continues with it. With ``training.complete_pass`` there is
    one queue per pass: in a shared one, every utterance would be its own key.

    Args:
        size: Number of utterances, at least 1.
        width: Width of their vectors.

    Raises:
        ValueError: ``size`` is below 1.
    """

    vectors: Tensor
    labels: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, found {size}. Choose a larger number.")
        self.size = size
        self.register_buffer("vectors", torch.zeros(size, width))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def content(self) -> Memory:
        """Vectors (Q, width) and labels (Q), newest first."""
        number = int(self.filled)
        # Copies, because a push may precede the backward pass.
        return self.vectors[:number].clone(), self.labels[:number].clone()

    @torch.no_grad()
    def push(self, vectors: Tensor, labels: Tensor) -> None:
        """Add utterances (n, width), (n), and drop the oldest."""
        for buffer, new in ((self.vectors, vectors), (self.labels, labels)):
            buffer.copy_(torch.cat([new.to(buffer), buffer])[: self.size])
        self.filled.add_(len(labels)).clamp_(max=self.size)


@in_full_precision
def rank_n_contrast(
    vectors: Tensor,
    targets: Tensor,
    *,
    temperature: float = 2.0,
    normalize: bool = False,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Rank-N-Contrast: distances ordered as those of the targets (Zha et al., NeurIPS 2023).

    .. math:: L_{ik} = -\log \frac{\exp(s_{ik})}{\sum_{j \ne i,\, d_{ij} \ge d_{ik}} \exp(s_{ij})}

    with :math:`s_{ij} = -|z_i - z_j|_2 / t` and :math:`d_{ij} = |y_i - y_j|_1`. Sorted rows and running sums need O(n^2
    log n) instead of O(n^3).

    Args:
        vectors: z (N, D).
        targets: y (N, K); arbitrary if not ``valid``.
        temperature: t, above 0.
        normalize: Scale the vectors to length 1 first; the paper does not.
        valid: (N) bool, the utterances used; None for all.

    Returns:
        The sum over pairs of different utterances, and their number n (n - 1).

    Raises:
        ValueError: ``temperature`` is not above 0, or shapes do not match.
    """
    check_above_zero("temperature", temperature)
    if vectors.ndim != 2 or targets.ndim != 2 or len(targets) != len(vectors):
        raise ValueError(
            f"expected vectors (N, D) and targets (N, K), found {tuple(vectors.shape)} and {tuple(targets.shape)}. "
            "Give one row of targets per vector."
        )
    vectors, targets = rows_of(valid, vectors, targets)
    number = len(vectors)
    if number < 2:
        return 0.0 * vectors.sum(), vectors.new_zeros(())
    similar = distances(unit(vectors) if normalize else vectors) / -temperature
    gaps = (targets[:, None] - targets).abs().sum(2)
    # Most distant first; the utterance itself, at -1, is last and is cut off.
    ascending, order = gaps.fill_diagonal_(-1.0).neg().sort(dim=1, stable=True)
    ascending, similar = ascending[:, :-1].contiguous(), similar.gather(1, order)[:, :-1]
    # The denominator of a group of equal distances is the running sum at its end, once per member. A product with the
    # group sizes replaces a gather, whose gradient is summed in any order.
    first = torch.searchsorted(ascending, ascending)
    after = torch.searchsorted(ascending, ascending, right=True)
    place = torch.arange(number - 1, device=vectors.device)
    times = torch.where(after == place + 1, after - first, 0)
    total = (times * similar.logcumsumexp(1)).sum() - similar.sum()
    return total, total.new_tensor(float(number * (number - 1)))
