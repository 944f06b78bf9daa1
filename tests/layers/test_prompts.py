"""Grouped prompts against the loop over samples of ``benchmarks.literal_mplmm``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.literal_mplmm import LiteralPrompts
from ercfusion.layers.prompts import MOST_MIXED, AttentionGenerator, MissingPrompts, MixerGenerator, PaddedSteps

D, W, LENGTH = 6, 10, 4


def sizes(M: int) -> dict[str, int]:
    return {f"m{m}": 3 + m for m in range(M)}


def make(M: int, *, steps: int = 5, literal: bool = False, **options: Any) -> MissingPrompts:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"generator": MixerGenerator, "slots": steps, "per_step": True, **options}
    kind = LiteralPrompts if literal else MissingPrompts
    prompts = kind(sizes(M), D, W, length=LENGTH, steps=steps, **settings).double()
    with torch.no_grad():
        prompts.signal.normal_()
    return prompts


def draw(M: int, N: int, steps: int, *, ragged: bool = False) -> tuple[list[PaddedSteps], list[Tensor], Tensor]:
    """Streams, projected steps, and all patterns, the one without any modality too."""
    generator = torch.Generator().manual_seed(1)
    streams, projected = [], []
    for width in sizes(M).values():
        count = torch.randint(1, steps + 1, (N,), generator=generator) if ragged else torch.full((N,), steps)
        mask = torch.arange(steps) < count[:, None]
        values = torch.randn(N, steps, width, generator=generator, dtype=torch.float64) * mask[..., None]
        streams.append(PaddedSteps(values, mask))
        projected.append(torch.randn(N, steps, D, generator=generator, dtype=torch.float64))
    code = torch.arange(N)[torch.randperm(N, generator=generator)] % 2**M
    return streams, projected, (code[:, None] >> torch.arange(M)) % 2 == 1


def outputs(
    prompts: MissingPrompts, streams: list[PaddedSteps], projected: list[Tensor], present: Tensor
) -> list[Tensor]:
    completed = prompts.complete(streams, projected, present)
    assert all(steps.mask.dtype == torch.bool for steps in completed)
    return [*(steps.values for steps in completed), *prompts.tokens(present)]


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("M", [1, 2, 3, 4])
def test_all_patterns_together_equal_the_loop_over_samples(M: int, steps: int) -> None:
    """Values and gradients; every parameter learns."""
    streams, projected, present = draw(M, 2 * 2**M + 3, steps)
    results = []
    for literal in (True, False):
        prompts = make(M, steps=steps, literal=literal)
        values = outputs(prompts, streams, projected, present)
        generator = torch.Generator().manual_seed(2)
        loss = sum((v * torch.randn(v.shape, generator=generator, dtype=v.dtype)).sum() for v in values)
        results.append((values, torch.autograd.grad(loss, list(prompts.parameters()))))  # type: ignore[arg-type]
    (values, gradients), (own_values, own_gradients) = results
    for left, right in zip([*values, *gradients], [*own_values, *own_gradients], strict=True):
        torch.testing.assert_close(right, left, rtol=1e-10, atol=1e-10)
    assert all(gradient.abs().max() > 0 for gradient in own_gradients)


@pytest.mark.parametrize("generator", [MixerGenerator, AttentionGenerator])
@pytest.mark.parametrize("M", [1, 2, 3])
def test_samples_do_not_depend_on_the_others(M: int, generator: Any) -> None:
    streams, projected, present = draw(M, 11, 5, ragged=generator is AttentionGenerator)
    prompts = make(M, generator=generator)
    together = outputs(prompts, streams, projected, present)
    for n in range(11):
        rows = [PaddedSteps(stream.values[n : n + 1], stream.mask[n : n + 1]) for stream in streams]
        single = outputs(prompts, rows, [steps[n : n + 1] for steps in projected], present[n : n + 1])
        for one, all_of_them in zip(single, together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[n], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("generator", [MixerGenerator, AttentionGenerator])
def test_steps_of_absent_modalities_have_no_effect(generator: Any) -> None:
    streams, projected, present = draw(3, 16, 5)
    prompts = make(3, generator=generator)
    expected = outputs(prompts, streams, projected, present)
    others = [
        PaddedSteps(torch.where(present[:, m, None, None], stream.values, 7.0), stream.mask)
        for m, stream in enumerate(streams)
    ]
    for one, other in zip(outputs(prompts, others, projected, present), expected, strict=True):
        assert torch.equal(one, other)


def test_padding_and_the_length_of_generated_steps() -> None:
    """Real steps keep their mask; generated modalities have their own number of steps; padding has no effect."""
    for steps, generated in ((5, 3), (3, 5)):
        streams, projected, present = draw(3, 16, steps, ragged=True)
        prompts = make(3, steps=generated, generator=AttentionGenerator, slots=4, per_step=False)
        completed = prompts.complete(streams, projected, present)
        for m, (values, mask) in enumerate(completed):
            assert values.shape == (16, 5, D)
            assert torch.equal(mask.sum(1), torch.where(present[:, m], streams[m].mask.sum(1), generated))
        longer = [
            PaddedSteps(
                torch.nn.functional.pad(s.values, (0, 0, 0, 4), value=9.0), torch.nn.functional.pad(s.mask, (0, 4))
            )
            for s in streams
        ]
        padded = prompts.complete(longer, [torch.nn.functional.pad(p, (0, 0, 0, 4)) for p in projected], present)
        for (values, mask), (other, other_mask) in zip(completed, padded, strict=True):
            torch.testing.assert_close(values[mask], other[other_mask], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("type_init", "learns"), [("normal", True), ("zero", False)])
def test_type_prompts_learn_unless_both_start_at_zero(type_init: Any, learns: bool) -> None:
    """The gradient of each has the other as a factor: zero at both is never left."""
    _, _, present = draw(3, 16, 5)
    prompts = make(3, type_init=type_init)
    optimizer = torch.optim.Adam(prompts.parameters(), lr=0.1)
    start = [prompts.type_tokens.detach().clone(), prompts.type_maps.detach().clone()]
    for _ in range(5):
        optimizer.zero_grad()
        ((prompts.tokens(present) - 1) ** 2).sum().backward()
        for parameter in (prompts.type_tokens, prompts.type_maps):
            assert parameter.grad is not None
            assert bool(parameter.grad.abs().max() > 0) == learns
        optimizer.step()
    for before, parameter in zip(start, (prompts.type_tokens, prompts.type_maps), strict=True):
        assert torch.equal(before, parameter) == (not learns)


def test_every_parameter_has_a_gradient_without_absent_modalities() -> None:
    streams, projected, _ = draw(3, 8, 5)
    prompts = make(3)
    present = torch.ones(8, 3, dtype=torch.bool)
    sum(value.sum() for value in outputs(prompts, streams, projected, present)).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in prompts.parameters())


def test_number_of_mixers() -> None:
    """The released code has nine mixers of three modalities; those without a present modality are ours."""
    L = 50
    mixer = MixerGenerator([3, 4, 5], 30, 16, L)
    released = 3 * (L * (16 + 2 * L) + L) + 6 * (L * (16 + L) + L)
    assert mixer.weight.numel() + mixer.bias.numel() == released + 3 * (L * 16 + L)
    with pytest.raises(ValueError, match="generator=attention"):
        MixerGenerator([1] * (MOST_MIXED + 1), 2, 1, 1)
