"""Acoustic packs on EmoDB: ``python -m benchmarks.emodb --recordings DIR``.

Unweighted average recall of a linear support vector machine, seven emotions, leave-one-speaker-out. Features are
standardised by the training folds, as in the pipeline, or by speaker, as in the acoustic literature, which needs
recordings of the test speaker. C is chosen on the training speakers by an inner leave-one-speaker-out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.data import open_corpus
from ercfusion.data.pack import read_pack
from ercfusion.features.extraction import extract_pack
from ercfusion.features.recipe import read_recipe

CONSTANTS: dict[str, tuple[float, ...]] = {"egemaps": (0.003, 0.01, 0.03, 0.1), "compare": (1e-4, 3e-4, 1e-3)}
"""Candidates for C per recipe; other recipes use those of egemaps."""


def features(recordings: Path, recipe: str, folder: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Values (535, D) of a recipe, the emotions and the speakers."""
    corpus = open_corpus("emodb", recordings)
    protocol = corpus.protocol()
    pack = extract_pack(corpus, protocol, read_recipe(recipe), out=folder / recipe).folder
    table = read_pack(pack)
    turns = {
        (talk.id, turn.id): turn
        for part in corpus.conversations(protocol).values()
        for talk in part
        for turn in talk.turns
    }
    chosen = [turns[key] for key in table.keys]
    labels = np.array([str(turn.targets["emotion"].value) for turn in chosen])
    return np.asarray(table.values, dtype=np.float64), labels, np.array([turn.speaker for turn in chosen])


def recall(values: NDArray[Any], labels: NDArray[Any], speakers: NDArray[Any], constants: Sequence[float]) -> float:
    """Unweighted average recall over all held-out speakers, standardised by each training fold."""
    from sklearn.metrics import recall_score

    predicted = np.empty_like(labels)
    for speaker in np.unique(speakers):
        train = speakers != speaker
        constant = constants[0]
        if len(constants) > 1:
            inner = [recall(values[train], labels[train], speakers[train], (constant,)) for constant in constants]
            constant = constants[int(np.argmax(inner))]
        predicted[~train] = fitted(values[train], labels[train], constant).predict(values[~train])
    return float(recall_score(labels, predicted, average="macro"))


def by_speaker(values: NDArray[Any], speakers: NDArray[Any]) -> NDArray[Any]:
    """Every speaker's values with mean 0 and variance 1."""
    result = np.empty_like(values)
    for speaker in np.unique(speakers):
        part = values[speakers == speaker]
        spread = part.std(axis=0)
        result[speakers == speaker] = (part - part.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return result


def fitted(values: NDArray[Any], labels: NDArray[Any], constant: float) -> Any:
    """A linear support vector machine with this C on standardised values."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), SVC(kernel="linear", C=constant)).fit(values, labels)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emodb", description=__doc__)
    parser.add_argument("--recordings", type=Path, required=True, help="folder of EmoDB's WAV files")
    parser.add_argument("--recipes", nargs="+", default=["egemaps", "compare"])
    arguments = parser.parse_args(argv)
    os.environ["ERCFUSION_QUIET"] = "1"
    with tempfile.TemporaryDirectory() as place:
        for recipe in arguments.recipes:
            values, labels, speakers = features(arguments.recordings, recipe, Path(place))
            constants = CONSTANTS.get(recipe, CONSTANTS["egemaps"])
            plain = recall(values, labels, speakers, constants)
            own = recall(by_speaker(values, speakers), labels, speakers, constants)
            print(f"{recipe}: UAR {plain:.3f} standardised by the training folds, {own:.3f} by speaker")


if __name__ == "__main__":
    main()
