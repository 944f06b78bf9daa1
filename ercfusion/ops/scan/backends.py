"""Registry and choice of the backends of the selective scan."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

from ercfusion.ops.scan.contract import ScanBackend, ScanInputs
from ercfusion.ops.scan.mamba_ssm import MambaSsmScan
from ercfusion.ops.scan.native import NativeScan
from ercfusion.ops.scan.reference import ReferenceScan
from ercfusion.ops.scan.torch_scan import TorchScan

VARIABLE = "ERCFUSION_SCAN_BACKEND"
"""Environment variable with the name of the backend to use."""

# The order of choice, fastest first.
_ORDER = ("native", "triton", "mamba_ssm", "torch", "reference")
_GPU_ONLY = ("triton", "mamba_ssm")
_BACKENDS: dict[str, ScanBackend | None] = {}


def _load(name: str) -> ScanBackend | None:
    """A backend of the library, imported on first use; None if its dependency is not installed."""
    if name == "native":
        return NativeScan()
    if name == "triton":
        try:
            installed = importlib.util.find_spec("triton") is not None
        except (ImportError, ValueError):
            installed = False
        if not installed or importlib.util.find_spec("ercfusion.ops.scan.triton_scan") is None:
            return None
        from ercfusion.ops.scan.triton_scan import TritonScan

        return TritonScan()
    if name == "mamba_ssm":
        return MambaSsmScan() if MambaSsmScan.installed() else None
    if name == "torch":
        return TorchScan()
    return ReferenceScan()


def _get(name: str) -> ScanBackend | None:
    if name not in _BACKENDS and name in _ORDER:
        _BACKENDS[name] = _load(name)
    return _BACKENDS.get(name)


def backends() -> tuple[str, ...]:
    """Names of the available backends, in the order of choice."""
    return tuple(name for name in _names() if _get(name) is not None)


def _names() -> tuple[str, ...]:
    return (*(name for name in reversed(_BACKENDS) if name not in _ORDER), *_ORDER)


def register_backend(backend: ScanBackend) -> Callable[[], None]:
    """Add a backend before the others; it replaces one of the same name.

    Returns:
        A function that undoes the registration.
    """
    name = backend.name
    before = _BACKENDS.get(name)
    replaces = name in _BACKENDS
    _BACKENDS[name] = backend

    def undo() -> None:
        if replaces:
            _BACKENDS[name] = before
        else:
            _BACKENDS.pop(name, None)

    return undo


def choose(inputs: ScanInputs, forced: str = "", final_gradient: bool = False) -> ScanBackend:
    """The first backend that accepts the inputs.

    Args:
        inputs: The inputs.
        forced: Name of the backend to use. If empty, the environment variable ERCFUSION_SCAN_BACKEND, if set.
        final_gradient: A gradient of the final state is needed.

    Raises:
        ValueError: an unknown name, or the forced backend declines.
    """
    name = forced or os.environ.get(VARIABLE, "")
    if name:
        backend = _get(name)
        if backend is None:
            missing = "is not installed here" if name in _ORDER else "does not exist"
            raise ValueError(f"selective_scan: backend {name!r} {missing}. Choose from {', '.join(backends())}.")
        if reason := _reason(backend, inputs, final_gradient):
            raise ValueError(f"selective_scan: backend {name!r} declines: {reason}")
        return backend
    for candidate in _names():
        if candidate in _GPU_ONLY and inputs.u.device.type == "cpu":
            continue  # not even imported
        backend = _get(candidate)
        if backend is not None and _reason(backend, inputs, final_gradient) is None:
            return backend
    raise ValueError("selective_scan: no backend accepts these inputs")


def _reason(backend: ScanBackend, inputs: ScanInputs, final_gradient: bool) -> str | None:
    if final_gradient and not getattr(backend, "final_gradient", True):
        return "it propagates no gradient from the final state"
    return backend.declines(inputs)
