"""M2FNet: a Transformer per modality, then fusion attention."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers import ModalityProjection, PackedTransformer, RelativeBias
from ercfusion.layers.absent import put_absent
from ercfusion.layers.fusion import FusionAttention, GatedFusion, ModalityDropout
from ercfusion.models.base import Architecture, Capabilities, Encoded
from ercfusion.models.options import Count, CountOrNone, Number, Share, Space, Width, WidthOrNone
from ercfusion.ops.attention import check_heads


class M2FNet(Architecture):
    """M2FNet: Chudasama et al., "M2FNet: Multi-modal Fusion Network for Emotion Recognition" (CVPR workshops 2022).

    Each modality has its own Transformer layers, with a residual around each: X + Enc(X). The main stream, text, passes
    through fusion modules with queries and values from text and keys from another modality
    (:class:`ercfusion.layers.fusion.FusionAttention`). The classifier reads all streams.

    - *Paper*: trains extractors first; this is its "dialogue-level" part. Encoders run at the width of the features.
      Order is not encoded.
    - *Code*: none released. Two re-implementations by others agree with this reading; neither reaches the published
      figures.
    - *Here*: modalities are projected first. Layers are pre-norm: each Enc ends in a normalisation, so X + Enc(X) would
      double. A learned bias encodes distance and speaker. Absent utterances are not keys. Fusion starts as a small
      correction of text.

    A single modality is not fused. The preset ``model=m2fnet_released`` is the published form.

    Args:
        inputs: Modalities and widths.
        main: Main stream; without text, ``text`` means the first modality.
        width: Common width of the streams; a multiple of ``heads``.
        encode: ``projected``: encoders at the common width; ``raw``: at the features' width, with at most ``heads``
            heads, projected afterwards.
        layers: Transformer layers per modality.
        heads: Heads of the Transformers and of the fusion.
        feedforward: Width of the Transformers' feed-forward layers.
        outer_residual: X + Enc(X) instead of Enc(X).
        norm_first: Pre-norm Transformer layers.
        activation: Activation of Transformers and output layer.
        lags: Distances with a learned bias in the Transformers; 0 for none, as published.
        fusions: Number of fusion modules.
        values: Source of the fusion's values: ``main`` as published; ``other``: cross-attention.
        residual: Start the fusion as a small correction of the main stream.
        readout: Input of the output layer: all streams, as published, or their gated sum.
        gate_start: Initial preference of the gates for the main stream.
        hidden: Width of the output.
        dropout: Dropout probability in Transformers and fusion, on the projected input, and around the output layer.
        modality_dropout: Probability of dropping each modality of an utterance in training; one stays.
        causal: Never read later utterances.

    Shapes:
        batch -> hidden (N, hidden), one representation (N, width) per modality.
    """

    # Not searched: causal (different information), main, and the published forms. Four heads divide all widths.
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.width": {"choices": [64, 128, 256]},
        "model.layers": {"low": 1, "high": 3},
        "model.lags": {"low": 0, "high": 15, "step": 5},
        "model.fusions": {"low": 1, "high": 5},
        "model.values": {"choices": ["main", "other"]},
        "model.readout": {"choices": ["concat", "gated"]},
        "model.hidden": {"choices": [64, 128, 256]},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "model.modality_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "objective.label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        main: str = "text",
        width: Width = 128,
        encode: Literal["projected", "raw"] = "projected",
        layers: CountOrNone = 2,
        heads: Count = 4,
        feedforward: Width = 256,
        outer_residual: bool = True,
        norm_first: bool = True,
        activation: Literal["gelu", "relu"] = "gelu",
        lags: WidthOrNone = 10,
        fusions: CountOrNone = 2,
        values: Literal["main", "other"] = "main",
        residual: bool = True,
        readout: Literal["concat", "gated"] = "concat",
        gate_start: Number = 2.0,
        hidden: Width = 128,
        dropout: Share = 0.4,
        modality_dropout: Share = 0.3,
        causal: bool = False,
    ) -> None:
        names = list(inputs.widths)
        super().__init__(inputs)
        self.capabilities = Capabilities(
            contextual=layers > 0 or (fusions > 0 and len(names) > 1),
            causal=causal,
            skips=True,
            speakers="same_other" if lags > 0 and layers > 0 else "none",  # read by the relative bias only
        )
        if main not in names and main != "text":
            raise ValueError(f"main={main!r} is not a modality of the data. Choose from {', '.join(names)}.")
        check_heads(width, heads)
        self.main = main if main in names else names[0]
        self.others = [name for name in names if name != self.main]
        self.hidden_size = hidden
        self.outer_residual = outer_residual
        self.activation = F.gelu if activation == "gelu" else F.relu
        self.hide = ModalityDropout(modality_dropout)
        self.dropout = nn.Dropout(dropout)

        raw = encode == "raw"
        self.project = None if raw else ModalityProjection(inputs.widths, width, inputs.policy)
        self.narrow = nn.ModuleDict(
            {name: nn.Linear(size, width) for name, size in inputs.widths.items()} if raw else {}
        )
        self.absent = nn.ParameterDict(
            {
                name: nn.Parameter(0.02 * torch.randn(size))
                for name, size in inputs.widths.items()
                if raw and inputs.policy is None
            }
        )

        def stack(size: int) -> nn.ModuleList:
            fitting = max(number for number in range(1, heads + 1) if size % number == 0)
            return nn.ModuleList(
                PackedTransformer(
                    1,
                    size,
                    fitting,
                    feedforward,
                    dropout,
                    norm_first=norm_first,
                    activation=activation,
                    causal=causal,
                    lags=lags,
                )
                for _ in range(layers)
            )

        self.encoders = nn.ModuleDict({name: stack(size if raw else width) for name, size in inputs.widths.items()})
        for module in self.encoders.modules():
            if isinstance(module, RelativeBias):
                nn.init.normal_(module.weight, std=0.02)  # at zero, the model would start blind to speakers
        self.fusions = nn.ModuleList(
            FusionAttention(width, len(self.others), heads, dropout, values=values, residual=residual, causal=causal)
            for _ in range(fusions if self.others else 0)
        )
        self.gate = None
        if readout == "gated" and self.others:
            self.gate = GatedFusion(width, len(names), main=len(self.others), start=gate_start)
        self.readout = nn.Linear(width * (1 if self.gate else len(names)), hidden)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Encode the modalities and fuse them."""
        if self.training:
            batch = batch.hide(~self.hide(batch.present, batch.packing))
        streams = self._encode(batch)
        others = [streams[name] for name in self.others]
        main = streams[self.main]
        if self.fusions:
            present = batch.present.index_select(
                1, torch.tensor([batch.column(name) for name in self.others], device=batch.device)
            )
            kept = self.kept(batch, self.main)
            for fusion in self.fusions:
                if kept is None:
                    main = fusion(main, others, batch.packing, present)
                else:  # An absent main vector stays zero.
                    keys = present & kept[:, None] if fusion.values == "main" else present
                    main = torch.where(kept[:, None], fusion(main, others, batch.packing, keys), 0.0)
        if self.gate is None:
            fused = torch.cat([*others, main], dim=1)
        else:
            fused = self.gate([*others, main], self._gated(batch))
        hidden = self.dropout(self.activation(self.readout(self.dropout(fused))))
        return Encoded(hidden, modalities=streams)

    def _gated(self, batch: ConversationBatch) -> Tensor | None:
        """(N, M) bool, the streams that the gates weight, with the policy ``skip``; else None: all."""
        columns = [self.kept(batch, name) for name in (*self.others, self.main)]
        kept = [column for column in columns if column is not None]
        return torch.stack(kept, dim=1) if kept else None

    def _encode(self, batch: ConversationBatch) -> dict[str, Tensor]:
        """Each modality with its context, (N, width)."""
        if self.project is not None:
            streams = {name: self.dropout(value) for name, value in self.project(batch).items()}
        else:
            present = batch.present
            streams = {
                name: put_absent(batch.values(name), present[:, batch.column(name)], self.absent, name)
                for name in self.inputs.widths  # a ParameterDict is sorted by name
            }
        for name, encoders in self.encoders.items():
            for encoder in encoders:  # type: ignore[attr-defined]
                encoded = encoder(streams[name], batch.packing, batch.speaker, self.kept(batch, name))
                streams[name] = streams[name] + encoded if self.outer_residual else encoded
        for name, narrow in self.narrow.items():
            streams[name] = self.dropout(narrow(self.dropout(streams[name])))
        for name, stream in streams.items():
            kept = self.kept(batch, name)
            if kept is not None:
                streams[name] = torch.where(kept[:, None], stream, 0.0)
        return streams
