"""Broad Mamba: selective state spaces, broad layers, fusion by probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers.absent import over_present
from ercfusion.layers.broad import BroadLearning, ProbabilityGuidedFusion
from ercfusion.layers.inputs import ModalityProjection
from ercfusion.layers.mamba import BidirectionalMamba, Combination, Mamba, MambaState
from ercfusion.models.base import Architecture, Capabilities, Encoded, Outcomes
from ercfusion.models.options import Count, CountOrNone, Positive, Share, Space, Width, WidthOrNone

Activation = Literal["linear", "tanh", "relu", "gelu"]


class BroadMambaState(NamedTuple):
    """State of a causal Broad Mamba for B conversations.

    Args:
        mixers: One state per Mamba block.
        speaker: (B), the last speakers.
    """

    mixers: tuple[MambaState, ...]
    speaker: Tensor


class BroadMambaBlock(nn.Module):
    """A Mamba block and a broad layer, both pre-norm and residual.

    Args:
        width: d.
        dropout: Dropout probability on both results.
        bidirectional, tied, combine: As in :class:`ercfusion.layers.mamba.BidirectionalMamba`.
        mamba: Options of :class:`ercfusion.layers.mamba.Mamba`.
        write: Factor of an utterance's input into the state relative to Mamba's initialisation, at the same decay.
        broad: Options of :class:`ercfusion.layers.broad.BroadLearning`; None for no broad layer.

    Shapes:
        x (N, width), packing of the N utterances -> (N, width).
    """

    def __init__(
        self,
        width: int,
        dropout: float,
        *,
        bidirectional: bool,
        tied: bool,
        combine: str,
        mamba: dict[str, Any],
        write: float,
        broad: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer: Mamba | BidirectionalMamba
        # Longer steps and smaller rates by the same factor: the decay exp(step * rate) is unchanged, the input grows.
        mamba = {**mamba, "dt_min": 0.001 * write, "dt_max": 0.1 * write}
        if bidirectional:
            self.mixer = BidirectionalMamba(width, tied=tied, combine=combine, **mamba)
        else:
            self.mixer = Mamba(width, **mamba)
        with torch.no_grad():
            for part in self.mixer.modules():
                if isinstance(part, Mamba):
                    part.A_log.sub_(math.log(write))
        self.broad_norm = None if broad is None else nn.LayerNorm(width)
        self.broad = None if broad is None else BroadLearning(width, **broad)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """Run the block over whole conversations."""
        return self._widen(x + self.dropout(self.mixer(self.norm(x), packing)))

    def step(self, x: Tensor, state: MambaState | None) -> tuple[Tensor, MambaState]:
        """Run the block on one more utterance of each of B conversations, (B, width)."""
        assert isinstance(self.mixer, Mamba)
        mixed, state = self.mixer.step(self.norm(x), state)
        return self._widen(x + self.dropout(mixed)), state

    def unless(self, kept: Tensor, new: MambaState, old: MambaState | None) -> MambaState:
        """The state ``new`` of the conversations ``kept`` (B), and ``old`` of the others."""
        assert isinstance(self.mixer, Mamba)
        before = self.mixer.start(len(kept)) if old is None else old
        return MambaState(*(torch.where(kept[:, None, None], *both) for both in zip(new, before, strict=True)))

    def _widen(self, x: Tensor) -> Tensor:
        if self.broad is None or self.broad_norm is None:
            return x
        return x + self.dropout(self.broad(self.broad_norm(x)))


class BroadMamba(Architecture):
    """Broad Mamba, after Shou et al., "Revisiting Multi-modal Emotion Learning with Broad State Space Models and
    Probability-guidance Fusion" (arXiv 2404.17858; ECML PKDD 2025).

    - *Paper* (abstract): a bidirectional state space model per modality instead of attention; a broad learning system
      for features in a wider space; label probabilities predicted by each modality as fusion weights. No code was
      released.
    - *Here*: everything else, so no figure is the paper's. Blocks of Mamba (Gu & Dao, 2023) and a broad layer, pre-norm
      and residual; an added speaker embedding; weights by :class:`ercfusion.layers.broad.ProbabilityGuidedFusion`;
      ``joint_layers`` blocks after the fusion, to track evidence in several modalities together.

    The probabilities come from the recognizer's classifiers on the representations
    (:class:`~ercfusion.models.base.Outcomes`). These learn through the weights and, if ``objective.weights.unimodal``
    is above 0, from the labels; with ``detach=true`` only from the labels. Without a recognizer, and in regression,
    present modalities have equal weights.

    Args:
        inputs: Modalities and widths.
        width: Width of all vectors.
        layers: Blocks (Mamba and broad layer) per modality.
        joint_layers: Blocks on the fused vectors.
        state: State size per channel.
        expand: Channels inside a Mamba block, as a multiple of the width.
        taps: Utterances read by a block's convolution.
        write: Input into the state relative to Mamba's initialisation, at the same decay; 1 suits thousands of steps.
        bidirectional: Read both directions; false is causal and allows ``step``.
        tied: Same weights in both directions.
        combine: Combination of the directions.
        feature_groups: Groups of feature nodes in a broad layer; 0 for no broad layers.
        feature_width: Feature nodes per group.
        enhancement_groups: Groups of enhancement nodes.
        enhancement_width: Enhancement nodes per group.
        feature_activation: Activation of the feature nodes.
        activation: Activation of the enhancement nodes.
        trainable: False keeps the nodes' random weights, as in classical broad learning.
        fusion: Weights of the modalities: confidence or entropy of their classifiers, or uniform.
        temperature: Temperature of the weights; large values equalise them.
        epsilon: Share of the weight spread evenly.
        detach: No gradient from the weights into the classifiers.
        speakers: Speaker embedding: number, same or other than before, or none.
        dropout: Dropout probability in the blocks and before the head.
        input_dropout: Dropout probability on the projected input.

    Shapes:
        batch -> hidden (N, width); one representation (N, width) per modality.
    """

    # Not searched: bidirectional (different information), trainable=false (a baseline), joint_layers=0 (cannot track
    # joint evidence), tied, combine, state, activations.
    search_space: ClassVar[Space] = {
        "optimizer.lr": {"low": 3e-4, "high": 1e-2, "log": True},
        "optimizer.weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "model.width": {"choices": [32, 64, 128]},
        "model.layers": {"low": 0, "high": 2},
        "model.joint_layers": {"low": 1, "high": 3},
        "model.taps": {"low": 1, "high": 4},
        "model.write": {"low": 1.0, "high": 64.0, "log": True},
        "model.feature_groups": {"choices": [1, 2, 4, 8]},
        "model.enhancement_groups": {"choices": [0, 1, 4, 8]},
        "model.fusion": {"choices": ["confidence", "entropy", "uniform"]},
        "model.temperature": {"low": 0.1, "high": 2.0, "log": True},
        "model.epsilon": {"low": 0.0, "high": 0.5, "step": 0.1},
        "model.speakers": {"choices": ["numbered", "same_other"]},
        "model.dropout": {"low": 0.2, "high": 0.7, "step": 0.05},
        "model.input_dropout": {"low": 0.0, "high": 0.5, "step": 0.1},
        "objective.weights.unimodal": {"choices": [0.0, 0.1, 0.3, 1.0]},
        "objective.label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
        "training.batch_size": {"choices": [8, 16, 32]},
    }

    def __init__(
        self,
        inputs: InputSpec,
        *,
        width: Width = 64,
        layers: CountOrNone = 1,
        joint_layers: CountOrNone = 1,
        state: Width = 16,
        expand: Count = 2,
        taps: Count = 1,
        write: Positive = 16.0,
        bidirectional: bool = True,
        tied: bool = False,
        combine: Combination = "add",
        feature_groups: CountOrNone = 1,
        feature_width: Width = 16,
        enhancement_groups: CountOrNone = 1,
        enhancement_width: WidthOrNone = 16,
        feature_activation: Activation = "linear",
        activation: Activation = "tanh",
        trainable: bool = True,
        fusion: Literal["confidence", "entropy", "uniform"] = "confidence",
        temperature: Positive = 1.0,
        epsilon: Share = 0.1,
        detach: bool = False,
        speakers: Literal["numbered", "same_other", "none"] = "numbered",
        dropout: Share = 0.5,
        input_dropout: Share = 0.0,
    ) -> None:
        super().__init__(inputs)
        contextual, guided = layers + joint_layers > 0, fusion != "uniform"
        self.capabilities = Capabilities(
            contextual=contextual or speakers == "same_other",
            causal=not (bidirectional and contextual),
            speakers=speakers,
            needs_unimodal=detach and guided,
            asks=("outcomes",) if guided else (),
            skips=True,
        )
        self.bidirectional, self.speakers = bidirectional, speakers
        self.hidden_size = width
        self.project = ModalityProjection(inputs.widths, width, inputs.policy)
        self.speaker: nn.Embedding | None = None
        if speakers != "none":
            self.speaker = nn.Embedding(3 if speakers == "same_other" else inputs.speakers, width)
            nn.init.normal_(self.speaker.weight, std=0.5)
        self.input_norm = nn.ModuleDict({name: nn.LayerNorm(width) for name in inputs.widths})
        self.input_dropout = nn.Dropout(input_dropout)
        broad: dict[str, Any] | None = None
        if feature_groups:
            broad = {
                "feature_groups": feature_groups,
                "feature_width": feature_width,
                "enhancement_groups": enhancement_groups,
                "enhancement_width": enhancement_width,
                "feature_activation": feature_activation,
                "activation": activation,
                "trainable": trainable,
            }

        def blocks(number: int) -> nn.ModuleList:
            mamba = {"d_state": state, "d_conv": taps, "expand": expand}
            stack = (
                BroadMambaBlock(
                    width,
                    dropout,
                    bidirectional=bidirectional,
                    tied=tied,
                    combine=combine,
                    mamba=mamba,
                    write=write,
                    broad=broad,
                )
                for _ in range(number)
            )
            return nn.ModuleList(stack)

        self.single = nn.ModuleDict({name: blocks(layers) for name in inputs.widths})
        self.single_norm = nn.ModuleDict({name: nn.LayerNorm(width) for name in inputs.widths})
        rule = "confidence" if fusion == "uniform" else fusion
        self.fuse = ProbabilityGuidedFusion(rule, temperature=temperature, detach=detach, epsilon=epsilon)
        self.joint = blocks(joint_layers)
        self.joint_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: ConversationBatch, outcomes: Outcomes | None = None) -> Encoded:
        """Encode the conversations.

        Args:
            batch: Standardised features.
            outcomes: Provided by the recognizer unless ``fusion=uniform``; None for equal weights.
        """
        packing = batch.packing

        def run_all(blocks: Sequence[nn.Module], x: Tensor, packing: Packing) -> Tensor:
            for block in blocks:
                x = block(x, packing)
            return x

        def run(blocks: Sequence[nn.Module], x: Tensor, kept: Tensor | None) -> Tensor:
            if kept is None or not len(blocks):
                return run_all(blocks, x, packing)
            return over_present(partial(run_all, blocks), x, kept, packing)

        return self._encode(batch, self._speaker_codes(batch, None), outcomes, run)

    def step(
        self, batch: ConversationBatch, state: BroadMambaState | None = None, outcomes: Outcomes | None = None
    ) -> tuple[Encoded, BroadMambaState]:
        """Encode one more utterance of each of B conversations, as :meth:`forward` would in the whole conversation.

        Args:
            batch: B conversations of one utterance, the next one; speakers numbered as in the whole conversation.
            state: State returned by the last step; None at first. It is not changed.
            outcomes: As for :meth:`forward`.

        Returns:
            Output of :meth:`forward` for the B utterances, and the new state.

        Raises:
            ValueError: the model is bidirectional, or a conversation has more than one utterance.
        """
        self.check_inputs(batch)
        if self.bidirectional:
            raise ValueError("a bidirectional model cannot read step by step. Set bidirectional=False.")
        if batch.packing.longest > 1:
            raise ValueError(
                f"a conversation has {batch.packing.longest} utterances. Pass one utterance per conversation."
            )
        states = iter(() if state is None else state.mixers)
        new_states: list[MambaState] = []

        def run(blocks: Sequence[nn.Module], x: Tensor, kept: Tensor | None) -> Tensor:
            for block in blocks:
                assert isinstance(block, BroadMambaBlock)
                old = next(states, None)
                x, new = block.step(x, old)
                new_states.append(new if kept is None else block.unless(kept, new, old))
            return x

        codes = self._speaker_codes(batch, None if state is None else state.speaker)
        encoded = self._encode(batch, codes, outcomes, run)
        return encoded, BroadMambaState(tuple(new_states), batch.speaker)

    def _encode(
        self,
        batch: ConversationBatch,
        codes: Tensor | None,
        outcomes: Outcomes | None,
        run: Callable[[Sequence[nn.Module], Tensor, Tensor | None], Tensor],
    ) -> Encoded:
        singles: dict[str, Tensor] = {}
        for name, x in self.project(batch).items():
            x = self.input_norm[name](x if codes is None else x + codes)
            kept = self.kept(batch, name)
            x = run(self.single[name], self.input_dropout(x), kept)  # type: ignore[arg-type]
            x = self.single_norm[name](x)
            singles[name] = x if kept is None else torch.where(kept[:, None], x, 0.0)
        fused = self._fuse(batch, singles, outcomes)
        hidden = self.dropout(self.joint_norm(run(self.joint, fused, None)))  # type: ignore[arg-type]
        return Encoded(hidden, modalities=singles)

    def _fuse(self, batch: ConversationBatch, singles: dict[str, Tensor], outcomes: Outcomes | None) -> Tensor:
        values = torch.stack(list(singles.values()), dim=1)  # (N, M, width)
        if outcomes and self.capabilities.asks:
            predictions = [outcomes(name, value) for name, value in singles.items()]
        else:
            predictions = []
        logits = [value for value in predictions if value is not None]
        if not logits:  # Equal weights for the present modalities.
            return self.fuse(values, values.new_zeros(*values.shape[:2], 1), batch.present)
        return self.fuse(values, torch.stack(logits, dim=1), batch.present)

    def _speaker_codes(self, batch: ConversationBatch, last: Tensor | None) -> Tensor | None:
        """(N, width) added to every modality, or None."""
        if self.speaker is None:
            return None
        if self.speakers == "numbered":  # Speakers beyond those of the training share the last number.
            return self.speaker(batch.speaker.clamp(max=self.speaker.num_embeddings - 1))
        if last is None:
            last = batch.speaker.roll(1)
            has_last = batch.packing.position > 0
        else:
            has_last = torch.ones_like(last, dtype=torch.bool)
        return self.speaker(torch.where(has_last, 1 + (last != batch.speaker).long(), 0))
