"""Assertions of the checks, with messages that name the failed requirement's subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ercfusion.tasks.recognizer import Recognized

TOLERANCE = 1e-9
"""Largest difference due to rounding, in double precision."""


def outputs_of(recognized: Recognized) -> dict[str, Tensor]:
    """All results with one row per utterance."""
    results = {"logits": recognized.logits, "hidden": recognized.encoded.hidden}
    results |= {f"representation {name!r}": value for name, value in recognized.encoded.modalities.items()}
    return results | {f"unimodal logits {name!r}": value for name, value in recognized.unimodal.items()}


def assert_finite(value: Tensor, what: str) -> None:
    """All numbers are finite."""
    count = int((~value.isfinite()).sum())
    assert count == 0, f"{what}: {count} of {value.numel()} numbers are not finite"


def assert_all_finite(values: Mapping[str, Tensor], when: str) -> None:
    """All numbers of all tensors are finite."""
    for name, value in values.items():
        assert_finite(value, f"{name} {when}")


def assert_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Equal up to ``tolerance``."""
    assert actual.shape == expected.shape, f"{what}: shapes {tuple(actual.shape)} and {tuple(expected.shape)}"
    worst = float((actual - expected).abs().max()) if actual.numel() else 0.0
    assert worst <= tolerance, f"{what}: differ by up to {worst:.3g} (allowed: {tolerance:g})"


def assert_equal(actual: Tensor, expected: Tensor, what: str) -> None:
    """Equal bit for bit."""
    if not torch.equal(actual, expected):
        worst = float((actual - expected).abs().nan_to_num(float("inf")).max())
        raise AssertionError(f"{what}: not the same, differ by up to {worst:.3g}")


def assert_raises(kind: type[Exception], action: Callable[[], object], otherwise: str, *mentions: str) -> None:
    """The action raises this error, whose message has the words ``mentions``."""
    try:
        action()
    except kind as error:
        missing = [word for word in mentions if word not in str(error)]
        if missing:
            raise AssertionError(f"the {kind.__name__} does not mention {missing[0]!r}: {error}") from error
        return
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} instead of {kind.__name__}: {error}") from error
    raise AssertionError(otherwise)
