"""A resumed run notices that its settings, its data or its files have changed, and says which."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import assert_same_run, history, read, refused, resume
from test_checks import write_corpus

from ercfusion._core.errors import ResumeError, RunError
from ercfusion.config.choices import CHOICES
from ercfusion.config.sections import SECTIONS
from ercfusion.config.settings import decides, fields_in, section_from
from ercfusion.data.corpora import open_corpus
from ercfusion.data.features import FeatureTable
from ercfusion.data.pack import read_manifest, write_pack
from ercfusion.features.loading import load_data
from ercfusion.records.groups import changed_settings
from ercfusion.train import main
from ercfusion.training.callbacks import LAST, RestrictedCheckpointIO, Selection
from ercfusion.training.checkpoint_schema import content_checksum
from ercfusion.training.origin import KEY, again_command, data_changes, other_versions, seal

EPOCHS = 3


def write_values(folder: Path, raw: Path, seed: int) -> Path:
    corpus = open_corpus("custom", str(raw))
    parts = corpus.conversations(corpus.protocol()).values()
    keys = [key for part in parts for one in part for key in one.keys()]  # noqa: SIM118
    values = np.random.default_rng(seed).normal(size=(len(keys), 6)).astype(np.float32)
    values[:, :3] += 5 * np.eye(3, dtype=np.float32)[np.arange(len(keys)) % 3]  # the labels: every epoch is better
    made: dict[str, Any] = {"tool": "test", "tool_version": "1", "settings": {}, "corpus": "custom"}
    table = FeatureTable("audio", keys, values)
    return write_pack(folder, table, **made, fingerprint=corpus.source_fingerprint("audio"), overwrite=True)


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a pack, ``whole``, ``killed`` after epoch 2 of 3, and ``other``: the same run with another seed."""
    root = tmp_path_factory.mktemp("r")
    raw = write_corpus(root / "raw")
    pack = write_values(root / "pack", raw, 0)
    made = ["model=concat", "data=custom", f"data.raw={raw}", f"data.packs.audio={pack}", "data.modalities=[audio]"]
    made += ["trainer=cpu", "training.threads=1", "training.bootstrap=20", f"training.max_epochs={EPOCHS}"]
    made += ["training.pictures=false", "training.batch_size=2", "training.patience=0", "training.metric=nll"]
    assert main([*made, f"run={root / 'whole'}"]) == 0
    original = Selection.on_train_epoch_end

    def dies(self: Selection, trainer: Any, module: Any) -> None:
        original(self, trainer, module)
        if len(self.history) == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Selection, "on_train_epoch_end", dies)
        for name, seed in (("killed", 0), ("other", 1)):
            with pytest.raises(Killed):
                main([*made, f"seed={seed}", f"run={root / name}"])
    return root


@pytest.fixture
def copy(place: Path, tmp_path: Path) -> Path:
    """``place`` again, with its paths."""
    for path in place.iterdir():
        shutil.copytree(path, tmp_path / path.name)
    for path in (tmp_path / "killed" / "config.json", tmp_path / "other" / "config.json"):
        path.write_text(path.read_text().replace(str(place), str(tmp_path)))
    return tmp_path


def kept(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(folder / LAST, weights_only=True)
    return loaded


def refusal(folder: Path, capsys: Any) -> str:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "train.log"}
    said = refused(main, [f"resume={folder}"], capsys)
    message = said[said.index("error: ") :].strip()
    assert len(message.removeprefix("error: ")) <= 300
    assert len(message.splitlines()) <= 3
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "train.log"}
    assert after == before
    return message


def edit(folder: Path, section: str, **settings: Any) -> None:
    config = read(folder / "config.json")
    config[section].update(settings)
    (folder / "config.json").write_text(json.dumps(config))


# The five cases


def test_nothing_has_changed(copy: Path, place: Path) -> None:
    resume(copy / "killed")
    assert_same_run(copy / "killed", place / "whole")


