"""CARAT: multi-label recognition from label-wise representations that are reconstructed and aggregated."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers import LabelPrototypes, PackedLSTM, PackedTransformer, RelativeBias, shuffle_labels
from ercfusion.layers.absent import over_present
from ercfusion.losses.label_contrastive import LabelContrast
from ercfusion.models.base import Architecture, BatchLoss, Capabilities, Encoded, LabelLoss, Labels
from ercfusion.models.options import Count, CountOrNone, NonNegative, Positive, Share, Space, Width, WidthOrNone
from ercfusion.models.vectors import Context, context_capabilities
from ercfusion.ops.processes import Shares

_ALWAYS: dict[str, Any] = {
    **{"asks": ("labels",), "label_wise": True, "compiles": False, "absent": "vector", "skips": True},
    "compile_note": "the steps of utterances are packed by lengths on the host",
}


class Carat(Architecture):
    """CARAT: Peng et al., "Contrastive Feature Reconstruction and Aggregation for Multi-Modal Multi-Label Emotion
    Recognition" (AAAI 2024).

    Each modality gives one vector per label. It is encoded to a latent vector, compared with a positive and a negative
    prototype of the label, and reconstructed twice from the other modalities. Classifiers read all three stages; an
    aggregator reads the vectors of all labels together and, in training, samples mixed from several utterances.

    - *Paper and released code*: one utterance at a time, sequences of 60 steps. The released code does not start:
      numpy is not imported, and a view fails. Padding is attended to.
    - *Here*: padding is masked. The vector of an utterance becomes ``tokens`` steps, and each label adds a learned
      vector: otherwise the labels of an utterance would have nearly the same vector. An absent modality has the mean of
      its prototypes as latent vector; it enters no maximum, mean, contrast or target. With one modality, the published
      reconstructions would read prototypes only; here they also read its decoded latent vector (our extension).
    - The losses use the first task's kind: cross-entropy instead of binary cross-entropy for single labels and
      distributions. Thresholds are those of the task, chosen on dev; the paper has 0.25 for all labels.

    Auxiliary losses, with their published weights in ``objective.weights``: ``original`` 0.01, ``first`` 0.1 and
    ``second`` 1 (classifiers of the three stages), ``contrastive`` 1, ``autoencoder`` 1, ``reconstruction`` 1,
    ``second_reconstruction`` 0, ``aggregated`` 1, ``shuffled`` 0.1. The loss ``task`` of the combined prediction has
    the weight 0.

    The preset ``model=carat_released`` has the published sizes and training.

    Args:
        inputs: Modalities, widths, levels and labels.
        width: Width d of steps and of the vector of each label; even with ``context=lstm``.
        latent: Width of latent vectors.
        tokens: Steps made from the vector of an utterance; sequences keep theirs.
        input_norm: Layer normalisation of each step's features.
        positions: Learned positions of sequences; later steps share the last one.
        layers: Transformer layers per modality.
        text_layers: Layers of ``text``; 0 for ``layers``.
        audio_layers: Layers of ``audio``; 0 for ``layers``.
        visual_layers: Layers of ``visual``; 0 for ``layers``.
        heads: Attention heads of the Transformers.
        feedforward: Hidden width of their feed-forward part.
        init_std: Standard deviation of initial weights of the Transformers and their input; 0 for torch's default.
        label_std: Standard deviation of the initial vectors of the labels, for modalities without sequences; 0 for no
            such vectors, as published.
        own: Reconstructions that also read the decoded vector of their own modality: with one modality only
            (``single``), ``all``, or ``none`` as published.
        detach_targets: Reconstruction errors do not change the vectors that they reconstruct; false as published.
        slots: Steps to which sequences except ``text`` are aligned first; 0 for none (aligned data).
        context: Layer over the conversation, one per modality, on the mean of an utterance's steps.
        context_layers: Number of context layers.
        lags: Distances with a learned bias in a context Transformer; 0 for none.
        bidirectional: Read both directions of the conversation; false is causal.
        dropout: Dropout probability of the Transformers, their input, and the context.
        momentum: Momentum of the prototypes; below 1.
        temperature: Divisor of the similarities in the contrastive loss.
        queue: Earlier latent vectors in the contrastive loss; 0 for none. 8192 published.
        contrast: Labelled utterances per batch in the contrastive loss, evenly spaced; 0 for all.
        anchors: Anchors of the contrastive loss: ``all``, also the queue, as published; or ``batch``.

    Shapes:
        batch -> hidden (N, width), logits (N, C), one representation (N, width) per modality.
    """

    capabilities = Capabilities(**_ALWAYS, contextual=False, causal=True)

    loss_weights = MappingProxyType(
        {
            "task": 0.0,
            "original": 0.01,
            "first": 0.1,
            "second": 1.0,
            "contrastive": 1.0,
            "autoencoder": 1.0,
            "reconstruction": 1.0,
            "second_reconstruction": 0.0,
            "aggregated": 1.0,
            "shuffled": 0.1,
        }
    )

    # Not searched: context and bidirectional (different information), queue and contrast (cost).
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "objective.weights.contrastive": {"choices": [0.0, 0.1, 0.3, 1.0]},
        "objective.weights.shuffled": {"choices": [0.0, 0.1, 0.3, 1.0]},
        "model.width": {"choices": [64, 128, 256]},
        "model.latent": {"choices": [16, 32, 64]},
        "model.tokens": {"choices": [2, 4, 8]},
        "model.layers": {"low": 1, "high": 3},
        "model.dropout": {"low": 0.1, "high": 0.6, "step": 0.05},
        "training.batch_size": {"choices": [4, 8, 16]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        width: Width = 128,
        latent: Width = 32,
        tokens: Count = 4,
        input_norm: bool = True,
        positions: Width = 128,
        layers: CountOrNone = 1,
        text_layers: CountOrNone = 0,
        audio_layers: CountOrNone = 0,
        visual_layers: CountOrNone = 0,
        heads: Count = 4,
        feedforward: Width = 128,
        init_std: NonNegative = 0.0,
        label_std: NonNegative = 1.0,
        own: Literal["single", "all", "none"] = "single",
        detach_targets: bool = True,
        slots: WidthOrNone = 0,
        context: Context = "none",
        context_layers: Count = 1,
        lags: WidthOrNone = 10,
        bidirectional: bool = True,
        dropout: Share = 0.3,
        momentum: Share = 0.99,
        temperature: Positive = 0.07,
        queue: WidthOrNone = 1024,
        contrast: WidthOrNone = 64,
        anchors: Literal["all", "batch"] = "all",
    ) -> None:
        super().__init__(inputs)
        self.capabilities = replace(context_capabilities(context, lags, bidirectional), **_ALWAYS)
        names, C = inputs.modalities, max(1, len(inputs.labels))
        M = len(names)
        depths = {"text": text_layers, "audio": audio_layers, "visual": visual_layers}
        self.hidden_size = width
        self.contrast = contrast
        self.steps = nn.ModuleDict(
            {
                name: _Steps(
                    inputs.widths[name],
                    width,
                    tokens=0 if inputs.levels[name] == "sequence" else tokens,
                    slots=0 if name == "text" else slots,
                    input_norm=input_norm,
                    positions=positions,
                    layers=depths.get(name, 0) or layers,
                    heads=heads,
                    feedforward=feedforward,
                    init_std=init_std,
                    dropout=dropout,
                )
                for name in names
            }
        )
        self.context = nn.ModuleDict(
            {
                name: _Context(width, context, context_layers, heads, lags, bidirectional, dropout, inputs.policy)
                for name in (names if context != "none" else ())
            }
        )
        self.attend = nn.ModuleDict(
            {
                name: _xavier(nn.Linear(width, C, bias=False))
                for name in names
                if tokens > 1 or inputs.levels[name] == "sequence"
            }
        )
        middle = max(1, width // 2)
        self.encode = nn.ModuleList(_mlp(width, middle, latent) for _ in names)
        self.decode = nn.ModuleList(_mlp(latent, middle, width) for _ in names)
        self.prototypes = LabelPrototypes(M, C, latent, momentum=momentum)
        self.own = own == "all" or (own == "single" and M == 1)
        self.detach_targets = detach_targets
        self.reconstruct = nn.ModuleList(_xavier(nn.Linear((M + self.own) * width, width)) for _ in names)
        self.label_vectors = nn.ParameterDict(
            {
                name: nn.Parameter(torch.randn(C, width) * label_std)
                for name in names
                if label_std and inputs.levels[name] != "sequence"
            }
        )
        self.weights = nn.Parameter(torch.empty(M, C, width).uniform_(-(width**-0.5), width**-0.5))
        self.read = _xavier(nn.Linear(C * width, width))
        self.aggregate = _xavier(nn.Linear(width, C))
        self.contrastive = LabelContrast(latent, queue=queue, temperature=temperature, anchors=anchors)

    def forward(self, batch: ConversationBatch, labels: Labels | None = None) -> Encoded:
        """Represent, reconstruct and read each label."""
        vectors, present = self._label_vectors(batch)
        vectors = self._kept(vectors, present[:, :, None, None])
        # Without any modality all reconstructions are read: they are the same for all such utterances.
        counted = present | ~present.any(1, keepdim=True)
        latent = _each(self.encode, vectors)
        first, second, decoded = self._reconstructions(latent, present)
        stages = [vectors, first, second]
        logits = [self._largest(stage, counted) for stage in stages]
        readings, aggregated = self._aggregated(second)
        outputs = torch.sigmoid if labels is None else labels.outputs
        prediction = (_mean(outputs(aggregated), counted) + outputs(logits[-1])) / 2
        encoded = Encoded(
            _mean(readings, counted),
            modalities={
                name: torch.where(present[:, m, None], vectors[:, m].mean(1), 0.0)
                for m, name in enumerate(self.inputs.modalities)
            },
            logits=_log_odds(prediction) if labels is None else labels.logits(prediction),
        )
        targets = None if labels is None or not self.training else labels.targets(batch)
        if labels is None or targets is None:
            return encoded
        mass, valid = targets
        positive = (mass > 1 / mass.shape[1]) | (mass >= 1)
        latents = torch.stack([latent, _each(self.encode, first), _each(self.encode, second)], dim=1)
        known = valid[:, None] & present
        error = functools.partial(_mean_error, vectors.detach() if self.detach_targets else vectors, present)
        encoded.losses = {
            **{name: labels.loss(each, batch) for name, each in zip(("original", "first", "second"), logits)},
            "contrastive": BatchLoss(self._contrast, (_wide(latents), positive, known)),
            "autoencoder": error(decoded),
            "reconstruction": error(first),
            "second_reconstruction": error(second),
            "aggregated": labels.loss(aggregated, batch, counted),
            "shuffled": LabelLoss(
                functools.partial(self._shuffled, labels), (self._exchanged(second, present), mass, valid)
            ),
        }
        shares = Shares(batch.packing, batch.stand_in)
        self.prototypes.update(F.normalize(latent.detach(), dim=-1), positive, known, shares)
        return encoded

    def _label_vectors(self, batch: ConversationBatch) -> tuple[Tensor, Tensor]:
        """Vectors (N, M, C, D) of each label by attention over the steps, and the present modalities (N, M)."""
        vectors, present = [], []
        for name, steps in self.steps.items():
            assert isinstance(steps, _Steps)
            x, packing, here = steps(batch, name)
            padded = _padded(x, packing)
            if name in self.context:
                mean = padded.sum(1) / packing.length[:, None]
                own = self.context[name](mean, here, batch)
                x = x + own.index_select(0, packing.conversation)
                padded = _padded(x, packing)
            if name in self.attend:
                weights = _padded(self.attend[name](x), packing, -torch.inf).softmax(1)
                x = torch.einsum("ntc,ntd->ncd", weights, padded)
            else:
                x = padded.expand(-1, self.weights.shape[1], -1)
            vectors.append(x + self.label_vectors[name] if name in self.label_vectors else x)
            present.append(here)
        return torch.stack(vectors, dim=1), torch.stack(present, dim=1)

    def _reconstructions(self, latent: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both levels of reconstruction, and the decoded latent vectors; (N, M, C, D) each."""
        there = present[:, :, None, None]
        neutral = self.prototypes.neutral().to(latent)
        decoded = self._kept(_each(self.decode, torch.where(there, latent, neutral)), there)
        filled = self._kept(_each(self.decode, torch.where(there, self.prototypes(latent), neutral)), there)
        first = []
        for m, layer in enumerate(self.reconstruct):
            parts = [(filled if k == m else decoded)[:, k] for k in range(len(self.reconstruct))]
            read = layer(torch.cat([*parts, decoded[:, m]] if self.own else parts, dim=-1))
            first.append(self._kept(read, there[:, m]))
        second = [
            layer(torch.cat([*first, decoded[:, m]] if self.own else first, dim=-1))
            for m, layer in enumerate(self.reconstruct)
        ]
        return torch.stack(first, dim=1), torch.stack(second, dim=1), decoded

    def _kept(self, vectors: Tensor, there: Tensor) -> Tensor:
        """With the policy ``skip`` the vectors ``there``, and zeros; without it, all vectors."""
        return torch.where(there, vectors, 0.0) if self.inputs.policy == "skip" else vectors

    def _largest(self, vectors: Tensor, counted: Tensor) -> Tensor:
        """(N, C) largest logit of the counted modalities."""
        logits = (vectors * self.weights).sum(-1)
        return logits.masked_fill(~counted[:, :, None], -torch.inf).amax(1)

    def _aggregated(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden vectors (N, M, D) and logits (N, M, C) from the vectors (N, M, C, D) of all labels."""
        readings = F.relu(self.read(vectors.flatten(2)))
        return readings, self.aggregate(readings)

    def _shuffled(
        self, labels: Labels, vectors: Tensor, mass: Tensor, valid: Tensor, packing: Packing, **settings: Any
    ) -> Tensor:
        """Loss of the aggregator on labels from different utterances and modalities."""
        mixed, drawn = shuffle_labels(vectors, mass, valid)
        logits = self._aggregated(mixed)[1]
        return labels.mass_loss(logits[valid].flatten(0, 1), drawn[valid].flatten(0, 1), **settings)

    def _exchanged(self, vectors: Tensor, present: Tensor) -> Tensor:
        """Vectors (N, M, C, D) to mix; with the policy ``skip`` a present modality replaces an absent one."""
        if self.inputs.policy != "skip":
            return vectors
        own = torch.arange(present.shape[1], device=present.device)
        source = torch.where(present, own, present.int().argmax(1, keepdim=True))
        return vectors.gather(1, source[:, :, None, None].expand_as(vectors))

    def _contrast(self, latents: Tensor, positive: Tensor, known: Tensor, packing: Packing) -> Tensor:
        """Contrastive loss of some utterances of the batch."""
        rows = known.any(1).nonzero().squeeze(1)
        if 0 < self.contrast < len(rows):
            spaced = torch.arange(self.contrast, device=rows.device) * len(rows) // self.contrast
            rows = rows.index_select(0, spaced)
        result: Tensor = self.contrastive(latents[rows], positive[rows], known[rows])
        return result


class _Steps(nn.Module):
    """Encoded steps of one modality.

    Args:
        in_features: Width of the features.
        width: Width D of a step.
        tokens: Steps made from one vector; 0 for a sequence.
        slots: Steps to which a sequence is aligned; 0 for none.
        input_norm, positions, layers, heads, feedforward, init_std, dropout: See :class:`Carat`.

    Shapes:
        batch -> (S, D) steps of all utterances, their packing by utterance, and (N) bool, whether it has any.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        *,
        tokens: int,
        slots: int,
        input_norm: bool,
        positions: int,
        layers: int,
        heads: int,
        feedforward: int,
        init_std: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.tokens, self.slots = tokens, slots
        # A single number would be normalised to zero.
        self.input_norm = nn.LayerNorm(in_features) if input_norm and in_features > 1 else nn.Identity()
        self.align = PackedLSTM(in_features, slots + 1, 2, bidirectional=False) if slots and not tokens else None
        self.project = nn.Linear(in_features, width * max(1, tokens))
        self.position = None if tokens else nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.encoder = PackedTransformer(layers, width, heads, feedforward, dropout, norm_first=False)
        if init_std:
            for part in (self.project, self.position, *self.encoder.modules()):
                if isinstance(part, nn.Linear | nn.Embedding):
                    nn.init.normal_(part.weight, std=init_std)
                if isinstance(part, nn.Linear):
                    nn.init.zeros_(part.bias)

    def forward(self, batch: ConversationBatch, name: str) -> tuple[Tensor, Packing, Tensor]:
        """Encode the steps of modality ``name``."""
        present, device = batch.present[:, batch.column(name)], batch.device
        if self.tokens:
            x = self.project(self.input_norm(batch.values(name))).view(-1, self.norm.weight.shape[0])
            packing = Packing([self.tokens] * batch.num_utterances, device)
        else:
            stored = batch.sequence(name)
            steps = stored.offsets.diff()
            present = present & (steps > 0)
            # An empty sequence counts as absent; one step of zeros keeps its place.
            packing = Packing(steps.clamp(min=1).tolist(), device)
            filled = (steps > 0).index_select(0, packing.conversation).nonzero().squeeze(1)
            values = stored.values.new_zeros(packing.total, stored.values.shape[1])
            x = self.input_norm(values.index_copy(0, filled, stored.values))
            places = packing.position.index_copy(0, filled, stored.places)
            if self.align is not None:
                slots = self.align(x, packing).softmax(-1)[:, 1:]
                x = torch.einsum("nts,ntd->nsd", _padded(slots, packing), _padded(x, packing)).flatten(0, 1)
                packing = Packing([self.slots] * batch.num_utterances, device)
                places = packing.position
            assert self.position is not None
            x = self.project(x) + self.position(places.clamp(max=self.position.num_embeddings - 1))
        return self.encoder(self.dropout(self.norm(x)), packing), packing, present


class _Context(nn.Module):
    """Context of an utterance from the vectors of its conversation; a learned vector replaces an absent one."""

    def __init__(
        self,
        width: int,
        kind: Context,
        layers: int,
        heads: int,
        lags: int,
        bidirectional: bool,
        dropout: float,
        policy: str | None,
    ) -> None:
        super().__init__()
        self.skip = policy == "skip"
        self.absent = None if policy is not None else nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)
        self.layer: nn.Module
        if kind == "lstm":
            if bidirectional and width % 2:
                raise ValueError(f"context=lstm needs an even width, found {width}. Choose an even number.")
            units = width // 2 if bidirectional else width
            self.layer = PackedLSTM(width, units, layers, dropout, bidirectional=bidirectional)
        else:
            self.layer = PackedTransformer(
                layers, width, heads, 2 * width, dropout, causal=not bidirectional, lags=lags
            )
            for part in self.layer.modules():
                if isinstance(part, RelativeBias):
                    nn.init.normal_(part.weight, std=0.02)

    def forward(self, x: Tensor, present: Tensor, batch: ConversationBatch) -> Tensor:
        """(N, D) -> (N, D)."""
        x = self.dropout(torch.where(present[:, None], x, 0.0 if self.absent is None else self.absent))
        result: Tensor
        if isinstance(self.layer, PackedTransformer):
            result = self.layer(x, batch.packing, batch.speaker, present if self.skip else None)
        elif self.skip:
            result = over_present(self.layer, x, present, batch.packing)
        else:
            result = self.layer(x, batch.packing)
        return torch.where(present[:, None], result, 0.0) if self.skip else result


