"""Ranges of the architectures' options, and a limit on what a construction may allocate.

Both are checked before anything is allocated: a size of 0, below 0 or far too large is a mistake, or comes from a file
that somebody changed.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ercfusion._core.errors import ConfigError

Range = tuple[float, float]

_WIDTH, _WIDTH_OR_NONE = (1, 32_768), (0, 65_536)
_COUNT, _COUNT_OR_NONE = (1, 1_024), (0, 1_024)
_WINDOW, _WINDOW_OR_ALL = (1, 100_000), (-1, 100_000)
_SHARE, _POSITIVE, _ANY = (0.0, 1.0), (1e-9, 1e9), (-1e9, 1e9)


def _of(limits: Range, names: str) -> dict[str, Range]:
    return dict.fromkeys(names.split(), limits)


RANGES: Mapping[str, Range] = {
    **_of(_WIDTH, "hidden dense embedding emotion_size global_size party_size width feedforward fused context post"),
    **_of(_WIDTH, "channels feature_width state"),
    **_of(_WIDTH_OR_NONE, "projection text_width audio_width visual_width enhancement_width frames"),
    **_of(_WIDTH_OR_NONE, "time_width band_width lags"),
    **_of(_COUNT, "layers lstm_layers context_layers mlp_layers heads graph_heads rank expand taps max_speakers"),
    **_of(_COUNT_OR_NONE, "joint_layers fusions context_heads bases feature_groups enhancement_groups"),
    **_of(_COUNT_OR_NONE, "time_masks band_masks"),
    **_of(_COUNT_OR_NONE, "BroadMamba.layers Cogmen.layers M2FNet.layers Mmgcn.layers"),
    **_of(_WINDOW, "window short long positions"),
    **_of(_WINDOW_OR_ALL, "past future"),
    **_of(_SHARE, "dropout input_dropout emotion_dropout state_dropout fusion_dropout post_dropout modality_dropout"),
    **_of(_SHARE, "alpha epsilon"),
    **_of(_POSITIVE, "temperature theta write"),
    **_of((0.0, 1e9), "noise speaker_std"),
    **_of(_ANY, "gate_start"),
}
"""Least and largest value of every option that is a number, by its name or by ``CLASS.NAME``."""

# A whole number beyond it is no size of anything, in an architecture that is not ours either.
_MOST = (1 << 31) - 1
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}


def check_options(name: str, architecture: type, options: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError`, naming the option, if a value is of another type than the default or out of range.

    Args:
        name: Of the architecture.
        architecture: Its class.
        options: By name; all of them exist.
    """
    parameters = inspect.signature(architecture).parameters
    ours = architecture.__module__.startswith("ercfusion.")
    for option, value in options.items():
        default = parameters[option].default
        kind = next((kind for kind in _KINDS if isinstance(default, kind)), None)
        fits = kind is None or (isinstance(value, kind) and isinstance(value, bool) == (kind is bool))
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            fits = True
        if not fits:
            found = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
            assert kind is not None
            raise ConfigError(f"model.{option} takes {_KINDS[kind]}, found {found} (model {name!r})")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high = (-math.inf, math.inf) if isinstance(value, float) else (float(-_MOST), float(_MOST))
        if ours and isinstance(default, int | float):
            low, high = RANGES.get(f"{architecture.__name__}.{option}", RANGES.get(option, (low, high)))
        if not low <= value <= high or math.isinf(value):
            raise ConfigError(f"model.{option} must be from {low:g} to {high:g}, found {value:g} (model {name!r})")


class _Allocations(TorchDispatchMode):
    """Adds up the bytes of all tensors that are made, and stops at a limit.

    Memory of a new tensor is reserved, but not used before something is written into it: the next operation. So this
    stops in time.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.made = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view and not function._schema.is_mutable:
            for entry in tree_iter(result):
                if isinstance(entry, torch.Tensor):
                    self.made += entry.numel() * entry.element_size()
        if self.made > self.most:
            raise _TooLargeError
        return result


class _TooLargeError(Exception):
    """More memory than allowed."""


@contextmanager
def allocation_limit(name: str, most: int | None = None) -> Iterator[None]:
    """Raise :class:`ConfigError` inside the block as soon as the tensors made there are too large.

    Args:
        name: Of the architecture.
        most: Bytes in all; the memory of this machine if None.
    """
    limit = memory_of_machine() if most is None else most
    message = (
        f"model {name!r}: with these options and inputs it needs more than {limit / 2**30:.1f} GiB. "
        "Choose smaller sizes, for example model.hidden or model.layers."
    )
    try:
        with _Allocations(limit):
            yield
    except _TooLargeError:
        raise ConfigError(message) from None
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for memory that the machine refuses.
        words = str(error)
        if isinstance(error, MemoryError) or "allocate" in words or "Storage size calculation overflowed" in words:
            raise ConfigError(message) from error
        raise


def memory_of_machine() -> int:
    """Bytes of main memory; 64 GiB if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 64 << 30
