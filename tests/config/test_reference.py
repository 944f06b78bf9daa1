"""The help of a model and the docs' table of its options say what its constructor says."""

from __future__ import annotations

from pathlib import Path

import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.config.architectures import ARCHITECTURES
from ercfusion.config.compose import Composer
from ercfusion.config.reference import model_help, presets_of
from ercfusion.sweep import main as sweep
from ercfusion.train import main as train


def test_help_of_a_model_and_of_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["model=cogmen", "--help", "data=custom"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("model=cogmen: COGMEN: Joshi et al.")
    assert "  model.norm=layer: layer, batch\n      Normalisation after the graph;" in text
    assert "  model.lags=10: 0 to 65,536; searched: 0 to 15 in steps of 5\n" in text
    assert "  optimizer.lr: 0.0002 to 0.005, logarithmic\n" in text
    assert sweep(["--help", "model=cogmen_released"]) == 0
    text = capsys.readouterr().out
    assert "  model.projection=0 (default: 128): 0 to 65,536; searched: 64, 128, 256\n" in text
    assert "  model.residual=false (default: true): true or false\n" in text
    with pytest.raises(ConfigError, match=r"no such choice of model\. Did you mean 'cogmen'"):
        train(["--help", "model=cogmeen"])
    assert "It has no options." in model_help(Composer(), ["model=majority"])


def test_a_model_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_counted.py").write_text(
        "from ercfusion.models.concat import Concat\n"
        "from ercfusion.models import register\n"
        "from ercfusion.models.options import Count\n"
        "class Counted(Concat):\n"
        "    '''Counts.\n\n    Args:\n        hidden: How many.\n    '''\n"
        "    def __init__(self, inputs, *, hidden: Count = 3):\n"
        "        super().__init__(inputs, hidden=hidden)\n"
        "register('counted', 'my_counted:Counted')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert train(["model=counted", "imports=my_counted", "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith("model=counted: Counts.\n")
        assert "  model.hidden=3: 1 to 1,024; searched: 64, 128, 256, 512\n      How many\n" in text
    finally:
        ARCHITECTURES.pop("counted", None)


def test_presets_are_their_own_and_not_tuned() -> None:
    presets = presets_of(Composer())
    assert presets["cogmen"]["dropout"] == 0.4
    assert presets["cogmen_released"]["dropout"] == 0.5
    assert set(presets) == set(Composer().groups()["model"])
