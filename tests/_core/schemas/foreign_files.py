"""Files of other people for the tests with mutated files: pickles, corpora, recordings, and the trials of a sweep."""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib.util
import io
import lzma
import pickle
import random
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Random = random.Random
Mutator = Callable[[bytes, Random], bytes]
Kind = tuple[Path, tuple[Mutator, ...], Callable[[], Any]]

_CELLS = ("", "x", "-1", "0", "2000000000", "9" * 5000, "1e999", "nan", "-inf", "a,b", '"', "é" * 3, "x" * 70_000)


def mutate_cells(data: bytes, rng: Random) -> bytes:
    """Some cells of a table."""
    rows = list(csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline="")))
    for _ in range(rng.choice((1, 1, 3))):
        row = rng.choice(rows)
        if row:
            row[rng.randrange(len(row))] = rng.choice((*_CELLS, row[0]))
    if rng.random() < 0.2:
        del rng.choice(rows)[-1:]
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()


def mutate_words(data: bytes, rng: Random) -> bytes:
    """Some words of a text."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 3))):
        place = rng.randrange(len(lines))
        words = lines[place].split(b" ")
        words[rng.randrange(len(words))] = rng.choice(_CELLS).encode()
        lines[place] = b" ".join(words)
    return b"\n".join(lines)


_CODES = (
    b"(.012FGIJKLMNPQRSTUVXabcdefghijlopqrstu})]"
    b"\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x93\x94\x95\x96"
)
_PARTS = (
    *(b"]", b"2\x86" * 30, b"\x85" * 200, b"h\x00" * 50, b"(", b"2" * 100, b"\x8f" * 500, b"R", b"0", b"N", b"u", b"s"),
    *(b"\x8b\xff\xff\xff\x7f", b"j\xff\xff\xff\xff", b"r\xff\xff\xff\xff", b"X\xff\xff\xff\x7f"),
    *(b"cos\nsystem\n", b"cbuiltins\nbytearray\n", b"L" + b"9" * 5000 + b"L\n"),
    *(b"\x95" + b"\xff" * 8, b"\x8e" + b"\x00" * 6 + b"\xff\x7f"),
)


def mutate_pickle(data: bytes, rng: Random) -> bytes:
    """Instructions put in, taken out, or repeated."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            changed[place:place] = rng.choice(_PARTS)
        elif kind == 1:
            changed[place:place] = bytes([rng.choice(_CODES)])
        elif kind == 2:
            end = min(len(changed), place + rng.choice((1, 2, 5, 50)))
            part = changed[place:end]
            changed[place:end] = part * rng.choice((0, 2, 20))
        elif place < len(changed):
            changed[place] = rng.choice(_CODES)
    return bytes(changed)


def inside(pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]) -> Mutator:
    """A mutation of what is compressed."""
    return lambda data, rng: pack(mutate_pickle(unpack(data), rng))


def mutate_archive(data: bytes, rng: Random) -> bytes:
    """The pickle, or another part, of a ZIP archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(stream, "w") as after:
        names = before.namelist()
        chosen = rng.choice((next(name for name in names if name.endswith("data.pkl")), rng.choice(names)))
        for name in names:
            content = before.read(name)
            if name == chosen:
                content = mutate_pickle(content, rng)
            after.writestr(name, content, zipfile.ZIP_STORED if rng.random() < 0.9 else zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def mutate_wave(data: bytes, rng: Random) -> bytes:
    """The header of a WAV file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2))):
        place = rng.randrange(4, 44)
        changed[place : place + 4] = rng.choice((0, 1, 2**31, 2**32 - 1, 192_001, 65_535)).to_bytes(4, "little")
    return bytes(changed)


