"""Mutated files of every kind that a command reads: success or one short error, never a traceback, never long.

Every mutation follows from its number. The environment variable ``ERCFUSION_FUZZ`` sets the number of mutations of the
slow test (1,000 if it is not set; each kind of file gets an equal share).
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_files import Foreign, Kind
from runs import TINY

from ercfusion._core.errors import ErcfusionError
from ercfusion.data.features import FeatureTable
from ercfusion.train import main as train_main

SLOW = int(os.environ.get("ERCFUSION_FUZZ", "1000"))
LIMIT = 5.0
# Kinds that another file, or the file itself, has the checksum of.
SUMMED = frozenset({"model.safetensors", "predictions.parquet", "values of a sequence", "keys of a sequence"})
# Kinds that are read by what also writes them.
WRITTEN = frozenset({"journal.bin", "study.db", "study.journal"})

Random = random.Random


# Mutations of bytes


def flip_bits(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def repeat_line(data: bytes, rng: Random) -> bytes:
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    return b"\n".join([*lines[:place], lines[place], *lines[place:]])


def drop_line(data: bytes, rng: Random) -> bytes:
    lines = data.split(b"\n")
    del lines[rng.randrange(len(lines))]
    return b"\n".join(lines)


def insert(data: bytes, rng: Random) -> bytes:
    odd = (b"\x00", b"\xff\xfe", b"\xe9", b"\n\n", b'"', b",", b"[" * 3000, b"9" * 5000, b"NaN", b"\xef\xbb\xbf", b"{{")
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(odd) + data[place:]


def replace_all(data: bytes, rng: Random) -> bytes:
    return rng.choice((b"", b"\x00" * 64, b"[]", b"{}", b"null", b"3", b'"a"', b"\xff" * 9, b"[" * 5000, b"a,b\n"))


BYTES = (flip_bits, flip_bits, truncate, repeat_line, drop_line, insert, replace_all)

# Mutations of containers


def odd_value(rng: Random) -> Any:
    return rng.choice(
        (None, True, False, 0, -1, -5, 1, 3, 10**6, 10**8, 2**31, 2**63, 10**19, 0.5, -0.5, 1e-300, 1e300, "", "x",
         "../..", "a\nb", "\x00", "é" * 200, "x" * 200_000, [], [1], ["a", "a"], [[[]]], {}, {"a": 1}, [None] * 50,
         "2020-01-01", "os:getcwd", [2**40, 2**40], -(2**31), "1" * 5000)
    )  # fmt: skip


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        found += places(value, (*path, key))
    return found


def mutate_tree(tree: Any, rng: Random) -> Any:
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        known = places(tree)
        if not known:
            break
        *outer, last = rng.choice(known)
        parent = tree
        for key in outer:
            parent = parent[key]
        kind = rng.randrange(7)
        if kind < 3:
            parent[last] = odd_value(rng)
        elif kind == 3:
            del parent[last]
        elif kind == 4 and isinstance(parent, dict):
            parent[str(last) + rng.choice(("x", "", "\n", "k" * 5000))] = parent.pop(last)
        elif kind == 5:
            parent[last] = [parent[last]] if rng.random() < 0.5 else {"a": parent[last]}
        else:
            value = parent[last]
            if isinstance(value, bool | None):
                parent[last] = 1
            elif isinstance(value, int | float):
                parent[last] = rng.choice((-value, value * 10**6, value + 1, value / 2 if value else 7, str(value)))
            elif isinstance(value, list):
                parent[last] = value * rng.choice((0, 2, 50))
            else:
                parent[last] = list(value) if isinstance(value, dict) else [value]
    return tree


def mutate_json(data: bytes, rng: Random) -> bytes:
    return json.dumps(mutate_tree(json.loads(data), rng)).encode()


def mutate_yaml(data: bytes, rng: Random) -> bytes:
    import yaml

    return yaml.safe_dump(mutate_tree(yaml.safe_load(data), rng), allow_unicode=True).encode()


def mutate_checkpoint(data: bytes, rng: Random) -> bytes:
    import io

    loaded = torch.load(io.BytesIO(data), weights_only=True)
    changed = mutate_tree(loaded, rng)
    if rng.random() < 0.3:
        name = rng.choice(list(loaded["state_dict"]))
        if isinstance(changed.get("state_dict"), dict):
            changed["state_dict"][name] = torch.zeros(rng.choice(((0,), (3,), (2, 2), ())))
    buffer = io.BytesIO()
    torch.save(changed, buffer)
    return buffer.getvalue()


def mutate_header(data: bytes, rng: Random) -> bytes:
    """The header of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    text = mutate_json(data[8 : 8 + length], rng)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def mutate_journal(data: bytes, rng: Random) -> bytes:
    from ercfusion.features import journal

    remarks = json.dumps(mutate_tree(["reason", 0.5, ["a.wav", "0" * 64]], rng)).encode()
    fields = journal._HEAD.pack(journal._MARK, rng.choice((0, 7, 2**32 - 1)), 2, 3, len(remarks), 2, 0)[:-4]
    return data + fields + zlib.crc32(remarks, zlib.crc32(fields)).to_bytes(4, "little") + remarks


