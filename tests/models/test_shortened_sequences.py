"""Compiled models accept sequences with hidden steps, of any length."""

from __future__ import annotations

import pytest
import torch

from ercfusion.batch.missing import draw
from ercfusion.config.missing_laws import parse
from ercfusion.testing.case import Case


@pytest.mark.slow
@pytest.mark.parametrize("name", ["concat", "bridge"])
def test_compiled(name: str) -> None:
    case = Case(name)
    recognizer = case.build(steps={"audio": 4}).eval()
    torch.compiler.reset()
    compiled = torch.compile(recognizer, backend="eager")
    with torch.no_grad():
        for lengths, seed in (((2, 5), 5), ((3, 7), 1), ((5,), 2)):
            batch = case.batch(lengths, steps={"audio": 4}, seed=seed)
            hidden = draw(parse("rmfm:0.5"), batch, torch.Generator().manual_seed(seed))
            shorter = batch.hide(hidden.drop, hidden.steps)
            assert len(shorter.sequences["audio"].values) < len(batch.sequences["audio"].values)
            torch.testing.assert_close(compiled(shorter).logits, recognizer(shorter).logits, rtol=0, atol=1e-5)
    torch.compiler.reset()