def test_a_pack_with_other_values(copy: Path, capsys: Any) -> None:
    was = read_manifest(copy / "pack")["files"]["values.safetensors"]["sha256"]
    write_values(copy / "pack", copy / "raw", 1)
    now = read_manifest(copy / "pack")["files"]["values.safetensors"]["sha256"]
    message = refusal(copy / "killed", capsys)
    assert f"changed since it was made: features audio (pack 'pack'): {was[:12]} -> {now[:12]}" in message
    assert "begin a new run" in message
    write_values(copy / "pack", copy / "raw", 0)
    resume(copy / "killed")


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_labels_that_have_changed(split: str, copy: Path, capsys: Any) -> None:
    path = copy / "raw" / "utterances.csv"
    lines = path.read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if f",{split}," in line)
    lines[number] = re.sub("[a-z]+$", lambda found: "joy" if found[0] != "joy" else "anger", lines[number])
    path.write_text("\n".join(lines) + "\n")
    message = refusal(copy / "killed", capsys)
    assert f"changed since it was made: labels of the {split} split: " in message
    assert "files of custom: " in message
    assert re.findall(r"labels of the (\w+) split", message) == [split]


def test_a_configuration_that_was_edited(copy: Path, capsys: Any) -> None:
    edit(copy / "killed", "optimizer", lr=0.1)
    assert "changed since it was made: optimizer.lr: 0.001 -> 0.1. Restore that" in refusal(copy / "killed", capsys)
    edit(copy / "killed", "training", max_epochs=9, patience=4)
    message = refusal(copy / "killed", capsys)
    assert "training.max_epochs: 3 -> 9; training.patience: 0 -> 4; optimizer.lr: 0.001 -> 0.1" in message


@pytest.mark.parametrize("same_seed", [False, True])
def test_the_checkpoint_of_another_run(same_seed: bool, copy: Path, capsys: Any) -> None:
    source = "whole" if same_seed else "other"
    shutil.copy(copy / source / LAST, copy / "killed" / LAST)
    message = refusal(copy / "killed", capsys)
    assert f"{LAST}: it is of another run" in message
    assert ("seed: 1 -> 0" in message) == (not same_seed)


PARTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "callbacks.Selection": lambda state: state["callbacks"].clear(),
    "loops.fit_loop": lambda state: state["loops"].clear(),
    "optimizer_states": lambda state: state["optimizer_states"].clear(),
    "callbacks": lambda state: state.pop("callbacks"),
    "loops": lambda state: state.pop("loops"),
    "lr_schedulers": lambda state: state.pop("lr_schedulers"),
    "state_dict": lambda state: state.pop("state_dict"),
    "checksum": lambda state: state["optimizer_states"][0]["state"].popitem(),
    "its content": lambda state: next(iter(state["state_dict"].values())).add_(1e-3),
    "does not name its settings": lambda state: state.pop(KEY),
}


def test_a_part_of_the_checkpoint_is_missing(copy: Path, capsys: Any) -> None:
    folder = copy / "killed"
    state = kept(folder)
    plugin = RestrictedCheckpointIO({name: value for name, value in state[KEY].items() if name != "sha256"})
    plugin.load_checkpoint(folder / LAST)
    for words, remove in PARTS.items():
        changed = kept(folder)
        remove(changed)
        torch.save(changed, folder / LAST)
        with pytest.raises(RunError, match=re.escape(words)):
            plugin.load_checkpoint(folder / LAST)
        torch.save(state, folder / LAST)
    state["loops"] = {}
    torch.save(state, folder / LAST)
    assert f"{LAST}: the part 'loops.fit_loop' is missing or empty. Restore the file" in refusal(folder, capsys)


# What else a resume takes from the folder


def test_files_that_were_changed(copy: Path, capsys: Any) -> None:
    folder = copy / "killed"
    path = folder / "metrics.csv"
    text = path.read_text()
    path.write_text(re.sub(r"^1\.0,[^,]*", "1.0,77", text, flags=re.MULTILINE))
    assert f"metrics.csv: its first 2 epochs are not those of {LAST}" in refusal(folder, capsys)
    path.write_text(text)
    shutil.rmtree(folder / "model")
    shutil.copytree(copy / "other" / "model", folder / "model")
    assert re.search(r"/model: it is not the model of epoch \d, the best one", refusal(folder, capsys))


@pytest.mark.parametrize("model", ["whole", "other"])
def test_a_kill_between_model_and_checkpoint(model: str, copy: Path, place: Path) -> None:
    """Row and model of epoch 3 are there, the checkpoint is of epoch 2: the epoch is trained again."""
    folder = copy / "killed"
    assert history(place / "whole")[2]["dev/nll"] < min(row["dev/nll"] for row in history(place / "whole")[:2])
    row = (place / "whole" / "metrics.csv").read_text().splitlines()[3]
    with (folder / "metrics.csv").open("a") as stream:
        stream.write(f"{row}\n")
    shutil.rmtree(folder / "model")
    shutil.copytree(copy / model / "model", folder / "model")
    resume(folder)
    assert_same_run(folder, place / "whole")


