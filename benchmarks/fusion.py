"""Tensor fusion compared with the written-out tensor: forward and backward of one layer, and memory."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import registry
from benchmarks.mmgcn import peak_of_tensors
from benchmarks.registry import Benchmark, Implementation, Inputs, Shape
from ercfusion.layers.tensor_fusion import TensorFusion

UTTERANCES = 3200
WIDTHS = {"audio": 32, "visual": 128, "text": 32}
OUT = 64
DROPOUT = 0.3
WIDE = (128, 128, 128)


def make_inputs(shape: Shape, seed: int = 0) -> Inputs:
    """3,200 utterances in one batch, with widths for a tensor of 33 x 129 x 33 elements.

    A shape with fewer utterances is unchanged.
    """
    if shape.utterances > UTTERANCES:
        mean = shape.utterances / shape.conversations
        shape = dataclasses.replace(
            shape, conversations=round(UTTERANCES / mean), utterances=UTTERANCES, widths=WIDTHS, model={"hidden": OUT}
        )
    return registry.make_inputs(dataclasses.replace(shape, batch=shape.conversations), seed)


def vectors(inputs: Inputs) -> list[Tensor]:
    return [value.clone().requires_grad_() for value in inputs.batches[0].features.values()]


class LiteralFusion(nn.Module):
    """The published layer: the tensor of every utterance, dropout on its elements, a linear layer."""

    def __init__(self, widths: Sequence[int], out_features: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(math.prod(width + 1 for width in widths), out_features)

    def forward(self, z: Sequence[Tensor]) -> Tensor:
        """(N, d_m) by modality -> (N, out_features)."""
        ones = z[0].new_ones(len(z[0]), 1)
        tensor = torch.cat([ones, z[0]], dim=1)
        for vector in z[1:]:
            tensor = torch.bmm(tensor.unsqueeze(2), torch.cat([ones, vector], dim=1).unsqueeze(1)).flatten(1)
        return self.linear(self.dropout(tensor))


def literal(inputs: Inputs, dropout: float = DROPOUT) -> LiteralFusion:
    torch.manual_seed(0)
    widths = [value.shape[1] for value in inputs.batches[0].features.values()]
    return LiteralFusion(widths, inputs.shape.model["hidden"], dropout)


def ours(inputs: Inputs, dropout: float, form: str = "factor") -> TensorFusion:
    torch.manual_seed(0)
    widths = [value.shape[1] for value in inputs.batches[0].features.values()]
    return TensorFusion(widths, inputs.shape.model["hidden"], dropout=dropout, dropout_form=form)


def both_ways(layer: nn.Module, z: list[Tensor], gradient: Tensor) -> Callable[[], None]:
    def run() -> None:
        for tensor in (*z, *layer.parameters()):
            tensor.grad = None
        layer(z).backward(gradient)

    return run


def setup(make: Callable[[Inputs], nn.Module]) -> Callable[[Inputs], Callable[[], None]]:
    def prepare(inputs: Inputs) -> Callable[[], None]:
        z = vectors(inputs)
        return both_ways(make(inputs), z, torch.randn(len(z[0]), inputs.shape.model["hidden"]))

    return prepare


def check(inputs: Inputs) -> None:
    """Values and gradients equal those of the literal layer with the same weights, without dropout, in double
    precision.
    """
    theirs, mine = literal(inputs, 0.0).double(), ours(inputs, 0.0).double()
    mine.load_state_dict(theirs.linear.state_dict())
    results = []
    for layer in (theirs, mine):
        z = [vector.detach().double()[:200].requires_grad_() for vector in vectors(inputs)]
        value = layer(z)
        value.backward(torch.cos(torch.arange(value.numel(), dtype=torch.float64)).view_as(value))
        results.append([value, *(vector.grad for vector in z), *(part.grad for part in layer.parameters())])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(right, left, rtol=1e-10, atol=1e-10)


def flops(products: int) -> Callable[[Inputs], dict[str, float]]:
    """Operations of ``products`` matrix products with the weight."""

    def count(inputs: Inputs) -> dict[str, float]:
        batch = inputs.batches[0]
        elements = math.prod(value.shape[1] + 1 for value in batch.features.values())
        return {"products": products * 2.0 * batch.num_utterances * elements * inputs.shape.model["hidden"]}

    return count


def kept_bytes(layer: nn.Module, z: Sequence[Tensor]) -> int:
    """Bytes saved for the backward pass, without parameters."""
    own = {parameter.data_ptr() for parameter in layer.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(z)
    return sum(saved.values())


def report_memory() -> None:
    """Print the saved and the peak memory of each implementation."""
    inputs = make_inputs(registry.SHAPES["iemocap"])
    z = vectors(inputs)
    gradient = torch.randn(len(z[0]), OUT)
    layers: dict[str, Any] = {
        "literal": literal(inputs),
        "literal, no dropout": literal(inputs, 0.0),
        "factor": ours(inputs, DROPOUT),
        "element": ours(inputs, DROPOUT, "element"),
    }
    print(f"{len(z[0])} utterances, {' x '.join(str(vector.shape[1] + 1) for vector in z)} -> {OUT}; MiB")
    print(f"{'':20} {'kept':>8} {'times less':>10} {'peak':>8} {'times less':>10}")
    first: tuple[int, int] | None = None
    for name, layer in layers.items():
        saved, peak = kept_bytes(layer, z), peak_of_tensors(both_ways(layer, z, gradient))
        first = first or (saved, peak)
        cells = f"{saved / 2**20:8.1f} {first[0] / saved:10.1f} {peak / 2**20:8.1f} {first[1] / peak:10.1f}"
        print(f"{name:20} {cells}")


def report_wide() -> None:
    """Print time and peak memory of a process for one call with three modalities of width 128."""
    from benchmarks.run import resident

    torch.manual_seed(0)
    before = resident("VmRSS")
    wide = TensorFusion(WIDE, OUT)
    z = [torch.randn(UTTERANCES, width, requires_grad=True) for width in WIDE]
    start = time.perf_counter()
    both_ways(wide, z, torch.randn(UTTERANCES, OUT))()
    seconds = time.perf_counter() - start
    print(f"129 x 129 x 129 -> {OUT}, {UTTERANCES} utterances, forward and backward: {seconds:.1f} s,", end=" ")
    weight = wide.weight.numel() * 4 / 2**20
    print(f"process {before:.0f} MiB before, {resident('VmHWM'):.0f} MiB at its peak;", end=" ")
    print(f"weight {weight:.0f} MiB, its gradient as much")


BENCHMARKS = (
    Benchmark(
        name="fusion-tensor",
        description=f"forward and backward of tensor fusion, dropout {DROPOUT}",
        implementations={
            "literal": Implementation(
                "the tensor written out, dropout on its elements", setup(literal), flops=flops(3)
            ),
            "literal, no dropout": Implementation(
                "the tensor written out", setup(lambda inputs: literal(inputs, 0.0)), flops=flops(3)
            ),
            "contracted": Implementation(
                "two-group contraction, dropout on the factors",
                setup(lambda inputs: ours(inputs, DROPOUT)),
                check,
                flops(4),
            ),
            "element dropout": Implementation(
                "dropout on the elements, tile after tile",
                setup(lambda inputs: ours(inputs, DROPOUT, "element")),
                flops=flops(3),
            ),
        },
        targets={"contracted": 1.0},
        make_inputs=make_inputs,
    ),
)


def main() -> None:
    """``python -m benchmarks.fusion [wide]``: memory of all implementations, or one call with a tensor of 129^3."""
    torch.set_num_threads(2)
    report_wide() if sys.argv[1:] == ["wide"] else report_memory()


if __name__ == "__main__":
    main()
