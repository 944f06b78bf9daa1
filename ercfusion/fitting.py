"""The Python entry: train a model and get a run, as ``ercfusion train`` does; open a run again.

``ercfusion train`` composes a configuration from what was typed and calls :func:`begin`; so does :func:`fit` with its
arguments.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError, ErcfusionError, RunError, did_you_mean
from ercfusion._core.files import expanded
from ercfusion._core.registry import import_again, import_modules, require_trusted
from ercfusion.batch.kinds import task_kind
from ercfusion.batch.task import TaskSpec
from ercfusion.cli import naming_folder, system_words
from ercfusion.config.architectures import ARCHITECTURES, add_class
from ercfusion.config.compose import Composer
from ercfusion.config.corpora import CORPORA
from ercfusion.config.hints import command, resume_command
from ercfusion.config.overrides import expand_protocol
from ercfusion.training.processes import said_once

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from ercfusion.data.corpora.given import Conversations, Features
    from ercfusion.models.base import Architecture
    from ercfusion.tasks.recognizer import Recognizer


def fit(
    model: str | type[Architecture] = "cogmen",
    data: str | Conversations | pandas.DataFrame = "demo",
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    features: Features = (),
    targets: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Run:
    """Train a model on a corpus, choose the epoch on dev, open test once.

    Args:
        model: A name that ``ercfusion train --help`` lists, ``"module:Class"``, or a class.
        data: A corpus by name (``"meld"``, ``"demo/far"``). Or the utterances themselves: conversations (80 % of them
            train, 10 % dev, 10 % test), conversations by split, or a data frame with the columns of ``utterances.csv``.
        seed: Decides about initial weights, batches and dropout.
        options: Options of the model, by name.
        features: Of the utterances in ``data``: tables of one modality each, or (N, D) numbers by modality, in the
            order of ``data``.
        targets: What the targets of these utterances are, as the key ``targets`` of ``corpus.yaml``.
        settings: All other settings, as in a file of settings: a section as a mapping (``optimizer={"lr": 1e-3}``), the
            choice of a group as a text (``scheduler="plateau"``), a setting by its name (``**{"data.raw": folder}``).

    Raises:
        ConfigError: a setting that does not exist (the nearest is named), or a value that does not fit.
        ErcfusionError: whatever else ``ercfusion train`` refuses, with the same message.
    """
    imports = [*settings.pop("imports", ())]
    import_modules(imports)
    if not isinstance(model, str):
        model = ARCHITECTURES.name_of(model)
    if ":" in model:
        model = add_class(model)
    corpus = data.partition("/")[0] if isinstance(data, str) else "custom"
    known = [*ARCHITECTURES.users_modules(model), *CORPORA.users_modules(corpus)]
    imports = list(dict.fromkeys([*imports, *known]))
    composer = Composer("train", settings.pop("config_dir", None))
    given: dict[str, Any] = {"model": model, **({"imports": imports} if imports else {})}
    if isinstance(data, str):
        if features or targets:
            raise ConfigError("features= and targets= belong to utterances given in data=, not to a corpus by name")
        given["data"] = data
    else:
        from ercfusion.data.corpora.given import write_given

        place = expanded(str(settings.get("output", "outputs"))) / "corpora"
        given |= {"data": "custom", "data.raw": str(write_given(place, data, features, targets).resolve())}
    given |= {f"model.{name}": value for name, value in (options or {}).items()}
    entries = composer.entries({**given, "seed": seed, **settings})
    typed = [part for entry in entries for part in expand_protocol(entry)]
    record, folder = begin(entries, composer.compose(typed), command("python entry", "train", *entries))
    if record is None:
        raise RunError("fit trains in one process: use ercfusion train for distributed training")
    return Run(folder, record)


def load(run: str | os.PathLike[str]) -> Run:
    """Open a finished run.

    Args:
        run: Its folder.

    Raises:
        RunError: the folder holds no finished run, or a damaged one.
    """
    from ercfusion.records.record import read_record

    folder = expanded(run)
    return Run(folder, read_record(folder))


class Run:
    """A finished run.

    Args:
        folder: Where everything is written.
        record: The content of ``record.json``.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder
        self.record = record
        self.further: str | None = None

    def task(self, name: str) -> Run:
        """The run as one of its tasks has it: scores, predictions and figures are those of the task.

        Raises:
            RunError: the run has no such task.
        """
        from ercfusion.records.record import task_record

        found = Run(self.folder, task_record(self.record, name))
        found.further = None if name == self.record["task"]["name"] else name
        return found

    @property
    def _predicted(self) -> Path:
        from ercfusion.records.predictions import FILE, further_file

        return self.folder / (FILE if self.further is None else further_file(self.further))

    def __repr__(self) -> str:
        metric, part = self.record["selection"]["metric"], self.record["metrics"]
        shown = [f"{split} {metric} {part[split][metric]:.4f}" for split in ("dev", "test") if metric in part[split]]
        model = self.record["config"]["preset"]["model"]
        return (
            f"Run({model} on {self.record['protocol']}, seed {self.record['seed']}, {', '.join(shown)}, {self.folder})"
        )

    @property
    def scores(self) -> pandas.DataFrame:
        """One row per score: ``dev``, ``test``, and ``low`` and ``high``, the test score's 95 % interval."""
        import pandas

        metrics, intervals = self.record["metrics"], self.record["intervals"].get("test", {})
        columns = {split: pandas.Series(metrics[split], dtype=float) for split in ("dev", "test")}
        for place, end in enumerate(("low", "high")):
            columns[end] = pandas.Series({name: pair[place] for name, pair in intervals.items()}, dtype=float)
        order = list(dict.fromkeys([*metrics["test"], *metrics["dev"]]))
        return pandas.DataFrame(columns).reindex(order)

    @property
    def history(self) -> pandas.DataFrame:
        """One row per epoch: losses, dev scores, learning rate, seconds."""
        import pandas

        from ercfusion.training.callbacks import HISTORY, read_history

        return pandas.DataFrame(read_history(self.folder / HISTORY)).astype({"epoch": int}).set_index("epoch")

    def predictions(self, split: str = "test") -> pandas.DataFrame:
        """One row per utterance of dev or test: ids, truth, prediction, probabilities.

        Raises:
            ConfigError: another split.
            RunError: the file is missing or damaged.
        """
        import pyarrow.parquet as pq

        from ercfusion.records.predictions import check_recorded

        self._require_split(split)
        path = self._predicted
        check_recorded(path)
        with path.open("rb") as stream:  # given a path, pyarrow would take "split=.." in a folder's name for a column
            found: pandas.DataFrame = pq.read_table(stream).to_pandas()
        return found[found["split"] == split].drop(columns="split").reset_index(drop=True)

    @property
    def figures(self) -> Figures:
        """Pictures of the run, as matplotlib figures: ``run.figures.confusion()``."""
        return Figures(self)

    @cached_property
    def recognizer(self) -> Recognizer:
        """The chosen model.

        Raises:
            ConfigError: the settings of the run name modules that are not imported.
        """
        from ercfusion.tasks.recognizer import Recognizer
        from ercfusion.training.callbacks import MODEL

        names = self.record["config"]["imports"]
        require_trusted(names, f"import {', '.join(names)} first")
        return Recognizer.from_pretrained(self.folder / MODEL)

    def summary(self) -> str:
        """What ``ercfusion train`` prints at the end."""
        from ercfusion.tables.report import summary

        return summary(self.record).strip("\n")

    def _require_split(self, split: str) -> None:
        known = list(self.record["splits"])
        if split not in known:
            raise ConfigError(f"the run has no predictions for {split!r}. {did_you_mean(split, known)}")


