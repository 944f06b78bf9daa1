"""Broad Mamba: selective state spaces over each modality, a broad layer, fusion guided by probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers.broad import BroadLearning, ProbabilityGuidedFusion
from ercfusion.layers.inputs import ModalityProjection
from ercfusion.layers.mamba import BidirectionalMamba, Combination, Mamba, MambaState
from ercfusion.models.base import Architecture, Capabilities, Encoded, Outcomes
from ercfusion.models.options import Count, CountOrNone, Positive, Share, Space, Width, WidthOrNone

Activation = Literal["linear", "tanh", "relu", "gelu"]


class BroadMambaState(NamedTuple):
    """What a causal Broad Mamba remembers of B conversations.

    Args:
        mixers: One state for every Mamba block.
        speaker: (B), who spoke last.
    """

    mixers: tuple[MambaState, ...]
    speaker: Tensor


class BroadMambaBlock(nn.Module):
    """A Mamba block and a broad layer, each after a normalisation and added to what it read.

    Args:
        width: d.
        dropout: Probability, on what is added.
        bidirectional, tied, combine: See :class:`ercfusion.layers.mamba.BidirectionalMamba`.
        mamba: Options of :class:`ercfusion.layers.mamba.Mamba`.
        write: How much stronger than in Mamba's own initialisation an utterance enters the state, with the same
            forgetting.
        broad: Options of :class:`ercfusion.layers.broad.BroadLearning`; None leaves the broad layer out.

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
        # Steps are longer and rates smaller by the same factor: the decay exp(step * rate) stays, the input does not.
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
        """See the class."""
        return self._widen(x + self.dropout(self.mixer(self.norm(x), packing)))

    def step(self, x: Tensor, state: MambaState | None) -> tuple[Tensor, MambaState]:
        """One more utterance of each of B conversations: (B, width)."""
        assert isinstance(self.mixer, Mamba)
        mixed, state = self.mixer.step(self.norm(x), state)
        return self._widen(x + self.dropout(mixed)), state

    def _widen(self, x: Tensor) -> Tensor:
        if self.broad is None or self.broad_norm is None:
            return x
        return x + self.dropout(self.broad(self.broad_norm(x)))


