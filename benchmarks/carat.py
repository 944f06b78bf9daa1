"""CARAT's operations compared with their literal forms: a whole training step, and its memory.

Both implementations have the same network; they differ in prototypes, contrastive term and shuffled labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import registry
from benchmarks.literal_carat import MOMENTUM, TEMPERATURE, LiteralCarat, Permutations
from benchmarks.mmgcn import peak_of_tensors
from benchmarks.registry import EMOTIONS, Benchmark, Implementation, Inputs, Shape
from ercfusion.layers import LabelPrototypes, shuffle_labels
from ercfusion.losses import LabelContrast
from ercfusion.training.bert_adam import BertAdam

UTTERANCES = 64
WIDTHS = {"text": 300, "visual": 35, "audio": 74}
MODEL = {"layers": (6, 4, 4), "hidden": 256, "latent": 64, "heads": 8, "feedforward": 256, "queue": 8192}
SMALL = {"layers": (1, 1, 1), "hidden": 8, "latent": 4, "heads": 2, "feedforward": 8, "queue": 150}


class Carat(LiteralCarat):
    """The same network with the library's operations."""

    def make_state(self, modalities: int, labels: int, latent: int, queue: int) -> None:
        """Create the prototypes and the queue, as full as the literal ones."""
        self.prototypes = LabelPrototypes(modalities, labels, latent, momentum=MOMENTUM)
        self.prototypes.prototypes.copy_(torch.randn(2, modalities, labels, latent))
        self.prototypes.updated.fill_(True)
        self.contrasted = LabelContrast(latent, queue=queue, temperature=TEMPERATURE)
        vectors = torch.nn.functional.normalize(torch.randn(queue, latent), dim=1)
        self.contrasted.queue.push(vectors, torch.randint(2 * modalities * labels, (queue,)))

    def fill(self, z: Tensor) -> Tensor:
        """Mixture of both prototypes."""
        return self.prototypes(z)

    def update(self, z: Tensor, positive: Tensor) -> None:
        """Move the prototypes in closed form."""
        self.prototypes.update(z, positive)

    def contrast(self, latents: Tensor, positive: Tensor) -> Tensor:
        """Class sums and denominators in tiles."""
        return self.contrasted(latents, positive)

    def shuffle(self, values: Tensor, positive: Tensor, permutations: Permutations | None) -> Permutations:
        """Permutations from sorted random numbers; ``permutations`` are those of the global generator."""
        return shuffle_labels(values, positive)


def make_inputs(steps: int) -> Callable[[Shape, int], Inputs]:
    """64 utterances of ``steps`` steps in one batch; 6 utterances of 2 steps for a shape with fewer than 64."""

    def make(shape: Shape, seed: int = 0) -> Inputs:
        whole = shape.utterances >= UTTERANCES
        number = UTTERANCES if whole else 6
        model = {**(MODEL if whole else SMALL), "steps": steps if whole else min(steps, 2)}
        widths = WIDTHS if whole else shape.widths
        rows = number * model["steps"]
        return registry.make_inputs(
            dataclasses.replace(
                shape,
                conversations=rows,
                utterances=rows,
                shortest=1,
                longest=1,
                widths=widths,
                batch=rows,
                model=model,
            ),
            seed,
        )

    return make


def tensors(inputs: Inputs, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Features (N, T, D) by modality and labels (N, C)."""
    steps = inputs.shape.model["steps"]
    features = [value.to(dtype).unflatten(0, (-1, steps)) for value in inputs.batches[0].features.values()]
    generator = torch.Generator().manual_seed(1)
    return features, torch.rand(len(features[0]), len(EMOTIONS), generator=generator) < 0.25


def build(kind: type[LiteralCarat], inputs: Inputs, **changes: Any) -> LiteralCarat:
    torch.manual_seed(0)
    return kind(inputs.shape.widths, len(EMOTIONS), **{**inputs.shape.model, **changes}).train()


def setup(kind: type[LiteralCarat]) -> Callable[[Inputs], Callable[[], None]]:
    """A training step: forward, backward, both limits of the gradient, and the update."""

    def prepare(inputs: Inputs) -> Callable[[], None]:
        model, (features, positive) = build(kind, inputs), tensors(inputs)
        optimizer = BertAdam(model.parameters(), lr=5e-5, tensor_clip=1.0)

        def step() -> None:
            optimizer.zero_grad()
            model(features, positive).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return step

    return prepare


def drawn(positive: Tensor, modalities: int) -> Permutations:
    """The permutations that :func:`ercfusion.layers.shuffle_labels` draws next; the generator stays as it was."""
    N, C = positive.shape
    numbers = torch.arange(N * modalities, dtype=torch.float64).view(N, modalities, 1, 1).expand(-1, -1, C, 1)
    with torch.random.fork_rng(devices=[]):
        values, _ = shuffle_labels(numbers, positive)
    values = values.squeeze(-1).long()
    return values // modalities, values % modalities


def check(inputs: Inputs) -> None:
    """Loss, gradients, prototypes and queue of two steps equal the literal ones, without dropout, in double precision.

    The queue has 600 vectors at most: all similarities of 11,648 vectors in double precision do not fit everywhere.
    """
    (features, positive), results = tensors(inputs, torch.float64), []
    options = {"dropout": 0.0, "queue": min(inputs.shape.model["queue"], 600)}
    for kind in (LiteralCarat, Carat):
        model = build(kind, inputs, **options).double()
        torch.manual_seed(2)
        values = []
        for _ in range(2):
            loss = model(features, positive, drawn(positive, len(features)))
            if kind is LiteralCarat:
                drawn_next(positive, len(features))
            model.zero_grad()
            loss.backward()
            values += [loss.detach(), *(part.grad for _, part in sorted(model.named_parameters()))]
        if isinstance(model, Carat):
            vectors, classes = model.contrasted.queue.content()
            values += [model.prototypes.prototypes, vectors, classes]
        else:
            values += [model.prototypes, model.queue, model.queue_classes]
        results.append(values)
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(right, left, rtol=1e-9, atol=1e-9)


def drawn_next(positive: Tensor, modalities: int) -> None:
    """Advance the generator as a shuffle does."""
    shuffle_labels(torch.zeros(len(positive), modalities, positive.shape[1], 1), positive)


def _benchmark(name: str, steps: int, target: float) -> Benchmark:
    return Benchmark(
        name=f"carat-{name}",
        description=f"training step of CARAT: {UTTERANCES} utterances of {steps} steps, queue {MODEL['queue']}",
        implementations={
            "literal": Implementation("loops, all similarities, host permutations", setup(LiteralCarat)),
            "ours": Implementation("closed form, tiles, sorted random numbers", setup(Carat), check),
        },
        targets={"ours": target},
        make_inputs=make_inputs(steps),
    )


BENCHMARKS = (_benchmark("step", 1, 3.0), _benchmark("sequences", 60, 3.0))


def main() -> None:
    """Print the peak memory of the tensors of a step: ``python -m benchmarks.carat``."""
    for benchmark in BENCHMARKS:
        inputs = benchmark.make_inputs(registry.SHAPES["iemocap"], 0)
        peaks = {}
        for name, implementation in benchmark.implementations.items():
            step = implementation.setup(inputs)
            step()  # the optimiser's state is created once
            peaks[name] = peak_of_tensors(step)
            print(f"{benchmark.name:16} {name:8} {peaks[name] / 2**20:8.1f} MiB")
        print(f"{benchmark.name:16} {peaks['literal'] / peaks['ours']:.1f} times less")


if __name__ == "__main__":
    main()
