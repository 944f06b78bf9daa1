"""Attention in blocks compared with torch's attention on all pairs: time and memory of four layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.registry import Benchmark, Implementation, Inputs
from ercfusion.ops.attention import attend

HEADS, WIDTH, LAYERS, DROPOUT = 8, 32, 4, 0.4
Attention = Callable[[Tensor, float], Tensor]


def on_all_pairs(x: Tensor, dropout: float) -> Tensor:
    """Torch's attention with a causal mask, (1, H, L, d) -> (1, H, L, d)."""
    mask = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask, dropout_p=dropout)


def in_blocks(x: Tensor, dropout: float) -> Tensor:
    """:func:`on_all_pairs` by :func:`ercfusion.ops.attend`."""

    def mask(start: int, stop: int) -> Tensor:
        return torch.arange(x.shape[2]) <= torch.arange(start, stop)[:, None]

    return attend(x, x, x, mask, dropout)


def draw(inputs: Inputs) -> list[Tensor]:
    """(1, H, L, d) numbers per conversation."""
    generator = torch.Generator().manual_seed(0)
    lengths = [length for batch in inputs.batches for length in batch.packing.lengths]
    return [torch.randn(1, HEADS, length, WIDTH, generator=generator, requires_grad=True) for length in lengths]


def epoch(attention: Attention) -> Callable[[Inputs], Callable[[], None]]:
    """Forward and backward through the stack, one conversation after another, with dropout."""

    def setup(inputs: Inputs) -> Callable[[], None]:
        conversations = draw(inputs)

        def run() -> None:
            for x in conversations:
                y = x
                for _ in range(LAYERS):
                    y = attention(y, DROPOUT)
                y.square().sum().backward()
                x.grad = None

        return run

    return setup


def check(inputs: Inputs) -> None:
    """Equal values and gradients without dropout, in double precision."""
    for x in draw(inputs):
        x = x.detach().double().requires_grad_()
        ours, theirs = in_blocks(x, 0.0), on_all_pairs(x, 0.0)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        pair = [torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs)]
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-11)


BENCHMARKS = (
    Benchmark(
        name="attention-stack",
        description=f"{LAYERS} layers of causal attention, {HEADS} heads, with dropout, forward and backward",
        implementations={
            "pairs": Implementation("torch's attention, all pairs of a conversation at once", epoch(on_all_pairs)),
            "blocks": Implementation("ours, in blocks of queries", epoch(in_blocks), check),
        },
    ),
)