class Figures:
    """The pictures of a run: ``training``, and those that the kind of its task has, for a split.

    >>> run.figures.confusion("dev")  # doctest: +SKIP
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def __dir__(self) -> list[str]:
        return ["training", *(name.replace("-", "_") for name in self._names())]

    def __repr__(self) -> str:
        return f"Figures({', '.join(dir(self))})"

    def training(self) -> Figure:
        """Losses and scores by epoch."""
        from ercfusion.plots.pictures import task_history, training_figure
        from ercfusion.training.callbacks import HISTORY, read_history

        history, further = read_history(self._run.folder / HISTORY), self._run.further
        return training_figure(history if further is None else task_history(history, further), self._run.record)

    def __getattr__(self, name: str) -> Any:
        wanted = name.replace("_", "-")
        if name.startswith("_") or wanted not in self._names():
            raise AttributeError(f"the run has no figure {name!r}. {did_you_mean(name, dir(self))}")

        def figure(split: str = "test") -> Figure:
            from ercfusion.plots.figures import PICTURES, plot_title
            from ercfusion.records.predictions import read_predictions

            record = self._run.record
            self._run._require_split(split)
            task = TaskSpec.from_dict(record["task"])
            part = read_predictions(self._run._predicted, task)[split]
            if not part.valid.any():
                raise RunError(f"the {split} split has no labels to compare with")
            title = plot_title(record["protocol"], record["config"]["preset"]["model"], split)
            return PICTURES[wanted](part, None, title, record["corpus"]["synthetic"])

        return figure

    def _names(self) -> tuple[str, ...]:
        return task_kind(self._run.record["task"]["kind"]).pictures


def begin(
    overrides: Sequence[str], config: dict[str, Any], typed: str | None = None
) -> tuple[dict[str, Any] | None, Path]:
    """Begin or resume one run; returns its record and folder.

    Args:
        overrides: What was typed.
        config: Composed of it.
        typed: The command line that is recorded; None for that of this process.

    Returns:
        The record, None in the additional processes of distributed training; and the folder.
    """
    from ercfusion.training import run

    fresh = config["resume"] is None
    if not fresh:
        folder, config = _reopened(overrides, config)
    else:
        folder = run.new_run_folder(config, overrides, typed)
    try:
        with naming_folder(folder):
            return run.train(config, folder), folder
    except KeyboardInterrupt:
        if run.is_first_process():
            print(f"\ninterrupted; continue with: {continue_command(folder)}", file=sys.stderr)
        raise
    except ErcfusionError as error:
        if (folder / run.LAST).is_file() and str(folder) not in str(error):
            raise type(error)(f"{error}\nThe run folder is {folder}") from error
        if fresh:
            run.discard_if_empty(folder)
        raise
    except OSError as error:
        if error.errno is None or not run.is_first_process():
            raise
        # A full disk, a folder that was removed: what was saved before is still good.
        if (folder / run.LAST).is_file():
            again = continue_command(folder)
            raise RunError(f"{system_words(error)}\nOnce that is mended, go on with: {again}") from error
        if fresh:
            run.discard_if_empty(folder)
        raise


def continue_command(folder: Path) -> str:
    """The command that continues a run."""
    return resume_command("interrupted run", "train", folder)


def _reopened(overrides: Sequence[str], typed: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder that ``resume=`` names, and its configuration, whose modules must have been named again."""
    from ercfusion.records.record import RECORD
    from ercfusion.training import run
    from ercfusion.training.folder import check_config

    others = [entry for entry in overrides if not entry.startswith(("resume=", "imports="))]
    if others:
        raise ConfigError(f"resume= goes on with the settings of the run; {others[0]!r} cannot be changed now")
    folder, config = run.open_run_folder(typed["resume"])
    with said_once():
        named = typed["imports"] if any(entry.startswith("imports=") for entry in overrides) else []
        import_again(named, config["imports"], "run")
        if not (folder / RECORD).is_file():
            require_trusted(config["imports"], resume_command("modules of a folder", "train", folder))
        check_config(config, folder)
    return folder, config