# Files


class Workshop:
    """One folder of each kind, and what reads it."""

    def __init__(self, folder: Path) -> None:
        from ercfusion.data.pack import write_pack
        from ercfusion.data.recordings import Source
        from ercfusion.features.journal import Journal, Result

        self.folder = folder
        self.foreign = Foreign(folder / "foreign")
        self._kinds: dict[str, Kind] = {}
        self.run = folder / "run"
        options = ("model=concat", "training.max_epochs=1", "training.pictures=false", "training.keep_every_epoch=true")
        assert train_main([*TINY, *options, "curriculum=emotion_shift", f"run={self.run}"]) == 0
        self.unfinished = folder / "unfinished"
        shutil.copytree(self.run, self.unfinished)
        (self.unfinished / "record.json").unlink()
        values = np.arange(12, dtype=np.float32).reshape(4, 3)
        table = FeatureTable("audio", [("c", str(n)) for n in range(4)], values)
        learned = {"corpus": "x", "corpus_fingerprint": "f", "protocol": "p", "split": "train"}
        self.pack = write_pack(
            folder / "pack",
            table,
            tool="t",
            tool_version="1",
            settings={"a": {"b": [1]}},
            corpus="x",
            fingerprint="f",
            missing={("c", "9"): "no sound"},
            recordings=[Source("a.wav", "0" * 64, 12, 10**18), Source("b.wav", used=False)],
            trained_on=[{**learned, "conversations": {"c": ["1"]}}],
        )
        offsets = np.array([0, 1, 2, 3, 4])
        self.sequence = write_pack(
            folder / "sequence",
            FeatureTable("audio", table.keys, values, offsets),
            tool="t",
            tool_version="1",
            settings={},
            corpus="x",
            fingerprint="f",
        )
        with Journal(folder / "journal.bin") as journal:
            journal.append(0, Result(values, "odd", 1.5, Source("a.wav", "0" * 64)))
            journal.append(1, Result(None, "nothing"))
        self.work = folder / "extraction"
        self.work.mkdir()
        here = {"tool_version": "1", "corpus": "x", "corpus_fingerprint": "f", "tool": "t", "settings": {"a": 1}}
        (self.work / "work.json").write_text(json.dumps(here))
        (folder / "recipe.yaml").write_text("name: mine\ntool: opensmile\nsettings: {feature_set: IS09, list: [1]}\n")
        (folder / "table.yaml").write_text(
            "title: T\ndata: demo\nsettings: {data.options.seed: 1}\nseeds: [0, 1]\nalso: [accuracy]\nnotes: n\nrows:\n"
            "  concat: {model: concat, note: a, published: [{score: 0.5, source: s, differs: [split]}]}\n"
            "  two: {model: concat, settings: {model.hidden: 8}, seeds: [0]}\npairs: [[concat, two]]\n"
        )
        (folder / "settings.yaml").write_text("model: concat\nmodel.hidden: 8\noptimizer: {lr: 1e-3}\nimports: []\n")
        (folder / "corpus").mkdir()
        (folder / "corpus" / "corpus.yaml").write_text(
            "title: T\nlicence: L\ntargets:\n  emotion: {labels: [a, b], synonyms: {c: a}, neutral: a}\n"
            "  valence: {kind: regression, low: -1, high: 1}\n"
        )
        from ercfusion.records.archive import write_archive
        from ercfusion.records.record import read_record

        record = read_record(self.run)
        self.archive = write_archive(folder / "archive.json", [record, {**record, "seed": 1}])
        optimism = {"metric": "m", "dev_selected": 0.5, "last_epoch": 0.5, "test_selected": 0.6}
        optimism |= {"test_selected_epoch": 1, "optimism": 0.1, "test_by_epoch": {"1": 0.6}}
        (folder / "optimism.json").write_text(json.dumps(optimism))
        (folder / "winner.json").write_text(json.dumps({"trial": 3, "settings": {"optimizer.lr": 0.1}}))
        self.sweep = folder / "sweep"
        self.sweep.mkdir()
        config = json.loads((self.run / "config.json").read_text())
        config |= {"space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "typed": {"seed": 0}}
        config |= {"place": "ab", "command": "c", "study": {"metric": "m", "synthetic": True, "identity": {"a": 1}}}
        config["study"]["data"] = {}
        config["sweep"] = {"trials": 5, "workers": None, "metric": None, "sampler": "tpe", "pruner": "median"}
        config["sweep"] |= {"startup": 5, "warmup": None, "seed": 0, "only": None, "storage": None, "name": "n"}
        config["sweep"] |= {"rerun": 5, "timeout": None}
        (self.sweep / "config.json").write_text(json.dumps(config))

    def kinds(self) -> dict[str, Kind]:
        """By name: the file, its mutators, and the reader."""
        if not self._kinds:
            self._kinds = {**self.foreign.kinds(BYTES, mutate_json), **self._own()}
        return self._kinds

    def _own(self) -> dict[str, Kind]:
        from ercfusion._core.schemas.reading import read_json
        from ercfusion.config.compose import Composer
        from ercfusion.data.corpora._custom import read_settings
        from ercfusion.data.pack import read_pack
        from ercfusion.data.pack_schema import Recordings, Work
        from ercfusion.features.journal import Journal
        from ercfusion.features.recipe import read_recipe
        from ercfusion.records.archive import read_archive
        from ercfusion.records.record import read_record, record_sums
        from ercfusion.records.run_schema import OptimismFile, Winner
        from ercfusion.tables.preset import read_preset
        from ercfusion.tasks.recognizer import Recognizer
        from ercfusion.training.callbacks import read_history
        from ercfusion.training.checkpoint_schema import read_checkpoint
        from ercfusion.training.folder import read_config, read_environment, read_overrides

        text, run, pack = (*BYTES, mutate_json, mutate_json, mutate_json, mutate_json), self.run, self.pack
        yaml, header = (*BYTES, mutate_yaml, mutate_yaml, mutate_yaml), (*BYTES, mutate_header, mutate_header)

        def record() -> Any:
            return record_sums(read_record(run))

        def archive() -> Any:
            return [record_sums(entry) for entry in read_archive(self.archive)]

        def journal() -> None:
            with Journal(self.folder / "journal.bin") as found:
                for item, record in found.records.items():
                    if record.position >= 0:
                        found.values(item)

        def a_pack(folder: Path) -> Callable[[], Any]:
            return lambda: read_pack(folder, verify="full")

        def settings() -> Any:
            composer = Composer()
            return composer.compose(composer.settings(str(self.folder / "settings.yaml")))

        def model() -> Any:
            return Recognizer.from_pretrained(run / "model")

        return {
            "config.json": (run / "config.json", text, lambda: read_config(run)),
            "config.json of a sweep": (self.sweep / "config.json", text, lambda: read_config(self.sweep)),
            "overrides.json": (run / "overrides.json", text, lambda: read_overrides(run)),
            "environment.json": (run / "environment.json", text, lambda: read_environment(run)),
            "metrics.csv": (run / "metrics.csv", BYTES, lambda: read_history(run / "metrics.csv", "weighted_f1")),
            "record.json": (run / "record.json", text, record),
            "archive": (self.archive, text, archive),
            "model/config.json": (run / "model/config.json", text, model),
            "model.safetensors": (run / "model/model.safetensors", header, model),
            "predictions.parquet": (run / "predictions.parquet", BYTES, self.read_predictions),
            "last.ckpt": (
                run / "checkpoints/last.ckpt",
                (*BYTES, mutate_checkpoint, mutate_checkpoint),
                lambda: read_checkpoint(run / "checkpoints/last.ckpt"),
            ),
            "optimism.json": (
                self.folder / "optimism.json",
                text,
                lambda: read_json(self.folder / "optimism.json", OptimismFile),
            ),
            "winner.json": (self.folder / "winner.json", text, lambda: read_json(self.folder / "winner.json", Winner)),
            "pack.json": (pack / "pack.json", text, a_pack(pack)),
            "recordings.json": (
                pack / "recordings.json",
                text,
                lambda: read_json(pack / "recordings.json", Recordings),
            ),
            "utterances.parquet": (pack / "utterances.parquet", BYTES, lambda: read_pack(pack, verify="none")),
            "values.safetensors": (pack / "values.safetensors", header, lambda: read_pack(pack, verify="none")),
            "values of a sequence": (self.sequence / "values.safetensors", header, a_pack(self.sequence)),
            "keys of a sequence": (self.sequence / "utterances.parquet", BYTES, a_pack(self.sequence)),
            "journal.bin": (self.folder / "journal.bin", (*BYTES, mutate_journal), journal),
            "work.json": (self.work / "work.json", text, lambda: read_json(self.work / "work.json", Work)),
            "recipe": (
                self.folder / "recipe.yaml",
                yaml,
                lambda: read_recipe(str(self.folder / "recipe.yaml")),
            ),
            "preset": (self.folder / "table.yaml", yaml, lambda: read_preset(self.folder / "table.yaml")),
            "settings": (self.folder / "settings.yaml", yaml, settings),
            "corpus.yaml": (
                self.folder / "corpus/corpus.yaml",
                yaml,
                lambda: read_settings(self.folder / "corpus/corpus.yaml"),
            ),
        }

    def read_predictions(self) -> Any:
        from ercfusion.batch.labels import get_schema
        from ercfusion.batch.task import TaskSpec
        from ercfusion.records.predictions import read_predictions

        return read_predictions(
            self.run / "predictions.parquet", TaskSpec("emotion", "single_label", get_schema("demo6"))
        )


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("z"))


