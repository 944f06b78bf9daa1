"""``python -m ercfusion.train``: train a model on a corpus, choose it on dev, open test once."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ercfusion.cli import Composer, run_command, split_flags
from ercfusion.errors import ConfigError, ErcfusionError

logger = logging.getLogger("ercfusion")

HELP = """\
Train a conversation model, choose it on the dev split, open the test split once.

usage: python -m ercfusion.train [model=NAME] [data=NAME] [key=value ...] [flags]

examples
  python -m ercfusion.train                                      COGMEN on the embedded, generated corpus
  python -m ercfusion.train model=bclstm data=demo/speaker       another model, a variant of the corpus
  python -m ercfusion.train model=cogmen data=meld data.raw=DIR  MELD's dialogues; DIR holds the released CSV files
  python -m ercfusion.train data=meld data.protocol=meld/3way    three sentiments instead of seven emotions
  python -m ercfusion.train data=mosi data.modalities=[text]     one modality of three
  python -m ercfusion.train optimizer.lr=1e-3 model.dropout=0.5  any setting by its name
  python -m ercfusion.train -m seed=0,1,2 model=concat,bclstm    every combination, one after the other
  python -m ercfusion.train resume=RUN                           go on with an interrupted run

models      {models}
corpora     {corpora}
            (raw folders: data.raw=DIR, or the environment variable ERCFUSION_DATA=DIR with DIR/<corpus> below it)
other groups
{groups}

flags
  --help, -h         this text
  --cfg              print the configuration that would be used, and stop
  --multirun, -m     run every combination of the values given as key=a,b,c
  --config-dir DIR   also look for configuration groups in DIR (DIR/model/mine.yaml makes model=mine)

A run writes a folder below outputs/ (output=DIR, or run=DIR for exactly that one): configuration, log, metrics per
epoch, checkpoints, the model, predictions, pictures and record.json. Its path is the last line printed.
"""


def help_text(composer: Composer) -> str:
    """The text of ``--help``, with the models, corpora and groups that exist."""
    groups = composer.groups()
    shown = ("optimizer", "scheduler", "trainer")
    return HELP.format(
        models=", ".join(groups["model"]),
        corpora=", ".join(groups["data"]),
        groups="\n".join(f"  {name + '=':<12}{', '.join(groups[name])}" for name in shown),
    )


def expand_protocol(argument: str) -> list[str]:
    """``data=demo/far`` is short for ``data=demo data.protocol=demo/far``."""
    key, _, value = argument.partition("=")
    if key == "data" and "/" in value:
        return [f"data={value.partition('/')[0]}", f"data.protocol={value}"]
    return [argument]


def main(argv: list[str]) -> int:
    """The command; see :data:`HELP`."""
    flags, arguments = split_flags(argv, ["--help", "-h", "--cfg", "--multirun", "-m"], ["--config-dir"])
    composer = Composer("train", flags.get("--config-dir"))
    if "--help" in flags or "-h" in flags:
        print(help_text(composer), end="")
        return 0
    multirun = "--multirun" in flags or "-m" in flags
    combinations = composer.expand(arguments) if multirun else [arguments]
    jobs = []
    for combination in combinations:
        overrides = [part for argument in combination for part in expand_protocol(argument)]
        jobs.append((combination, composer.compose(overrides)))
    if "--cfg" in flags:
        print(_yaml(jobs[0][1]), end="")
        return 0
    if multirun and any(config["resume"] or config["run"] for _, config in jobs):
        raise ConfigError("run= and resume= name one folder and do not go with -m; use output=DIR")
    if multirun and any(config["trainer"]["devices"] != 1 for _, config in jobs):
        raise ConfigError("-m does not go with several devices: start one distributed run at a time")
    return _run_all(jobs) if multirun else _run_one(*jobs[0])


def _run_one(overrides: Sequence[str], config: dict[str, Any]) -> int:
    record, folder = start(overrides, config)
    if record is not None:
        _show(record, folder)
    return 0


def _run_all(jobs: Sequence[tuple[Sequence[str], dict[str, Any]]]) -> int:
    from ercfusion.evaluation.report import seeds_summary

    records, failed = [], 0
    for number, (overrides, config) in enumerate(jobs, start=1):
        logger.info("run %d of %d: %s", number, len(jobs), " ".join(overrides))
        try:
            record, folder = start(overrides, config)
        except ErcfusionError as error:
            # The other combinations are still worth running; the status tells that one failed.
            print(f"error: {error}", file=sys.stderr)
            failed += 1
            continue
        assert record is not None
        records.append(record)
        _show(record, folder)
    if len(records) > 1:
        print("\n" + seeds_summary(records))
    return 2 if failed else 0


def start(overrides: Sequence[str], config: dict[str, Any]) -> tuple[dict[str, Any] | None, Path]:
    """Begin or resume one run; returns its record and folder."""
    from ercfusion.training import run

    fresh = config["resume"] is None
    if not fresh:
        others = [entry for entry in overrides if not entry.startswith("resume=")]
        if others:
            raise ConfigError(f"resume= goes on with the settings of the run; {others[0]!r} cannot be changed now")
        folder, config = run.open_run_folder(config["resume"])
    else:
        folder = run.new_run_folder(config, overrides)
    try:
        return run.train(config, folder), folder
    except KeyboardInterrupt:
        if run.is_first_process():
            again = shlex.quote(f"resume={folder}")
            print(f"\ninterrupted; continue with: python -m ercfusion.train {again}", file=sys.stderr)
        raise
    except ErcfusionError as error:
        if (folder / run.LAST).is_file():
            raise type(error)(f"{error}\nThe run folder is {folder}") from error
        if fresh:
            run.discard_if_empty(folder)
        raise


def _show(record: dict[str, Any], folder: Path) -> None:
    from ercfusion.evaluation.report import summary

    print(summary(record))
    print(folder, flush=True)


def _yaml(config: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


if __name__ == "__main__":
    sys.exit(run_command(main))
