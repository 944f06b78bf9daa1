"""Context LSTM over utterances (bc-LSTM), flat or hierarchical."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers import ModalityProjection, PackedLSTM
from ercfusion.models.base import PACKED_NOTE, PADDING_NOTE, Architecture, Capabilities, Encoded, Limits
from ercfusion.models.options import Count, Share, Space, Width, WidthOrNone


class ContextLSTM(nn.Module):
    """A bidirectional LSTM over a conversation and the dense layer that reads it: one level of bc-LSTM.

    Args:
        in_features: Width of the utterance vectors.
        hidden: LSTM units a direction.
        dense: Width of the dense layer.
        dropout: Probability, before and after the dense layer.
        layers: Stacked LSTM layers.
        bidirectional: Read from both ends.
        residual: Give the dense layer the utterance vectors too, beside the LSTM's output.
        mask_padding: False lets the LSTM read zeros after the shorter conversations of a batch.

    Shapes:
        x (N, in_features), packing of the N utterances -> (N, dense).
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

    def forward(self, x: Tensor, batch: ConversationBatch) -> Tensor:
        """See the class."""
        context = self.lstm(x, batch.packing, None if self.mask_padding else x.new_zeros(x.shape[1]))
        return self.dense(torch.cat([context, x], dim=1) if self.residual else context)


class BcLstm(Architecture):
    """bc-LSTM: Poria et al., "Context-Dependent Sentiment Analysis in User-Generated Videos" (ACL 2017).

    *The paper* (sections 3.2 and 3.3) runs a bidirectional LSTM over the utterances of a video. ``flat`` feeds it the
    concatenated modalities ("non-hierarchical"). ``hierarchical`` first trains one such network a modality, and feeds
    the concatenation of their outputs to a second one.

    *The released code* trains the levels one after the other, the second on the frozen outputs of the first, with
    masked padding but LSTMs that read it, and stops on the loss of the last fifth of the training videos.

    *Here* the LSTM is packed, so padding never enters and the backward direction starts at the last utterance. The
    levels of the hierarchy are trained in one run: the first level by the objective term ``unimodal`` (a classifier on
    every modality), and with ``detach=True`` the second level sends no gradient into the first, which is the published
    division of labour except that both levels advance together.

    Args:
        inputs: Modalities and widths.
        hierarchy: ``flat`` has one LSTM on all modalities, ``hierarchical`` one per modality and one on their outputs.
        hidden: LSTM units per direction.
        dense: Width of the dense layer after each LSTM, and of the output.
        projection: Width to which each modality is projected first; 0 feeds the features as they are, with zeros for an
            absent modality.
        layers: Stacked LSTM layers of each level.
        dropout: Dropout probability around every dense layer, between stacked LSTM layers and on the projected input.
        residual: Give the dense layer the utterance's own vector together with the LSTM's output.
        detach: The second level sends no gradient into the first (hierarchical only).
        bidirectional: Read from both ends; false reads forwards only, which makes the model causal.
        mask_padding: False lets the LSTMs read zeros after the shorter conversations of a batch, as in the released
            code; scores then depend on the batch.

    Shapes:
        batch -> hidden (N, dense); hierarchical: one representation (N, dense) a modality.
    """

    capabilities = Capabilities(compiles=False, compile_note=PACKED_NOTE)

    # Not searched: hierarchy, which changes what is trained and not how well (docs/models/bclstm.md), and
    # bidirectional, which changes what the model may know.
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
        """With padding in the recurrence, its amount matters."""
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
            missing_aware=projection > 0,
            needs_unimodal=detach and hierarchy == "hierarchical",
        )
        self.hidden_size = dense
        self.detach = detach
        self.project = ModalityProjection(inputs.widths, projection)
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
        """See the class."""
        vectors = {name: self.dropout(value) for name, value in self.project(batch).items()}
        encoded = {name: level(vectors[name], batch) for name, level in self.unimodal.items()}
        if encoded:
            vectors = {name: value.detach() if self.detach else value for name, value in encoded.items()}
        return Encoded(self.fuse(torch.cat(list(vectors.values()), dim=1), batch), modalities=encoded)
