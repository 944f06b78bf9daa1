"""The losses as loops over utterances: specification and test reference.

Each returns the mean over valid utterances, 0 without any.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _unit(vectors: Tensor) -> list[Tensor]:
    return [vector / vector.norm() for vector in vectors]


def _mean(terms: list[Tensor], start: Tensor) -> Tensor:
    return torch.stack(terms).mean() if terms else 0.0 * start.sum()


def focal_reference(
    logits: Tensor, labels: Tensor, gamma: float, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """:func:`ercfusion.losses.focal_loss`, divided by the sum of the weights."""
    total, count = 0.0 * logits.sum(), torch.zeros((), dtype=logits.dtype)
    for row, label in zip(logits, labels.tolist(), strict=True):
        probability = row.exp() / row.exp().sum()
        weight = torch.ones_like(count) if weights is None else weights[label]
        cross_entropy = -(1 - smoothing) * probability[label].log() - smoothing * probability.log().sum() / len(row)
        total = total + weight * (1 - probability[label]) ** gamma * cross_entropy
        count = count + weight
    return total / count


def class_balanced_weights_reference(counts: list[float], beta: float) -> list[float]:
    """:func:`ercfusion.losses.class_balanced_weights`."""
    raw = [(1 - beta) / (1 - beta**count) if count > 0 else 0.0 for count in counts]
    return [weight * len(counts) / sum(raw) for weight in raw]


def contrastive_reference(
    vectors: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    others_only: bool = False,
    include_lonely: bool = False,
    memory: tuple[Tensor, Tensor] | None = None,
    anchors: str = "batch",
) -> Tensor:
    """:func:`ercfusion.losses.supervised_contrastive`; with ``others_only``, ``inter_class_contrastive``."""
    keys, names = _unit(vectors), labels.tolist()
    if memory is not None:
        keys, names = keys + list(memory[0]), names + memory[1].tolist()
    terms = []
    for i in range(len(keys) if anchors == "all" else len(vectors)):
        similar = {k: keys[i] @ keys[k] / temperature for k in range(len(keys)) if k != i}
        positives = [k for k in similar if names[k] == names[i]]
        below = [k for k in similar if names[k] != names[i]] if others_only else list(similar)
        if positives and below:
            denominator = torch.stack([similar[k].exp() for k in below]).sum()
            logarithms = [(similar[p].exp() / denominator).log() for p in positives]
            terms.append(-torch.stack(logarithms).mean())
        elif include_lonely:
            terms.append(0.0 * vectors.sum())
    return _mean(terms, vectors)


def label_contrastive_reference(
    latents: Tensor,
    positive: Tensor,
    temperature: float,
    *,
    memory: tuple[Tensor, Tensor] | None = None,
    anchors: str = "all",
) -> Tensor:
    """:func:`ercfusion.losses.label_contrastive` with all rows valid."""
    number, stages, modalities, labels, _ = latents.shape
    rows, classes = [], []
    for n in range(number):
        for s in range(stages):
            for m in range(modalities):
                for c in range(labels):
                    rows.append(latents[n, s, m, c])
                    classes.append((2 * m + int(positive[n, c])) * labels + c)
    return contrastive_reference(
        torch.stack(rows), torch.tensor(classes), temperature, include_lonely=True, memory=memory, anchors=anchors
    )


def rank_n_contrast_reference(vectors: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """:func:`ercfusion.losses.rank_n_contrast` without normalisation."""
    number, terms = len(vectors), []
    for i in range(number):
        similar = {j: -(vectors[i] - vectors[j]).norm() / temperature for j in range(number) if j != i}
        gaps = {j: (targets[i] - targets[j]).abs().sum() for j in similar}
        for k in similar:
            below = torch.stack([similar[j].exp() for j in similar if gaps[j] >= gaps[k]]).sum()
            terms.append(-(similar[k].exp() / below).log())
    return _mean(terms, vectors)


def triplet_reference(
    vectors: Tensor,
    labels: Tensor,
    *,
    mining: str,
    margin: float | None = None,
    scale: float = 0.1,
    literal: bool = False,
    hinge: bool = True,
) -> Tensor:
    """:func:`ercfusion.losses.triplet_loss` of unit vectors; without ``margin``, ``adaptive_triplet_loss``."""
    units, names = _unit(vectors), labels.tolist()
    number = len(units)

    def distance(i: int, j: int) -> Tensor:
        return (units[i] - units[j]).norm() / (1 if literal else 2)

    def loss(a: int, p: int, n: int) -> Tensor:
        ap, an = distance(a, p), distance(a, n)
        if margin is not None:
            return (ap - an + margin).clamp(min=0)
        near = 1 + 2 / ((4 * ap).exp() + 1e-8)
        far = 1 + 2 / ((4 - 4 * an).exp() + 1e-8)
        margins = near + far if literal else scale * (near + far).detach()
        value = ap - (an + distance(p, n)) / 2 + margins
        return value.clamp(min=0) if hinge else value

    terms = []
    for a in range(number):
        positives = [p for p in range(number) if p != a and names[p] == names[a]]
        negatives = [n for n in range(number) if names[n] != names[a]]
        if mining == "hard" and positives and negatives:
            positives = [max(positives, key=lambda p: float(distance(a, p).detach()))]
            negatives = [min(negatives, key=lambda n: float(distance(a, n).detach()))]
        terms += [loss(a, p, n) for p in positives for n in negatives]
    if mining == "active" and hinge:
        terms = [term for term in terms if term > 0]
    return _mean(terms, vectors)


def variance_reference(vectors: Tensor, target: float, epsilon: float = 1e-4) -> Tensor:
    """:func:`ercfusion.losses.variance_loss`."""
    terms = []
    for column in vectors.t():
        centred = [value - column.sum() / len(column) for value in column]
        variance = torch.stack([value * value for value in centred]).sum() / (len(column) - 1)
        terms.append((target - (variance + epsilon).sqrt()).clamp(min=0))
    return _mean(terms, vectors)


def covariance_reference(vectors: Tensor) -> Tensor:
    """:func:`ercfusion.losses.covariance_loss`."""
    number, width = vectors.shape
    total = 0.0 * vectors.sum()
    for d in range(width):
        for e in range(width):
            if d != e:
                first, second = vectors[:, d] - vectors[:, d].mean(), vectors[:, e] - vectors[:, e].mean()
                total = total + ((first * second).sum() / (number - 1)) ** 2
    return total / width


def concordance_reference(prediction: list[float], target: list[float]) -> float:
    """:func:`ercfusion.losses.concordance` of one column, without its epsilon."""
    number = len(prediction)
    mean_p, mean_t = math.fsum(prediction) / number, math.fsum(target) / number
    covariance = math.fsum((p - mean_p) * (t - mean_t) for p, t in zip(prediction, target, strict=True)) / number
    spread = math.fsum((p - mean_p) ** 2 for p in prediction) + math.fsum((t - mean_t) ** 2 for t in target)
    return 2 * covariance / (spread / number + (mean_p - mean_t) ** 2)