def fault(read: Callable[[], Any], letters: int = 300) -> str:
    """What is wrong with how a reader takes a file; empty if it reads it or refuses it well."""
    return taken(read, letters)[0]


def taken(read: Callable[[], Any], letters: int = 300) -> tuple[str, bool]:
    """What is wrong with how a reader takes a file (empty: nothing), and whether it reads it."""
    import traceback

    begun, accepted = time.process_time(), False
    try:
        read()
        accepted = True
    except ErcfusionError as error:
        text = str(error)
        if len(text) > letters or len(text.splitlines()) > 3:
            return f"a message of {len(text)} characters: {text[:500]}", False
    except Exception as error:
        where = "".join(traceback.format_tb(error.__traceback__)[-2:])
        return f"{type(error).__name__}: {str(error)[:300]} {where}", False
    spent = time.process_time() - begun  # of the processor: other work on the machine does not count
    return f"{spent:.1f} s of work" if spent > LIMIT else "", accepted


def listing(folder: Path, but: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files except one."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            status = os.stat(path)
            found[path] = (status.st_size, status.st_mtime_ns)
    del found[str(but)]
    return found


def resident(what: str) -> int:
    """Bytes of this process by the system's count; 0 if it does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    return next((int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith(what)), 0)


def fuzz(workshop: Workshop, mutations: int, first: int) -> Counter[str]:
    """Mutate and read; every number of a mutation is tried once over all calls with another ``first``."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    kinds = workshop.kinds()
    peaks = Path("/proc/self/clear_refs")
    if peaks.is_file():
        peaks.write_text("5")  # the peak of what ran before does not count
    before = resident("VmRSS")
    for kind, (path, mutators, read) in kinds.items():
        original = path.read_bytes()
        letters = 600 if ": " in kind else 300  # a corpus says what its release has
        assert not fault(read, letters), kind
        begun, longest = time.process_time(), 0.0
        there = listing(workshop.folder, path)
        for number in range(first, first + max(1, mutations // len(kinds))):
            rng = random.Random(f"{kind} {number}")
            mutator = rng.choice(mutators)
            mutated = mutator(original, rng)
            path.write_bytes(mutated)
            start = time.process_time()
            found, accepted = taken(read, letters)
            longest = max(longest, time.process_time() - start)
            counts[kind] += 1
            if not found and accepted and kind in SUMMED and mutated != original:
                found = "read, though its checksum is another"
            if not found and kind not in WRITTEN:
                same = path.read_bytes() == mutated and listing(workshop.folder, path) == there
                found = "" if same else "a file was changed, made or removed"
            if found:
                faults.append(f"{kind} {number} ({mutator.__name__}): {found}")
        path.write_bytes(original)
        if counts[kind] >= 100:
            spent = time.process_time() - begun
            print(f"{kind}: {counts[kind]}, longest {longest:.2f} s, all {spent:.0f} s, {resident('VmHWM') >> 20} MiB")
    assert not faults, f"{len(faults)} of {sum(counts.values())}:\n" + "\n".join(faults[:40])
    assert resident("VmHWM") - before < 3 << 29, "more than 1.5 GiB"
    return counts


def test_mutated_files(workshop: Workshop) -> None:
    assert set(fuzz(workshop, 0, 0).values()) == {1}  # one of each kind


@pytest.mark.slow
def test_many_mutated_files(workshop: Workshop) -> None:
    counts = fuzz(workshop, SLOW, 1000)
    print(dict(counts))
    assert len(counts) == len(workshop.kinds())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mutators"),
    [
        ("checkpoints/last.ckpt", (mutate_checkpoint,)),
        ("config.json", (mutate_json, mutate_json, flip_bits)),
        ("metrics.csv", BYTES),
        ("environment.json", (mutate_json, truncate)),
        ("overrides.json", (mutate_json, truncate)),
    ],
)
def test_resuming_a_mutated_run(
    workshop: Workshop, tmp_path: Path, name: str, mutators: tuple[Callable[[bytes, Random], bytes], ...]
) -> None:
    faults = []
    original = (workshop.unfinished / name).read_bytes()
    for number in range(max(4, SLOW // 500)):
        folder = tmp_path / str(number)
        shutil.copytree(workshop.unfinished, folder)
        rng = random.Random(f"resume {name} {number}")
        (folder / name).write_bytes(rng.choice(mutators)(original, rng))
        found = fault(lambda: train_main([f"resume={folder}"]))  # noqa: B023
        if found:
            faults.append(f"{name} {number}: {found}")
        shutil.rmtree(folder)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_commands_on_a_mutated_run(workshop: Workshop, tmp_path: Path) -> None:
    from ercfusion import compare, evaluate, verify

    faults = []
    for number in range(max(6, SLOW // 300)):
        folder = tmp_path / str(number)
        shutil.copytree(workshop.run, folder)
        rng = random.Random(f"commands {number}")
        name = rng.choice(("record.json", "record.json", "model/config.json", "model/model.safetensors"))
        mutator = mutate_json if name.endswith("json") else mutate_header
        (folder / name).write_bytes(mutator((folder / name).read_bytes(), rng))
        commands: dict[str, Callable[[], Any]] = {
            "evaluate": lambda: evaluate.main([str(folder), "split=dev"]),  # noqa: B023
            "optimism": lambda: evaluate.main([str(folder), "--optimism"]),  # noqa: B023
            "compare": lambda: compare.main([str(folder), str(workshop.archive)]),  # noqa: B023
            "verify": lambda: verify.main([str(folder), str(workshop.archive)]),  # noqa: B023
        }
        for command, call in commands.items():
            found = fault(call)
            if found:
                faults.append(f"{command}, {name} {number}: {found}")
        shutil.rmtree(folder)
    assert not faults, "\n".join(faults)
