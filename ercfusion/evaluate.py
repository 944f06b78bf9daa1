"""``python -m ercfusion.evaluate RUN``: score a finished run again, on any split."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ercfusion.cli import run_command, split_flags
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
    runs = [argument for argument in arguments if "=" not in argument]
    if len(runs) != 1:
        raise ConfigError(f"one run folder is expected, found {len(runs)}: {' '.join(runs)}")
    settings = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    evaluate(Path(runs[0]).expanduser(), settings)
    return 0


def evaluate(folder: Path, settings: Mapping[str, str]) -> None:
    """Score the run in ``folder``; ``settings`` as on the command line."""
    from ercfusion.data.corpora import open_corpus
    from ercfusion.data.load import load_data
    from ercfusion.evaluation.predictions import write_predictions
    from ercfusion.evaluation.record import read_record, rounded_scores, split_record
    from ercfusion.tasks.recognizer import Recognizer
    from ercfusion.training.run import MODEL, import_modules

    settings = dict(settings)
    record = read_record(folder)
    split = settings.pop("split", "test")
    optimism = settings.pop("optimism", "false").lower()
    if optimism not in ("true", "false"):
        raise ConfigError(f"optimism={optimism}: true or false is expected")
    import_modules(record["config"]["imports"])
    paths = _with_paths(record["config"]["data"], settings)
    # Before anything is loaded: text features of another version would be built for nothing.
    _check_same_data(record, open_corpus(paths["name"], paths["raw"], **paths["options"]))
    data = load_data(paths)
    store = data.store(split)
    if optimism == "true":
        print(optimism_report(folder, record, data))
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


def optimism_report(folder: Path, record: Mapping[str, Any], data: Any) -> str:
    """How much better the run would look if the epoch were chosen on test: a diagnostic, never a result."""
    from ercfusion.tasks.metrics import best_thresholds, higher_is_better, scores
    from ercfusion.tasks.recognizer import Recognizer

    epochs = sorted((folder / "checkpoints").glob("epoch-*"))
    if not epochs:
        raise RunError(f"{folder} kept no model of every epoch: train with training.keep_every_epoch=true")
    metric = record["selection"]["metric"]
    store, dev_store, test = data.store("test"), data.store("dev"), {}
    for path in epochs:
        recognizer = Recognizer.from_pretrained(path)
        if recognizer.task.kind == "multi_label":  # as the chosen model: thresholds are part of what dev decides
            recognizer.set_thresholds(best_thresholds(recognizer.predict(dev_store)))
        found = scores(recognizer.predict(store))[metric]
        test[int(path.name.removeprefix("epoch-"))] = round(float(found), 6)
    best = (max if higher_is_better(metric) else min)(test, key=lambda epoch: test[epoch])
    chosen = record["metrics"]["test"][metric]
    report = {
        "diagnostic": "test-selected scores are optimistic and must not be reported as results",
        "metric": metric,
        "dev_selected": chosen,
        "last_epoch": test[max(test)],
        "test_selected": test[best],
        "test_selected_epoch": best,
        "optimism": test[best] - chosen,
    }
    (folder / "evaluation").mkdir(exist_ok=True)
    with atomic_write(folder / "evaluation" / "optimism.json") as stream:
        stream.write(json.dumps({**report, "test_by_epoch": test}, indent=1) + "\n")
    return "\n".join(
        [
            f"optimism diagnostic (test {metric}; never a result)",
            f"  dev-selected epoch     {chosen:.4f}",
            f"  last epoch             {report['last_epoch']:.4f}",
            f"  best test epoch ({best})   {test[best]:.4f}",
            f"  optimism               {report['optimism']:+.4f}",
        ]
    )


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