def test_a_row_more_that_has_no_model(copy: Path, place: Path, capsys: Any) -> None:
    folder = copy / "killed"
    names, *_, row = (place / "whole" / "metrics.csv").read_text().splitlines()
    cells = row.split(",")
    cells[names.split(",").index("dev/nll")] = "9.9"
    with (folder / "metrics.csv").open("a") as stream:
        stream.write(",".join(cells) + "\n")
    shutil.rmtree(folder / "model")
    shutil.copytree(copy / "other" / "model", folder / "model")
    assert "/model: it is not the model of epoch 2, the best one" in refusal(folder, capsys)


def test_the_model_is_looked_at_again_when_all_is_trained(place: Path) -> None:
    selection = Selection(place / "whole", None, "nll", max_epochs=3)  # type: ignore[arg-type]
    state = kept(place / "whole")["callbacks"]["Selection"]
    selection.load_state_dict(state)
    selection.check_model()
    selection.saved = "0" * 64
    with pytest.raises(ResumeError, match="it is not the model of epoch 3, the best one"):
        selection.check_model()


# What may change


def test_settings_that_do_not_decide_a_result_may_change(copy: Path, place: Path) -> None:
    folder = copy / "killed"
    (copy / "raw").rename(copy / "moved")
    (copy / "pack").rename(copy / "moved pack")
    edit(folder, "data", raw=str(copy / "moved"), packs={"audio": str(copy / "moved pack")})
    edit(folder, "training", bootstrap=30, keep_every_epoch=True)
    resume(folder)
    one, other = (read(path / "record.json")["metrics"] for path in (folder, place / "whole"))
    assert one == other


def test_other_versions_are_said(copy: Path) -> None:
    folder = copy / "killed"
    assert other_versions(folder) == []
    made = read(folder / "environment.json")
    made["versions"]["torch"] = "1.0"
    (folder / "environment.json").write_text(json.dumps({**made, "revision": {"commit": "f" * 40, "dirty": False}}))
    resume(folder)
    said = (folder / "train.log").read_text()
    assert f"torch 1.0 -> {torch.__version__}" in said
    assert "resuming with other versions than at the start: commit ffffffffffff -> " in said


def test_settings_by_what_they_may_do(place: Path) -> None:
    config = read(place / "killed" / "config.json")
    keys = [key for section in ("", *SECTIONS, *CHOICES) if section != "sweep" for key in fields_in(section)]
    free = [key for key in keys if decides(key) == "nothing"]
    assert {"run", "data.raw", "data.packs", "training.threads", "trainer.devices"} < set(free)
    for key in free:
        section, _, name = key.partition(".")
        changed: Any = {"x": "y"} if key == "data.packs" else "x"
        other = {**config, section: {**config[section], name: changed}} if name else {**config, section: changed}
        assert not changed_settings(config, other), key
    other = {**config, "seed": 5, "preset": {**config["preset"], "model": "x"}, "data": {**config["data"], "packs": {}}}
    assert changed_settings(config, other) == {"seed": (0, 5), "preset.model": ("concat", "x")}


def test_data_by_its_parts(place: Path) -> None:
    identity = load_data(section_from("data", read(place / "killed" / "config.json")["data"])).identity
    assert set(identity) == {
        *("corpus", "protocol", "task", "files of custom", "features audio", "keys of the features audio"),
        *(f"{what} of the {split} split" for what in ("labels", "utterances") for split in ("train", "dev", "test")),
    }
    manifest = read_manifest(place / "pack")
    assert identity["features audio"] == manifest["files"]["values.safetensors"]["sha256"]
    now = {**identity, "features text": "b" * 64}
    del now["features audio"]
    assert data_changes(identity, identity, {}) == []
    assert data_changes(identity, now, {"text": "/x/mine"}) == [
        f"features audio: {identity['features audio'][:12]} -> missing",
        "features text (pack 'mine'): missing -> bbbbbbbbbbbb",
    ]


def test_features_without_a_pack_are_read(place: Path) -> None:
    settings = section_from("data", read(place / "killed" / "config.json")["data"])
    data, other = load_data(settings), load_data(settings)
    for one in (data, other):
        one.tables[0].source.clear()
        one.tables[0].values = np.array(one.tables[0].values)
    other.tables[0].values[3, 2] += 1
    assert data.identity["features audio"] != other.identity["features audio"]


