"""Extraction of features from recordings: ``python -m benchmarks.extraction --recordings DIR``.

Measures throughput (seconds of sound per second) of a loop over ``opensmile.Smile.process_file``, and of the pipeline
with one and two workers. Also the memory of all processes for 20,000 clips, and the time for opening a large pack and
reading one conversation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ercfusion._core.pool import usable_cores
from ercfusion.batch.labels import get_schema
from ercfusion.batch.task import TaskSpec
from ercfusion.data.conversation import Conversation, Turn
from ercfusion.data.corpus import Corpus, CorpusCard, Protocol, Splits
from ercfusion.data.features import FeatureTable, Key
from ercfusion.data.media import Clip, MediaKind
from ercfusion.data.pack import read_pack, write_pack
from ercfusion.features.extraction import extract_pack
from ercfusion.features.recipe import read_recipe

RECIPES = ("egemaps", "compare")
PACK = (13_000, 6_373)
"""Rows and columns of the opened pack: MELD with ComParE."""
LOOK = 20
"""Utterances of the conversation read."""


class Repeated(Corpus):
    """``count`` clips over the recordings in a folder, each a different part of a file for the pipeline."""

    card: ClassVar[CorpusCard] = CorpusCard("repeated", "Repeated recordings", "-", "-", "-")
    protocols: ClassVar[Mapping[str, Protocol]] = {
        "repeated/none": Protocol(
            "repeated/none", TaskSpec("emotion", "single_label", get_schema("emodb7")), "", "", ("audio",)
        )
    }

    def __init__(self, raw: str | Path, count: int, seconds: float | None = None) -> None:
        super().__init__(raw)
        self.count, self.seconds = count, seconds
        self.paths = sorted(self.root().rglob("*.wav"))

    def conversations(self, protocol: Protocol) -> Splits:
        """One conversation of all clips."""
        return {"train": [Conversation("all", tuple(Turn(str(turn), "a") for turn in range(self.count)))]}

    def clips(self, protocol: Protocol, kind: MediaKind) -> dict[Key, Clip]:
        """The recordings in turn; different ends distinguish the repetitions."""
        clips = {}
        for turn in range(self.count):
            lap, number = divmod(turn, len(self.paths))
            end = None if self.seconds is None and not lap else (self.seconds or 1e6) + lap * 1e-6
            clips["all", str(turn)] = Clip(self.paths[number], 0.0, end)
        return clips


def duration(path: Path) -> float:
    """Seconds of a WAV file."""
    with wave.open(str(path)) as stream:
        return stream.getnframes() / stream.getframerate()


def throughput(folder: Path, recipe: str, clips: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of sound per second, one number per round; includes the start of processes."""
    import opensmile

    corpus = Repeated(folder, clips)
    seconds = sum(duration(path) for path in corpus.paths[:clips])
    settings = read_recipe(recipe).settings
    smile = opensmile.Smile(getattr(opensmile.FeatureSet, settings["feature_set"]), opensmile.FeatureLevel.Functionals)

    def loop() -> Any:
        return [smile.process_file(str(path)) for path in corpus.paths[:clips]]

    def pipeline(workers: int) -> Callable[[], Any]:
        def extract() -> Any:
            with tempfile.TemporaryDirectory() as place:
                extract_pack(corpus, corpus.protocol(), read_recipe(recipe), out=Path(place, "pack"), workers=workers)

        return extract

    extractors = {"loop over process_file": loop, "one worker": pipeline(1), "two workers": pipeline(2)}
    speeds: dict[str, list[float]] = {name: [] for name in extractors}
    for _ in range(repeats):
        for name, extract_all in extractors.items():
            start = time.perf_counter()
            extract_all()
            speeds[name].append(seconds / (time.perf_counter() - start))
    return speeds


