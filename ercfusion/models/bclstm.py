"""bc-LSTM, flat or hierarchical."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers import ModalityProjection, PackedLSTM
from ercfusion.layers.absent import over_present
from ercfusion.models.base import PACKED_NOTE, PADDING_NOTE, Architecture, Capabilities, Encoded, Limits
from ercfusion.models.options import Count, Share, Space, Width, WidthOrNone


class ContextLSTM(nn.Module):
    """One level of bc-LSTM: an LSTM over a conversation, then a dense layer.

    Args:
        in_features: Width of the utterance vectors.
        hidden: LSTM units per direction.
        dense: Width of the dense layer.
        dropout: Dropout probability before and after the dense layer.
        layers: Stacked LSTM layers.
        bidirectional: Read in both directions.
        residual: Also feed the utterance vectors to the dense layer.
        mask_padding: False: the LSTM reads zeros after the shorter conversations of a batch.

    Shapes:
        x (N, in_features), batch of the N utterances -> (N, dense). With kept (N) bool, the other utterances are not
        read, and zero.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        dense: int,
        dropout: float,
        *,
        layers: int = 1,
        bidirectional: bool = True,
        residual: bool = False,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.mask_padding = mask_padding
        self.lstm = PackedLSTM(in_features, hidden, layers, dropout, bidirectional=bidirectional)
        width = self.lstm.out_features + (in_features if residual else 0)
        self.dense = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, dense), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, x: Tensor, batch: ConversationBatch, kept: Tensor | None = None) -> Tensor:
        """Put N utterance vectors into context."""
        if kept is not None:
            return over_present(self._read, x, kept, batch.packing)
        return self._read(x, batch.packing)

    def _read(self, x: Tensor, packing: Packing) -> Tensor:
        context = self.lstm(x, packing, None if self.mask_padding else x.new_zeros(x.shape[1]))
        result: Tensor = self.dense(torch.cat([context, x], dim=1) if self.residual else context)
        return result


class BcLstm(Architecture):
    """bc-LSTM: Poria et al., "Context-Dependent Sentiment Analysis in User-Generated Videos" (ACL 2017).

    - *Paper* (sections 3.2 and 3.3): a bidirectional LSTM over utterances. ``flat`` ("non-hierarchical") reads the
      concatenated modalities; ``hierarchical`` trains one network per modality, then another on their outputs.
    - *Released code*: the second level reads frozen outputs of the first. The LSTMs read padding. Training stops on the
      loss of the last fifth of the training videos.
    - *Here*: the LSTM is packed. Both levels are trained in one run, the first by the objective term ``unimodal``;
      ``detach=true`` separates them as published.

    Args:
        inputs: Modalities and widths.
        hierarchy: ``flat``: one LSTM on all modalities; ``hierarchical``: one per modality, and one on their outputs.
        hidden: LSTM units per direction.
        dense: Width of the dense layer after each LSTM, and of the output.
        projection: Width of each modality's projection; 0 for the features themselves, zeros if absent.
        layers: Stacked LSTM layers per level.
        dropout: Dropout probability around dense layers, between LSTM layers and on the projected input.
        residual: Also feed the utterance's own vector to the dense layer.
        detach: No gradient from the second level into the first.
        bidirectional: Read both directions; false is causal.
        mask_padding: False reads padding, as released; scores depend on the batch.

    Shapes:
        batch -> hidden (N, dense); hierarchical: one representation (N, dense) per modality.
    """

    capabilities = Capabilities(compiles=False, compile_note=PACKED_NOTE, skips=True)

    # Not searched: hierarchy (a different training, docs/models/bclstm.md) and bidirectional (different information).
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.hidden": {"choices": [64, 128, 256]},
        "model.dense": {"choices": [64, 128, 256]},
        "model.projection": {"choices": [0, 64, 128]},
        "model.layers": {"low": 1, "high": 2},
        "model.dropout": {"low": 0.2, "high": 0.7, "step": 0.05},
        "model.residual": {"choices": [False, True]},
        "objective.label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    @classmethod
    def limits(cls, options: Mapping[str, Any]) -> Limits:
        """Scores depend on the batch if the LSTM reads padding."""
        return Limits(batch_dependence="" if options["mask_padding"] else PADDING_NOTE)

    def __init__(
        self,
        inputs: InputSpec,
        *,
        hierarchy: Literal["flat", "hierarchical"] = "flat",
        hidden: Width = 128,
        dense: Width = 128,
        projection: WidthOrNone = 0,
        layers: Count = 1,
        dropout: Share = 0.5,
        residual: bool = False,
        detach: bool = False,
        bidirectional: bool = True,
        mask_padding: bool = True,
    ) -> None:
        super().__init__(inputs)
        self.capabilities = replace(
            self.capabilities,
            causal=not bidirectional,
            absent="vector" if projection else "mean",
            needs_unimodal=detach and hierarchy == "hierarchical",
        )
        self.hidden_size = dense
        self.detach = detach
        self.project = ModalityProjection(inputs.widths, projection, inputs.policy)
        self.dropout = nn.Dropout(dropout if projection else 0.0)
        widths = self.project.widths

        def level(in_features: int) -> ContextLSTM:
            return ContextLSTM(
                in_features,
                hidden,
                dense,
                dropout,
                layers=layers,
                bidirectional=bidirectional,
                residual=residual,
                mask_padding=mask_padding,
            )

        self.unimodal = nn.ModuleDict()
        if hierarchy == "hierarchical":
            self.unimodal.update({name: level(width) for name, width in widths.items()})
            widths = dict.fromkeys(widths, dense)
        self.fuse = level(sum(widths.values()))

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode the utterances, level by level."""
        vectors = {name: self.dropout(value) for name, value in self.project(batch).items()}
        encoded = {name: level(vectors[name], batch, self.kept(batch, name)) for name, level in self.unimodal.items()}
        if encoded:
            vectors = {name: value.detach() if self.detach else value for name, value in encoded.items()}
        return Encoded(self.fuse(torch.cat(list(vectors.values()), dim=1), batch), modalities=encoded)
