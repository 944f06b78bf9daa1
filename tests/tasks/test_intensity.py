"""The task kind ``intensity``: activity and intensity per label, its loss, outputs, decisions, scores and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from made_predictions import INTENSITY, make, random_predictions
from runs import read
from torch.nn import functional as F

from ercfusion._core.errors import ConfigError, CorpusFormatError
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.corpora import open_corpus
from ercfusion.metrics.registry import score_source, scores
from ercfusion.metrics.sums import SUMS
from ercfusion.records.predictions import read_predictions, write_predictions
from ercfusion.tasks.heads import Head
from ercfusion.testing import check_model, make_task

C = INTENSITY.size


def targets(count: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(count, C, generator=generator) < 0.5
    return torch.randint(1, 4, (count, C), generator=generator).double() * active


@pytest.mark.parametrize("loss", ["mse", "mae"])
def test_loss_and_gradient_by_definition(loss: str) -> None:
    """One label at a time: cross-entropy of activity, and the intensity's error only if the label is active."""
    value = targets()
    logits = torch.randn(6, 2 * C, dtype=torch.float64, requires_grad=True)
    total, count = INTENSITY.rules.loss(logits, value, INTENSITY, regression_loss=loss)
    expected = torch.zeros((), dtype=torch.float64)
    for row, true in zip(logits, value, strict=True):
        for label in range(C):
            present = (true[label] > 0).double()
            expected = expected + F.binary_cross_entropy_with_logits(row[label], present) / C
            if present:
                share = (row[C + label] - true[label]) / 2  # the scale 1 to 3 is two wide
                expected = expected + (share**2 if loss == "mse" else share.abs()) / C
    assert float(count) == 6
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    (actual,) = torch.autograd.grad(total, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)
    assert (actual[:, C:][value == 0] == 0).all()
    assert (actual[:, C:][value > 0] != 0).all()


def test_other_losses_are_refused() -> None:
    message = r"objective\.regression_loss=ccc is not for the intensity task 'felt'\. Use mse"
    with pytest.raises(ConfigError, match=message):
        INTENSITY.rules.loss(torch.zeros(6, 2 * C), targets().float(), INTENSITY, regression_loss="ccc")


def test_outputs_and_decisions() -> None:
    logits = torch.tensor([[0.0, 5.0, -5.0, 1.0, 0.2, 2.4, 9.0, 2.6]])
    head = Head(INTENSITY, 3)
    assert head.linear.out_features == 2 * C
    output = head.outputs(logits)
    torch.testing.assert_close(output[:, :C], logits[:, :C].sigmoid())
    torch.testing.assert_close(output[:, C:], torch.tensor([[1.0, 2.4, 3.0, 2.6]]))
    part = make(INTENSITY, output.double().numpy(), np.zeros((1, C)))
    part = replace(part, thresholds=np.array([0.6, 0.5, 0.5, 0.5]))
    assert part.decisions().tolist() == [[False, True, False, True]]
    assert part.task.rules.answers(part) == [[{"label": "b", "intensity": 2}, {"label": "d", "intensity": 3}]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 4}, "a has the intensity 4; 0 .not active. or a whole number from 1 to 3 is expected"),
        ({"a": 0.5}, "a has the intensity 0.5; 0 .not active."),  # neither inactive nor an intensity
        ({"a": -1}, "a has the intensity -1"),
        ({"b": float("nan")}, "b has the intensity nan"),
        ({"e": 1}, "'e' is not a label of four"),
    ],
)
def test_wrong_intensities(value: dict[str, float], message: str) -> None:
    with pytest.raises((ValueError, CorpusFormatError), match=message):
        INTENSITY.rules.encode(value, INTENSITY)
    assert INTENSITY.rules.encode({"a": 0, "c": 3}, INTENSITY) == [0, 0, 3, 0]


@pytest.mark.parametrize(("low", "high"), [(0, 3), (1, 1), (1, 2.5), (3, 1)])
def test_wrong_scales(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="intensities are whole numbers from at least 1, found a scale from"):
        TaskSpec("felt", "intensity", LabelSchema("two", ("a", "b")), low=low, high=high)


def test_scores_by_definition() -> None:
    part = random_predictions(INTENSITY, 3)
    actual, valid = scores(part), part.valid
    true, graded, decided = part.value[valid], part.output[valid, C:], part.decisions()[valid]
    submitted = np.where(decided, np.clip(np.rint(graded), 1, 3), 0)
    for name, place in (("a", 0), ("d", 3)):
        active = true[:, place] > 0
        expected = scipy.stats.pearsonr(submitted[:, place], true[:, place])[0]
        assert actual[f"intensity_pearson/{name}"] == pytest.approx(expected, abs=1e-9)
        expected = scipy.stats.pearsonr(graded[active, place], true[active, place])[0]
        assert actual[f"active_pearson/{name}"] == pytest.approx(expected, abs=1e-9)
        expected = np.abs(graded[active, place] - true[active, place]).mean()
        assert actual[f"active_mae/{name}"] == pytest.approx(expected, abs=1e-9)
    means = [actual[f"intensity_pearson/{name}"] for name in INTENSITY.output_names]
    assert actual["intensity_pearson"] == pytest.approx(np.mean(means))
    sets = make(
        TaskSpec("emotions", "multi_label", INTENSITY.schema), part.output[:, :C], part.value > 0, valid, part.lengths
    )
    for name in ("macro_f1", "micro_f1", "jaccard", "hamming"):
        assert actual[name] == pytest.approx(scores(sets)[name])
    key, statistic = score_source(INTENSITY, "active_mae") or ("", None)
    assert statistic is not None
    assert float(statistic(SUMS[key].of(part).sum(axis=0))) == pytest.approx(actual["active_mae"])


