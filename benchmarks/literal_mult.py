"""MulT in its plain form: one sequence after the other, without padding and masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.layers import CrossModalEncoder
from ercfusion.models.mult import MulT


class Sequence:
    """Elements of one modality that are there.

    Args:
        values: (L, D).
        index: (L) place of each in the sequence with its gaps, by which ``causal`` decides.
        place: (L) place for the positions.
    """

    def __init__(self, values: Tensor, index: list[int], place: list[int] | None = None) -> None:
        self.values, self.index, self.place = values, torch.tensor(index), torch.tensor(place or index)

    def __len__(self) -> int:
        return len(self.values)


def embedded(sequence: Sequence, width: int) -> Tensor:
    """Scaled values plus sines and cosines, whose places count from 1."""
    half = width // 2
    rate = 10_000.0 ** (-torch.arange(half, dtype=sequence.values.dtype) / max(1, half - 1))
    angle = (sequence.place + 1)[:, None] * rate
    position = torch.cat([angle.sin(), angle.cos(), angle.new_zeros(len(angle), width % 2)], dim=1)
    return math.sqrt(width) * sequence.values + position


def encode(encoder: CrossModalEncoder, query: Sequence, memory: Sequence | None, ahead: int) -> Tensor:
    """(Lq, D) with the weights of ``encoder``; ``memory`` None for the query itself."""
    x = embedded(query, encoder.width)
    fixed = None if memory is None else embedded(memory, encoder.width)
    keys = query if memory is None else memory
    allowed = torch.ones(len(query), len(keys), dtype=torch.bool)
    if encoder.causal:
        allowed = keys.index <= query.index[:, None] + ahead
    reached = allowed.any(1)
    for layer in encoder.layers:
        source = layer.norm_attention(x if fixed is None else fixed)
        weight, bias = layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)
        q = F.linear(layer.norm_attention(x), weight[0], bias[0]).unflatten(1, (layer.heads, -1))
        k = F.linear(source, weight[1], bias[1]).unflatten(1, (layer.heads, -1))
        v = F.linear(source, weight[2], bias[2]).unflatten(1, (layer.heads, -1))
        if reached.any():
            scores = torch.einsum("qhd,khd->hqk", q[reached], k) / math.sqrt(q.shape[-1])
            shares = scores.masked_fill(~allowed[reached], -math.inf).softmax(-1)
            mixed = layer.out(torch.einsum("hqk,khd->qhd", shares, v).flatten(1))
            x = x.index_add(0, reached.nonzero().squeeze(1), mixed)
        x = x + layer.down(layer.up(layer.norm_feedforward(x)).relu())
    return encoder.norm(x)


def sequences(model: MulT, batch: ConversationBatch) -> list[dict[str, Sequence]]:
    """The sequences of each utterance (axis ``steps``) or conversation."""
    result = []
    if model.by_steps:
        steps = {name: batch.sequence(name) for name in batch.modalities}
        for n in range(batch.num_utterances):
            own = {}
            for m, (name, stored) in enumerate(steps.items()):
                rows = slice(int(stored.offsets[n]), int(stored.offsets[n + 1]) if batch.present[n, m] else None)
                values = stored.values[rows] if batch.present[n, m] else stored.values[:0]
                place = stored.places[rows].tolist() if batch.present[n, m] else []
                own[name] = Sequence(model.project[name](values), list(range(len(values))), place)
            result.append(own)
        return result
    first = 0
    for length in batch.packing.lengths:
        own = {}
        for m, name in enumerate(batch.modalities):
            there = [t for t in range(length) if batch.present[first + t, m]]
            own[name] = Sequence(model.project[name](batch.features[name][[first + t for t in there]]), there)
        result.append(own)
        first += length
    return result


def literal(model: MulT, batch: ConversationBatch) -> Tensor:
    """(N, hidden_size) output of ``model`` without dropout."""
    size, rows = model.hidden_size // len(batch.modalities), []
    for number, own in enumerate(sequences(model, batch)):
        vectors = []
        for target, query in own.items():
            if not len(query):
                turns = 1 if model.by_steps else batch.packing.lengths[number]
                vectors.append(query.values.new_zeros(turns, size))
                continue
            forms = [
                encode(encoder, query, own[source], abs(len(own[source]) - len(query)) if model.by_steps else 0)
                for source, encoder in model.cross[target].items()
            ]
            joined = Sequence(
                torch.cat(forms, 1) if forms else query.values, query.index.tolist(), query.place.tolist()
            )
            x = encode(model.own[target], joined, None, 0)
            if not model.by_steps:
                vectors.append(x.new_zeros(batch.packing.lengths[number], size).index_copy(0, query.index, x))
            elif model.pooling == "last":
                vectors.append(x[-1:])
            elif target in model.score:
                vectors.append(model.score[target](x).softmax(0).T @ x)
            else:
                vectors.append(x.mean(0, keepdim=True))
        rows.append(torch.cat(vectors, 1))
    z = torch.cat(rows)
    return z + model.second(model.first(z).relu())
