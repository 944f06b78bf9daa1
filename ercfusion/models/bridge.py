"""Bridge tokens: a few learned vectors read every modality, for labels and numbers together."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers import ModalityProjection, PackedTransformer, RelativeBias
from ercfusion.layers.bridge import BridgeTokenFusion
from ercfusion.models.base import Architecture, Capabilities, Encoded
from ercfusion.models.options import Count, CountOrNone, Share, Space, Width, WidthOrNone
from ercfusion.ops.attention import check_heads


class Bridge(Architecture):
    """Bridge tokens: self-attention refines each modality; a few learned tokens query all of them, and are pooled.

    After Ispas, Deschamps-Berger & Devillers, "A Multi-Task, Multi-Modal Approach for Predicting Categorical and
    Dimensional Emotions" (arXiv 2401.00536). The equations were not available: this is our reading of its abstract and
    of summaries.

    - *Paper*: self-attention per modality (frozen HuBERT and DeBERTa features), learned tokens with a cross-attention
      layer to each modality, pooled to a head for labels and one for numbers. Loss: cross-entropy + (1 - CCC) per
      dimension. Training hides a modality at random.
    - *Here*: any number of modalities. Sequence features are refined over the steps of their utterance, vectors of
      utterances over the conversation. The heads and the loss are those of the run's tasks:
      ``data.tasks=[emotion,vad]`` with ``objective.regression_loss=ccc``. ``training.modality_dropout`` hides each
      modality independently. An absent modality is a learned vector.

    ``model=bridge_emoq`` has more tokens and layers, and attention among the tokens, as the fusion block of EmoQ.

    Args:
        inputs: Modalities and widths.
        width: Common width of modalities and tokens; a multiple of ``heads``.
        refine: Self-attention layers per modality.
        context: Refine utterance-level modalities over the conversation; false leaves each utterance on its own.
        lags: Distances with a learned bias in the self-attention; 0 for none.
        tokens: Number of bridge tokens.
        layers: Layers in which the tokens read all modalities.
        token_attention: Self-attention among the tokens in each of these layers.
        heads: Attention heads.
        feedforward: Width of the feed-forward parts.
        hidden: Width of the output.
        dropout: Dropout probability everywhere.
        causal: Never read later utterances.

    Shapes:
        batch -> hidden (N, hidden); one representation (N, width) per modality, the mean over its steps.
    """

    # Not searched: context and causal (different information), token_attention (a form).
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.width": {"choices": [64, 128, 256]},
        "model.refine": {"low": 1, "high": 3},
        "model.tokens": {"choices": [1, 2, 4, 8]},
        "model.layers": {"low": 1, "high": 3},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "training.modality_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        width: Width = 128,
        refine: CountOrNone = 1,
        context: bool = True,
        lags: WidthOrNone = 10,
        tokens: Count = 4,
        layers: Count = 2,
        token_attention: bool = False,
        heads: Count = 4,
        feedforward: Width = 256,
        hidden: Width = 128,
        dropout: Share = 0.3,
        causal: bool = False,
    ) -> None:
        super().__init__(inputs)
        check_heads(width, heads)
        self.stepwise = [name for name, level in inputs.levels.items() if level == "sequence"]
        over_conversation = [name for name in inputs.widths if name not in self.stepwise] if context and refine else []
        self.capabilities = Capabilities(
            contextual=bool(over_conversation),
            skips=True,
            causal=causal or not over_conversation,
            speakers="same_other" if over_conversation and lags else "none",
        )
        self.hidden_size = hidden
        self.dropout = nn.Dropout(dropout)
        self.project = ModalityProjection(inputs.widths, width, inputs.policy)
        self.refine = nn.ModuleDict(
            {
                name: PackedTransformer(
                    refine, width, heads, feedforward, dropout, lags=lags, causal=causal and name in over_conversation
                )
                for name in inputs.widths
                if refine and name in (*self.stepwise, *over_conversation)
            }
        )
        for part in self.refine.modules():
            if isinstance(part, RelativeBias):
                nn.init.normal_(part.weight, std=0.02)
        self.bridge = BridgeTokenFusion(
            width,
            len(inputs.widths),
            tokens=tokens,
            layers=layers,
            heads=heads,
            feedforward=feedforward,
            dropout=dropout,
            token_attention=token_attention,
        )
        self.readout = nn.Linear(width, hidden)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Refine the modalities and let the tokens read them."""
        streams: list[Tensor] = []
        masks: list[Tensor | None] = []
        presents: list[Tensor] = []
        means: dict[str, Tensor] = {}
        for name, vectors in self.project(batch).items():
            if name in batch.sequences:
                x, packing = self._steps(batch, name)
                speaker = torch.zeros(packing.total, dtype=torch.long, device=x.device)
            else:
                x, packing, speaker = vectors, batch.packing, batch.speaker
            kept = self._kept_steps(batch, name)
            x = self.dropout(x)
            if name in self.refine:
                x = x + self.refine[name](x, packing, speaker, None if name in batch.sequences else kept)
            if name in batch.sequences:
                steps, there = packing.pad(x), packing.mask
                streams.append(steps)
                masks.append(there if kept is None else there & kept[:, None])
                means[name] = steps.sum(1) / packing.length[:, None]
            else:
                streams.append(x[:, None])
                masks.append(None if kept is None else kept[:, None])
                means[name] = x
            if kept is not None:
                means[name] = torch.where(kept[:, None], means[name], 0.0)
                presents.append(kept)
        pooled = self.bridge(streams, masks, torch.stack(presents, dim=1) if presents else None).mean(1)
        return Encoded(self.dropout(F.gelu(self.readout(self.dropout(pooled)))), modalities=means)

    def _kept_steps(self, batch: ConversationBatch, name: str) -> Tensor | None:
        """As :meth:`kept`; an utterance without steps has not got the modality."""
        kept = self.kept(batch, name)
        if kept is None or name not in batch.sequences:
            return kept
        return kept & (batch.sequences[name].offsets.diff() > 0)

    def _steps(self, batch: ConversationBatch, name: str) -> tuple[Tensor, Packing]:
        """Projected steps (S, width) of a sequence feature, and their packing by utterance.

        An utterance without the modality, or without steps, has one step: the learned vector for an absent modality;
        under a policy zeros.
        """
        stored = batch.sequence(name)
        counts = stored.offsets.diff()
        here = batch.present[:, batch.column(name)] & (counts > 0)
        packing = Packing(torch.where(here, counts, 1).tolist(), batch.device)
        x = self.project.project[name](stored.values)
        absent = self.project.absent[name].to(x.dtype) if name in self.project.absent else x.new_zeros(x.shape[1])
        x = torch.cat([x, absent[None]])
        rows = stored.offsets[:-1][packing.conversation] + packing.position
        return x.index_select(0, torch.where(here[packing.conversation], rows, len(x) - 1)), packing
