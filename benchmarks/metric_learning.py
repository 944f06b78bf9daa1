"""Vectors learned from sound on EmoDB: ``python -m benchmarks.metric_learning --recordings DIR``.

Seven emotions, leave-one-speaker-out. In every fold an encoder is trained on log-mel spectrograms of the eight training
speakers (``task=metric_learning``; the dev speaker selects the epoch) and computes vectors of all recordings. A linear
support vector machine, fitted to all speakers except the test speaker, predicts the emotions. Its C is chosen with a
machine fitted to the training speakers and scored on the dev speaker, because the encoder knows the training labels.
eGeMAPS is evaluated in the same way. The score is the unweighted average recall over all test speakers, with features
standardised by the fitted speakers, and by every speaker.

Existing files below ``--out`` are reused, so a stopped benchmark continues.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.emodb import CONSTANTS, by_speaker, fitted
from ercfusion._core.errors import MissingExtraError
from ercfusion.data import open_corpus
from ercfusion.data.corpora.emodb import FOLDS
from ercfusion.data.pack import read_pack
from ercfusion.features.extraction import extract_pack
from ercfusion.features.recipe import read_recipe

VARIANTS: Mapping[str, tuple[str, ...]] = {
    "adaptive": (),
    "fixed": ("objective.triplet.adaptive=false",),
    "literal": ("objective.triplet.literal=true",),
    "literal-no-hinge": ("objective.triplet.literal=true", "objective.triplet.hinge=false"),
    "cross-entropy": ("objective=default",),
}
"""Changes to the default objective."""

Values = NDArray[np.float64]


def train_fold(
    recordings: Path, out: Path, variant: str, fold: str, more: Sequence[str]
) -> tuple[Path, dict[str, Any]]:
    """Train one encoder or continue; returns its folder and record."""
    import logging

    from ercfusion.config.compose import Composer
    from ercfusion.training import run

    logging.getLogger("ercfusion").setLevel(logging.ERROR)
    folder = out / "runs" / variant / fold.rpartition("-")[2]
    if (folder / "config.json").is_file():
        folder, config = run.open_run_folder(folder)
    else:
        typed = ["task=metric_learning", "data=emodb", f"data.protocol={fold}", f"data.raw={recordings}"]
        typed += [f"data.packs.audio={out / 'logmel'}", f"run={folder}", "training.threads=1", "trainer=cpu"]
        typed += ["training.pictures=false", "training.bootstrap=50", *VARIANTS[variant], *more]
        config = Composer("train").compose(typed)
        folder = run.new_run_folder(config, typed)
    record = run.train(config, folder)
    assert record is not None
    return folder, record


def train_all(
    recordings: Path, out: Path, variants: Sequence[str], folds: Sequence[str], more: Sequence[str], workers: int
) -> dict[tuple[str, str], Path]:
    """An encoder per variant and fold, several at a time; returns their folders."""
    folders = {}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {
            pool.submit(train_fold, recordings, out, variant, fold, more): (variant, fold)
            for variant in variants
            for fold in folds
        }
        for job in as_completed(jobs):
            folder, record = job.result()
            folders[jobs[job]] = folder
            scores = ", ".join(f"{split} {record['metrics'][split]['uar']:.3f}" for split in ("dev", "test"))
            epoch, seconds = record["selection"]["epoch"], record["cost"]["seconds"]
            print(
                f"{len(folders)}/{len(jobs)} {' '.join(jobs[job])}: classifier {scores}, epoch {epoch}, "
                f"{seconds:.0f} s",
                flush=True,
            )
    return folders


class Speech:
    """The recordings in one order, with their labels and speakers."""

    def __init__(self, recordings: Path) -> None:
        corpus = open_corpus("emodb", recordings)
        splits = corpus.conversations(corpus.protocol())
        talks = sorted((talk for part in splits.values() for talk in part), key=lambda talk: talk.id)
        self.keys = [(talk.id, talk.turns[0].id) for talk in talks]
        self.labels = np.array([str(talk.turns[0].targets["emotion"].value) for talk in talks])
        self.speakers = np.array([talk.turns[0].speaker for talk in talks])

    def values(self, pack: Path) -> Values:
        """(n, D) of a pack; of a sequence its concatenated mean and deviation over time."""
        table = read_pack(pack)
        rows = table.rows(self.keys)
        assert (rows >= 0).all()
        if table.offsets is None:
            return np.asarray(table.values[rows], dtype=np.float64)
        parts = [np.asarray(table.values[table.offsets[row] : table.offsets[row + 1]], np.float64) for row in rows]
        return np.stack([np.concatenate([part.mean(0), part.std(0)]) for part in parts])


def recall(speech: Speech, by_fold: Mapping[str, Values]) -> tuple[float, float]:
    """Unweighted average recall over the test speakers of all folds, standardised by the fit and by speaker."""
    from sklearn.metrics import recall_score

    results = []
    for per_speaker in (False, True):
        truth, predicted = [], []
        for fold, values in by_fold.items():
            test, dev = (np.isin(speech.speakers, FOLDS[fold][split]) for split in ("test", "dev"))
            features = by_speaker(values, speech.speakers) if per_speaker else values
            train, labels = ~test & ~dev, speech.labels
            scores = [
                recall_score(labels[dev], fitted(features[train], labels[train], C).predict(features[dev]), **_MACRO)
                for C in CONSTANTS["egemaps"]
            ]
            chosen = CONSTANTS["egemaps"][int(np.argmax(scores))]
            truth.append(labels[test])
            predicted.append(fitted(features[~test], labels[~test], chosen).predict(features[test]))
        results.append(float(recall_score(np.concatenate(truth), np.concatenate(predicted), **_MACRO)))
    return results[0], results[1]


_MACRO: Mapping[str, Any] = {"average": "macro", "zero_division": 0}


def own_recall(folders: Sequence[Path]) -> float:
    """The recall of the classifier trained with the encoder."""
    from sklearn.metrics import recall_score

    from ercfusion.records.predictions import read_predictions

    task = open_corpus("emodb").protocol().task
    parts = [read_predictions(folder / "predictions.parquet", task)["test"] for folder in folders]
    truth, predicted = (
        np.concatenate(each) for each in zip(*((p.value, p.output.argmax(1)) for p in parts), strict=True)
    )
    return float(recall_score(truth, predicted, **_MACRO))


def rows(speech: Speech, out: Path, folders: Mapping[tuple[str, str], Path], folds: Sequence[str]) -> Iterator[str]:
    """The lines of the table, as they are computed."""
    yield "| features | width | UAR, standardised by the fit | by speaker | own classifier |"
    yield "|---|---|---|---|---|"
    fixed = {"eGeMAPS": speech.values(out / "egemaps")} if (out / "egemaps").is_dir() else {}
    fixed["log-mel, mean and deviation"] = speech.values(out / "logmel")
    for name, values in fixed.items():
        plain, own = recall(speech, dict.fromkeys(folds, values))
        yield f"| {name} | {values.shape[1]} | {plain:.3f} | {own:.3f} | |"
    for variant in dict.fromkeys(variant for variant, _ in folders):
        runs = {fold: folders[variant, fold] for fold in folds}
        learned = {fold: speech.values(folder / "packs" / "audio") for fold, folder in runs.items()}
        plain, own = recall(speech, learned)
        width = next(iter(learned.values())).shape[1]
        yield f"| {variant} | {width} | {plain:.3f} | {own:.3f} | {own_recall(list(runs.values())):.3f} |"
        if "eGeMAPS" in fixed:
            both = {fold: np.concatenate([fixed["eGeMAPS"], values], 1) for fold, values in learned.items()}
            plain, own = recall(speech, both)
            yield f"| {variant} + eGeMAPS | {width + fixed['eGeMAPS'].shape[1]} | {plain:.3f} | {own:.3f} | |"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metric_learning", description=__doc__)
    parser.add_argument("--recordings", type=Path, required=True, help="folder of EmoDB's WAV files")
    parser.add_argument("--out", type=Path, default=Path("outputs/metric_learning"), help="packs and runs")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--folds", nargs="+", default=list(FOLDS), choices=list(FOLDS))
    parser.add_argument("--workers", type=int, default=2, help="encoders trained at a time, one thread each")
    parser.add_argument("settings", nargs="*", help="more settings of the training, as key=value")
    arguments = parser.parse_args(argv)
    os.environ["ERCFUSION_QUIET"] = "1"
    out, recordings = arguments.out.absolute(), arguments.recordings.absolute()
    corpus = open_corpus("emodb", recordings)
    for recipe in ("logmel", "egemaps"):
        try:
            extract_pack(corpus, corpus.protocol(), read_recipe(recipe), out=out / recipe, workers=arguments.workers)
        except MissingExtraError as error:
            print(f"without {recipe}: {error}", file=sys.stderr)
    folders = train_all(recordings, out, arguments.variants, arguments.folds, arguments.settings, arguments.workers)
    ordered = {(v, f): folders[v, f] for v in arguments.variants for f in arguments.folds}
    for line in rows(Speech(recordings), out, ordered, arguments.folds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