class BroadMamba(Architecture):
    r"""Broad Mamba, after Shou et al., "Revisiting Multi-modal Emotion Learning with Broad State Space Models and
    Probability-guidance Fusion" (arXiv 2404.17858; ECML PKDD 2025).

    *The paper's* idea, as its abstract states it: each modality is put into context by a bidirectional state space
    model instead of attention; a broad learning system then looks for features in a wider space; and the probabilities
    of the labels that each modality predicts become the weights with which the modalities are fused. No code was
    released.

    *Ours* is everything that the abstract leaves open, so that no figure obtained here is one of the paper: the state
    space model is Mamba's selective one with its convolution (Gu & Dao, 2023); blocks are pre-norm with residual
    connections, a Mamba block and a broad layer each; speakers enter as an embedding that is added; the formulas of the
    weights (:class:`ercfusion.layers.broad.ProbabilityGuidedFusion`); and ``joint_layers`` further blocks behind the
    fusion. These are there because evidence that only several modalities reveal together cannot be followed through the
    conversation by blocks that see one modality; ``joint_layers=0`` leaves them out.

    The probabilities come from the classifiers that the recognizer puts on the modalities' representations. This class
    asks for them (:class:`~ercfusion.models.base.Outcomes`), so that the recognizer makes them, whatever the objective,
    and lends them to :meth:`forward`. They learn from the task through the weights and, with
    ``objective.weights.unimodal`` above 0, from the labels directly; with ``detach=true`` only so. Without a
    recognizer, and in regression, where there are no probabilities, the modalities that are present weigh the same.
    Weights for every class (``class_wise`` of the layer) would need fused class scores instead of a vector, and are not
    an option here.

    Args:
        inputs: Modalities and widths.
        width: Width d of all vectors.
        layers: Blocks (Mamba and broad layer) on each modality.
        joint_layers: Blocks on the fused vectors.
        state: Numbers S that a channel remembers.
        expand: Channels inside a Mamba block, as a multiple of the width.
        taps: Utterances that a block's convolution reads; 1 leaves one factor per channel.
        write: How much more strongly than in Mamba's own initialisation an utterance is written into the state, while
            as much is forgotten. Mamba's own, 1, is meant for thousands of steps.
        bidirectional: False makes the model causal; it can then read utterance by utterance (:meth:`step`).
        tied: Both directions have the same weights.
        combine: How the two directions are combined.
        feature_groups: Groups of feature nodes in a broad layer; 0 leaves the broad layers out.
        feature_width: Feature nodes per group.
        enhancement_groups: Groups of enhancement nodes; 0 leaves them out.
        enhancement_width: Enhancement nodes per group.
        feature_activation: Activation of the feature nodes.
        activation: Activation of the enhancement nodes.
        trainable: False keeps the random weights of all nodes, as in a classical broad learning system.
        fusion: What the weights of the modalities follow: confidence or entropy of their classifiers, or nothing.
        temperature: Temperature of the weights; a large one weighs all modalities alike.
        epsilon: Share of the weight that is spread evenly.
        detach: The weights send no gradient to the classifiers.
        speakers: Embedding of the speaker's number, of whether the last utterance had the same speaker, or none.
        dropout: Dropout probability in the blocks and before the head.
        input_dropout: Dropout probability on the projected input.

    Shapes:
        batch -> hidden (N, width); one representation (N, width) a modality.
    """

    # Not searched: bidirectional, which changes what the model may know; trainable=false, which is a classical
    # baseline; joint_layers=0, which cannot follow what only several modalities show together; tied, combine, state and
    # the activations.
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
        )
        self.bidirectional, self.speakers = bidirectional, speakers
        self.hidden_size = width
        self.project = ModalityProjection(inputs.widths, width)
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
            made = (
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
            return nn.ModuleList(made)

        self.single = nn.ModuleDict({name: blocks(layers) for name in inputs.widths})
        self.single_norm = nn.ModuleDict({name: nn.LayerNorm(width) for name in inputs.widths})
        rule = "confidence" if fusion == "uniform" else fusion
        self.fuse = ProbabilityGuidedFusion(rule, temperature=temperature, detach=detach, epsilon=epsilon)
        self.joint = blocks(joint_layers)
        self.joint_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: ConversationBatch, outcomes: Outcomes | None = None) -> Encoded:
        """See the class.

        Args:
            batch: Standardised.
            outcomes: Lent by the recognizer unless ``fusion=uniform``; None weighs the modalities alike.
        """
        packing = batch.packing

        def run(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
            for block in blocks:
                x = block(x, packing)
            return x

        return self._encode(batch, self._speaker_codes(batch, None), outcomes, run)

    def step(
        self, batch: ConversationBatch, state: BroadMambaState | None = None, outcomes: Outcomes | None = None
    ) -> tuple[Encoded, BroadMambaState]:
        """Read one more utterance of each of B conversations: what :meth:`forward` gives for it in the whole.

        Args:
            batch: B conversations of one utterance each, the next one; speakers numbered as in the whole conversation.
            state: What the last step returned; None before the first. It is not changed.
            outcomes: As for :meth:`forward`.

        Returns:
            What :meth:`forward` returns, for B utterances, and the new state.

        Raises:
            ValueError: the model is bidirectional, or a conversation has more than one utterance.
        """
        self.check_inputs(batch)
        if self.bidirectional:
            raise ValueError("a bidirectional model cannot read step by step: make it with bidirectional=False")
        if batch.packing.longest > 1:
            raise ValueError(f"a step takes one utterance of each conversation, found {batch.packing.longest}")
        before = iter(() if state is None else state.mixers)
        after: list[MambaState] = []

        def run(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
            for block in blocks:
                assert isinstance(block, BroadMambaBlock)
                x, new = block.step(x, next(before, None))
                after.append(new)
            return x

        codes = self._speaker_codes(batch, None if state is None else state.speaker)
        encoded = self._encode(batch, codes, outcomes, run)
        return encoded, BroadMambaState(tuple(after), batch.speaker)

    def _encode(
        self,
        batch: ConversationBatch,
        codes: Tensor | None,
        outcomes: Outcomes | None,
        run: Callable[[Sequence[nn.Module], Tensor], Tensor],
    ) -> Encoded:
        singles: dict[str, Tensor] = {}
        for name, x in self.project(batch).items():
            x = self.input_norm[name](x if codes is None else x + codes)
            x = run(self.single[name], self.input_dropout(x))  # type: ignore[arg-type]
            singles[name] = self.single_norm[name](x)
        fused = self._fuse(batch, singles, outcomes)
        hidden = self.dropout(self.joint_norm(run(self.joint, fused)))  # type: ignore[arg-type]
        return Encoded(hidden, modalities=singles)

    def _fuse(self, batch: ConversationBatch, singles: dict[str, Tensor], outcomes: Outcomes | None) -> Tensor:
        values = torch.stack(list(singles.values()), dim=1)  # (N, M, width)
        said = [outcomes(name, value) for name, value in singles.items()] if outcomes and self.capabilities.asks else []
        logits = [each for each in said if each is not None]
        if not logits:  # The same for all: only presence tells them apart.
            return self.fuse(values, values.new_zeros(*values.shape[:2], 1), batch.present)
        return self.fuse(values, torch.stack(logits, dim=1), batch.present)

    def _speaker_codes(self, batch: ConversationBatch, last: Tensor | None) -> Tensor | None:
        """(N, width) to be added to every modality, or None."""
        if self.speaker is None:
            return None
        if self.speakers == "numbered":  # Further speakers than training had share the last number.
            return self.speaker(batch.speaker.clamp(max=self.speaker.num_embeddings - 1))
        if last is None:
            last = batch.speaker.roll(1)
            known = batch.packing.position > 0
        else:
            known = torch.ones_like(last, dtype=torch.bool)
        return self.speaker(torch.where(known, 1 + (last != batch.speaker).long(), 0))
