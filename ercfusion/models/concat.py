"""The floor without context."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers.absent import absent_vectors, put_absent
from ercfusion.models.base import Architecture, Capabilities, Encoded
from ercfusion.models.options import Share, Space, Width

_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "none": nn.Identity}


class Concat(Architecture):
    """Per-modality multilayer perceptrons, concatenation and a dense layer; one utterance at a time.

    The fusion of Mandal & Li (2025, arXiv 2505.04642). A contextual model's gain over it comes from the conversation.

    Args:
        inputs: Modalities and widths.
        hidden: Width of the encoders and of the dense layer.
        dropout: Dropout probability after each encoder and after the dense layer.
        input_dropout: Dropout probability on the standardised features.
        activation: Activation after each layer; ``none`` makes the model linear.

    Shapes:
        batch -> hidden (N, hidden), one representation (N, hidden) per modality.
    """

    capabilities = Capabilities(contextual=False, causal=True, skips=True)

    # Epochs are not searched: the learning rate falls to zero over training.max_epochs, so pruning could not compare
    # trials of different lengths epoch by epoch.
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.hidden": {"choices": [64, 128, 256, 512]},
        "model.dropout": {"low": 0.1, "high": 0.7, "step": 0.05},
        "model.input_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "objective.label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        hidden: Width = 256,
        dropout: Share = 0.4,
        input_dropout: Share = 0.1,
        activation: Literal["gelu", "relu", "none"] = "gelu",
    ) -> None:
        super().__init__(inputs)
        activate = _ACTIVATIONS[activation]
        self.hidden_size = hidden
        self.encoders = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Dropout(input_dropout), nn.Linear(width, hidden), activate(), nn.Dropout(dropout)
                )
                for name, width in inputs.widths.items()
            }
        )
        self.absent = absent_vectors(dict.fromkeys(inputs.widths, hidden), inputs.policy)
        self.fuse = nn.Sequential(nn.Linear(hidden * len(inputs.widths), hidden), activate(), nn.Dropout(dropout))

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode each modality and fuse them."""
        encoded: dict[str, Tensor] = {}
        for name, encoder in self.encoders.items():
            present = batch.present[:, batch.column(name)]
            encoded[name] = put_absent(encoder(batch.values(name)), present, self.absent, name)
        return Encoded(self.fuse(torch.cat(list(encoded.values()), dim=1)), modalities=encoded)
