"""Contrastive losses over the utterances of a batch: supervised, inter-class, and rank-n-contrast.

Each returns a sum over anchors (or pairs) and their number; the quotient is the loss. Their plain loops are in
:mod:`ercfusion.losses.reference`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ercfusion.losses._common import check_above_zero, check_labels, distances, in_full_precision, rows_of, unit

# Similarities of anchors to keys that are held at a time: 16 MiB in float32.
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
) -> tuple[Tensor, Tensor]:
    r"""Supervised contrastive loss (Khosla et al., NeurIPS 2020, equation 2).

    .. math:: L_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \log \frac{\exp(z_i z_p / t)}{\sum_{k \ne i} \exp(z_i z_k / t)}

    where P_i are the other utterances (and remembered ones) with the label of i, and k runs over all of them.

    The sum over positives is taken as one product with the sum of the vectors of a class, and the denominators of many
    anchors are computed in chunks that the backward pass computes again: memory grows with N, not with its square.

    Args:
        vectors: z (N, D).
        labels: (N) class indices; arbitrary where not ``valid``.
        temperature: t, above 0.
        include_lonely: Whether an anchor without a positive, whose loss is 0, counts in the mean. Left out, the mean
            is over the anchors that say something; counted, it is smaller where classes are rare.
        normalize: Scale the vectors to length 1 first.
        valid: (N) bool, the utterances that count, as anchors and as keys; None for all.
        memory: Vectors (Q, D), as they shall be used, and labels (Q) of earlier utterances (:class:`MemoryQueue`).
            They are keys, not anchors, and get no gradient.

    Returns:
        The sum over anchors, and their number.

    Raises:
        ValueError: ``temperature`` is not above 0, or shapes do not fit.
    """
    return _contrast(vectors, labels, temperature, include_lonely, normalize, valid, memory, others_only=False)


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
    r"""Contrast against other classes only: no positive pushes another one away.

    .. math:: L_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \frac{z_i z_p}{t} + \log \sum_{k: y_k \ne y_i} \exp(z_i z_k / t)

    The denominator without the positives is that of decoupled contrastive learning (Yeh et al., ECCV 2022), here with
    labels; supervised inter-class contrast in emotion recognition was proposed by Shi et al. (ICIC 2024), whose
    equations were not to be had: this is a reading of the idea, not their formula. It can be negative, and has no lower
    bound but that of the cosines: -2 / t + log(number of keys of other classes).

    Args:
        vectors, labels, temperature, normalize, valid, memory: As for :func:`supervised_contrastive`.
        include_lonely: Whether an anchor without a positive or without a key of another class, whose loss is 0, counts
            in the mean.

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
    classes = int(key_labels.max()) + 1
    member = (key_labels[:, None] == torch.arange(classes, device=labels.device)).to(keys)
    # The anchor itself is in the sum of its class and is taken out of it.
    positives = member.sum(0).index_select(0, labels) - 1
    others = len(keys) - 1 - positives
    anchors = vectors / temperature
    toward = (anchors * ((member.t() @ keys).index_select(0, labels) - vectors)).sum(1)
    rows = max(1, _ENTRIES // len(keys))
    if rows >= number:
        apart = _log_sum(anchors, labels, keys, key_labels, 0, others_only)
    else:
        apart = torch.cat(
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
    counted = (positives > 0) & (others > 0) if others_only else positives > 0
    each = torch.where(counted, apart - toward / positives.clamp(min=1), 0.0)
    return each.sum(), each.new_tensor(float(number)) if include_lonely else counted.sum().to(each)


def _log_sum(
    anchors: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, start: int, others_only: bool
) -> Tensor:
    """Logarithm of the denominator of the anchors that begin with row ``start``; 0 where it has no term."""
    if others_only:
        keep = labels[:, None] != key_labels
    else:
        own = torch.arange(start, start + len(anchors), device=anchors.device)
        keep = own[:, None] != torch.arange(len(keys), device=anchors.device)
    some = keep.any(1, keepdim=True)
    # Where nothing is kept everything is, and the result is thrown away: the gradient of log(0) would be NaN.
    logits = (anchors @ keys.t()).masked_fill(~keep & some, -torch.inf)
    return torch.where(some.squeeze(1), logits.logsumexp(1), 0.0)


class MemoryQueue(nn.Module):
    """The last utterances that were seen, first in, first out: more keys than one batch has.

    What is remembered was made by earlier weights and gets no gradient. The content is part of the state: a training
    that is resumed goes on with it.

    Args:
        size: How many utterances are kept, at least 1.
        width: Of their vectors.

    Raises:
        ValueError: ``size`` is below 1.
    """

    vectors: Tensor
    labels: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, found {size}")
        self.size = size
        self.register_buffer("vectors", torch.zeros(size, width))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def content(self) -> Memory:
        """Vectors (Q, width) and labels (Q) of the utterances that are remembered, newest first."""
        number = int(self.filled)
        # Copies: what is pushed before the backward pass must not change what the forward pass has read.
        return self.vectors[:number].clone(), self.labels[:number].clone()

    @torch.no_grad()
    def push(self, vectors: Tensor, labels: Tensor) -> None:
        """Remember utterances (n, width), (n); the oldest ones are forgotten."""
        for held, new in ((self.vectors, vectors), (self.labels, labels)):
            held.copy_(torch.cat([new.to(held), held])[: self.size])
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
    r"""Rank-N-Contrast: the order of representations follows the order of numbers (Zha et al., NeurIPS 2023).

    .. math:: L_{ik} = -\log \frac{\exp(s_{ik})}{\sum_{j \ne i,\, d_{ij} \ge d_{ik}} \exp(s_{ij})}

    with :math:`s_{ij} = -|z_i - z_j|_2 / t` and :math:`d_{ij} = |y_i - y_j|_1`. Each row is sorted by the distance of
    the targets, most distant first, and the denominators are running sums read at the end of each group of equals:
    O(n^2 log n) where a loop over thresholds needs O(n^3).

    Args:
        vectors: z (N, D).
        targets: y (N, K) numbers; arbitrary where not ``valid``.
        temperature: t, above 0.
        normalize: Scale the vectors to length 1 first; the paper does not.
        valid: (N) bool, the utterances that count; None for all.

    Returns:
        The sum over pairs of different utterances, and the number n (n - 1) of them.

    Raises:
        ValueError: ``temperature`` is not above 0, or shapes do not fit.
    """
    check_above_zero("temperature", temperature)
    if vectors.ndim != 2 or targets.ndim != 2 or len(targets) != len(vectors):
        raise ValueError(
            f"expected vectors (N, D) and targets (N, K), found {tuple(vectors.shape)} and {tuple(targets.shape)}"
        )
    vectors, targets = rows_of(valid, vectors, targets)
    number = len(vectors)
    if number < 2:
        return 0.0 * vectors.sum(), vectors.new_zeros(())
    similar = distances(unit(vectors) if normalize else vectors) / -temperature
    apart = (targets[:, None] - targets).abs().sum(2)
    # Most distant first; the utterance itself, with a distance of -1, comes last and is cut off.
    ascending, order = apart.fill_diagonal_(-1.0).neg().sort(dim=1, stable=True)
    ascending, similar = ascending[:, :-1].contiguous(), similar.gather(1, order)[:, :-1]
    # Every denominator is the running sum at the end of its group of equals. It counts as often as the group has
    # members, so that a product with these numbers stands for reading it there, whose gradient would be added up in
    # any order.
    first = torch.searchsorted(ascending, ascending)
    after = torch.searchsorted(ascending, ascending, right=True)
    place = torch.arange(number - 1, device=vectors.device)
    times = torch.where(after == place + 1, after - first, 0)
    total = (times * similar.logcumsumexp(1)).sum() - similar.sum()
    return total, total.new_tensor(float(number * (number - 1)))