# The checkpoint itself


def test_the_command_that_begins_again(place: Path, tmp_path: Path) -> None:
    words = again_command(place / "killed").split()
    assert words[:3] == ["python", "-m", "ercfusion.train"]
    assert "seed=0" in words
    assert not [word for word in words if word.startswith("run=")]
    typed: dict[str, Any] = {"overrides": ["model=mine", "run=x"]}
    typed["command"] = "python -m ercfusion.train config_dir='a b' model=mine"
    typed["run"] = "0" * 16
    (tmp_path / "overrides.json").write_text(json.dumps(typed))
    assert again_command(tmp_path) == "python -m ercfusion.train 'config_dir=a b' model=mine"
    (tmp_path / "overrides.json").write_text(json.dumps({**typed, "command": "python -m ercfusion.reproduce demo"}))
    assert again_command(tmp_path) == ""


def test_checksums_of_content(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"a": [1, 2.5, None, True], "b": {"c": torch.arange(6.0).reshape(2, 3), "d": torch.zeros(0)}}
    same = {"a": (1, 2.5, None, True), "b": {"c": torch.arange(6.0).reshape(2, 3).clone(), "d": torch.zeros(0)}}
    assert content_checksum(state) == content_checksum(same)
    others = [
        {**state, "a": [1, 2.5, None, False]},
        {**state, "a": ["1", 2.5, None, True]},
        {**state, "b": {"c": torch.arange(6.0).reshape(3, 2), "d": torch.zeros(0)}},
        {**state, "b": {"d": torch.zeros(0), "c": torch.arange(6.0).reshape(2, 3)}},
        {"a": [1, 2.5, None], "b": [True, state["b"]]},
    ]
    assert len({content_checksum(one) for one in [state, *others]}) == 6
    with pytest.raises(ValueError, match="larger than the file"):
        content_checksum([torch.zeros(1).expand(10_000_000)], most=1000)
    monkeypatch.setattr("ercfusion.training.checkpoint_schema._MOST", 1000)
    doubled: list[Any] = [0]
    for _ in range(60):
        doubled = [doubled, doubled]
    with pytest.raises(ValueError, match="too many values"):
        content_checksum(doubled)


def test_hostile_checkpoints_give_no_advice_of_torch(copy: Path, tmp_path: Path, capsys: Any) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return (tmp_path / "harm").mkdir, ()

    folder = copy / "killed"
    for state in ({**kept(folder), "extra": Harmful()}, {**kept(folder), "extra": np.float64(1)}, Harmful()):
        torch.save(state, folder / LAST)
        message = refusal(folder, capsys)
        assert "cannot be read as a checkpoint" in message
        text = message + (folder / "train.log").read_text()
        assert not re.search(r"weights_only|add_safe_globals|torch\.load|trust", text)
        assert not (tmp_path / "harm").exists()
    big = kept(folder.parent / "other")
    big["extra"] = torch.zeros(1).expand(1 << 40)
    torch.save(big, folder / LAST)
    assert "larger than the file" in refusal(folder, capsys)


def test_a_checkpoint_of_a_plugin_without_a_run(tmp_path: Path) -> None:
    origin = {"format": 1, "run": "a", "config": {}, "data": {}, "packs": {}}
    content: dict[str, Any] = {"epoch": 1, "global_step": 3, "state_dict": {"w": torch.ones(3)}, "lr_schedulers": []}
    content |= {"callbacks": {"Selection": {"x": 1}}, "loops": {"fit_loop": {"y": 1}}, "optimizer_states": [{"a": {}}]}
    path = tmp_path / "checkpoints" / "last.ckpt"
    RestrictedCheckpointIO(origin).save_checkpoint(content, path)
    loaded = RestrictedCheckpointIO(origin).load_checkpoint(path)
    assert loaded[KEY] == seal(content, origin)[KEY]
    assert {**content, KEY: loaded[KEY]}.keys() == loaded.keys()
    with pytest.raises(ResumeError, match="it is of another run"):
        RestrictedCheckpointIO({**origin, "run": "b"}).load_checkpoint(path)
    assert issubclass(ResumeError, RunError)


def test_a_run_that_has_no_checkpoint_takes_what_is_there(copy: Path) -> None:
    folder = copy / "killed"
    (folder / LAST).unlink()
    edit(folder, "optimizer", lr=0.1)
    assert resume(folder)["config"]["optimizer"]["lr"] == 0.1
