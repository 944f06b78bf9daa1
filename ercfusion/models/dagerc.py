"""DAG-ERC: a recurrence along a directed acyclic graph of utterances."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers.dag import DagStack
from ercfusion.layers.inputs import ModalityProjection
from ercfusion.models.base import Architecture, Capabilities, Encoded
from ercfusion.models.options import Count, Share, Space, Width, WidthOrNone, Window
from ercfusion.ops.dag_reference import DagAttention


class UtteranceInput(nn.Module):
    """Utterance vector x and input of the recurrence, H^0 = ReLU(W x + b).

    Args:
        inputs: Modalities and widths.
        projection: Width of the summed projections of the modalities; 0 concatenates the features, zeros if absent.
        hidden: Width of H^0.
        dropout: Dropout probability on x.

    Shapes:
        batch -> x (N, out_features), H^0 (N, hidden).
    """

    def __init__(self, inputs: InputSpec, projection: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.project = ModalityProjection(inputs.widths, projection, inputs.policy)
        self.out_features = self.project.merged_features
        self.activate = nn.GELU() if projection else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(self.out_features, hidden)

    def forward(self, batch: ConversationBatch) -> tuple[Tensor, Tensor]:
        """x and H^0."""
        x = self.dropout(self.activate(self.project.merge(batch)))
        return x, F.relu(self.linear(x))


def readout(in_features: int, hidden: int, layers: int, dropout: float) -> nn.Sequential:
    """The published classifier before its last layer: ``layers`` times linear and ReLU, then dropout.

    Raises:
        ValueError: ``layers`` is not positive.
    """
    if layers < 1:
        raise ValueError(f"mlp_layers must be at least 1, found {layers}. Choose a larger number.")
    parts: list[nn.Module] = []
    for number in range(layers):
        parts += [nn.Linear(hidden if number else in_features, hidden), nn.ReLU()]
    return nn.Sequential(*parts, nn.Dropout(dropout))


class DagErc(Architecture):
    """DAG-ERC: Shen et al., "Directed Acyclic Graph Network for Conversational Emotion Recognition" (ACL 2021).

    Within each layer, an utterance receives from its predecessors: all utterances from its speaker's last one on.
    Relations distinguish predecessors of the same and of other speakers.

    - *Paper*: graph (section 3.2) and layer (section 3.3): attention over the predecessors, then two GRUs with
      utterance and message exchanged. The classifier reads all layers and the features. Text only.
    - *Released code*: without the attention's nonlinearity the query cancels in the softmax. Padding is computed,
      without effect; all predecessors are projected again per utterance.
    - *Here*: the exact recurrence, much faster (:func:`ercfusion.ops.dag.dag_recursion`), without parts that get no
      gradient; any modalities. With ``attention=gat`` weights depend on the receiver.

    It is causal and can follow a live conversation (:class:`ercfusion.ops.dag.DagState`). The preset
    ``model=dagerc_released`` is the released form.

    Args:
        inputs: Modalities and widths.
        projection: Width of the summed modality projections; 0 concatenates the features.
        hidden: Width of the recurrence and of the output.
        layers: Layers of the recurrence.
        window: Earlier utterances of its own speaker within reach of an utterance.
        attention: ``dagerc`` as published; ``gat`` with weights depending on the receiver.
        mlp_layers: Linear layers before the head.
        dropout: Dropout probability before the head.
        input_dropout: Dropout probability on the encoded input.

    Shapes:
        batch -> hidden (N, hidden).
    """

    capabilities = Capabilities(causal=True, speakers="same_other", skips=True)

    # Not searched: projection=0 and mlp_layers, parts of the released form.
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.projection": {"choices": [64, 128, 256]},
        "model.hidden": {"choices": [64, 128, 256]},
        "model.layers": {"low": 1, "high": 4},
        "model.window": {"low": 1, "high": 5},
        "model.attention": {"choices": ["dagerc", "gat"]},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "model.input_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "objective.label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        projection: WidthOrNone = 128,
        hidden: Width = 128,
        layers: Count = 2,
        window: Window = 1,
        attention: DagAttention = "dagerc",
        mlp_layers: Count = 2,
        dropout: Share = 0.4,
        input_dropout: Share = 0.1,
    ) -> None:
        super().__init__(inputs)
        self.capabilities = replace(self.capabilities, absent="vector" if projection else "mean")
        self.hidden_size = hidden
        self.encode = UtteranceInput(inputs, projection, hidden, input_dropout)
        self.recur = DagStack(hidden, layers, (window,), attention)
        self.readout = readout((layers + 1) * hidden + self.encode.out_features, hidden, mlp_layers, dropout)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode the conversations."""
        x, h = self.encode(batch)
        layers = self.recur(h, batch.speaker, batch.packing)[0]  # (L, N, hidden)
        return Encoded(self.readout(torch.cat([h, *layers.to(h.dtype), x], dim=1)))
