"""Every number among the options has a range, and nothing large is allocated before it is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ercfusion._core.errors import ConfigError
from ercfusion.batch.inputs import InputSpec
from ercfusion.models import ARCHITECTURES, architecture_class, architecture_options, build_architecture
from ercfusion.models.limits import RANGES, allocation_limit, check_options, memory_of_machine

INPUTS = InputSpec({"text": 6, "audio": 4, "visual": 3})


def refusal(work: Callable[[], object]) -> str:
    """The message of the error that ``work`` raises; empty if it raises none."""
    try:
        work()
    except ConfigError as error:
        return str(error)
    return ""


def limits(name: str, option: str) -> tuple[float, float]:
    return RANGES.get(f"{architecture_class(name).__name__}.{option}", RANGES.get(option, (1.0, -1.0)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_number_has_a_range_that_holds_its_default(name: str) -> None:
    for option, default in architecture_options(name).items():
        if isinstance(default, int | float) and not isinstance(default, bool):
            low, high = limits(name, option)
            assert low <= default <= high, option


def test_no_range_is_of_an_option_that_does_not_exist() -> None:
    options = {
        (architecture_class(name).__name__, option) for name in ARCHITECTURES for option in architecture_options(name)
    }
    for key in RANGES:
        name, _, option = key.rpartition(".")
        assert (name, option) in options if name else any(option == other for _, other in options), key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_out_of_range_name_the_option(name: str) -> None:
    for option, default in architecture_options(name).items():
        if isinstance(default, bool) or not isinstance(default, int | float):
            continue
        low, high = limits(name, option)
        step = 1 if isinstance(default, int) else 0.5
        for value in (low - step, high + step, 10**9 if isinstance(default, int) else 1e30, -(10**12)):
            found = int(value) if isinstance(default, int) else float(value)
            with pytest.raises(ConfigError, match=rf"^model\.{option} must be from ") as error:
                build_architecture(name, INPUTS, {option: found})
            assert len(str(error.value)) <= 300


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_of_another_type_name_the_option(name: str) -> None:
    for option in architecture_options(name):
        for value in ([1], {"a": 1}, None, "x" * 5000, 0.5, True):
            message = refusal(lambda: check_options(name, architecture_class(name), {option: value}))  # noqa: B023
            kind = type(architecture_options(name)[option])
            if type(value) is kind or (kind is float and type(value) is int):
                assert not message or "must be from" in message
            else:
                assert message.startswith(f"model.{option} takes ")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_least_value_of_every_size_makes_a_model_or_a_named_error(name: str) -> None:
    for option, default in architecture_options(name).items():
        if isinstance(default, int) and not isinstance(default, bool):
            low = int(limits(name, option)[0])
            for value in (low, low + 1, low + 2, 7):
                message = refusal(lambda: build_architecture(name, INPUTS, {option: value}))  # noqa: B023
                assert not message or name in message


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


def test_options_of_other_people_s_architectures_are_checked_for_type_and_overflow_only() -> None:
    class Theirs:
        def __init__(self, inputs: Any, *, hidden: int = -3) -> None: ...

    check_options("theirs", Theirs, {"hidden": -7})
    with pytest.raises(ConfigError, match=r"model\.hidden takes a whole number, found 'a'"):
        check_options("theirs", Theirs, {"hidden": "a"})
    with pytest.raises(ConfigError, match=r"model\.hidden must be from"):
        check_options("theirs", Theirs, {"hidden": 1 << 40})


def test_a_range_belongs_to_the_class_and_not_to_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture of ours may be registered under another name, as ``check_model`` does."""
    monkeypatch.setitem(ARCHITECTURES, "mine", "ercfusion.models.m2fnet:M2FNet")
    build_architecture("mine", INPUTS, {"layers": 0})
