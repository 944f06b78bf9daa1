"""The DAG-ERC recurrence as plain loops: the specification of :mod:`ercfusion.ops.dag`.

N utterances of B conversations, D width, S stacks, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.batch.packing import Packing

DagAttention = Literal["dagerc", "gat"]
DAG_ATTENTIONS: tuple[DagAttention, ...] = ("dagerc", "gat")

SLOPE = 0.2
"""Negative slope of the LeakyReLU in the attention ``gat`` (Velickovic et al., ICLR 2018)."""


class DagWeights(NamedTuple):
    """Weights of S stacks of L layers of width D.

    The first four contain two GRUs with gates in the order of :class:`torch.nn.GRUCell`: GRU_c, whose input is the
    utterance and whose state is the message, then GRU_p with these exchanged. So ``input_*`` contains GRU_c's input
    side and GRU_p's state side.

    Args:
        input_weight: (S, L, 6 D, D), applied to the utterance's vector of the layer below.
        input_bias: (S, L, 6 D).
        message_weight: (S, L, 6 D, D), applied to the message.
        message_bias: (S, L, 6 D).
        relation: (S, L, 2, D, D), applied to predecessors of the same speaker, and of others.
        attention: (S, L, D).
    """

    input_weight: Tensor
    input_bias: Tensor
    message_weight: Tensor
    message_bias: Tensor
    relation: Tensor
    attention: Tensor

    def node(self, stack: int, layer: int) -> DagWeights:
        """The weights of one layer of one stack."""
        return DagWeights(*(weight[stack, layer] for weight in self))


def dag_windows_reference(speaker: Tensor, packing: Packing, window: int) -> Tensor:
    """:func:`ercfusion.ops.dag.dag_windows` as a loop: its specification."""
    first, start = [], 0
    spoke = speaker.tolist()
    for length in packing.lengths:
        first += [start + first_predecessor(spoke[start : start + t], spoke[start + t], window) for t in range(length)]
        start += length
    return torch.tensor(first, device=speaker.device)


def first_predecessor(before: Sequence[int], speaker: int, window: int) -> int:
    """Position of the first predecessor of an utterance by ``speaker`` after the utterances ``before``."""
    count = 0
    for position in range(len(before) - 1, -1, -1):
        count += before[position] == speaker
        if count == window:
            return position
    return 0


def dag_node(x: Tensor, past: Tensor, same: Tensor, weights: DagWeights, attention: DagAttention = "dagerc") -> Tensor:
    """One utterance in one layer.

    Args:
        x: (D) its vector of the layer below.
        past: (K, D) vectors of its predecessors in this layer; K may be 0.
        same: (K) bool, True if a predecessor has the same speaker.
        weights: Weights of this layer and stack (:meth:`DagWeights.node`).
        attention: See :func:`ercfusion.ops.dag.dag_recursion`.

    Returns:
        (D).
    """
    message = torch.zeros_like(x)
    if len(past):
        score = (past if attention == "dagerc" else F.leaky_relu(x + past, SLOPE)) @ weights.attention
        alpha = score.softmax(0)
        projected = torch.where(same[:, None], past @ weights.relation[0].t(), past @ weights.relation[1].t())
        message = alpha @ projected
    from_input = F.linear(x, weights.input_weight, weights.input_bias).unflatten(0, (2, 3, -1))
    from_message = F.linear(message, weights.message_weight, weights.message_bias).unflatten(0, (2, 3, -1))

    def gru(input_side: Tensor, state_side: Tensor, state: Tensor) -> Tensor:
        reset = (input_side[0] + state_side[0]).sigmoid()
        update = (input_side[1] + state_side[1]).sigmoid()
        new = (input_side[2] + reset * state_side[2]).tanh()
        return (1 - update) * new + update * state

    return gru(from_input[0], from_message[0], message) + gru(from_message[1], from_input[1], x)


def dag_recursion_reference(
    h: Tensor, first: Tensor, speaker: Tensor, packing: Packing, weights: DagWeights, attention: DagAttention = "dagerc"
) -> Tensor:
    """:func:`ercfusion.ops.dag.dag_recursion` as a loop over stacks, layers and utterances: its specification."""
    S, L = weights.attention.shape[:2]
    outputs = []
    for stack in range(S):
        below = list(h)
        for layer in range(L):
            own = weights.node(stack, layer)
            done: list[Tensor] = []
            for t in range(packing.total):
                low = int(first[stack, t])
                past = torch.stack(done[low:t]) if low < t else h.new_zeros(0, h.shape[1])
                done.append(dag_node(below[t], past, speaker[low:t] == speaker[t], own, attention))
            outputs.append(torch.stack(done))
            below = done
    return torch.stack(outputs).unflatten(0, (S, L))
