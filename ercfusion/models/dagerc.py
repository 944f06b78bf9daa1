"""DAG-ERC: a recurrence along a directed acyclic graph of the conversation's utterances."""

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
    """The vector x of an utterance and the recurrence's input H^0 = ReLU(W x + b).

    Args:
        inputs: Modalities and widths.
        projection: Width to which the modalities are projected and summed to make x; 0 concatenates the features as
            they are, with zeros for an absent modality.
        hidden: Width of H^0.
        dropout: Probability, on x.

    Shapes:
        batch -> x (N, out_features), H^0 (N, hidden).
    """

    def __init__(self, inputs: InputSpec, projection: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.project = ModalityProjection(inputs.widths, projection)
        self.out_features = self.project.merged_features
        self.activate = nn.GELU() if projection else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(self.out_features, hidden)

    def forward(self, batch: ConversationBatch) -> tuple[Tensor, Tensor]:
        """See the class."""
        x = self.dropout(self.activate(self.project.merge(batch)))
        return x, F.relu(self.linear(x))


def readout(in_features: int, hidden: int, layers: int, dropout: float) -> nn.Sequential:
    """The published classifier without its last linear layer: ``layers`` times linear and ReLU, then dropout.

    Raises:
        ValueError: ``layers`` is not positive.
    """
    if layers < 1:
        raise ValueError(f"mlp_layers must be at least 1, found {layers}")
    parts: list[nn.Module] = []
    for number in range(layers):
        parts += [nn.Linear(hidden if number else in_features, hidden), nn.ReLU()]
    return nn.Sequential(*parts, nn.Dropout(dropout))


class DagErc(Architecture):
    r"""DAG-ERC: Shen et al., "Directed Acyclic Graph Network for Conversational Emotion Recognition" (ACL 2021).

    Utterance i hears all utterances from its speaker's last one (``window``: last but ...) to the one before it, in the
    same layer: information flows from the beginning of the conversation to its end within every layer, and nothing
    flows back. Relations tell predecessors of the same speaker from others.

    *The paper* gives the graph (section 3.2) and the layer (section 3.3): attention over the predecessors, then two
    GRUs in which utterance and message change places; all layers' vectors and the features are concatenated for the
    classifier. It uses one modality, text. *The released code* leaves out the attention's nonlinearity, so the query
    cancels in the softmax and the weights are the same whoever asks. It runs through padding, which does no harm in
    a recurrence from left to right, and projects all predecessors anew for every utterance.

    *Here* the recurrence is exact and much faster (:func:`ercfusion.ops.dag.dag_recursion`). Parts that get no gradient
    do not exist: the query's half of the attention, its bias, and the released code's unused attention behind the
    layers. Any number of modalities is projected to a common width and summed. ``attention=gat`` makes the weights
    depend on who asks. The published form is the preset ``model=dagerc_released``.

    It never reads a later utterance and so can follow a conversation as it goes on
    (:class:`ercfusion.ops.dag.DagState`).

    Args:
        inputs: Modalities and widths.
        projection: Width to which the modalities are projected and summed; 0 concatenates the features as they are.
        hidden: Width of the recurrence and of the output.
        layers: Layers of the recurrence.
        window: Number of earlier utterances of its own speaker to which an utterance reaches back.
        attention: ``dagerc`` as published; ``gat`` has weights that depend on the receiver.
        mlp_layers: Linear layers between the concatenation and the head.
        dropout: Dropout probability before the head.
        input_dropout: Dropout probability on the encoded input.

    Shapes:
        batch -> hidden (N, hidden).
    """

    capabilities = Capabilities(causal=True, speakers="same_other")

    # Not searched: projection=0 and mlp_layers, which belong to the form of the released code.
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
        self.capabilities = replace(self.capabilities, missing_aware=projection > 0)
        self.hidden_size = hidden
        self.encode = UtteranceInput(inputs, projection, hidden, input_dropout)
        self.recur = DagStack(hidden, layers, (window,), attention)
        self.readout = readout((layers + 1) * hidden + self.encode.out_features, hidden, mlp_layers, dropout)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """See the class."""
        x, h = self.encode(batch)
        layers = self.recur(h, batch.speaker, batch.packing)[0]  # (L, N, hidden)
        return Encoded(self.readout(torch.cat([h, *layers.to(h.dtype), x], dim=1)))