MEMORY = """
import sys
from pathlib import Path

from benchmarks.extraction import Repeated, peak_of_all
from ercfusion.features.extraction import extract_pack
from ercfusion.features.recipe import read_recipe

if __name__ == "__main__":
    folder, count, seconds, recipe, out = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5]

    corpus = Repeated(folder, count, seconds)
    extract_pack(corpus, corpus.protocol(), read_recipe(recipe), out=out, workers=2)

    print(peak_of_all())
"""


def peak_of_all() -> str:
    """Peak resident MiB of this process and of the largest of its children, as JSON."""
    own, child = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return json.dumps({"coordinator": round(own), "worker": round(child)})


def memory(folder: Path, recipe: str, count: int, seconds: float) -> dict[str, int]:
    """Peak MiB of coordinator and largest worker during the extraction of ``count`` clips of ``seconds``."""
    with tempfile.TemporaryDirectory() as place:
        script = Path(place, "extract.py")
        script.write_text(MEMORY)
        root = str(Path(__file__).parents[1])
        done = subprocess.run(
            [sys.executable, str(script), str(folder), str(count), str(seconds), recipe, str(Path(place, "pack"))],
            env=os.environ | {"ERCFUSION_QUIET": "1", "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        )
    peaks: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def opening(repeats: int) -> dict[str, float]:
    """Milliseconds for opening a pack of :data:`PACK` and reading one conversation; first, fastest and median."""
    rows, width = PACK
    with tempfile.TemporaryDirectory() as place:
        keys = [(f"dialogue-{row // LOOK}", str(row % LOOK)) for row in range(rows)]
        values = np.random.default_rng(0).standard_normal((rows, width), dtype=np.float32)
        folder = write_pack(
            Path(place, "pack"),
            FeatureTable("audio", keys, values),
            tool="none",
            tool_version="0",
            settings={},
            corpus="none",
            fingerprint="0",
        )
        del values
        for path in folder.iterdir():  # older than the present second
            os.utime(path, (time.time() - 60,) * 2)
        times = []
        for number in range(repeats + 1):
            start = time.perf_counter()
            table = read_pack(folder)
            chosen = table.rows(keys[LOOK * number : LOOK * (number + 1)])
            assert np.asarray(table.values[chosen]).shape == (LOOK, width)
            times.append(1000 * (time.perf_counter() - start))
        shutil.rmtree(folder)
    # The first opening verifies the checksum.
    return {"first (verified)": times[0], "fastest": min(times[1:]), "median": statistics.median(times[1:])}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction", description=__doc__)
    parser.add_argument("--recordings", type=Path, required=True, help="folder of WAV files (EmoDB)")
    parser.add_argument("--clips", type=int, default=535, help="of each round (default: 535)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--many", type=int, default=20_000, help="clips for the memory (0: not measured)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each clip for the memory")
    arguments = parser.parse_args(argv)
    os.environ["ERCFUSION_QUIET"] = "1"
    print(f"{platform.processor() or platform.machine()}, {usable_cores()} cores, Python {platform.python_version()}")
    for recipe in RECIPES:
        speeds = throughput(arguments.recordings, recipe, arguments.clips, arguments.repeats)
        best = {name: max(rounds) for name, rounds in speeds.items()}
        print(f"{recipe}: seconds of sound a second, best of {arguments.repeats} rounds")
        for name, speed in best.items():
            ratio = speed / best["one worker"]
            print(
                f"  {name:<24}{speed:7.1f}   {ratio:.2f} x one worker   ({', '.join(f'{x:.1f}' for x in speeds[name])})"
            )
    if arguments.many:
        for count in (arguments.many // 10, arguments.many):
            peaks = memory(arguments.recordings, "egemaps", count, arguments.seconds)
            total = peaks["coordinator"] + 2 * peaks["worker"]
            print(
                f"{count:,} clips: coordinator {peaks['coordinator']} MiB, "
                f"a worker {peaks['worker']} MiB, all {total} MiB"
            )
    print("a pack of {:,} x {:,}, opened and one conversation read: ".format(*PACK), end="")
    print(", ".join(f"{name} {value:.1f} ms" for name, value in opening(20).items()))


if __name__ == "__main__":
    main()