def mutate_study(data: bytes, rng: Random) -> bytes:
    """A cell of a database."""
    import tempfile

    values = (None, -1, 0, 10**12, 2**63 - 1, 1.5, "", "x", "[" * 5000, "9" * 5000, b"\xff", '{"a": 1}', "[]", "NaN")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.db"
        path.write_bytes(data)
        with sqlite3.connect(path) as base:
            tables = [
                name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type='table' ORDER BY name")
            ]
            full = [name for name in tables if base.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0]]
            for _ in range(rng.choice((1, 1, 2))):
                table = rng.choice(full)
                column = rng.choice([row[1] for row in base.execute(f"PRAGMA table_info({table})")])
                rows = [row[0] for row in base.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]
                if not rows:  # the one before was the last
                    continue
                try:
                    if rng.random() < 0.2:
                        base.execute(f"DELETE FROM {table} WHERE rowid=?", (rng.choice(rows),))
                    else:
                        statement = f"UPDATE {table} SET {column}=? WHERE rowid=?"
                        base.execute(statement, (rng.choice(values), rng.choice(rows)))
                except sqlite3.IntegrityError:
                    continue
        base.close()
        return path.read_bytes()


def mutate_lines(mutate_json: Mutator) -> Mutator:
    """A line of a file with one JSON value per line."""

    def mutate(data: bytes, rng: Random) -> bytes:
        lines = data.split(b"\n")
        place = rng.randrange(len(lines) - 1)
        lines[place] = mutate_json(lines[place], rng)
        return b"\n".join(lines)

    return mutate


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def dialogues() -> tuple[Any, ...]:
    """The nine fields of the layout ``dialoguernn-iemocap``, with few and narrow features."""
    names = [f"Ses0{session}F_impro01" for session in range(1, 6)]
    turns = {name: [f"{name}_F00{turn}" for turn in range(2)] for name in names}
    features = [
        {name: [np.full(width, turn, np.float32) for turn in range(2)] for name in names} for width in (4, 3, 2)
    ]
    speakers, labels = ({name: list(pair) for name in names} for pair in (("F", "M"), (1, 5)))
    sentences = {name: ["Yes.", "N\u00e3o."] for name in names}
    return (turns, speakers, labels, *features, sentences, names[:4], names[4:])


