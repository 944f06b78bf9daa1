"""MulT compared with its plain form, one sequence after the other: forward and backward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.literal_mult import literal
from benchmarks.registry import Benchmark, Implementation, Inputs, Shape
from ercfusion.batch.batch import ConversationBatch, SequenceValues
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.models.mult import MulT
from ercfusion.testing import without_dropout

LONGEST = {"text": 50, "audio": 120, "visual": 80}
"""Steps of the longest utterance."""
UTTERANCES = 64
RELEASED: dict[str, Any] = {"width": 30, "layers": 5, "self_layers": 0, "heads": 5, "causal": True}
SMALL: dict[str, Any] = {"width": 8, "heads": 2}


def make_dialogues(shape: Shape, seed: int = 0) -> Inputs:
    """Random conversations of the shape; a fifth of the values are absent."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shape.shortest, min(shape.longest, 60) + 1, (min(shape.batch, 16),), generator=generator)
    return Inputs(shape, [_batch(shape, lengths.tolist(), generator)])


def make_steps(shape: Shape, seed: int = 0) -> Inputs:
    """64 utterances, unaligned sequences of 1 to :data:`LONGEST` steps; 6 of at most 5 for a shape with fewer than 64.

    A fifth of the modalities are absent.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = shape.utterances >= UTTERANCES
    batch = _batch(shape, [1] * (UTTERANCES if whole else 6), generator)
    sequences = {}
    for name, width in shape.widths.items():
        longest = LONGEST.get(name, 50) if whole else 5
        lengths = torch.randint(1, longest + 1, (batch.num_utterances,), generator=generator)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        sequences[name] = SequenceValues(torch.randn(int(offsets[-1]), width, generator=generator), offsets)
    features = {name: stored.means() for name, stored in sequences.items()}
    return Inputs(shape, [dataclasses.replace(batch, features=features, sequences=sequences)])


def _batch(shape: Shape, lengths: list[int], generator: torch.Generator) -> ConversationBatch:
    N = sum(lengths)
    return ConversationBatch(
        packing=Packing(lengths),
        features={name: torch.randn(N, width, generator=generator) for name, width in shape.widths.items()},
        speaker=torch.zeros(N, dtype=torch.long),
        available=torch.rand(N, len(shape.widths), generator=generator) > 0.2,
    )


def build(inputs: Inputs) -> MulT:
    """The model without dropout, with fixed weights."""
    torch.manual_seed(0)
    (batch,), tiny = inputs.batches, inputs.shape.utterances < UTTERANCES
    spec = InputSpec(inputs.shape.widths, dict.fromkeys(batch.sequences, "sequence"))
    model = MulT(spec, **(SMALL if tiny else RELEASED))
    without_dropout(model)
    return model


def setup(forward: Callable[[MulT, ConversationBatch], Tensor]) -> Callable[[Inputs], Callable[[], None]]:
    """Forward and backward through the mean square of the output."""

    def prepare(inputs: Inputs) -> Callable[[], None]:
        model, (batch,) = build(inputs), inputs.batches

        def step() -> None:
            model.zero_grad()
            forward(model, batch).square().mean().backward()

        return step

    return prepare


def ours(model: MulT, batch: ConversationBatch) -> Tensor:
    """(N, hidden_size)."""
    return model(batch).hidden


def check(inputs: Inputs) -> None:
    """Values and gradients equal those of the plain form, in double precision."""
    model = build(inputs).double()
    batch = inputs.batches[0].map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    results = []
    for forward in (literal, ours):
        hidden = forward(model, batch)
        results.append([hidden, *torch.autograd.grad(hidden.square().mean(), list(model.parameters()))])
    for plain, grouped in zip(*results, strict=True):
        torch.testing.assert_close(grouped, plain, rtol=1e-7, atol=1e-9)


def _benchmark(name: str, description: str, target: float, make: Callable[[Shape, int], Inputs]) -> Benchmark:
    return Benchmark(
        name=f"mult-{name}",
        description=f"forward and backward of MulT: {description}",
        implementations={
            "literal": Implementation("one sequence after the other, without padding", setup(literal)),
            "ours": Implementation("padded groups with masks", setup(ours), check),
        },
        targets={"ours": target},
        make_inputs=make,
    )


BENCHMARKS = (
    _benchmark("dialogues", "16 conversations of up to 60 turns, released sizes", 2.0, make_dialogues),
    _benchmark("steps", f"{UTTERANCES} utterances of unaligned steps, released sizes", 2.0, make_steps),
)
