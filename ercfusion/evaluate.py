"""``python -m ercfusion.evaluate RUN``: score a finished run again, on any split."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ercfusion.cli import run_command, split_flags, split_settings, switch
from ercfusion.errors import ConfigError, RunError, did_you_mean
from ercfusion.files import atomic_write

HELP = """\
Score a finished run again, on any split, and write its predictions.

usage: python -m ercfusion.evaluate RUN [key=value ...]

examples
  python -m ercfusion.evaluate outputs/train/cogmen-meld/20260101-120000-seed0
  python -m ercfusion.evaluate RUN split=dev
  python -m ercfusion.evaluate RUN data.raw=DIR          the corpus has moved since
  python -m ercfusion.evaluate RUN optimism=true         dev-selected against test-selected (a diagnostic)

settings
  split=test         train, dev or test
  data.raw=DIR       raw folder of the corpus, where it is not where it was
  data.packs.M=DIR   feature pack of the modality M, likewise
  optimism=false     score every epoch on test and say how much choosing on test would flatter; never a result
                     (the run must have been trained with training.keep_every_epoch=true)

Writes RUN/evaluation/SPLIT.json (scores) and RUN/evaluation/SPLIT.parquet (predictions).
"""


def main(argv: list[str]) -> int:
    """The command; see :data:`HELP`."""
    flags, arguments = split_flags(argv, ["--help", "-h"])
    if flags or not arguments:
        print(HELP, end="")
        return 0 if flags else 2
    runs, settings = split_settings(arguments)
    if len(runs) != 1:
        raise ConfigError(f"one run folder is expected, found {len(runs)}: {' '.join(runs)}")
    evaluate(Path(runs[0]).expanduser(), settings)
    return 0


def evaluate(folder: Path, settings: Mapping[str, str]) -> None:
    """Score the run in ``folder``; ``settings`` as on the command line."""
    from ercfusion.data.corpora import open_corpus
    from ercfusion.data.load import load_data
    from ercfusion.evaluation.optimism import measure_optimism, optimism_text
    from ercfusion.evaluation.predictions import write_predictions
    from ercfusion.evaluation.record import read_record, rounded_scores, split_record
    from ercfusion.tasks.recognizer import Recognizer
    from ercfusion.training.run import MODEL, import_modules

    settings = dict(settings)
    record = read_record(folder)
    split = settings.pop("split", "test")
    optimism = switch(settings, "optimism")
    settings.pop("optimism", None)
    import_modules(record["config"]["imports"])
    paths = _with_paths(record["config"]["data"], settings)
    # Before anything is loaded: text features of another version would be built for nothing.
    _check_same_data(record, open_corpus(paths["name"], paths["raw"], **paths["options"]))
    data = load_data(paths)
    store = data.store(split)
    if optimism:
        print(optimism_text(measure_optimism(folder, record, data)))
        return
    recognizer = Recognizer.from_pretrained(folder / MODEL)
    predictions = recognizer.predict(store)
    found = rounded_scores(predictions)
    target = folder / "evaluation"
    target.mkdir(exist_ok=True)
    write_predictions(target / f"{split}.parquet", {split: predictions})
    with atomic_write(target / f"{split}.json") as stream:
        report = {"split": split, "protocol": record["protocol"], "metrics": found, **split_record(predictions)}
        stream.write(json.dumps(report, indent=1) + "\n")
    print(f"{record['config']['preset']['model']} on {record['protocol']}, {split} split")
    for name, value in found.items():
        print(f"  {name:<28}{value:.4f}")
    recorded = record["metrics"].get(split)
    if recorded is not None:
        worst = max((abs(found[name] - recorded[name]) for name in recorded if name in found), default=0.0)
        print("equal to the run's record" if worst < 1e-5 else f"differs from the run's record by up to {worst:.2g}")
    print(target / f"{split}.parquet")


def _with_paths(data: Mapping[str, Any], settings: Mapping[str, str]) -> dict[str, Any]:
    changed = {**data, "packs": dict(data["packs"])}
    for key, value in settings.items():
        if key == "data.raw":
            changed["raw"] = value
        elif key.startswith("data.packs."):
            changed["packs"][key.removeprefix("data.packs.")] = value
        else:
            known = ["split", "optimism", "data.raw", "data.packs.<modality>"]
            raise ConfigError(f"evaluate has no setting {key!r}. {did_you_mean(key, known)}")
    return changed


def _check_same_data(record: Mapping[str, Any], corpus: Any) -> None:
    found, recorded = corpus.fingerprint(), record["corpus"]["fingerprint"]
    if found != recorded:
        raise RunError(
            f"the run was trained on another version of {record['corpus']['name']} (fingerprint {recorded[:12]}; the "
            f"files now give {found[:12]}): its scores could not be compared"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
