"""MPLMM: prompts for missing modalities in a multimodal Transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion._core.errors import BatchError
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers.prompts import MOST_MIXED, AttentionGenerator, MissingPrompts, MixerGenerator, PaddedSteps
from ercfusion.models.mult import MulT, Steps, Stream, buckets
from ercfusion.models.options import CountOrNone, Space, Width


@dataclass
class PromptedStream(Stream):
    """A sequence with the pattern of missing modalities of its utterance or its turns.

    Args:
        present: (G, L, M) bool on the axis of the dialogue; else None.
        tokens: (G, T, W) type tokens of utterances; None on the axis of the dialogue.
    """

    present: Tensor | None = None
    tokens: Tensor | None = None


class Mplmm(MulT):
    """MPLMM: Guo, Jin & Zhao, "Multimodal Prompt Learning with Missing Modalities for Sentiment Analysis and Emotion
    Recognition" (ACL 2024).

    Prompts in a multimodal Transformer, :class:`~ercfusion.models.mult.MulT`. An absent modality is generated from
    prompts and the present ones. Signals are added to generated and to real steps. Tokens of the pattern of missing
    modalities follow each sequence (:class:`~ercfusion.layers.prompts.MissingPrompts`). ``recipe=mplmm`` trains the
    Transformer on complete data, then the prompts with the Transformer frozen; without it everything is trained
    together.

    - *Paper and released code*: three sequences of fixed lengths. Dense layers over the steps generate, and the last
      token is read. Utterances are completed one by one. In one released version type tokens and their maps start at
      zero and never change (``type_init=zero``).
    - *Here*: any number of modalities, all patterns of a batch together. For sequences of any length, attention
      generates ``prompt_length`` steps (our reading).
    - On the axis of the dialogue (our reading), each turn is completed on its own, as a sequence of one step. It reads
      the tokens of its own pattern before the second Transformer. Generated turns are in every memory.
    - An utterance without any modality is generated from prompts only.

    The preset ``model=mplmm_released`` has the sizes and defaults of the released code, for aligned sequences.

    Args:
        inputs: Modalities, widths and levels.
        prompts: Whether there are prompts; false is the plain multimodal Transformer, for the first stage.
        prompt_length: Vectors per modality and prompt.
        generator: Generates absent modalities: ``attention``, for any length; or ``mixer``, dense layers over the
            steps as published, for one fixed ``length`` or the axis of the dialogue.
        length: Steps to which sequences are padded or cut, without masks; 0 for their own lengths.
        type_init: Initial type prompts: ``normal``, or ``zero``, at which they never learn.
        backbone: Options of :class:`~ercfusion.models.mult.MulT`.

    Shapes:
        batch -> hidden (N, M (M - 1) width), one representation (N, (M - 1) width) per modality; ``width`` with one.
    """

    # Not searched: as for MulT; prompts (a stage), generator, length and type_init.
    search_space: ClassVar[Space] = {**MulT.search_space, "model.prompt_length": {"choices": [4, 8, 16]}}

    def __init__(
        self,
        inputs: InputSpec,
        *,
        prompts: bool = True,
        prompt_length: Width = 16,
        generator: Literal["attention", "mixer"] = "attention",
        length: CountOrNone = 0,
        type_init: Literal["normal", "zero"] = "normal",
        **backbone: Any,
    ) -> None:
        super().__init__(inputs, **backbone)
        self.length = length if self.by_steps else 1
        if generator == "mixer" and not self.length:
            raise BatchError("generator=mixer needs sequences of one length. Set model.length, or generator=attention.")
        if generator == "mixer" and len(inputs.widths) > MOST_MIXED:
            raise BatchError(
                f"generator=mixer has at most {MOST_MIXED} modalities, found {len(inputs.widths)}. Set "
                "generator=attention."
            )
        self.prompts: MissingPrompts | None = None
        if prompts:
            self.capabilities = replace(self.capabilities, absent="generated", skips=False)
            M = len(inputs.widths)
            self.prompts = MissingPrompts(
                inputs.widths,
                next(iter(self.project.values())).out_features,  # type: ignore[arg-type]
                self.hidden_size // M,
                length=prompt_length,
                generator=MixerGenerator if generator == "mixer" else AttentionGenerator,
                steps=self.length or prompt_length,
                slots=self.length if self.by_steps and self.length else prompt_length,
                per_step=self.by_steps and self.length > 0,
                type_init=type_init,
            )

    def _by_dialogue(self, batch: ConversationBatch, maps: dict[str, list[Tensor]] | None) -> dict[str, Tensor]:
        if self.prompts is None:
            return super()._by_dialogue(batch, maps)
        packing = batch.packing
        one = torch.ones(packing.total, 1, dtype=torch.bool, device=batch.device)
        vectors = {name: PaddedSteps(self.drop[name](batch.values(name))[:, None], one) for name in self.inputs.widths}
        present = packing.pad(batch.present)
        streams = {
            name: PromptedStream(packing.pad(x.values[:, 0]), packing.mask, present=present)
            for name, x in self._completed(vectors, batch.present).items()
        }
        return {name: packing.pack(stream.values) for name, stream in self._enrich(streams, maps).items()}

    def _by_steps(self, batch: ConversationBatch) -> dict[str, Tensor]:
        if self.prompts is None and not self.length:
            return super()._by_steps(batch)
        steps = {name: self._raw_steps(batch, name) for name in self.inputs.widths}
        lengths = [each.lengths for each in steps.values()]
        groups = [list(range(batch.num_utterances))] if self.length else list(buckets(lengths))
        parts: dict[str, list[Tensor]] = {name: [] for name in steps}
        for rows in groups:
            padded, places = {}, {}
            for name, each in steps.items():
                stream = each.padded(rows)
                padded[name], places[name] = PaddedSteps(stream.values, stream.mask), stream.places
            present = torch.stack([x.mask[:, 0] for x in padded.values()], dim=1)
            if self.length:
                padded = {name: self._fixed(x) for name, x in padded.items()}
            tokens = None if self.prompts is None else self.prompts.tokens(present)
            streams = {
                name: PromptedStream(
                    x.values,
                    x.mask,
                    _places(places[name], x, present[:, m]),
                    x.mask.sum(1),
                    tokens=None if tokens is None else tokens[m],
                )
                for m, (name, x) in enumerate(self._completed(padded, present).items())
            }
            for name, enriched in self._enrich(streams).items():
                parts[name].append(self._pool(name, enriched))
        order = torch.tensor([row for rows in groups for row in rows], device=batch.device).argsort()
        return {name: torch.cat(each)[order] for name, each in parts.items()}

    def _steps(self, batch: ConversationBatch, name: str) -> Steps:
        """Projected steps of a modality."""
        raw = self._raw_steps(batch, name)
        return replace(raw, values=self.project[name](raw.values))

    def _raw_steps(self, batch: ConversationBatch, name: str) -> Steps:
        stored, present = batch.sequence(name), batch.present[:, batch.column(name)]
        lengths = stored.offsets.diff() * present
        if self.length:
            lengths = lengths.clamp(max=self.length)
        positions = None if self.length else stored.positions
        return Steps(self.drop[name](stored.values), stored.offsets[:-1], lengths.tolist(), positions)

    def _fixed(self, x: PaddedSteps) -> PaddedSteps:
        """``length`` steps, all of which count, as in the released code."""
        values = F.pad(x.values, (0, 0, 0, self.length - x.values.shape[1]))
        return PaddedSteps(values, torch.ones_like(values[..., 0], dtype=torch.bool))

    def _completed(self, streams: Mapping[str, PaddedSteps], present: Tensor) -> dict[str, PaddedSteps]:
        """Completed steps of each modality; without prompts those of the present ones."""
        projected = [self.project[name](x.values) for name, x in streams.items()]
        if self.prompts is None:
            masks = [x.mask & present[:, m, None] for m, x in enumerate(streams.values())]
            own = (PaddedSteps(x * mask[..., None], mask) for x, mask in zip(projected, masks, strict=True))
            return dict(zip(streams, own, strict=True))
        return dict(zip(streams, self.prompts.complete(list(streams.values()), projected, present), strict=True))

    def _extend(self, name: str, stream: Stream) -> Stream:
        """Type tokens after the steps of each utterance, or read by each turn."""
        if not isinstance(stream, PromptedStream) or self.prompts is None:
            return stream
        values, tokens = stream.values, stream.tokens
        if stream.present is not None:
            return replace(stream, values=self.prompts.read(self.inputs.modalities.index(name), values, stream.present))
        assert tokens is not None
        assert stream.length is not None
        size, more = values.shape[1], tokens.shape[1]
        # Tokens take the places after the last step; the padding moves behind them.
        end, index = stream.length[:, None], torch.arange(size + more, device=values.device)
        source = torch.where(index < end, index, size + (index - end)).clamp(max=size + more - 1)
        joined = torch.cat([values, tokens], dim=1).gather(1, source[..., None].expand(-1, -1, values.shape[-1]))
        places = stream.places
        if places is not None:
            last = places.gather(1, end - 1)  # a completed sequence has a step
            places = torch.cat([places, last + 1 + index[:more]], dim=1).gather(1, source)
        return Stream(joined, index < end + more, places, stream.length + more)


def _places(places: Tensor | None, steps: PaddedSteps, present: Tensor) -> Tensor | None:
    """Places of completed steps; those of generated steps are 0, 1, ..."""
    if places is None:
        return None
    size = steps.mask.shape[1]
    own = F.pad(places, (0, size - places.shape[1]))
    return torch.where(present[:, None], own, torch.arange(size, device=own.device))
