"""``python -m ercfusion.evaluate RUN``: score a finished run on a split."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError
from ercfusion._core.files import expanded, write_json
from ercfusion._core.registry import require_trusted
from ercfusion.cli import run_command
from ercfusion.config.corpora import CORPORA
from ercfusion.config.hints import command, naming
from ercfusion.config.missing import described_laws
from ercfusion.config.missing_laws import LAWS
from ercfusion.config.missing_policies import POLICIES
from ercfusion.config.overrides import expand_protocol
from ercfusion.config.sections import Data
from ercfusion.config.settings import choices_of, section_from
from ercfusion.grammar import Command, Flag, Key, Positional, Typed, columns
from ercfusion.records.missing import Scoring, modalities_of, unseen_lines

if TYPE_CHECKING:
    from pathlib import Path


COMMAND = Command(
    "evaluate",
    "Score a finished run on any split and write its predictions",
    (
        ("outputs/train/cogmen-meld/20260101-120000-seed0", "the test split"),
        ("RUN split=dev", "another split"),
        ("RUN data.raw=DIR", "the corpus is in another folder now"),
        ("RUN missing.eval=pattern:text", "score with text only"),
        ("RUN missing.eval=rate:0.5", "hide modalities at random, with the same masks for all runs"),
        ("RUN data=emorynlp data.raw=DIR", "another corpus, through a map between the labels"),
        ("RUN --optimism", "measure the effect of selecting on test"),
        ("RUN imports=my_models", "a run that uses your modules"),
    ),
    positional=(Positional("RUN"),),
    keys=(
        Key("split", "split to score: train, dev or test", default="test", choices=("train", "dev", "test")),
        Key(
            "data", "another corpus, or CORPUS/PROTOCOL, scored through a label map", choices=lambda: CORPORA, free=True
        ),
        Key("data.raw", "folder of the corpus files, if it has moved, or of the other corpus", "path"),
        Key("data.packs.MODALITY", "feature pack of a modality, if it has moved, or of the other corpus", "path"),
        Key("data.protocol", "protocol of the other corpus"),
        Key("data.options.NAME", "option of the other corpus's reader", value="VALUE"),
        Key(
            "unmapped",
            "with data=: the probability of predicted labels without counterpart goes to the other labels, or is wrong",
            default="renormalize",
            choices=("renormalize", "wrong"),
        ),
        Key("missing.eval", "law of missing modalities", choices=lambda: LAWS, free=True, value="LAW"),
        Key("missing.seed", "seed of its masks", "count"),
        Key(
            "missing.policy",
            f"input in place of an absent modality: {', '.join(POLICIES)}",
            choices=lambda: choices_of("missing.policy"),
        ),
    ),
    flags=(
        Flag(
            "optimism",
            "score every epoch on test: by how much would selecting on test raise the score? Not a result. Needs a "
            "run with training.keep_every_epoch=true",
        ),
    ),
    tables=lambda composer: [("Laws of missing modalities, for missing.eval:", [columns(described_laws())])],
    notes="""