class Foreign:
    """The files, and what reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._pickles()

    def kinds(self, text: tuple[Mutator, ...], mutate_json: Mutator) -> dict[str, Kind]:
        """By name: the file, its mutators, and the reader.

        Args:
            text: Mutations of bytes.
            mutate_json: Of JSON.
        """
        json_text = (*text, mutate_json, mutate_json)
        found: dict[str, Kind] = {}
        found |= self._pickle_kinds(text)
        found |= self._corpus_kinds(text, json_text)
        found |= self._face_kinds(text)
        found |= self._media_kinds(text)
        found |= self._sweep_kinds(text, mutate_json)
        return found

    # Pickles

    def _pickles(self) -> None:
        import torch

        content = dialogues()
        for protocol in (0, 2, 4):
            (self.folder / f"p{protocol}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        whole = (self.folder / "p2.pkl").read_bytes()
        for name, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
            (self.folder / f"p2.pkl.{name}").write_bytes(pack(whole))
        value = {"a": torch.arange(12.0).reshape(3, 4), "b": [torch.ones(2), np.arange(3.0)], "c": ("x", 1)}
        torch.save(value, self.folder / "zip.pt")
        torch.save(value, self.folder / "legacy.pt", _use_new_zipfile_serialization=False)

    def _pickle_kinds(self, text: tuple[Mutator, ...]) -> dict[str, Kind]:
        from ercfusion.features.imports import read_layout, safe_load

        def read(path: Path) -> Callable[[], Any]:
            return lambda: read_layout(safe_load(path), "dialoguernn-iemocap")

        def load(path: Path) -> Callable[[], Any]:
            return lambda: safe_load(path)

        found: dict[str, Kind] = {}
        for protocol in (0, 2, 4):
            path = self.folder / f"p{protocol}.pkl"
            found[f"pickle, protocol {protocol}"] = (
                path,
                (*text, mutate_pickle, mutate_pickle, mutate_pickle),
                read(path),
            )
        for name, pack, unpack in (
            ("gz", gzip.compress, gzip.decompress),
            ("bz2", bz2.compress, bz2.decompress),
            ("xz", lzma.compress, lzma.decompress),
        ):
            path = self.folder / f"p2.pkl.{name}"
            found[f"pickle, {name}"] = (path, (*text, inside(pack, unpack)), read(path))
        path = self.folder / "zip.pt"
        found["torch archive"] = (path, (*text, mutate_archive, mutate_archive, mutate_archive), load(path))
        path = self.folder / "legacy.pt"
        found["torch legacy"] = (path, (*text, mutate_pickle, mutate_pickle), load(path))
        return found

    # Corpora

    def _corpus_kinds(self, text: tuple[Mutator, ...], json_text: tuple[Mutator, ...]) -> dict[str, Kind]:
        from ercfusion.data.corpora import open_corpus
        from ercfusion.testing.twins import write_twin

        table = (*text, mutate_cells, mutate_cells, mutate_cells)
        words = (*text, mutate_words, mutate_words)
        files: dict[str, tuple[tuple[str, tuple[Mutator, ...]], ...]] = {
            "meld": (("train_sent_emo.csv", table), ("test_sent_emo.csv", table)),
            "emorynlp": (("emorynlp_train_final.csv", table),),
            "mosi": (
                *(("utterances.json", json_text), ("transcripts.csv", table), ("text/text_test0.csv", table)),
                ("audio/audio_test0.csv", table),
            ),
            "emotionlines": (("friends.json", json_text),),
            "iemocap": (
                ("Session5/dialog/transcriptions/Ses05M_impro03.txt", words),
                ("Session5/dialog/EmoEvaluation/Ses05M_impro03.txt", words),
            ),
            "mosei": (
                ("CMU_MOSEI_Labels.csd", text),
                ("CMU_MOSEI_COVAREP.csd", text),
                ("cmu_mosei_std_folds.py", words),
            ),
            "m3ed": (("annotation.json", json_text), ("splitInfo/movie_list_test.txt", words)),
            "dailydialog": (
                ("train/dialogues_train.txt", words),
                ("test/dialogues_emotion_test.txt", words),
            ),
            "custom": (("utterances.csv", table),),
        }
        found: dict[str, Kind] = {}
        for name, entries in files.items():
            if not _installed("h5py") and name == "mosei":
                continue
            folder = self.folder / name
            write_twin(name, folder)
            for sounds in folder.glob("**/wav"):
                shutil.rmtree(sounds)

            def read(name: str = name, folder: Path = folder) -> None:
                corpus = open_corpus(name, folder)
                for protocol in list(corpus.protocols)[:1]:
                    chosen = corpus.protocol(protocol)
                    corpus.conversations(chosen)
                    corpus.features(chosen)

            for file, mutators in entries:
                found[f"{name}: {file}"] = (folder / file, mutators, read)
        return found

    # Faces

    def _face_kinds(self, text: tuple[Mutator, ...]) -> dict[str, Kind]:
        from ercfusion.features.faces import OPENFACE_SETS
        from ercfusion.features.fex import RECTANGLE, read_fex, read_openface

        fex = ("frame", "input", *RECTANGLE, "FaceScore", "anger", "happiness", "AU01")
        openface = ("frame", "timestamp", "confidence", "success", *OPENFACE_SETS["aus"])
        mutators = (*text, mutate_cells, mutate_cells, mutate_cells)
        found: dict[str, Kind] = {}
        readers: dict[str, tuple[tuple[str, ...], Callable[[Path], Any]]] = {
            "fex: a.csv": (fex, read_fex),
            "openface: b.csv": (openface, read_openface),
        }
        for name, (columns, read) in readers.items():
            path = self.folder / name[-5:]
            rows = [[1 if column == "success" else row for column in columns] for row in range(4)]
            path.write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]) + "\n")
            found[name] = (path, mutators, lambda path=path, read=read: read(path))
        return found

    # Recordings

    def _media_kinds(self, text: tuple[Mutator, ...]) -> dict[str, Kind]:
        from ercfusion._core.errors import ErcfusionError
        from ercfusion.data.check_media import _UnreadableError, header
        from ercfusion.data.media import Clip, announced_frames, sampling_rate
        from ercfusion.features.frames import read_frames
        from ercfusion.features.sound import read_sound
        from ercfusion.testing.media import tone, write_video, write_wav

        if not (_installed("av") and _installed("soundfile")):
            return {}
        import soundfile
        from matplotlib import pyplot as plt

        sound = write_wav(self.folder / "a.wav", tone(0.3))
        flac, picture = self.folder / "a.flac", self.folder / "a.png"
        soundfile.write(flac, tone(0.3), 16000)
        plt.imsave(picture, np.eye(16))
        video = write_video(self.folder / "a.mp4", 0.5, sound=tone(0.5))

        def read(path: Path, frames: bool) -> Callable[[], None]:
            def reading() -> None:
                try:
                    header(path)
                except _UnreadableError:
                    sampling_rate(path)
                announced_frames(path)
                try:
                    read_sound(Clip(path))
                except ErcfusionError:
                    sampling_rate(path)
                if frames:
                    for _ in read_frames(Clip(path), max_frames=3):
                        pass

            return reading

        return {
            "WAV": (sound, (*text, mutate_wave, mutate_wave), read(sound, False)),
            "MP4": (video, text, read(video, True)),
            "FLAC": (flac, text, read(flac, False)),
            "PNG": (picture, text, read(picture, True)),
        }

    # Sweeps

    def _sweep_kinds(self, text: tuple[Mutator, ...], mutate_json: Mutator) -> dict[str, Kind]:
        from ercfusion.config.compose import Composer
        from ercfusion.config.sections import Sweep
        from ercfusion.config.settings import section_to
        from ercfusion.search import study as studies
        from ercfusion.search.results import rows
        from ercfusion.search.storage import named_failures
        from ercfusion.search.study import Plan

        if not _installed("optuna"):
            return {}
        config = {
            **Composer().compose(["training.max_epochs=8"]),
            "space": {"x.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "x.kind": {"choices": [["a"], ["b"]]}},
            "sweep": section_to(Sweep(trials=4, sampler="random", pruner="none")),
            "x": {"lr": 1e-3, "kind": ["b"]},
        }
        found: dict[str, Kind] = {}
        for name in ("study.db", "study.journal"):
            folder = self.folder / f"sweep {name}"
            folder.mkdir()
            storage = None if name == "study.db" else f"journal:{folder / name}"
            plan = Plan(folder, config, storage, "study", "00000001", "weighted_f1")
            studies.create_or_join(plan, {"a": 1})
            study = studies.open_study(plan)
            for number in range(2):
                trial = studies.next_trial(study, plan, 0, None)
                assert trial is not None
                trial.report(0.4, 1)
                result = {"value": 0.5, "epoch": 1, "epochs": 2, "seconds": 1.0, "settings": {"x.lr": 0.1}}
                trial.set_user_attr("result", result)
                studies.end(study, number, "COMPLETE", 0.5)
            studies.next_trial(study, plan, 0, None)

            def read(plan: Plan = plan) -> None:
                with named_failures(plan.storage):
                    study = studies.open_study(plan)
                    studies.set_up(study, plan, {"a": 1})
                    trials = study.get_trials(deepcopy=False)
                    studies.tally(study, trials)
                    studies.best_trial(trials, plan.metric)
                    studies.unfinished(trials, plan.place)
                    rows(plan, trials)

            mutators = (*text, mutate_study, mutate_study, mutate_study) if name == "study.db" else (
                *text, mutate_lines(mutate_json), mutate_lines(mutate_json)
            )  # fmt: skip
            found[name] = (folder / name, mutators, read)
        return found
