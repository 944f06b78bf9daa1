"""Benchmarks, their shapes and inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ercfusion.batch.batch import ConversationBatch, TaskTargets
from ercfusion.batch.packing import Packing

MODULES: dict[str, str] = {
    "attention": "benchmarks.attention",
    "broad_mamba": "benchmarks.broad_mamba",
    "carat": "benchmarks.carat",
    "cogmen": "benchmarks.cogmen",
    "dagerc": "benchmarks.dagerc",
    "dialoguernn": "benchmarks.dialoguernn",
    "fusion": "benchmarks.fusion",
    "m2fnet": "benchmarks.m2fnet",
    "mmgcn": "benchmarks.mmgcn",
    "mplmm": "benchmarks.mplmm",
    "many": "benchmarks.many",
    "robustness": "benchmarks.robustness",
    "mult": "benchmarks.mult",
    "scan": "benchmarks.scan",
}
"""Groups of benchmarks; each module has a tuple ``BENCHMARKS`` and is imported on use."""

EMOTIONS = ("happy", "sad", "neutral", "angry", "excited", "frustrated")


# Shapes and inputs


@dataclass(frozen=True)
class Shape:
    """A random corpus.

    Args:
        conversations: Number of conversations.
        utterances: Exact number in all conversations.
        shortest, longest: Bounds of the lengths; one conversation has the longest.
        spread: Standard deviation of the lengths before clipping to the bounds.
        widths: Modalities in order.
        speakers: Number in every conversation of more than one utterance.
        batch: Conversations per batch.
        past, future: Window of graph models.
        model: Sizes of the model, by the names of a group of benchmarks.
    """

    conversations: int
    utterances: int
    shortest: int
    longest: int
    spread: float
    widths: Mapping[str, int]
    speakers: int
    batch: int
    past: int
    future: int
    model: Mapping[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Width of the concatenated modalities."""
        return sum(self.widths.values())


SHAPES: dict[str, Shape] = {
    # IEMOCAP's 120 training conversations with the features of COGMEN's released code. Only totals and bounds are
    # IEMOCAP's; the lengths are random.
    "iemocap": Shape(
        conversations=120,
        utterances=5808,
        shortest=8,
        longest=110,
        spread=15.0,
        widths={"audio": 100, "text": 768, "visual": 512},
        speakers=2,
        batch=32,
        past=10,
        future=10,
        model={"layers": 2, "feedforward": 2048, "hidden": 100, "graph_heads": 7},
    ),
    # MELD's training split with text only; nine speakers have 162 speaker-pair relations.
    "meld": Shape(
        conversations=1038,
        utterances=9989,
        shortest=1,
        longest=24,
        spread=5.8,
        widths={"text": 384},
        speakers=9,
        batch=32,
        past=10,
        future=10,
        model={"layers": 2, "feedforward": 2048, "hidden": 100, "graph_heads": 7},
    ),
    # One conversation at a time, as long as a recorded meeting, for costs quadratic in the length.
    "long": Shape(
        conversations=3,
        utterances=6000,
        shortest=2000,
        longest=2000,
        spread=0.0,
        widths={"audio": 88, "text": 384, "visual": 35},
        speakers=4,
        batch=1,
        past=10,
        future=10,
        model={"layers": 2, "feedforward": 2048, "hidden": 100, "graph_heads": 7},
    ),
    # For tests. Past and future differ to reveal a wrong direction; one conversation has one utterance.
    "tiny": Shape(
        conversations=5,
        utterances=31,
        shortest=1,
        longest=13,
        spread=5.0,
        widths={"audio": 4, "text": 6, "visual": 4},
        speakers=2,
        batch=3,
        past=3,
        future=1,
        model={"layers": 2, "feedforward": 16, "hidden": 8, "graph_heads": 3},
    ),
}


def draw_lengths(shape: Shape, generator: torch.Generator) -> list[int]:
    """Lengths with the shape's number, bounds and sum."""
    mean = shape.utterances / shape.conversations
    drawn = torch.randn(shape.conversations, generator=generator) * shape.spread + mean
    lengths = drawn.round().long().clamp(shape.shortest, shape.longest).tolist()
    lengths[0], lengths[-1] = shape.longest, shape.shortest
    while (missing := shape.utterances - sum(lengths)) != 0:
        step = 1 if missing > 0 else -1
        place = int(torch.randint(1, shape.conversations - 1, (1,), generator=generator))
        if shape.shortest <= lengths[place] + step <= shape.longest:
            lengths[place] += step
    return lengths


