"""What an architecture declares of its limits is what it does, for every preset."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from ercfusion._core.errors import BatchError
from ercfusion.batch.inputs import InputSpec
from ercfusion.config.compose import Composer
from ercfusion.models import architecture_limits, build_architecture
from ercfusion.testing import random_batch, take

PRESETS = sorted(Composer("train").groups()["model"])
WIDTHS = {"text": 40, "audio": 40, "visual": 40}  # heads of all presets divide the sum


@functools.cache
def composed(preset: str) -> dict[str, Any]:
    found: dict[str, Any] = Composer("train").compose([f"model={preset}"])["model"]
    return found


def built(preset: str, **changed: Any) -> tuple[str, dict[str, Any], torch.nn.Module]:
    settings = {**composed(preset), **changed}
    name = settings.pop("name")
    torch.manual_seed(0)
    levels = {"audio": "sequence"} if name == "utterance_encoder" else {}
    inputs = InputSpec({"audio": 40} if levels else WIDTHS, levels)  # type: ignore[arg-type]
    return name, settings, build_architecture(name, inputs, settings).eval()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_declared_dependence_on_the_batch_is_what_is_found(preset: str) -> None:
    name, options, model = built(preset)
    found = model.inputs.widths  # type: ignore[union-attr]
    steps = {"audio": 3} if name == "utterance_encoder" else {}
    batch = random_batch((2, 9, 4), widths=dict(found), steps=steps)
    guide = (lambda modality, values: None,) if getattr(model, "guided", False) else ()
    with torch.no_grad():
        together = model(batch, *guide).hidden[:2]
        alone = model(take(batch, [0]), *guide).hidden
    depends = not torch.allclose(together, alone, atol=1e-5, rtol=1e-4)
    why = architecture_limits(name, options).batch_dependence
    assert bool(why) == depends == (preset == "cogmen_released")
    assert not why or "padding" in why


@pytest.mark.parametrize("preset", PRESETS)
def test_the_declared_longest_conversation_is_the_longest(preset: str) -> None:
    settings = dict(composed(preset))
    longest = architecture_limits(settings.pop("name"), settings).longest
    assert (longest is not None) == (preset == "dialoguegcn_released")
    if longest is None:
        return
    _, _, model = built(preset, positions=5)
    with torch.no_grad():
        model(random_batch((5, 2), widths=WIDTHS))
        with pytest.raises(BatchError, match="knows 5 positions"):
            model(random_batch((6, 2), widths=WIDTHS))
