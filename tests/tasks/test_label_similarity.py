"""Classifiers by similarity to label texts: logits, saving, unseen labels, refusals. No encoder is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import TINY, read, refused
from torch.nn import functional as F

import ercfusion
from ercfusion._core.errors import ConfigError
from ercfusion.batch.labels import SCHEMAS, get_schema
from ercfusion.features import label_texts as texts_module
from ercfusion.features.encoders import TextEncoder
from ercfusion.features.label_texts import DEFINITIONS, encode_labels, label_texts
from ercfusion.tasks.heads import Head
from ercfusion.tasks.label_scores import score_labels, set_label_vectors
from ercfusion.tasks.label_similarity import LabelSimilarity
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import make_task, random_store
from ercfusion.train import main

VECTORS = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 2, 0, 0], [1, 1, 1, 1, 1]], dtype=np.float32)


class Letters:
    """A stub of a sentence encoder: counts of letters modulo 7."""

    def encode(self, texts: list[str], **settings: Any) -> np.ndarray:
        rows = [np.bincount([ord(letter) % 7 for letter in text], minlength=7) for text in texts]
        return np.stack(rows).astype(np.float32)


@pytest.fixture
def _encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "load_encoder", lambda name, device: TextEncoder(name, Letters()))


def test_logits_by_definition() -> None:
    torch.manual_seed(0)
    layer = LabelSimilarity(3, 4, 5, offset=True).double()
    layer.vectors.copy_(torch.from_numpy(VECTORS))
    with torch.no_grad():
        layer.offset.fill_(0.3)  # type: ignore[union-attr]
    hidden = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    logits = layer(hidden)
    for row, answer in zip(hidden, logits, strict=True):
        for place, label in enumerate(VECTORS):
            cosine = F.cosine_similarity(layer.project(row), torch.from_numpy(label).double(), dim=0)
            assert float(answer[place]) == pytest.approx(float(cosine) / 0.07 + 0.3, abs=1e-5)
    assert torch.autograd.gradcheck(layer, (hidden,))


def test_lengths_of_vectors_do_not_matter() -> None:
    layer, hidden = LabelSimilarity(3, 4, 5, offset=False), torch.randn(6, 3)
    vectors = torch.from_numpy(VECTORS)
    torch.testing.assert_close(layer.logits(hidden, vectors), layer.logits(hidden, 3 * vectors))
    assert layer.offset is None


def made(kind: str) -> tuple[Recognizer, Any]:
    task = make_task(kind)
    store = random_store((5, 2, 7), tasks=[task], seed=1)
    torch.manual_seed(0)
    recognizer = Recognizer("concat", store.inputs, task, {"hidden": 8}, label_dimension=5, unimodal=True)
    set_label_vectors(recognizer, {"emotion": VECTORS})
    recognizer.prepare(store)
    return recognizer, store


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "distribution"])
def test_scores_of_learned_labels_are_the_predictions(kind: str, tmp_path: Path) -> None:
    recognizer, store = made(kind)
    assert (recognizer.head.linear.offset is not None) is (kind == "multi_label")  # type: ignore[union-attr]
    output = recognizer.predict(store).output
    np.testing.assert_allclose(score_labels(recognizer, store, VECTORS), output, atol=1e-6)
    again = Recognizer.from_pretrained(recognizer.save_pretrained(tmp_path / "model"))
    assert json.loads((tmp_path / "model/config.json").read_text())["label_dimension"] == 5
    np.testing.assert_array_equal(again.head.linear.vectors, VECTORS)  # type: ignore[union-attr]
    np.testing.assert_array_equal(again.predict(store).output, recognizer.eval().predict(store).output)


def test_unseen_labels() -> None:
    recognizer, store = made("single_label")
    shares = score_labels(recognizer, store, np.concatenate([VECTORS[:2], -VECTORS[:1]]))
    assert shares.shape == (14, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert np.corrcoef(shares[:, 0], shares[:, 2])[0, 1] < 0  # the opposite of a label
    assert recognizer.training


def test_every_parameter_learns() -> None:
    recognizer, store = made("multi_label")
    batch = store.batch(range(3))
    total, _ = recognizer.head.loss(recognizer(batch).logits, batch.targets["emotion"])
    total.backward()
    for name, parameter in recognizer.head.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_what_has_no_such_classifier() -> None:
    numbers = make_task("regression", "vad")
    store = random_store((5,), tasks=[numbers], seed=1)
    recognizer = Recognizer("concat", store.inputs, numbers, {"hidden": 8}, label_dimension=5)
    assert isinstance(recognizer.head.linear, torch.nn.Linear)
    with pytest.raises(
        ConfigError, match=r"objective\.label_texts: no task of the run has a classifier with one logit"
    ):
        set_label_vectors(recognizer, {})
    linear, (similar, store) = Recognizer("concat", store.inputs, make_task(), {"hidden": 8}), made("single_label")
    with pytest.raises(ConfigError, match=r"has no label texts\. Train with objective\.label_texts=names"):
        score_labels(linear, store, VECTORS)
    with pytest.raises(ConfigError, match=r"label vectors of shape \(4, 3\), not \(L, 5\)\. Use the encoder"):
        score_labels(similar, store, VECTORS[:, :3])
    assert isinstance(Head(make_task("intensity"), 3, label_dimension=5).linear, torch.nn.Linear)


# Texts


def test_every_label_has_a_definition() -> None:
    for schema in SCHEMAS.values():
        assert [label for label in schema.labels if label not in DEFINITIONS] == []
        assert len(set(label_texts(schema, "definitions"))) == len(schema), schema.name
    assert label_texts(get_schema("meld3"), "names") == ["neutral", "positive", "negative"]


def test_texts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text("neutral: nothing\npositive: good\nnegative: bad\n")
    assert label_texts(get_schema("meld3"), str(path)) == ["nothing", "good", "bad"]
    for content, message in (
        ("neutral: nothing\npositve: good\nnegative: bad", "label 'positive' of meld3 has no text.*mean 'positve'"),
        ("[1, 2]", "no mapping from labels to texts"),
        ("neutral: ''\npositive: 2\nnegative: x", "label 'neutral' of meld3 has no text"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            label_texts(get_schema("meld3"), str(path))
    with pytest.raises(
        ConfigError, match=r"objective\.label_texts=nams: there is no such file\. Use names, definitions"
    ):
        label_texts(get_schema("meld3"), "nams")


@pytest.mark.usefixtures("_encoder")
def test_encoding() -> None:
    assert encode_labels(["joy", "anger"], "any").shape == (2, 7)
    with pytest.raises(ConfigError, match="two labels have the text 'joy'"):
        encode_labels(["joy", "fear", "joy"], "any")
    with pytest.raises(ConfigError, match="gives no direction for ''"):
        encode_labels(["joy", ""], "any")


# Runs


@pytest.mark.usefixtures("_encoder")
def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ercfusion.training.run.draw_pictures", lambda *arguments: None)
    folder = tmp_path / "run"
    words = [*TINY, "model=concat", "training.max_epochs=2"]
    assert main([*words, "objective.label_texts=definitions", f"run={folder}"]) == 0
    assert read(folder / "config.json")["objective"]["label_texts"] == "definitions"
    run = ercfusion.load(folder)
    known = run.score_labels({name: DEFINITIONS[name] for name in get_schema("demo6").labels})
    written = run.predictions("test")
    assert list(known["turn"]) == list(written["turn"])
    for name in get_schema("demo6").labels:
        np.testing.assert_allclose(known[f"p/{name}"], written[f"p/{name}"], atol=1e-5)
    wider = run.score_labels(["joy", "pride", "boredom"], split="dev")
    np.testing.assert_allclose(wider.filter(like="p/").sum(axis=1), 1, atol=1e-5)
    assert main([*words, f"run={tmp_path / 'plain'}"]) == 0
    assert "label_texts" not in read(tmp_path / "plain" / "config.json")["objective"]
    assert "label_dimension" not in read(tmp_path / "plain" / "model" / "config.json")
    assert "has no label texts" in problem(lambda: ercfusion.load(tmp_path / "plain").score_labels(["joy"]))
    wrong = [*words, "objective.label_texts=nams", f"run={tmp_path / 'wrong'}"]
    assert "there is no such file" in refused(main, wrong, capsys)


def problem(action: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        action()
    return str(caught.value)
