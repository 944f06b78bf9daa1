"""Nothing large is allocated while an architecture is built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ercfusion._core.errors import ConfigError
from ercfusion.models.limits import allocation_limit, memory_of_machine


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1000, 1000)
        self.second = nn.Linear(1_000_000, 100_000)


def test_a_construction_is_stopped_before_its_memory_is_used() -> None:
    with pytest.raises(ConfigError, match=r"model 'wide': .* more than 0\.1 GiB"), allocation_limit("wide", 100 << 20):
        Wide()
    with pytest.raises(ConfigError, match="more than"), allocation_limit("wide", 1 << 60):
        torch.empty(1 << 58)  # the machine itself refuses
    assert memory_of_machine() > 1 << 28


def test_other_errors_pass_the_limit_and_views_are_not_counted() -> None:
    with pytest.raises(RuntimeError, match="shape"), allocation_limit("x"):
        torch.zeros(3).view(2)
    with allocation_limit("x", 5000):
        value = torch.zeros(1000)
        for _ in range(10):
            value.view(10, 100).add_(1)
