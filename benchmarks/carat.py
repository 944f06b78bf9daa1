"""A training step of CARAT compared with the literal forms of its operations, and its memory.

Both implementations are the library's network. They differ in prototypes, contrastive term and shuffled labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import registry
from benchmarks.literal_carat import LiteralCarat, Permutations
from benchmarks.mmgcn import peak_of_tensors
from benchmarks.registry import EMOTIONS, Benchmark, Implementation, Inputs, Shape
from ercfusion.batch.batch import ConversationBatch, SequenceValues, TaskTargets
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.packing import Packing
from ercfusion.batch.task import TaskSpec
from ercfusion.layers import shuffle_labels
from ercfusion.models.carat import Carat
from ercfusion.tasks.objective import Objective
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.training.bert_adam import BertAdam

TASK = TaskSpec("emotion", "multi_label", LabelSchema("benchmark", EMOTIONS))
UTTERANCES, QUEUE = 64, 8192
WIDTHS = {"text": 300, "visual": 35, "audio": 74}
RELEASED: dict[str, Any] = {
    **{"width": 256, "latent": 64, "tokens": 1, "heads": 8, "feedforward": 256, "init_std": 0.02},
    **{"text_layers": 6, "visual_layers": 4, "audio_layers": 4, "queue": QUEUE, "contrast": 0},
}
SMALL: dict[str, Any] = {
    **{"width": 8, "latent": 4, "tokens": 1, "heads": 2, "feedforward": 8, "init_std": 0.02},
    **{"queue": 150, "contrast": 0},
}


def make_inputs(steps: int) -> Callable[[Shape, int], Inputs]:
    """64 labelled utterances in one batch, sequences if ``steps`` is above 1; 6 utterances of at most 2 steps for a
    shape with fewer than 64.
    """

    def make(shape: Shape, seed: int = 0) -> Inputs:
        whole = shape.utterances >= UTTERANCES
        number, length = (UTTERANCES, steps) if whole else (6, min(steps, 2))
        widths = WIDTHS if whole else dict(shape.widths)
        generator = torch.Generator().manual_seed(seed)
        values = {name: torch.randn(number, length, width, generator=generator) for name, width in widths.items()}
        offsets = torch.arange(number + 1) * length
        labels = (torch.rand(number, len(EMOTIONS), generator=generator) < 0.25).float()
        batch = ConversationBatch(
            packing=Packing([1] * number),
            features={name: value.mean(1) for name, value in values.items()},
            speaker=torch.zeros(number, dtype=torch.long),
            available=torch.ones(number, len(widths), dtype=torch.bool),
            targets={"emotion": TaskTargets(labels, torch.ones(number, dtype=torch.bool))},
            sequences={name: SequenceValues(value.flatten(0, 1), offsets) for name, value in values.items()}
            if length > 1
            else {},
        )
        model = {**(RELEASED if whole else SMALL), "positions": length}
        shape = dataclasses.replace(
            shape, conversations=number, utterances=number, shortest=1, longest=1, widths=widths, model=model
        )
        return Inputs(shape, [batch])

    return make


def build(literal: bool, inputs: Inputs, **changes: Any) -> Recognizer:
    """The recognizer with fixed weights, updated prototypes and a full queue."""
    torch.manual_seed(0)
    (batch,) = inputs.batches
    spec = InputSpec(inputs.shape.widths, dict.fromkeys(batch.sequences, "sequence"))
    recognizer = Recognizer("carat", spec, TASK, {**inputs.shape.model, **changes})
    model = recognizer.architecture
    assert isinstance(model, Carat)
    model.prototypes.prototypes.normal_()
    model.prototypes.updated.fill_(True)
    queue = model.contrastive.queue
    assert queue is not None
    classes = torch.randint(2 * len(inputs.shape.widths) * len(EMOTIONS), (queue.size,))
    queue.push(torch.nn.functional.normalize(torch.randn_like(queue.vectors), dim=1), classes)
    if literal:
        LiteralCarat.of(model)
    return recognizer.train()


def setup(literal: bool) -> Callable[[Inputs], Callable[[], None]]:
    """A training step: forward, backward, both limits of the gradient, and the update."""

    def prepare(inputs: Inputs) -> Callable[[], None]:
        recognizer, objective, (batch,) = build(literal, inputs), Objective({}), inputs.batches
        optimizer = BertAdam(recognizer.parameters(), lr=5e-5, tensor_clip=1.0)

        def step() -> None:
            optimizer.zero_grad()
            total, _ = objective(recognizer, recognizer(batch), batch)
            total.backward()
            torch.nn.utils.clip_grad_norm_(recognizer.parameters(), 1.0)
            optimizer.step()

        return step

    return prepare


def drawn(labels: Tensor, modalities: int) -> Permutations:
    """The permutations of :func:`ercfusion.layers.shuffle_labels` at this state of the generator."""
    N, C = labels.shape
    numbers = torch.arange(N * modalities, dtype=torch.float64).view(N, modalities, 1, 1).expand(-1, -1, C, 1)
    with torch.random.fork_rng(devices=[]):
        values, _ = shuffle_labels(numbers, labels)
    values = values.squeeze(-1).long()
    return values // modalities, values % modalities


def check(inputs: Inputs) -> None:
    """Loss, gradients, prototypes and queue of two steps equal the literal ones, without dropout, in double precision.

    The queue has 600 vectors at most: all similarities of 11,648 vectors in double precision do not fit everywhere.
    """
    batch = inputs.batches[0].map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    changes = {"dropout": 0.0, "queue": min(inputs.shape.model["queue"], 600)}
    results = []
    for literal in (True, False):
        recognizer, values = build(literal, inputs, **changes).double(), []
        model = recognizer.architecture
        assert isinstance(model, Carat)
        for step in range(2):
            torch.manual_seed(step)
            if isinstance(model, LiteralCarat):
                model.permutations = drawn(batch.targets["emotion"].value, len(batch.features))
            total, _ = Objective({})(recognizer, recognizer(batch), batch)
            recognizer.zero_grad()
            total.backward()
            gradients = [part.grad.clone() for part in recognizer.parameters() if part.grad is not None]
            values += [total.detach(), *gradients]
        assert model.contrastive.queue is not None
        results.append([*values, model.prototypes.prototypes, *model.contrastive.queue.content()])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(right, left, rtol=1e-9, atol=1e-9)


def _benchmark(name: str, steps: int) -> Benchmark:
    return Benchmark(
        name=f"carat-{name}",
        description=f"training step of CARAT: {UTTERANCES} utterances of {steps} steps, queue {QUEUE}",
        implementations={
            "literal": Implementation("loops, all similarities, host permutations", setup(True)),
            "ours": Implementation("closed form, tiles, sorted random numbers", setup(False), check),
        },
        targets={"ours": 3.0},
        make_inputs=make_inputs(steps),
    )


BENCHMARKS = (_benchmark("step", 1), _benchmark("sequences", 60))


def main() -> None:
    """Print the peak memory of the tensors of a step: ``python -m benchmarks.carat``."""
    for benchmark in BENCHMARKS:
        inputs = benchmark.make_inputs(registry.SHAPES["iemocap"], 0)
        peaks = {}
        for name, implementation in benchmark.implementations.items():
            step = implementation.setup(inputs)
            step()  # creates the state of the optimiser
            peaks[name] = peak_of_tensors(step)
            print(f"{benchmark.name:16} {name:8} {peaks[name] / 2**20:8.1f} MiB", flush=True)
        print(f"{benchmark.name:16} {peaks['literal'] / peaks['ours']:.1f} times less", flush=True)


if __name__ == "__main__":
    main()
