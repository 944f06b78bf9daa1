from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ercfusion._core import files
from ercfusion._core.errors import BatchError, ConfigError, RunError
from ercfusion.batch.kinds import KINDS
from ercfusion.models.concat import Concat
from ercfusion.tasks import recognizer as module
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.testing import WIDTHS, fill_absent, make_task, random_batch, random_store

LENGTHS = (3, 1, 8, 5, 2)


def make(kind: str = "single_label", architecture: str = "bclstm", **arguments: bool) -> Recognizer:
    torch.manual_seed(0)
    task = make_task(kind)
    train = random_store((9, 12), tasks=[task], absent=0.2, labelled=0.8, seed=3)
    recognizer = Recognizer(architecture, train.inputs, task, **arguments)  # type: ignore[arg-type]
    recognizer.prepare(train)
    return recognizer


def test_prepare_takes_statistics_and_prior_from_the_training_split() -> None:
    recognizer = make()
    train = random_store((9, 12), tasks=[make_task()], absent=0.2, labelled=0.8, seed=3)
    rows = train.features["audio"][train.available[:, 1]]
    torch.testing.assert_close(recognizer.standardize.get_buffer("mean_audio"), rows.mean(0))
    targets = train.targets["emotion"]
    share = torch.bincount(targets.value[targets.valid], minlength=4) / targets.valid.sum()
    torch.testing.assert_close(recognizer.head.linear.bias.softmax(0), share, rtol=1e-3, atol=1e-4)


def test_prepare_without_standardisation() -> None:
    torch.manual_seed(0)
    train = random_store(tasks=[make_task()])
    recognizer = Recognizer("concat", train.inputs, make_task(), unimodal=True)
    recognizer.prepare(train, standardize=False)
    assert (recognizer.standardize.get_buffer("mean_audio") == 0).all()
    for head in recognizer.unimodal_heads.values():
        assert torch.equal(head.linear.bias, recognizer.head.linear.bias)


def test_forward_is_standardisation_architecture_head() -> None:
    recognizer = make().eval()
    batch = random_batch(absent=0.3)
    recognized = recognizer(batch)
    hidden = recognizer.architecture(recognizer.standardize(batch)).hidden
    assert torch.equal(recognized.encoded.hidden, hidden)
    assert torch.equal(recognized.logits, recognizer.head(hidden))
    assert recognized.unimodal == {}
    # And standardisation is not the identity here.
    assert not torch.allclose(recognizer.architecture(fill_absent(batch, 0.0)).hidden, hidden)


def test_unimodal_heads() -> None:
    recognizer = make(architecture="concat", unimodal=True)
    assert list(recognizer.unimodal_heads) == list(WIDTHS)
    batch = random_batch()
    recognized = recognizer.eval()(batch)
    for name, logits in recognized.unimodal.items():
        assert torch.equal(logits, recognizer.unimodal_heads[name](recognized.encoded.modalities[name]))
    assert not make(architecture="concat").unimodal_heads
    with pytest.raises(ConfigError, match="no representation of single modalities"):
        make(architecture="bclstm", unimodal=True)  # flat


@pytest.mark.parametrize("kind", KINDS)
def test_predict(kind: str) -> None:
    recognizer = make(kind).train()
    task = recognizer.task
    store = random_store(LENGTHS, tasks=[task], absent=0.3, labelled=0.6, seed=5)
    predictions = recognizer.predict(store)
    assert recognizer.training  # left as it was
    assert predictions.output.dtype == np.float64
    batch = store.batch(range(len(store)))
    with torch.no_grad():
        expected = recognizer.head.outputs(recognizer.eval()(batch).logits)
    np.testing.assert_allclose(predictions.output, expected.numpy(), atol=1e-6)
    assert predictions.task == task
    assert predictions.lengths == LENGTHS
    assert predictions.conversation_ids == batch.ids
    assert predictions.turn_ids == tuple(f"u{t}" for length in LENGTHS for t in range(length))
    assert np.array_equal(predictions.speaker, batch.speaker.numpy())
    assert np.array_equal(predictions.valid, batch.targets["emotion"].valid.numpy())
    votes = batch.targets["emotion"].votes
    assert (predictions.votes is not None) is (kind == "distribution")
    assert votes is None or np.array_equal(predictions.votes, votes.numpy())
    assert (predictions.thresholds is not None) is task.rules.thresholds
    in_small_batches = recognizer.predict(store, conversations=2)
    np.testing.assert_allclose(in_small_batches.output, predictions.output, atol=1e-6)


class Own(Concat):
    """An architecture without a name in the registry."""


def test_a_class_is_saved_by_its_place(tmp_path: Path) -> None:
    recognizer = Recognizer(Own, random_store().inputs, make_task(), {"hidden": 8})
    assert recognizer.config["architecture"] == f"{__name__}:Own"
    folder = recognizer.save_pretrained(tmp_path / "model")
    assert isinstance(Recognizer.from_pretrained(folder).architecture, Own)
    assert Recognizer(Concat, random_store().inputs, make_task()).config["architecture"] == "concat"