def test_a_constant_side() -> None:
    """Nothing predicted: 0, as no agreement; no two intensities: not defined."""
    value = np.array([[2, 0, 1, 3], [2, 0, 1, 3], [2, 0, 0, 1]])
    output = np.concatenate([np.zeros((3, C)), np.full((3, C), 2.0)], axis=1)
    actual = scores(make(INTENSITY, output, value))
    assert actual["intensity_pearson"] == 0
    assert not [name for name in actual if name.startswith("active_pearson")]
    assert "active_mae/b" not in actual
    assert actual["active_mae"] == pytest.approx((0 + 1 + (1 + 1 + 1) / 3) / 3)


def test_files_keep_everything(tmp_path: Path) -> None:
    part = replace(random_predictions(INTENSITY, 1), thresholds=np.array([0.2, 0.4, 0.6, 0.8]))
    again = read_predictions(write_predictions(tmp_path / "p.parquet", {"test": part}), INTENSITY)["test"]
    np.testing.assert_array_equal(again.output, part.output)
    np.testing.assert_array_equal(again.value[part.valid], part.value[part.valid])
    np.testing.assert_array_equal(again.decisions(), part.decisions())
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "p.parquet")
    assert [name for name in table.column_names if "/" in name] == [
        f"{sign}/{name}" for sign in "pi" for name in "abcd"
    ]


def written(folder: Path, cells: str = "2,0", scale: str = "low: 1, high: 3") -> Path:
    folder.mkdir()
    names = [("train", "c1"), ("train", "c2"), ("dev", "c3"), ("test", "c4")]
    rows = [
        f"{split},{name},{turn},Ada,{word} {name},{joy},{anger}"
        for split, name in names
        for turn, (word, joy, anger) in enumerate([("fine", 3, 0), ("awful", 0, 2), ("so", 1, 1), ("table", 0, 0)])
    ]
    rows.append(f"test,c4,9,Ada,more,{cells}")
    header = "split,conversation,turn,speaker,text,felt.joy,felt.anger"
    (folder / "utterances.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "corpus.yaml").write_text(f"targets:\n  felt: {{kind: intensity, {scale}}}\n")
    return folder


def conversations(folder: Path) -> Any:
    corpus = open_corpus("custom", folder)
    return corpus.conversations(corpus.protocol())


def test_a_table_of_intensities(tmp_path: Path) -> None:
    corpus = open_corpus("custom", written(tmp_path / "own"))
    protocol = corpus.protocol()
    assert (protocol.task.kind, protocol.task.low, protocol.task.high) == ("intensity", 1, 3)
    turns = corpus.conversations(protocol)["test"][0].turns
    assert [turn.targets["felt"].value for turn in turns] == [
        {"joy": 3},
        {"anger": 2},
        {"joy": 1, "anger": 1},
        {},
        {"joy": 2},
    ]
    rules = protocol.task.rules
    assert [rules.write(turn.targets["felt"].value, protocol.task) for turn in turns[:2]] == [["3", "0"], ["0", "2"]]


@pytest.mark.parametrize(
    ("cells", "scale", "message"),
    [
        ("4,0", "low: 1, high: 3", r"line 18, column 'felt.joy': joy has the intensity 4; 0 \(not active\) or a whole"),
        ("0.5,0", "low: 1, high: 3", r"joy has the intensity 0.5"),
        ("2,0", "low: 0, high: 3", r"targets.felt': .*a scale from 0 to 3. Correct low and high"),
        ("2,0", "low: 1", r"the key 'high' is missing"),
        ("2,0", "low: 1, high: 3, dimensions: [joy]", r"a target of the kind intensity has no such key"),
    ],
)
def test_wrong_tables(tmp_path: Path, cells: str, scale: str, message: str) -> None:
    folder = written(tmp_path / "own", cells, scale)
    with pytest.raises(CorpusFormatError, match=message):
        conversations(folder)


@pytest.mark.slow
def test_a_model_meets_every_requirement() -> None:
    check_model("concat", make_task("intensity"), {"hidden": 16})


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runs import stub_text_encoder

    stub_text_encoder(monkeypatch, tmp_path / "packs")
    raw = written(tmp_path / "own")
    from ercfusion.train import main

    words = ["data=custom", f"data.raw={raw}", "model=concat", "training.max_epochs=3", "training.bootstrap=20"]
    assert main([*words, "trainer=cpu", f"run={tmp_path / 'run'}"]) == 0
    record = read(tmp_path / "run" / "record.json")
    assert record["selection"]["metric"] == "intensity_pearson"
    assert {"intensity_pearson", "macro_f1", "active_mae"} <= set(record["metrics"]["test"])
    assert set(record["splits"]["test"]) >= {"counts", "intensities", "per_class"}
    assert (tmp_path / "run" / "plots").is_dir()
