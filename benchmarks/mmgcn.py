"""MMGCN compared with the literal algorithm: one training step on one batch, and peak memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import registry
from benchmarks.registry import EMOTIONS, Benchmark, Implementation, Inputs, Shape
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.task import TaskSpec
from ercfusion.layers.gcn2 import AngularGraph
from ercfusion.models.mmgcn import Mmgcn
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import without_dropout

TASK = TaskSpec("emotion", "single_label", LabelSchema("benchmark", EMOTIONS))
LEARNING_RATE = 3e-4
BATCH = 16
LAYERS = 64
ALPHA, THETA = 0.1, 0.5


def make_inputs(shape: Shape, seed: int = 0) -> Inputs:
    """The first batch of the published size."""
    inputs = registry.make_inputs(dataclasses.replace(shape, batch=min(shape.batch, BATCH)), seed)
    return Inputs(inputs.shape, inputs.batches[:1])


# The literal algorithm


def dense_adjacency(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """The normalised matrix over all nodes of a batch as in the released program: (M, N, D) -> (M N, M N).

    Zeros between conversations are stored and multiplied, cosines use a tensor (D, n, n), and the scaling by degrees is
    two products with full diagonal matrices.
    """
    M, N, _ = x.shape
    adjacency = x.new_zeros(M * N, M * N)
    first = 0
    for n in lengths:
        rows = torch.arange(first, first + n)
        for m in range(M):
            for k in range(M):
                left, right = x[m, first : first + n].t(), x[k, first : first + n].t()
                left, right = left / left.square().sum(0).sqrt(), right / right.square().sum(0).sqrt()
                if m == k:
                    cosine = torch.matmul(left[:, :, None], left[:, None, :]).sum(0)
                    block = slice(m * N + first, m * N + first + n)
                    adjacency[block, block] = 1 - torch.acos(0.99999 * cosine) / math.pi
                else:
                    cosine = (left * right).sum(0)
                    adjacency[m * N + rows, k * N + rows] = 1 - torch.acos(0.99999 * cosine) / math.pi
        first += n
    scale = torch.diag(adjacency.sum(1).pow(-0.5))
    return scale.mm(adjacency).mm(scale)


class LiteralMmgcn(nn.Module):
    """The released network from features to logits, without dropout, on packed features.

    The text LSTM reads one conversation at a time, because its padding is not compared here.

    Shapes:
        features (N, D_m) by modality, speaker (N) -> (N, classes).
    """

    def __init__(self, shape: Shape, layers: int = LAYERS) -> None:
        super().__init__()
        hidden = shape.model["hidden"]
        width, M = 2 * hidden, len(shape.widths)
        self.linear = nn.ModuleDict({name: nn.Linear(size, width) for name, size in shape.widths.items()})
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
        self.speaker = nn.Embedding(shape.speakers, width)
        self.narrow = nn.Linear(width, hidden)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(2 * hidden, hidden).uniform_(-1, 1) / math.sqrt(hidden)) for _ in range(layers)
        )
        self.output = nn.Linear(M * (width + hidden), len(EMOTIONS))

    def forward(self, batch: ConversationBatch) -> Tensor:
        """Logits (N, classes)."""
        lengths = batch.packing.lengths
        parts = {name: self.linear[name](value) for name, value in batch.features.items()}
        text = torch.cat([self.lstm(part[None])[0][0] for part in parts["text"].split(lengths)])
        parts["text"] = text + self.speaker(batch.speaker)
        x = torch.stack(list(parts.values()))
        adjacency = dense_adjacency(x, lengths)
        initial = h = F.relu(self.narrow(x.flatten(0, 1)))
        for number, weight in enumerate(self.weights, 1):
            beta = math.log(THETA / number + 1)
            mixed = adjacency @ h
            support = torch.cat([mixed, initial], dim=1)
            h = F.relu(beta * support @ weight + (1 - beta) * ((1 - ALPHA) * mixed + ALPHA * initial))
        out = torch.cat([x, h.view(len(x), len(x[0]), -1)], dim=2)
        return self.output(F.relu(out.transpose(0, 1).flatten(1)))


# The implementations


def literal_model(shape: Shape) -> LiteralMmgcn:
    torch.manual_seed(0)
    return LiteralMmgcn(shape)


def recognizer(shape: Shape, options: dict[str, Any]) -> Recognizer:
    """Our MMGCN with a head, without dropout, with fixed initial weights."""
    torch.manual_seed(0)
    inputs = InputSpec(shape.widths, speakers=shape.speakers)
    model = Recognizer("mmgcn", inputs, TASK, options)
    assert isinstance(without_dropout(model), Recognizer)
    return model


def released_options(shape: Shape) -> dict[str, Any]:
    """Options of :class:`Mmgcn` for the architecture of the literal algorithm."""
    hidden = shape.model["hidden"]
    return {
        "projection": 2 * hidden,
        "hidden": hidden,
        "layers": LAYERS,
        "alpha": ALPHA,
        "theta": THETA,
        "speakers": "text",
        "variant": True,
        "activation": "relu",
    }


def default_options(shape: Shape) -> dict[str, Any]:
    return {}


def step(model: nn.Module, run: Callable[[], Tensor], labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def one() -> None:
        optimizer.zero_grad()
        F.cross_entropy(run(), labels).backward()
        optimizer.step()

    return one


def literal_step(inputs: Inputs) -> Callable[[], None]:
    model, batch = literal_model(inputs.shape).train(), inputs.batches[0]
    return step(model, lambda: model(batch), batch.targets["emotion"].value)


def our_step(options: Callable[[Shape], dict[str, Any]]) -> Callable[[Inputs], Callable[[], None]]:
    def setup(inputs: Inputs) -> Callable[[], None]:
        model, batch = recognizer(inputs.shape, options(inputs.shape)).train(), inputs.batches[0]
        return step(model, lambda: model(batch).logits, batch.targets["emotion"].value)

    return setup


def same_parameters(literal: LiteralMmgcn, ours: Recognizer) -> list[tuple[str, Any, Any]]:
    """Name, literal parameter, our parameter."""
    model = ours.architecture
    assert isinstance(model, Mmgcn)
    modules: list[tuple[str, Any, Any]] = [
        *((f"linear.{name}", layer, model.project.project[name]) for name, layer in literal.linear.items()),
        ("lstm", literal.lstm, model.context["text"].lstm),
        ("speaker", literal.speaker, model.speaker),
        ("narrow", literal.narrow, model.graph.narrow),
        ("output", literal.output, ours.head.linear),
    ]
    pairs = [
        (f"{name}.{part}", theirs, mine.get_parameter(part))
        for name, module, mine in modules
        for part, theirs in module.named_parameters()
    ]
    convs = zip(literal.weights, model.graph.convs, strict=True)
    pairs += [(f"weights.{number}", theirs, conv.weight) for number, (theirs, conv) in enumerate(convs)]
    count = sum(parameter.numel() for parameter in literal.parameters())
    assert sum(theirs.numel() for _, theirs, _ in pairs) == count, "a literal parameter has no counterpart"
    return pairs


def check_step(inputs: Inputs) -> None:
    """Logits and gradients equal those of the literal algorithm with the same weights.

    In double precision, because single-precision errors on the diagonal are multiplied by the arccosine's slope.
    """
    literal = literal_model(inputs.shape).double()
    ours = recognizer(inputs.shape, released_options(inputs.shape)).double()
    pairs = same_parameters(literal, ours)
    with torch.no_grad():
        for _, theirs, mine in pairs:
            mine.copy_(theirs)
    for batch in inputs.batches:
        batch = dataclasses.replace(batch, features={name: value.double() for name, value in batch.features.items()})
        theirs, mine = literal(batch), ours(batch).logits
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
        labels = batch.targets["emotion"].value
        F.cross_entropy(theirs, labels).backward()
        F.cross_entropy(mine, labels).backward()
        for name, left, right in pairs:
            torch.testing.assert_close(
                right.grad, left.grad, rtol=1e-7, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
            )


def step_flops(dense: bool) -> Callable[[Inputs], dict[str, float]]:
    """Operations of one step: products of the graph on structural nonzeros, or on all elements if ``dense``.

    The backward pass counts twice the forward one. Without the LSTM and the layers before it.
    """

    def flops(inputs: Inputs) -> dict[str, float]:
        shape = inputs.shape
        hidden, M = shape.model["hidden"], len(shape.widths)
        nodes = M * sum(inputs.batches[0].packing.lengths)
        squares = M * sum(n**2 for n in inputs.batches[0].packing.lengths)
        edges = nodes**2 if dense else squares + nodes * (M - 1)
        return {
            "similarities": 3 * 2.0 * squares * 2 * hidden,
            "normalisation": 3 * 2 * 2.0 * nodes**3 if dense else 3 * 2.0 * edges,
            "propagation": 3 * LAYERS * 2.0 * edges * hidden,
            "layers": 3 * LAYERS * 2.0 * nodes * 2 * hidden**2,
        }

    return flops


# Only the graph: the normalised matrix and one product with it, forward and backward


def graph_input(inputs: Inputs, dtype: torch.dtype = torch.float32) -> Tensor:
    """(M, N, D) vectors to compare, of the released width."""
    shape = inputs.shape
    generator = torch.Generator().manual_seed(0)
    size = (len(shape.widths), inputs.batches[0].packing.total, 2 * shape.model["hidden"])
    return torch.randn(size, generator=generator).to(dtype).requires_grad_()


def dense_product(x: Tensor, inputs: Inputs) -> Tensor:
    return (dense_adjacency(x, inputs.batches[0].packing.lengths) @ x.flatten(0, 1)).view_as(x)


def block_product(x: Tensor, inputs: Inputs) -> Tensor:
    batch = inputs.batches[0]
    graph = AngularGraph(x, batch.present, batch.packing)
    return graph.buckets.collect(graph.propagate(graph.buckets.spread(x)))


def graph_and_product(product: Callable[[Tensor, Inputs], Tensor]) -> Callable[[Inputs], Callable[[], None]]:
    def setup(inputs: Inputs) -> Callable[[], None]:
        x = graph_input(inputs)

        def once() -> None:
            x.grad = None
            product(x, inputs).square().sum().backward()

        return once

    return setup


def check_graph(inputs: Inputs) -> None:
    """Product and gradient equal those of the dense matrix, in double precision."""
    grads = []
    for product in (dense_product, block_product):
        x = graph_input(inputs, torch.float64)
        out = product(x, inputs)
        out.square().sum().backward()
        grads.append((out.detach(), x.grad))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-7, atol=1e-9)


def peak_of_tensors(function: Callable[[], Any]) -> int:
    """Peak bytes of the tensors allocated by ``function``, from the allocations recorded by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def main() -> None:
    """Print the peak memory of every implementation: ``python -m benchmarks.mmgcn``."""
    inputs = make_inputs(registry.SHAPES["iemocap"])
    lengths = inputs.batches[0].packing.lengths
    print(f"{len(lengths)} conversations, {sum(lengths)} utterances, longest {max(lengths)}")
    for benchmark in BENCHMARKS:
        peaks = {name: peak_of_tensors(each.setup(inputs)) for name, each in benchmark.implementations.items()}
        for name, peak in peaks.items():
            ratio = peaks[benchmark.reference] / peak
            print(f"{benchmark.name:12} {name:10} {peak / 2**20:8.1f} MiB   {ratio:5.1f} times less")


BENCHMARKS = (
    Benchmark(
        name="mmgcn-step",
        description=f"forward, backward and Adam on one batch of {BATCH}, {LAYERS} layers, no dropout",
        implementations={
            "literal": Implementation(
                "the released algorithm: one dense matrix over all nodes of the batch",
                literal_step,
                flops=step_flops(True),
            ),
            "released": Implementation(
                "ours, same architecture", our_step(released_options), check_step, step_flops(False)
            ),
            "default": Implementation("ours in its default form, another model", our_step(default_options)),
        },
        targets={"released": 5.0},
        make_inputs=make_inputs,
    ),
    Benchmark(
        name="mmgcn-graph",
        description="the normalised graph of that batch and one product with it, forward and backward",
        implementations={
            "literal": Implementation("one dense matrix over all nodes of the batch", graph_and_product(dense_product)),
            "blocks": Implementation("structural nonzeros", graph_and_product(block_product), check_graph),
        },
        make_inputs=make_inputs,
    ),
)

if __name__ == "__main__":
    main()