@dataclass
class Inputs:
    """One epoch of a random corpus, packed and padded with zeros.

    Args:
        shape: Its shape.
        batches: Packed batches, in the random order of one epoch.
    """

    shape: Shape
    batches: list[ConversationBatch]

    @cached_property
    def padded(self) -> list[dict[str, Tensor]]:
        """Per batch: ``features`` (B, L, D), ``speaker`` (B, L), ``lengths`` (B) and ``labels`` (N)."""
        return [pad_batch(batch) for batch in self.batches]


def pad_batch(batch: ConversationBatch) -> dict[str, Tensor]:
    """One element of :attr:`Inputs.padded`."""
    pad = batch.packing.pad
    return {
        "features": pad(torch.cat(list(batch.features.values()), dim=1)),
        "speaker": pad(batch.speaker),
        "lengths": torch.tensor(batch.packing.lengths),
        "labels": batch.targets["emotion"].value,
    }


def make_inputs(shape: Shape, seed: int = 0) -> Inputs:
    """Random features, turns and labels; conversations in random order, ``shape.batch`` per batch."""
    generator = torch.Generator().manual_seed(seed)
    lengths = draw_lengths(shape, generator)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for first in range(0, len(order), shape.batch):
        chosen = [lengths[index] for index in order[first : first + shape.batch]]
        N = sum(chosen)
        batches.append(
            ConversationBatch(
                packing=Packing(chosen),
                features={name: torch.randn(N, width, generator=generator) for name, width in shape.widths.items()},
                speaker=torch.cat([draw_speakers(length, shape.speakers, generator) for length in chosen]),
                available=torch.ones(N, len(shape.widths), dtype=torch.bool),
                targets={
                    "emotion": TaskTargets(
                        torch.randint(len(EMOTIONS), (N,), generator=generator), torch.ones(N, dtype=torch.bool)
                    )
                },
            )
        )
    return Inputs(shape, batches)


def draw_speakers(length: int, speakers: int, generator: torch.Generator) -> Tensor:
    """(length) speakers in order of first appearance; the speaker changes with probability 0.7."""
    passes = torch.rand(length, generator=generator) < 0.7
    passes[0] = False
    return passes.long().cumsum(0) % speakers


# Benchmarks


@dataclass(frozen=True)
class Implementation:
    """One implementation of a benchmark.

    Args:
        description: One line.
        setup: From the inputs to the timed function; not timed itself.
        check: Raises AssertionError if results differ from the reference. None for the reference, and for another
            model.
        flops: Necessary floating-point operations of the timed function, by part.
        traffic: Bytes its optimiser must read or write.
        processes: It runs in its own processes. The result of ``setup`` then has ``startup``, the seconds of their
            start, and ``close()``.
    """

    description: str
    setup: Callable[[Inputs], Callable[[], Any]]
    check: Callable[[Inputs], None] | None = None
    flops: Callable[[Inputs], Mapping[str, float]] | None = None
    traffic: Callable[[Inputs], float] | None = None
    processes: bool = False


@dataclass(frozen=True)
class Benchmark:
    """One comparison.

    Args:
        name: ``group-part``.
        description: The timed work.
        implementations: By name; the first is the reference.
        targets: Required speed-ups over the reference.
        make_inputs: From a shape and a seed to the inputs.
        memory: Measure the peak memory on request.
        epochs: Training epochs per call, for the column of epochs per second; 0 for none.
    """

    name: str
    description: str
    implementations: Mapping[str, Implementation]
    targets: Mapping[str, float] = field(default_factory=dict)
    make_inputs: Callable[[Shape, int], Inputs] = make_inputs
    memory: bool = True
    epochs: int = 0

    @property
    def reference(self) -> str:
        """Name of the reference implementation."""
        return next(iter(self.implementations))


def benchmarks(group: str | None = None) -> list[Benchmark]:
    """The benchmarks of one group, or all."""
    modules = MODULES.values() if group is None else [MODULES[group]]
    return [benchmark for module in modules for benchmark in importlib.import_module(module).BENCHMARKS]
