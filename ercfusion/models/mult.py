"""MulT: every modality reads every other one through its own cross-modal Transformer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers import CrossModalEncoder
from ercfusion.models.base import Architecture, Capabilities, Encoded
from ercfusion.models.options import Count, CountOrNone, Share, Space, Width

Axis = Literal["auto", "steps", "dialogue"]
Pooling = Literal["last", "mean", "attention"]
STEPS_NOTE = "the steps of utterances are grouped by lengths on the host"
BUCKET = 16
"""Utterances with which a bucket of similar lengths is worth its own calls; see :func:`buckets`."""


class MulT(Architecture):
    """MulT: Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences" (ACL 2019).

    For each pair of modalities, a cross-modal Transformer (:class:`~ercfusion.layers.crossmodal.CrossModalEncoder`)
    enriches the target with the source. A second Transformer reads the enriched forms of each target; its last step is
    the target's vector. A residual block reads the vectors of all targets. Sequences need not be aligned.

    - *Paper and released code*: one utterance at a time, three modalities. Padding is attended to, and the last step of
      the padded sequence is read. An element with a zero in its first channel counts as padding for the positions.
    - *Here*: masks. With ``axis=steps``, the sequence is the utterance's own, and a modality without steps has one;
      with ``axis=dialogue``, it is the conversation, read at the utterance's own turn. An absent modality is in no
      memory and in no vector: its part is zero. A single modality has the second Transformer only.
    - The causal mask of the code lets step i attend to source steps up to i + the difference of the lengths.

    The preset ``model=mult_released`` has the defaults of the released code.

    Args:
        inputs: Modalities, widths and levels.
        axis: Sequence read by the Transformers: the ``steps`` of an utterance, the turns of the ``dialogue``, or
            ``auto``: steps if a modality has them.
        width: Width d of each modality; a multiple of ``heads``.
        layers: Layers of the cross-modal Transformers.
        self_layers: Layers of the second Transformers; 0 for ``layers``, at least 3, as published.
        heads: Attention heads.
        pooling: Vector of an utterance's steps: the ``last``, as published; their ``mean``; or weighted by
            ``attention``.
        causal: Never attend to later places. With ``axis=dialogue``, never read later utterances.
        text_dropout: Dropout probability on the features of ``text``.
        input_dropout: Dropout probability on the features of the other modalities; 0 published.
        attention_dropout: Dropout probability on attention to ``text``, and in the second Transformers.
        other_attention_dropout: Dropout probability on attention to the other modalities; 0 published.
        relu_dropout: Dropout probability inside feed-forward parts.
        residual_dropout: Dropout probability on residual branches.
        embedding_dropout: Dropout probability on embedded sequences.
        out_dropout: Dropout probability in the residual block.

    Shapes:
        batch -> hidden (N, M (M - 1) width), one representation (N, (M - 1) width) per modality; ``width`` with one.
    """

    # Not searched: axis and causal (different information).
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 1e-4, "high": 5e-3, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.width": {"choices": [32, 64, 96]},
        "model.layers": {"low": 1, "high": 4},
        "model.self_layers": {"low": 1, "high": 4},
        "model.text_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "model.input_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "model.attention_dropout": {"low": 0.0, "high": 0.3, "step": 0.05},
        "model.residual_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "model.embedding_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "model.out_dropout": {"low": 0.0, "high": 0.5, "step": 0.05},
        "training.batch_size": {"choices": [4, 8, 16]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        axis: Axis = "auto",
        width: Width = 64,
        layers: Count = 1,
        self_layers: CountOrNone = 1,
        heads: Count = 4,
        pooling: Pooling = "last",
        causal: bool = False,
        text_dropout: Share = 0.2,
        input_dropout: Share = 0.2,
        attention_dropout: Share = 0.0,
        other_attention_dropout: Share = 0.0,
        relu_dropout: Share = 0.0,
        residual_dropout: Share = 0.2,
        embedding_dropout: Share = 0.2,
        out_dropout: Share = 0.2,
    ) -> None:
        super().__init__(inputs)
        names, sequences = inputs.modalities, "sequence" in inputs.levels.values()
        self.by_steps = axis == "steps" or (axis == "auto" and sequences)
        self.capabilities = Capabilities(
            contextual=not self.by_steps,
            causal=causal or self.by_steps,
            absent="skip",
            skips=True,
            compiles=not self.by_steps,
            compile_note=STEPS_NOTE if self.by_steps else "",
        )
        self.pooling = pooling
        self.project = nn.ModuleDict({name: nn.Linear(size, width, bias=False) for name, size in inputs.widths.items()})
        self.drop = nn.ModuleDict(
            {name: nn.Dropout(text_dropout if name == "text" else input_dropout) for name in names}
        )

        def encoder(size: int, depth: int, attention: float) -> CrossModalEncoder:
            return CrossModalEncoder(
                size,
                depth,
                heads,
                attention_dropout=attention,
                relu_dropout=relu_dropout,
                residual_dropout=residual_dropout,
                embedding_dropout=embedding_dropout,
                causal=causal,
            )

        self.cross = nn.ModuleDict(
            {
                target: nn.ModuleDict(
                    {
                        source: encoder(
                            width, layers, attention_dropout if source == "text" else other_attention_dropout
                        )
                        for source in names
                        if source != target
                    }
                )
                for target in names
            }
        )
        size = max(1, len(names) - 1) * width
        depth = self_layers or max(layers, 3)
        self.own = nn.ModuleDict({name: encoder(size, depth, attention_dropout) for name in names})
        self.score = nn.ModuleDict(
            {
                name: nn.Linear(size, 1, bias=False)
                for name in names
                if pooling == "attention" and self.by_steps and inputs.levels[name] == "sequence"
            }
        )
        self.hidden_size = len(names) * size
        self.first = nn.Linear(self.hidden_size, self.hidden_size)
        self.second = nn.Linear(self.hidden_size, self.hidden_size)
        self.out_dropout = nn.Dropout(out_dropout)

    def forward(self, batch: ConversationBatch) -> Encoded:
        """Enrich each modality with the others and read it."""
        maps: dict[str, list[Tensor]] | None = {} if self.keep_attention and not self.by_steps else None
        vectors = self._by_steps(batch) if self.by_steps else self._by_dialogue(batch, maps)
        z = torch.cat(list(vectors.values()), dim=1)
        hidden = z + self.second(self.out_dropout(F.relu(self.first(z))))
        attention = {
            f"{name} {n}": value for name, each in (maps or {}).items() for n, value in enumerate(each, start=1)
        }
        return Encoded(hidden, modalities=vectors, attention=attention)

    # The two axes

    def _by_dialogue(self, batch: ConversationBatch, maps: dict[str, list[Tensor]] | None) -> dict[str, Tensor]:
        """Vectors (N, (M - 1) d) by modality, each read at its own turn."""
        packing, present = batch.packing, batch.present
        streams = {
            name: Stream(packing.pad(project(self.drop[name](batch.values(name)))), packing.pad(present[:, m]))
            for m, (name, project) in enumerate(self.project.items())
        }
        return {name: packing.pack(stream.values) for name, stream in self._enrich(streams, maps).items()}

    def _by_steps(self, batch: ConversationBatch) -> dict[str, Tensor]:
        """Vectors (N, (M - 1) d) by modality, each from the steps of its utterance."""
        steps = {name: self._steps(batch, name) for name in self.project}
        groups = list(buckets([each.lengths for each in steps.values()]))
        parts: dict[str, list[Tensor]] = {name: [] for name in steps}
        for rows in groups:
            streams = {name: each.padded(rows) for name, each in steps.items()}
            for name, stream in self._enrich(streams).items():
                parts[name].append(self._pool(name, stream))
        order = torch.tensor([row for rows in groups for row in rows], device=batch.device).argsort()
        return {name: torch.cat(each)[order] for name, each in parts.items()}

    def _steps(self, batch: ConversationBatch, name: str) -> Steps:
        """Projected steps of a modality."""
        stored, present = batch.sequence(name), batch.present[:, batch.column(name)]
        lengths = (stored.offsets.diff() * present).tolist()
        values = self.project[name](self.drop[name](stored.values))
        return Steps(values, stored.offsets[:-1], lengths, stored.positions)

    # What both share

    def _enrich(self, streams: Mapping[str, Stream], maps: dict[str, list[Tensor]] | None = None) -> dict[str, Stream]:
        """Each target, (G, L, (M - 1) d), after both Transformers, zero in the padding."""
        enriched = {}
        for target, own in self.own.items():
            query = streams[target]
            forms = [
                encoder(
                    query.values,
                    streams[source].values,
                    query.mask,
                    streams[source].mask,
                    query_places=query.places,
                    memory_places=streams[source].places,
                    ahead=_ahead(query, streams[source]),
                    maps=None if maps is None else maps.setdefault(f"{target} from {source}", []),
                )
                for source, encoder in self.cross[target].items()  # type: ignore[operator]
            ]
            joined = self._extend(target, replace(query, values=torch.cat(forms, dim=-1)) if forms else query)
            values = own(
                joined.values,
                query_mask=joined.mask,
                query_places=joined.places,
                maps=None if maps is None else maps.setdefault(target, []),
            )
            enriched[target] = replace(joined, values=values)
        return enriched

    def _extend(self, name: str, stream: Stream) -> Stream:
        """Input of the second Transformer of a modality; a subclass may add to it."""
        return stream

    def _pool(self, name: str, stream: Stream) -> Tensor:
        """(G, L, D) steps, zero in the padding -> (G, D)."""
        values = stream.values
        assert stream.length is not None
        if self.pooling == "last":
            last = (stream.length - 1).clamp(min=0)
            return values[torch.arange(len(last), device=last.device), last]
        if name in self.score:
            # Utterances without steps have zero values: any weights do.
            score = (
                self.score[name](values)
                .squeeze(-1)
                .masked_fill(~stream.mask & (stream.length > 0)[:, None], -torch.inf)
            )
            return torch.einsum("gt,gtd->gd", score.softmax(1), values)
        return values.sum(1) / stream.length.clamp(min=1)[:, None]


@dataclass
class Stream:
    """A padded sequence of one modality.

    Args:
        values: (G, L, d).
        mask: (G, L) bool, True at elements.
        places: (G, L) places for the positions; None for 0, 1, ...
        length: (G) number of steps; None on the axis of the dialogue, on which sequences are aligned.
    """

    values: Tensor
    mask: Tensor
    places: Tensor | None = None
    length: Tensor | None = None


@dataclass
class Steps:
    """The steps of all N utterances in one modality.

    Args:
        values: (S, d) packed.
        first: (N) first row of each utterance.
        lengths: Steps of each utterance, on the host; 0 without the modality.
        places: (S) place of each step before some were hidden; None if none was.
    """

    values: Tensor
    first: Tensor
    lengths: list[int]
    places: Tensor | None

    def padded(self, rows: list[int]) -> Stream:
        """The steps of some utterances."""
        device = self.values.device
        length = torch.tensor([self.lengths[row] for row in rows], device=device)
        longest = max(1, *(self.lengths[row] for row in rows))
        place = torch.arange(longest, device=device)
        mask = place < length[:, None]
        first = self.first[torch.tensor(rows, device=device)]
        index = torch.where(mask, first[:, None] + place, len(self.values))
        places = None if self.places is None else F.pad(self.places, (0, 1))[index]
        return Stream(F.pad(self.values, (0, 0, 0, 1))[index], mask, places, length)


def buckets(lengths: list[list[int]]) -> Iterator[list[int]]:
    """Utterances with similar lengths, in groups with little padding.

    In the order of decreasing lengths, a group ends if it has :data:`BUCKET` utterances and the next one is at most
    half as long as its longest.

    Args:
        lengths: Steps of each of the N utterances, by modality.

    Returns:
        Row numbers.
    """
    size = [max(each) for each in zip(*lengths, strict=True)]
    group: list[int] = []
    for row in sorted(range(len(size)), key=lambda row: -size[row]):
        if len(group) >= BUCKET and 2 * size[row] <= size[group[0]]:
            yield group
            group = []
        group.append(row)
    yield group


def _ahead(query: Stream, memory: Stream) -> Tensor | None:
    return None if query.length is None or memory.length is None else (memory.length - query.length).abs()