def _xavier(layer: nn.Linear) -> nn.Linear:
    nn.init.xavier_uniform_(layer.weight)
    return layer


def _mlp(entering: int, hidden: int, leaving: int) -> nn.Sequential:
    return nn.Sequential(_xavier(nn.Linear(entering, hidden)), nn.ReLU(), _xavier(nn.Linear(hidden, leaving)))


def _each(layers: nn.ModuleList, values: Tensor) -> Tensor:
    """A layer per modality: (N, M, ..., D) -> (N, M, ..., D')."""
    return torch.stack([layer(value) for layer, value in zip(layers, values.unbind(1), strict=True)], dim=1)


def _padded(values: Tensor, packing: Packing, fill: float = 0.0) -> Tensor:
    """(S, ...) steps -> (N, T, ...); without padding a view."""
    if min(packing.lengths) == packing.longest:
        return values.unflatten(0, (packing.size, packing.longest))
    return packing.pad(values, fill)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """(N, M, ...) mean over the counted modalities (N, M)."""
    share = counted.to(values) / counted.sum(1, keepdim=True)
    return (values * share[:, :, None]).sum(1)


def _mean_error(vectors: Tensor, present: Tensor, reconstructed: Tensor) -> BatchLoss:
    """Mean squared error of (N, M, C, D) vectors, over the utterances with the modality, summed over modalities."""
    errors = (_wide(reconstructed) - _wide(vectors)).square().mean((2, 3))
    return BatchLoss(_mean_of_present, (errors, present))


def _mean_of_present(errors: Tensor, present: Tensor, packing: Packing) -> Tensor:
    return (errors.where(present, 0.0).sum(0) / present.sum(0).clamp(min=1)).sum()


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _log_odds(probabilities: Tensor) -> Tensor:
    limits = torch.finfo(probabilities.dtype)
    return probabilities.clamp(limits.tiny, 1 - limits.eps).logit()