def test_a_saved_model_runs_no_module_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Recognizer(Own, random_store().inputs, make_task()).save_pretrained(tmp_path / "model")
    (tmp_path / "strange_models.py").write_text("raise SystemExit('was run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "strange_models:Own"}))
    with pytest.raises(RunError, match=r"'strange_models:Own': its module is not imported"):
        Recognizer.from_pretrained(folder)


def test_thresholds_travel(tmp_path: Path) -> None:
    recognizer = make("multi_label")
    chosen = np.array([0.1, 0.9, 0.5, 0.25])
    recognizer.set_thresholds(chosen)
    loaded = Recognizer.from_pretrained(recognizer.save_pretrained(tmp_path / "model"))
    store = random_store(tasks=[recognizer.task])
    predictions = loaded.predict(store)
    assert predictions.thresholds is not None
    np.testing.assert_allclose(predictions.thresholds, chosen, atol=1e-7)
    assert np.array_equal(predictions.decisions(), predictions.output >= predictions.thresholds)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    store = random_store(tasks=[make_task(kind)], absent=0.2, speakers=3)
    recognizer = Recognizer(
        "cogmen",
        store.inputs,
        make_task(kind),
        {"hidden": 8, "relations": "speaker_pair"},
        label_smoothing=0.1,
        regression_loss="ccc",
    )
    recognizer.prepare(store)
    folder = recognizer.save_pretrained(tmp_path / "a" / "model", card="# A card\n")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "README.md").read_text() == "# A card\n"
    loaded = Recognizer.from_pretrained(str(folder))
    assert loaded.config == recognizer.config
    assert loaded.inputs == recognizer.inputs
    assert loaded.inputs.speakers == 3
    assert loaded.task == recognizer.task
    assert (loaded.head.label_smoothing, loaded.head.regression_loss) == (0.1, "ccc")
    assert not loaded.training
    assert np.array_equal(loaded.predict(store).output, recognizer.predict(store).output)


def test_without_a_card_there_is_none(tmp_path: Path) -> None:
    folder = make().save_pretrained(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a saved model: config.json is missing"):
        Recognizer.from_pretrained(tmp_path)
    folder = make().save_pretrained(tmp_path / "model")
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(RunError, match="format 99; this version reads 1"):
        Recognizer.from_pretrained(folder)
    config.write_text("[1]")
    with pytest.raises(RunError, match="format"):
        Recognizer.from_pretrained(folder)
    config.write_text(json.dumps({name: value for name, value in json.loads(text).items() if name != "task"}))
    with pytest.raises(RunError, match="the key 'task' is missing"):
        Recognizer.from_pretrained(folder)
    config.write_text('{"format": 1,\n oops')
    with pytest.raises(RunError, match=r"config.json, line 2: not valid JSON"):
        Recognizer.from_pretrained(folder)
    config.write_text(text.replace('"text": 12', '"text": 13'))
    with pytest.raises(RunError, match=r"model.safetensors does not fit its config.json"):
        Recognizer.from_pretrained(folder)
    config.write_text(text.replace('"bclstm"', '"bclstn"'))
    with pytest.raises(RunError, match=r"Did you mean 'bclstm'\?"):
        Recognizer.from_pretrained(folder)
    config.write_text(text)
    assert Recognizer.from_pretrained(folder).config == {
        key: value for key, value in json.loads(text).items() if key != "files"
    }


def test_data_that_does_not_fit() -> None:
    recognizer = make()
    store = random_store(widths={**WIDTHS, "audio": 9}, tasks=[make_task()])
    with pytest.raises(BatchError, match="modality 'audio': the model was built for width 7, the data has 9"):
        recognizer.predict(store)


def test_a_flipped_bit_in_the_weights_is_refused(tmp_path: Path) -> None:
    folder = make().save_pretrained(tmp_path)
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole = weights.read_bytes()
    for place in (len(whole) - 1, len(whole) // 2):
        changed = bytearray(whole)
        changed[place] ^= 1
        weights.write_bytes(changed)
        with pytest.raises(RunError, match="was changed or damaged: config"):
            Recognizer.from_pretrained(folder)
    weights.write_bytes(whole)
    description = json.loads(config.read_text())
    del description["files"]
    config.write_text(json.dumps(description))
    with pytest.raises(RunError, match="was changed or damaged: config"):
        Recognizer.from_pretrained(folder)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_model_that_is_replaced_can_be_loaded_at_any_time(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before the write of that number: the first description, the weights, the second description."""
    recognizer = make()
    recognizer.save_pretrained(tmp_path)
    recognizer.set_thresholds(np.full(recognizer.task.size, 0.25))
    original, left = files.atomic_write, number

    def stops(*arguments: Any, **settings: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    with monkeypatch.context() as patch:
        for place in (module, files):  # descriptions are written by write_json, which is in the other module
            patch.setattr(place, "atomic_write", stops)
        with pytest.raises(KeyboardInterrupt):
            recognizer.save_pretrained(tmp_path)
    found = Recognizer.from_pretrained(tmp_path)
    assert float(found.thresholds[0]) == (0.25 if number == 3 else 0.5)
    assert found.checksum() == recognizer.checksum()
    recognizer.save_pretrained(tmp_path)
    assert "before" not in json.loads((tmp_path / "config.json").read_text())
    assert float(Recognizer.from_pretrained(tmp_path).thresholds[0]) == 0.25
