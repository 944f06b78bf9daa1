from __future__ import annotations

import math

import pytest
import torch

from ercfusion.training.bert_adam import BertAdam


def plain(
    value: float, gradients: list[float], lr: float, betas: tuple[float, float], eps: float, decay: float
) -> list[float]:
    """The specification: one number, step by step."""
    mean = square = 0.0
    values = []
    for gradient in gradients:
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient * gradient
        update = mean / (math.sqrt(square) + eps) + decay * value
        value = value - lr * update
        values.append(value)
    return values


@pytest.mark.parametrize("eps", [1e-6, 0.3])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_equal_the_written_formula(decay: float, eps: float) -> None:
    start, gradients = [0.5, -2.0, 0.0], [[0.3, -0.01, 2.0], [-1.0, 0.02, 0.0], [0.1, 0.1, -0.5], [1e-8, 3.0, 0.2]]
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = BertAdam([parameter], lr=0.05, betas=(0.8, 0.95), eps=eps, weight_decay=decay)
    steps = []
    for row in gradients:
        parameter.grad = torch.tensor(row, dtype=torch.float64)
        optimizer.step()
        steps.append(parameter.tolist())
    for place, value in enumerate(start):
        expected = plain(value, [row[place] for row in gradients], 0.05, (0.8, 0.95), eps, decay)
        assert [step[place] for step in steps] == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_groups_have_their_own_decay_and_parameters_without_gradient_stay() -> None:
    first, second, third = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    groups = [{"params": [first], "weight_decay": 0.5}, {"params": [second, third], "weight_decay": 0.0}]
    optimizer = BertAdam(groups, lr=0.1)
    first.grad, second.grad = torch.zeros(2), torch.zeros(2)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert first.tolist() == pytest.approx([0.95, 0.95])
    assert second.tolist() == third.tolist() == [1.0, 1.0]
    assert third not in optimizer.state


def test_the_first_step_is_longer_than_adams() -> None:
    steps = {}
    for kind in (BertAdam, torch.optim.Adam):
        parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        parameter.grad = torch.full((1,), 5.0, dtype=torch.float64)
        kind([parameter], lr=0.1, eps=1e-6, weight_decay=0.0).step()
        steps[kind] = float(parameter.detach())
    assert steps[BertAdam] / steps[torch.optim.Adam] == pytest.approx(0.1 / math.sqrt(0.001), rel=1e-4)


def test_its_state_continues() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 3, generator=generator)
    whole, halves = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizers = [BertAdam([whole], lr=0.1), BertAdam([halves], lr=0.1)]
    for step, gradient in enumerate(gradients):
        if step == 3:
            state = optimizers[1].state_dict()
            optimizers[1] = BertAdam([halves], lr=0.7)
            optimizers[1].load_state_dict(state)
        for parameter, optimizer in zip((whole, halves), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(whole, halves)


def test_the_norm_of_each_tensor_is_limited() -> None:
    """As if each gradient had been clipped before."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(4, 3, generator=generator), 1e-3 * torch.randn(5, generator=generator)]
    states = []
    for clip in (0.5, 0.0):
        parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
            if not clip:
                torch.nn.utils.clip_grad_norm_(parameter, 0.5)
        optimizer = BertAdam(parameters, tensor_clip=clip)
        optimizer.step()
        states.append([optimizer.state[parameter]["mean"] for parameter in parameters])
        if clip:
            assert torch.equal(parameters[0].grad, gradients[0])
    for first, second in zip(*states, strict=True):
        torch.testing.assert_close(first, second)
    assert float(states[0][0].norm()) == pytest.approx(0.05, rel=1e-4)
    torch.testing.assert_close(states[0][1], 0.1 * gradients[1])


def test_betas_are_two() -> None:
    with pytest.raises(ValueError, match="betas must be two numbers, found 1"):
        BertAdam([torch.nn.Parameter(torch.ones(1))], betas=(0.9,))
