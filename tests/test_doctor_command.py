"""``python -m ercfusion.doctor``: the installation, and a corpus before training starts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from runs import command, refused

import ercfusion
from ercfusion.config.corpora import CORPORA
from ercfusion.data.corpora import open_corpus
from ercfusion.data.features import FeatureTable
from ercfusion.data.pack import write_pack
from ercfusion.doctor import EXTRAS, main
from ercfusion.testing.twins import write_twin


def test_the_installation(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meld").mkdir()
    monkeypatch.setenv("ERCFUSION_DATA", str(tmp_path))
    status, out, err = command(main, [], capsys)
    assert (status, err) == (0, "")
    assert out.startswith(f"ercfusion {ercfusion.__version__}, Python 3.")
    assert f"torch {torch.__version__}" in out
    assert f"ERCFUSION_DATA={tmp_path}" in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    for extra in EXTRAS:
        installed = rows[extra].endswith(" installed")
        assert installed != rows[extra].endswith(f"not installed: pip install 'ercfusion[{extra}]'")
    assert set(CORPORA) <= set(rows)
    assert rows["demo"].endswith("needs no files")
    assert rows["meld"].endswith(str(tmp_path / "meld"))
    assert "not found" in rows["mosi"]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(main, ["-h"], capsys)
    assert status == 0
    assert "usage: python -m ercfusion.doctor" in out


def test_folders_without_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("calls", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "train.log").touch()
    log = Path("run") / "train.log"
    message = f"error: run is a run folder; doctor checks corpora. Read the run's log: {log}\n"
    assert refused(main, ["run"], capsys) == message
    assert "calls is a path. Write data=custom data.raw=calls for" in refused(main, ["calls"], capsys)
    assert "'nothing' is not of the form key=value. Use --help" in refused(main, ["nothing"], capsys)
    assert "Add data=custom for your own utterances or data=NAME" in refused(main, ["data.raw=calls"], capsys)


@pytest.mark.parametrize("data", ["demo", "demo/multilabel"])
def test_the_demo_is_in_order(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["data.options.train=8", "data.options.dev=4", "data.options.test=4"]
    status, out, err = command(main, [f"data={data}", *sizes], capsys)
    assert (status, err) == (0, "")
    assert "generated, not recorded" in out
    assert "train: 8 conversations" in out
    assert "exact posterior" in out
    assert "FAULT" not in out
    assert out.splitlines()[-1].split(": ")[1].startswith("0 faults, ")


def test_a_twin_and_its_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_twin("emotionlines", tmp_path / "emotionlines")
    corpus = open_corpus("emotionlines", raw)
    splits = corpus.conversations(corpus.protocol())
    keys = [
        (conversation.id, turn.id) for part in splits.values() for conversation in part for turn in conversation.turns
    ]

    def look(values: np.ndarray, name: str) -> tuple[int, str]:
        pack = write_pack(
            tmp_path / name,
            FeatureTable("text", keys, values.astype(np.float32)),
            **{"tool": "test", "tool_version": "1", "settings": {}},
            corpus="emotionlines",
            fingerprint=corpus.fingerprint(),
        )
        arguments = ["data=emotionlines", f"data.raw={raw}", f"data.packs.text={pack}"]
        status, out, err = command(main, arguments, capsys)
        assert err == ""
        return status, out

    values = np.random.default_rng(0).normal(size=(len(keys), 6))
    counted = command(main, ["data=emotionlines", f"data.raw={raw}"], capsys)
    status, out = look(values, "good")
    # The twin is smaller than the release; whatever is said about that, the pack adds no fault.
    assert status == counted[0]
    assert "text" in out
    assert out.count("FAULT") == counted[1].count("FAULT")
    status, out = look(np.ones_like(values), "bad")
    assert status == 1
    assert "train: 6 of 6 columns are constant" in out
    assert f"{len(keys)} of {len(keys)} utterances have the same values as another" in out
    assert out.count("FAULT") == counted[1].count("FAULT") + 2
    last = out.splitlines()[-1]
    assert f"{out.count('FAULT')} faults" in last


def test_a_faulty_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_twin("meld", tmp_path / "meld")
    before = command(main, ["data=meld", f"data.raw={raw}"], capsys)[1]
    # A dialogue of the training split occurs in the test split as well.
    frame = pd.read_csv(raw / "train_sent_emo.csv")
    leaked = frame[frame["Dialogue_ID"] == 3].assign(Dialogue_ID=77)
    assert len(leaked) > 3
    test = raw / "test_sent_emo.csv"
    pd.concat([pd.read_csv(test), leaked]).to_csv(test, index=False)
    status, out, err = command(main, ["data=meld", f"data.raw={raw}"], capsys)
    assert (status, err) == (1, "")
    assert "have the same texts in two splits" in out
    assert "have the same texts in two splits" not in before
    assert f"{out.count('FAULT')} faults" in out


def test_recordings_and_packs_of_a_corpus_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_twin("custom", tmp_path / "mine")
    arguments = ["data=custom", f"data.raw={raw}"]
    status, out, err = command(main, arguments, capsys)
    assert (status, err) == (0, "")
    assert out.startswith("Twin of a corpus of one's own")
    assert "protocols  custom/emotion, custom/emotions, custom/affect, custom/votes" in out
    assert "audio recordings" in out
    assert "none absent" in out
    # A dead detector: two columns of zeros, one constant, and three turns without features.
    corpus = open_corpus("custom", raw)
    splits = corpus.conversations(corpus.protocol())
    keys = [(one.id, turn.id) for part in splits.values() for one in part for turn in one.turns]
    values = np.random.default_rng(0).normal(size=(len(keys), 4)).astype(np.float32)
    values[:, :2], values[:, 3] = 0, 5
    values[5] = values[4]
    for modality, kept in (("audio", keys[:-3]), ("visual", keys)):
        write_pack(
            raw / "packs" / modality,
            FeatureTable(modality, kept, values[: len(kept)]),
            **{"tool": "test", "tool_version": "1", "settings": {}},
            corpus="custom",
            fingerprint=corpus.fingerprint(),
            dimension_names=["brow", "lip", "jaw", "scale"] if modality == "visual" else None,
        )
    (raw / "recordings" / "dev01.wav").unlink()
    status, out, err = command(main, arguments, capsys)
    assert (status, err) == (0, "")
    assert "3 of 4 columns are constant: 2 always 0 (brow, lip), 1 with another value (scale)" in out
    assert "3 of 4 columns are constant: 2 always 0 (column 0, 1), 1 with another value (column 3)" in out
    assert f"2 of {len(keys)} utterances have the same values as another" in out
    assert "3 lack audio, and 0 lack all" in out
    assert re.search(r"note  dev: 1 of \d files are absent \(first: .*dev01\.wav\)", out)


def test_a_pack_that_is_given_replaces_that_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_twin("custom", tmp_path / "mine")
    corpus = open_corpus("custom", raw)
    keys = [
        (one.id, turn.id)
        for part in corpus.conversations(corpus.protocol()).values()
        for one in part
        for turn in one.turns
    ]
    for place, width in ((raw / "packs" / "audio", 5), (tmp_path / "other", 7)):
        write_pack(
            place,
            FeatureTable("audio", keys, np.random.default_rng(0).normal(size=(len(keys), width)).astype(np.float32)),
            **{"tool": "test", "tool_version": "1", "settings": {}},
            corpus="custom",
            fingerprint=corpus.fingerprint(),
        )
    arguments = ["data=custom", f"data.raw={raw}"]
    assert "5 dimensions" in command(main, arguments, capsys)[1]
    out = command(main, [*arguments, f"data.packs.audio={tmp_path / 'other'}"], capsys)[1]
    assert "7 dimensions" in out
    assert "5 dimensions" not in out
    mistaken = f"data.packs.text={tmp_path / 'other'}"
    assert "has the modality 'audio'" in refused_with_output([*arguments, mistaken], capsys)


def test_a_broken_corpus_of_ones_own_does_not_hide_the_installation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "corpus.yaml").write_text("title: [")
    monkeypatch.setenv("ERCFUSION_DATA", str(tmp_path))
    status, out, _ = command(main, [], capsys)
    assert status == 0
    assert f"custom        {tmp_path / 'custom'}" in out


def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ERCFUSION_DATA", raising=False)
    for arguments, message in (
        (["data=meld", "data.raw=/nowhere"], "data.raw=/nowhere is not a folder"),
        (["data=meld"], "Set data.raw=FOLDER"),
        (["data=mled"], "Did you mean 'meld'?"),
        (["data=demo/fra"], "Did you mean 'demo/far'?"),
        (["data.protocl=x"], "Did you mean 'data.protocol'?"),
        (["data=demo", "data.packs.text=/nowhere"], "/nowhere: there is no such folder"),
        (["data=demo", "missing.eval=pattern:mocap"], "no modality 'mocap' here, only text, audio, visual"),
        (["data=demo", "data.modalities=[text]", "missing.train=pattern:audio"], "'audio' here, only text"),
        (["data=demo", "mising.train=none"], "Did you mean 'missing.train'?"),
        (["--hlep"], "Did you mean '--help'?"),
    ):
        refused_message = refused_with_output(arguments, capsys)
        assert message in refused_message
    # A file cut in the middle of a row is named with its line.
    raw = write_twin("meld", tmp_path / "meld")
    path = raw / "dev_sent_emo.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:5]) + "\n5,Hello")
    assert "dev_sent_emo.csv" in refused_with_output(["data=meld", f"data.raw={raw}"], capsys)


def refused_with_output(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Like :func:`runs.refused`, for a command that prints a corpus's card before it looks at the files."""
    status, _, err = command(main, arguments, capsys)
    assert status == 2
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


def test_laws_of_missing_modalities_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = command(main, ["data=demo", "missing=rate", "missing.eval=none"], capsys)
    assert status == 0
    assert "  missing    train rate:0.5, dev rate:0.5, test none; seed of the masks 0\n" in out
    assert "  missing  " not in command(main, ["data=demo"], capsys)[1]


def test_an_unknown_corpus_prints_no_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such choice of data" in refused(main, ["data=nothing"], capsys)
