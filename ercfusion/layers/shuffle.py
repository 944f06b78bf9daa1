"""Augmentation by exchanging representations of labels (CARAT; Peng et al., AAAI 2024)."""

from __future__ import annotations

import torch
from torch import Tensor


def shuffle_labels(values: Tensor, positive: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """New samples whose labels come from different utterances and modalities.

    Per utterance and label, the modalities are permuted. Per label and resulting slot, the utterances are permuted.
    Each representation is used exactly once, with the label of its utterance (our reading). Utterances that are not
    valid keep theirs. Sorting random numbers of torch's global generator gives the permutations on the device.

    Args:
        values: Representations (N, M, C, D) of N utterances, M modalities and C labels.
        positive: (N, C), the labels.
        valid: (N) bool, the labelled utterances; None for all.

    Returns:
        Representations (N, M, C, D) and their labels (N, M, C): each slot is a sample.
    """
    N, M, C, _ = values.shape
    device = values.device
    if valid is None:
        valid = torch.ones(N, dtype=torch.bool, device=device)
    source = torch.rand(N, M, C, device=device).argsort(1)
    source = source.where(valid[:, None, None], torch.arange(M, device=device)[:, None])
    # Valid rows first: ``places`` in their order, ``order`` at random. The others meet themselves.
    last = torch.arange(N, device=device).float() + 1
    keys = torch.rand(N, M, C, device=device).where(valid[:, None, None], last[:, None, None])
    order = keys.argsort(0)
    places = torch.where(valid, 0.0, last).argsort(stable=True)
    drawn = torch.empty_like(order).index_copy_(0, places, order)
    labels = torch.arange(C, device=device)
    rows = (drawn * M + source.gather(0, drawn)) * C + labels
    return values.flatten(0, 2).index_select(0, rows.flatten()).view_as(values), positive[drawn, labels]
