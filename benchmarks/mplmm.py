"""MPLMM with all patterns of a batch together, compared with the loop over samples of the released algorithm.

Both implementations have the same parameters and Transformers; only the prompts differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.literal_mplmm import Later, LiteralPrompts
from benchmarks.registry import EMOTIONS, Benchmark, Implementation, Inputs, Shape, draw_speakers
from ercfusion.batch.batch import ConversationBatch, SequenceValues, TaskTargets
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.missing import draw
from ercfusion.batch.packing import Packing
from ercfusion.batch.task import TaskSpec
from ercfusion.config.missing_laws import parse
from ercfusion.layers.prompts import PaddedSteps
from ercfusion.models.mplmm import Mplmm
from ercfusion.tasks.objective import Objective
from ercfusion.tasks.recognizer import Recognizer

TASK = TaskSpec("emotion", "single_label", LabelSchema("benchmark", EMOTIONS))
SAMPLES, STEPS, LAW = 64, 50, "patterns:0.7"
WIDTHS = {"text": 300, "audio": 74, "visual": 35}
RELEASED: dict[str, Any] = {"width": 30, "layers": 5, "self_layers": 5, "heads": 5, "causal": True}
SMALL: dict[str, Any] = {"width": 8, "layers": 1, "self_layers": 1, "heads": 2, "prompt_length": 3}


def make_inputs(steps: int) -> Callable[[Shape, int], Inputs]:
    """64 samples in one batch with mixed patterns; 8 for a shape with fewer than 64 utterances.

    Args:
        steps: Steps of a sequence, one utterance per sample; 0 for conversations of 4 to 16 utterances.
    """

    def make(shape: Shape, seed: int = 0) -> Inputs:
        whole = shape.utterances >= SAMPLES
        samples, length = (SAMPLES, steps) if whole else (8, min(steps, 4))
        widths = WIDTHS if whole else dict(shape.widths)
        generator = torch.Generator().manual_seed(seed)
        lengths = [1] * samples
        if not steps:
            lengths = torch.randint(4, 17, (samples,), generator=generator).tolist()
        N, T = sum(lengths), max(1, length)
        values = {name: torch.randn(N, T, width, generator=generator) for name, width in widths.items()}
        batch = ConversationBatch(
            packing=Packing(lengths),
            features={name: value.mean(1) for name, value in values.items()},
            speaker=torch.cat([draw_speakers(n, 2, generator) for n in lengths]),
            available=torch.ones(N, len(widths), dtype=torch.bool),
            targets={
                "emotion": TaskTargets(
                    torch.randint(len(EMOTIONS), (N,), generator=generator), torch.ones(N, dtype=torch.bool)
                )
            },
            sequences={
                name: SequenceValues(value.flatten(0, 1), torch.arange(N + 1) * length)
                for name, value in values.items()
                if steps
            },
        )
        batch = batch.hide(draw(parse(LAW), batch, generator).drop)
        model = (RELEASED if steps else {}) if whole else SMALL
        model = {**model, "generator": "mixer", **({"length": length} if steps else {})}
        shape = dataclasses.replace(shape, conversations=samples, utterances=N, widths=widths, model=model)
        return Inputs(shape, [batch])

    return make


def build(literal: bool, inputs: Inputs) -> Recognizer:
    """The recognizer with fixed weights."""
    torch.manual_seed(0)
    (batch,) = inputs.batches
    spec = InputSpec(inputs.shape.widths, dict.fromkeys(batch.sequences, "sequence"))
    recognizer = Recognizer("mplmm", spec, TASK, inputs.shape.model)
    model = recognizer.architecture
    assert isinstance(model, Mplmm)
    assert model.prompts is not None
    if literal:
        model.prompts.__class__ = LiteralPrompts
        model.prompts.projections = tuple(model.project.values())
        for layer in model.project.values():
            layer.__class__ = Later
    return recognizer.train()


def setup_step(literal: bool) -> Callable[[Inputs], Callable[[], None]]:
    """A training step: forward, backward, limit of the gradient, and the update."""

    def prepare(inputs: Inputs) -> Callable[[], None]:
        recognizer, objective, (batch,) = build(literal, inputs), Objective({}), inputs.batches
        optimizer = torch.optim.Adam(recognizer.parameters(), lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            total, _ = objective(recognizer, recognizer(batch), batch)
            total.backward()
            torch.nn.utils.clip_grad_norm_(recognizer.parameters(), 0.8)
            optimizer.step()

        return step

    return prepare


def setup_prompts(literal: bool) -> Callable[[Inputs], Callable[[], None]]:
    """Projected and completed modalities and type tokens, forward and backward, without the Transformers."""

    def prepare(inputs: Inputs) -> Callable[[], None]:
        recognizer, (batch,) = build(literal, inputs), inputs.batches
        model, N = recognizer.architecture, batch.num_utterances
        assert isinstance(model, Mplmm)
        prompts = model.prompts
        assert prompts is not None
        values = [batch.sequence(name).values.unflatten(0, (N, -1)) for name in batch.modalities]
        streams = [PaddedSteps(x, torch.ones_like(x[..., 0], dtype=torch.bool)) for x in values]
        trained = [*model.project.parameters(), *prompts.parameters()]

        def step() -> None:
            for parameter in trained:
                parameter.grad = None
            projected = [project(x) for project, x in zip(model.project.values(), values, strict=True)]
            completed = prompts.complete(streams, projected, batch.present)
            parts = [*(x.values for x in completed), prompts.tokens(batch.present)]
            torch.stack([part.sum() for part in parts]).sum().backward()

        return step

    return prepare


def check(inputs: Inputs) -> None:
    """Logits, loss and gradients equal the literal ones, without dropout, in double precision."""
    batch = inputs.batches[0].map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    results: list[list[Tensor]] = []
    for literal in (True, False):
        recognizer = build(literal, inputs).double().eval()
        recognized = recognizer(batch)
        total, _ = Objective({})(recognizer, recognized, batch)
        total.backward()
        zero = [torch.zeros_like(part) for part in recognizer.parameters()]
        gradients = [
            own if part.grad is None else part.grad for part, own in zip(recognizer.parameters(), zero, strict=True)
        ]
        results.append([recognized.logits.detach(), total.detach(), *gradients])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(right, left, rtol=1e-9, atol=1e-10)


def _benchmark(name: str, what: str, steps: int, setup: Callable[[bool], Any], target: float | None) -> Benchmark:
    return Benchmark(
        name=f"mplmm-{name}",
        description=f"MPLMM, {SAMPLES} samples with {LAW}: {what}",
        implementations={
            "literal": Implementation("samples completed one by one, repeated concatenation", setup(True)),
            "ours": Implementation("all samples of a pattern together", setup(False), check),
        },
        targets={} if target is None else {"ours": target},
        make_inputs=make_inputs(steps),
    )


BENCHMARKS = (
    _benchmark("prompts", f"prompts only, sequences of {STEPS} steps, released sizes", STEPS, setup_prompts, 5.0),
    _benchmark("dialogue", "training step, conversations of 4 to 16 utterances, default sizes", 0, setup_step, 5.0),
    _benchmark("sequences", f"training step, sequences of {STEPS} steps, released sizes", STEPS, setup_step, None),
)
