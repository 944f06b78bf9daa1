"""Presets are read, checked entry by entry, and composed."""

from __future__ import annotations

import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.tables.preset import find_preset, read_preset

GOOD = """
title: A table
data: demo/speaker
settings: {training.max_epochs: 2, data.modalities: [text, audio]}
seeds: [3, 1]
metric: macro_f1
also: [accuracy]
against: Two Words!
notes: >
  Two
  lines.
rows:
  concat: {model: concat}
  Two Words!:
    model: cogmen
    seeds: [0]
    settings: {model.layers: 1, optimizer.lr: 1e-3}
    note: words
    published:
      - {score: 0.5, source: "S. (2020)", selection: test, differs: [features], evidence: secondary source, note: n}
      - {score: 0.4, source: "Somebody else (2021)"}
"""


def test_a_preset(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text(GOOD)
    preset = read_preset(path)
    assert (preset.name, preset.title, preset.metric, preset.also, preset.notes) == (
        "table", "A table", "macro_f1", ("accuracy",), "Two lines.",
    )  # fmt: skip
    first, second = preset.rows
    assert first.seeds == (3, 1)
    assert second.seeds == (0,)
    assert second.slug == "two-words"
    assert [entry.evidence for entry in second.published] == ["secondary source", "not found"]
    assert second.published[1].selection == "unknown"
    assert preset.arguments(second, 0) == [
        "model=cogmen", "data=demo/speaker", "training.max_epochs=2", "data.modalities=[text,audio]", "model.layers=1",
        "optimizer.lr=1e-3", "seed=0",
    ]  # fmt: skip
    config = preset.config(second, 0, ("training.threads=1",))
    assert config["data"]["protocol"] == "demo/speaker"
    assert config["model"]["layers"] == 1
    assert config["optimizer"]["lr"] == 1e-3
    assert config["training"]["threads"] == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: A table", "", "title is missing"),
        ("title: A table", "titel: A table", "title is missing"),
        ("seeds: [3, 1]", "seed: [3, 1]", "seed is not a key. Did you mean 'seeds'?"),
        ("seeds: [3, 1]", "seeds: [3, 3]", "different whole numbers"),
        ("seeds: [3, 1]", "seeds: [true]", "different whole numbers"),
        ("seeds: [3, 1]", "seeds: 3", "found 3. Give a list"),
        ("concat: {model: concat}", "concat: {modle: concat}", "rows.concat.model is missing"),
        ("concat: {model: concat}", "concat: {model: conkat}", "row 'concat'.*Did you mean 'concat'"),
        ("concat: {model: concat}", "concat: 3", "found 3. Write a mapping"),
        ("model.layers: 1", "model.layer: 1", "Did you mean 'model.layers'"),
        ("model.layers: 1", "model: {layers: 1}", "Write dots"),
        ("score: 0.5", "score: high", "found 'high'. Give a number"),
        ("score: 0.5, ", "", r"published\[0\].score is missing"),
        ("selection: test", "selection: tset", "Did you mean 'test'"),
        ("differs: [features]", "differs: [feature]", "Did you mean 'features'"),
        ("evidence: secondary source", "evidence: secondary", "Did you mean 'secondary source'"),
        ("evidence: secondary source", "checked: false", "Use evidence, one of paper read, secondary"),
        ("against: Two Words!", "against: three", "no row 'three'"),
        ("against: Two Words!", "pairs: [[concat, three]]", "pairs: no row 'three'"),
        ("against: Two Words!", "pairs: [[concat]]", r"pairs\[0\]: found .*Give the names of two rows"),
        ("against: Two Words!", "pairs: [[concat, concat]]", r"pairs\[0\]: found .*Give the names of two rows"),
        ("against: Two Words!", "pairs: [[concat, Two Words!], [Two Words!, concat]]", "a pair is listed twice"),
        ("notes: >", "pairs: [[concat, Two Words!]]\nnotes: >", "Keep one"),
        ("Two Words!:", "Concat:", "have the same files"),
        ("title: A table", "title: [", "not valid YAML"),
        ("{model.layers: 1,", "{data.options." + "k" * 900 + ": 1,", "is not a setting"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, old, new, message):
    assert old in GOOD
    path = tmp_path / "table.yaml"
    path.write_text(
        GOOD.replace(old, new).replace("against: Two Words!\n", "" if "Concat" in new else "against: Two Words!\n")
    )
    with pytest.raises(ConfigError, match=message) as caught:
        read_preset(path)
    assert str(path) in str(caught.value)


def test_presets_of_the_library_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert find_preset("demo").name == "demo.yaml"
    with pytest.raises(ConfigError, match=r"no file experiments/demo.yaml. Use demo, the name of the recorded table"):
        find_preset("experiments/demo.yaml")
    with pytest.raises(ConfigError, match="Did you mean 'meld'"):
        find_preset("melt")


VARIANTS = """
title: Forms
data: demo/missing
settings: {missing.grid: standard}
seeds: [0, 1]
variants:
  plain: {}
  dropout: {training.modality_dropout: 0.5}
pairs:
  - ["*, dropout", "*, plain"]
  - ["mplm", "mult, plain"]
robustness: [rate:0.50]
rows:
  concat: {model: concat, note: words}
  mult: {model: bclstm, settings: {model.hidden: 16}, variants: [plain]}
  mplm: {model: cogmen, variants: []}
"""


def test_variants_multiply_rows(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text(VARIANTS)
    preset = read_preset(path)
    assert [row.name for row in preset.rows] == ["concat, plain", "concat, dropout", "mult, plain", "mplm"]
    assert preset.pairs == (("concat, dropout", "concat, plain"), ("mplm", "mult, plain"))
    assert (preset.robustness, preset.laws) == (True, ("rate:0.5",))
    settings = [row.settings for row in preset.rows]
    assert settings == [(), ("training.modality_dropout=0.5",), ("model.hidden=16",), ()]
    assert preset.config(preset.rows[1], 0)["training"]["modality_dropout"] == 0.5
    path.write_text(VARIANTS.replace("robustness: [rate:0.50]", "robustness: true"))
    assert (read_preset(path).robustness, read_preset(path).laws) == (True, ())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("variants: [plain]", "variants: [plan]", r"rows.mult.variants: no variant 'plan'. Did you mean 'plain'"),
        ("dropout: {training", "dropout: {trainig", "trainig"),
        ("dropout: {training.modality_dropout: 0.5}", "dropout: 1", "variants.dropout"),
        ('["*, dropout", "*, plain"]', '["*, drop", "*, plain"]', r"pairs\[0\]: no row has both '\*, drop' and"),
        ("mplm: {model", '"concat, plain": {model', "two rows have the name 'concat, plain'"),
        ("[rate:0.50]", "[rate:5]", "robustness 'rate:5'"),
        ("[rate:0.50]", "rate", "robustness: found 'rate'. Give true, false or a list"),
        ("[rate:0.50]", "[]", "robustness: found .*Give true, or a list of laws"),
        ("settings: {missing.grid: standard}", "", "robustness: row 'concat, plain' has no missing.grid"),
    ],
)
def test_mistakes_about_variants_and_robustness(tmp_path, old, new, message):
    assert old in VARIANTS
    path = tmp_path / "table.yaml"
    path.write_text(VARIANTS.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_preset(path)
