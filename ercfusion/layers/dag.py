"""Parameters of the DAG-ERC recurrence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ercfusion.batch.packing import Packing, check_rows, check_speakers
from ercfusion.ops.dag import DagState, dag_recursion, dag_windows
from ercfusion.ops.dag_reference import DAG_ATTENTIONS, DagAttention, DagWeights


class DagStack(nn.Module):
    """S independent stacks of L layers over directed acyclic graphs of utterances, from the same input.

    Shen et al., "Directed Acyclic Graph Network for Conversational Emotion Recognition" (ACL 2021), section 3;
    equations in :func:`ercfusion.ops.dag.dag_recursion`. Causal; only the equality of speakers matters.

    Args:
        width: D, of input and output.
        layers: L.
        windows: Per stack, how many earlier utterances of its own speaker an utterance reaches back to.
        attention: ``dagerc`` (as published) or ``gat`` (scores depend on the receiver too).

    Raises:
        ValueError: an option out of its range.

    Shapes:
        h (N, width), speaker (N), packing of the N utterances -> (S, L, N, width).
    """

    def __init__(self, width: int, layers: int, windows: Sequence[int] = (1,), attention: str = "dagerc") -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, found {layers}")
        if not windows or min(windows) < 1:
            raise ValueError(f"windows must be at least 1, found {tuple(windows)}")
        if attention not in DAG_ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(DAG_ATTENTIONS)}; found {attention!r}")
        self.windows = tuple(windows)
        self.attention: DagAttention = attention
        S = len(self.windows)
        self.input_weight = nn.Parameter(torch.empty(S, layers, 6 * width, width))
        self.input_bias = nn.Parameter(torch.empty(S, layers, 6 * width))
        self.message_weight = nn.Parameter(torch.empty(S, layers, 6 * width, width))
        self.message_bias = nn.Parameter(torch.empty(S, layers, 6 * width))
        self.relation = nn.Parameter(torch.empty(S, layers, 2, width, width))
        self.query = nn.Parameter(torch.empty(S, layers, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform, as torch initialises a GRU and a linear layer of these widths."""
        width = self.query.shape[-1]
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width))
        # The published attention is a linear layer on 2 * width numbers; half of them cancel in the softmax.
        nn.init.uniform_(self.query, -1 / math.sqrt(2 * width), 1 / math.sqrt(2 * width))

    @property
    def weights(self) -> DagWeights:
        """The parameters as the operation takes them."""
        return DagWeights(
            self.input_weight, self.input_bias, self.message_weight, self.message_bias, self.relation, self.query
        )

    def forward(self, h: Tensor, speaker: Tensor, packing: Packing) -> Tensor:
        """Vectors of all layers, (N, width) -> (S, L, N, width)."""
        check_rows(h, packing, self.query.shape[-1], name="h")
        check_speakers(speaker, packing)
        first = torch.stack([dag_windows(speaker, packing, window) for window in self.windows])
        return dag_recursion(h, first, speaker, packing, self.weights, self.attention)

    def start(self) -> DagState:
        """The state of a conversation without utterances, for inference one utterance at a time."""
        weights = DagWeights(*(weight.detach() for weight in self.weights))
        return DagState(weights, self.windows, self.attention)