Without missing. keys the run's own settings apply, and test has its scores again. Writes RUN/evaluation/SPLIT.json
(scores) and SPLIT.parquet (predictions); with missing.eval=rate:0.5 SPLIT-rate-0.5.json and .parquet; with data=
CORPUS-PROTOCOL-SPLIT.json and .parquet. A split without labels has predictions only. If the run uses your modules, add
them with imports=, because importing runs their code.
""",
)


def main(argv: list[str]) -> int:
    """Run the command; see :data:`COMMAND`."""
    return COMMAND.main(argv, evaluate)


def evaluate(typed: Typed) -> int:
    """Score a run; returns the exit status."""
    from ercfusion.data.corpora import open_corpus
    from ercfusion.features.loading import load_data
    from ercfusion.records.optimism import measure_optimism, optimism_text
    from ercfusion.records.predictions import write_predictions
    from ercfusion.records.record import read_record, rounded_scores, split_record, task_record
    from ercfusion.records.robust_runs import check_own_features, check_same_files
    from ercfusion.tasks.recognizer import Recognizer
    from ercfusion.training.checks import check_finite
    from ercfusion.training.run import MODEL
    from ercfusion.training.scoring import recorded_views

    folder = expanded(typed.positional[0])
    record = read_record(folder)
    names = record["config"]["imports"]
    again = [word for word in typed.words if not word.startswith("imports=")]
    require_trusted(names, command("modules of a folder", "evaluate", *again, *naming(names)))
    split, optimism = typed.keys.get("split", "test"), "optimism" in typed.flags
    missing = typed.below("missing.")
    if missing and optimism:
        raise ConfigError(f"--optimism scores the run unchanged. Remove missing.{next(iter(missing))}=, or --optimism.")
    scoring = Scoring.of(record, split, missing.get("eval"), missing.get("seed"), missing.get("policy"))
    if "data" in typed.keys:
        return evaluate_elsewhere(typed, folder, record, split, scoring)
    for key in typed.keys:
        if key in ("unmapped", "data.protocol") or key.startswith("data.options."):
            raise ConfigError(f"{key} is about another corpus. Add data=CORPUS, or remove it.")
    settings = with_paths(section_from("data", record["config"]["data"]), typed)
    # Before text features are computed for another version of the corpus.
    check_same_files(record, open_corpus(settings.name, settings.raw, **settings.options))
    visible = modalities_of(record) if optimism else scoring.law.left(modalities_of(record))
    if len(visible) < len(record["features"]):
        settings = replace(settings, modalities=tuple(visible))
    data = load_data(settings, refuse_changed=False)
    check_own_features(record, data.tables)
    data.tables = with_hidden(data.tables, record)
    if optimism:
        print(optimism_text(measure_optimism(folder, record, data)))
        return 0
    recognizer = scoring.recognizer(Recognizer.from_pretrained(folder / MODEL))
    target = folder / "evaluation"
    target.mkdir(exist_ok=True)
    store = scoring.store(data.store(split), split)
    about = scoring.report(store)
    predicted = recognizer.predict_all(store)
    predicted |= recorded_views(predicted, record, store)
    for task, predictions in predicted.items():
        check_finite(predictions, split)
        scores, own = rounded_scores(predictions), task_record(record, task)
        suffix = [] if task == recognizer.task.name else [task]
        name = "-".join([split, *scoring.file_parts, *suffix])
        write_predictions(target / f"{name}.parquet", {split: predictions})
        report = {"split": split, "protocol": own["protocol"], **about, "metrics": scores}
        write_json(target / f"{name}.json", {**report, **split_record(predictions)}, indent=1)
        print(f"{record['config']['preset']['model']} on {own['protocol']}, {split} split{scoring.words}")
        print("\n".join([_comparison(scores, own, split, same=scoring.same), *unseen_lines(about)]))
        print(target / f"{name}.parquet")
    return 0


def evaluate_elsewhere(typed: Typed, folder: Path, record: Mapping[str, Any], split: str, scoring: Scoring) -> int:
    """Score a run on another corpus; returns the exit status."""
    from ercfusion.data.corpora import corpus_class, open_corpus
    from ercfusion.features.loading import load_data
    from ercfusion.records.crossing import check_same_features, cross, crossing_text, other_data, pair_tasks
    from ercfusion.tasks.recognizer import Recognizer
    from ercfusion.training.checks import check_finite
    from ercfusion.training.run import MODEL

    if "optimism" in typed.flags:
        raise ConfigError("--optimism is about the run's own corpus. Remove data=, or --optimism.")
    words = [word for word in typed.words if word.startswith(("data=", "data.")) and "=" in word]
    config = typed.composer.compose([part for word in words for part in expand_protocol(word)])
    visible = scoring.law.left(modalities_of(record))
    settings = other_data(record, section_from("data", config["data"]), visible)
    unmapped = typed.keys.get("unmapped", "renormalize")
    recognizer = scoring.recognizer(Recognizer.from_pretrained(folder / MODEL))
    corpus = open_corpus(settings.name, settings.raw, **settings.options)
    # Before text features are computed.
    pairs = pair_tasks(record, recognizer.tasks, corpus, corpus.protocol(settings.protocol), unmapped)
    names = tuple(dict.fromkeys(pair.other.name for pair in pairs))
    data = load_data(replace(settings, tasks=names), refuse_changed=False)
    unknown = check_same_features(record, data.tables, corpus)
    data.tables = with_hidden(data.tables, record)
    relation = corpus_class(record["corpus"]["name"]).card.related.get(corpus.name)
    for crossing in cross(folder, record, recognizer, data, pairs, split, scoring, unmapped):
        check_finite(crossing.predictions, split)
        print(crossing_text(crossing, record, relation, unknown))
        print(crossing.file)
    return 0


def _comparison(scores: Mapping[str, float], record: Mapping[str, Any], split: str, *, same: bool) -> str:
    """The scores, compared with the record."""
    if not scores:
        return "  no labels in this split: predictions only"
    recorded = record["metrics"].get(split, {})
    if not same and recorded:
        lines = [f"  {'':<28}{'scored':>8}{'recorded':>10}"]
        lines += [
            f"  {name:<28}{value:>8.4f}" + (f"{recorded[name]:>10.4f}" if name in recorded else "")
            for name, value in scores.items()
        ]
        return "\n".join(lines)
    lines = [f"  {name:<28}{value:.4f}" for name, value in scores.items()]
    if recorded:
        common = [name for name in recorded if name in scores]
        worst = max((abs(scores[name] - recorded[name]) for name in common), default=0.0)
        lines.append(
            "equal to the run's record" if worst < 1e-5 else f"differs from the run's record by up to {worst:.2g}"
        )
    return "\n".join(lines)


def with_hidden(tables: Sequence[Any], record: Mapping[str, Any]) -> list[Any]:
    """The feature tables of all modalities of the run, in its order; those that were not loaded are empty."""
    import numpy as np

    from ercfusion.data.features import FeatureTable

    loaded = {table.modality: table for table in tables}
    result = []
    for feature in record["features"]:
        name = feature["modality"]
        if name in loaded:
            result.append(loaded[name])
            continue
        offsets = np.zeros(1, dtype=np.int64) if feature["level"] == "sequence" else None
        result.append(FeatureTable(name, [], np.zeros((0, feature["width"]), dtype=np.float32), offsets))
    return result


def with_paths(data: Data, typed: Typed) -> Data:
    """Settings of a run, with the typed places of corpus files and feature packs."""
    packs = {**data.packs, **typed.below("data.packs.")}
    return replace(data, raw=typed.keys.get("data.raw", data.raw), packs=packs)


if __name__ == "__main__":
    sys.exit(run_command(main))
