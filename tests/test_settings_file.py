"""``settings=FILE``: settings from a file, before those that are typed; mistakes name the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from runs import command, refused

from ercfusion.config.compose import Composer
from ercfusion.config.overrides import override_text
from ercfusion.train import main

FILE = """\
model: bclstm
optimizer: sgd
data: demo/far
data.modalities: [text, audio]
data.packs: {}
training:
  max_epochs: 7
  metric: null
optimizer.momentum: 0.5
model.residual: true
run: "it's 2024, \\"quoted\\" = [x]"
objective: {weights: {task: 2.0}}
optimizer.lr: 1e-4
"""


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    status, out, err = command(main, ["--cfg", *arguments], capsys)
    assert status == 0, err
    loaded: dict[str, dict[str, object]] = yaml.safe_load(out)
    return loaded


def test_nested_and_dotted_settings_and_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    found = shown([f"settings={path}"], capsys)
    assert found["preset"] == {"model": "bclstm", "data": "demo"}
    assert found["data"]["protocol"] == "demo/far"
    assert found["data"]["modalities"] == ["text", "audio"]
    assert found["training"]["max_epochs"] == 7
    assert found["optimizer"]["name"] == "sgd"
    assert found["optimizer"]["momentum"] == 0.5
    assert float(str(found["optimizer"]["lr"])) == 1e-4
    assert found["model"]["residual"] is True
    assert found["run"] == 'it\'s 2024, "quoted" = [x]'
    assert found["objective"]["weights"] == {"task": 2.0, "unimodal": 0.0}


def test_what_is_typed_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: concat\nmodel.dropout: 0.2\ntraining.max_epochs: 5\nseed: 4\n")
    found = shown([f"settings={path}", "training.max_epochs=9", "seed=1", "-m"], capsys)
    assert found["training"]["max_epochs"] == 9
    assert found["seed"] == 1
    assert found["model"]["dropout"] == 0.2
    assert shown([f"settings={path}", "model=bclstm"], capsys)["model"]["name"] == "bclstm"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model.droput: 0.3\n", "mine.yaml: there is no setting 'model.droput'. Did you mean 'model.dropout'?"),
        ("training:\n  max_epocs: 3\n", "mine.yaml: there is no setting 'training.max_epocs'."),
        ("model: concatt\n", "mine.yaml: 'model=concatt': no such choice of model. Did you mean 'concat'?"),
        ("training.max_epochs: many\n", "mine.yaml: \"training.max_epochs='many'\": training.max_epochs takes a whole"),
        ("seed: 0\nseed: 1\n", "mine.yaml, line 2: not valid YAML"),
        ("model: [\n", "mine.yaml, line 2: not valid YAML"),
        ("- model\n", "is not a mapping"),
        (None, "mine.yaml is missing"),
    ],
)
def test_mistakes_name_file_and_key(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    assert message in refused(main, [f"settings={path}", "model=concat"][: 2 if content else 3], capsys)


def test_mistakes_that_were_typed_do_not_name_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: concat\n")
    message = refused(main, [f"settings={path}", "model.droput=0.1"], capsys)
    assert "mine.yaml" not in message
    message = refused(main, [f"settings={path}", "resume=x"], capsys)
    assert "'model=concat' cannot be changed now" in message


@pytest.mark.parametrize(
    "value", [1, -2.5, 1e-12, True, None, [], ["a", 1], {"a": 1.5, "b": ["c d"]}, "a'b\\", "${x}1"]
)
def test_values_come_back_as_they_were(value: object) -> None:
    assert Composer("train").values([override_text("data.options.x", value)]) == {"data.options.x": value}
