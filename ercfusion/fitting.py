"""The Python entry: train a model and get a run, or open a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import ConfigError, ErcfusionError, RunError, did_you_mean, system_words
from ercfusion._core.files import expanded
from ercfusion._core.registry import import_again, import_modules, require_trusted
from ercfusion.batch.kinds import task_kind
from ercfusion.batch.task import TaskSpec
from ercfusion.cli import naming_folder
from ercfusion.config.architectures import ARCHITECTURES, add_class
from ercfusion.config.compose import Composer
from ercfusion.config.corpora import CORPORA
from ercfusion.config.hints import command, resume_command
from ercfusion.config.overrides import expand_protocol
from ercfusion.config.settings import section_from
from ercfusion.records.missing import hidden_store, recorded_missing
from ercfusion.training.processes import from_first_process

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
    """Train a model on a corpus, choose the epoch on dev, score once on test.

    Every call starts a new run. An interrupted run continues with ``python -m ercfusion.train resume=FOLDER``.

    Args:
        model: A name listed by ``ercfusion train --help``, ``"module:Class"``, or a class
            (:class:`~ercfusion.models.Architecture`).
        data: A corpus (``"meld"``, ``"demo/far"``). Or utterances: a data frame with the columns of ``utterances.csv``;
            a list of :class:`~ercfusion.data.conversation.Conversation` (80 % train, 10 % dev, 10 % test); or a mapping
            from ``train``, ``dev`` and ``test`` to such lists.
        seed: Of initial weights, batches and dropout.
        options: Options of the model by name.
        features: Of the utterances in ``data``: a mapping from modality to numbers (N, D), one row per utterance in the
            order of ``data``; or a list of :class:`~ercfusion.data.features.FeatureTable`, whose keys may leave out
            utterances.
        targets: Targets of these utterances, as in ``corpus.yaml``.
        settings: All other settings: a section as a mapping (``optimizer={"lr": 1e-3}``), the choice of a group as a
            text (``scheduler="plateau"``), a single setting by its dotted name (``**{"data.raw": "calls"}``).
            ``output`` is the parent folder of run folders, by default ``outputs`` in the working directory; ``run`` is
            the run folder, by default ``OUTPUT/train/MODEL-CORPUS/TIME-seedSEED``.

    Raises:
        ConfigError: an unknown setting (the message names the nearest), or an argument of another type or value.
        BatchError: a task without labels, or no features.
        CorpusNotFoundError, CorpusFormatError, PackError: files of the corpus or of feature packs are missing or wrong.
        MissingExtraError: an optional dependency is not installed.
        TrainingError: the loss is not finite.
        RunError: the run folder exists or cannot be written.

    Example:
        >>> utterances = pandas.read_csv("calls/utterances.csv")  # doctest: +SKIP
        >>> run = ercfusion.fit("cogmen", utterances, features={"audio": audio})  # doctest: +SKIP
    """
    imports = [*_imports(settings.pop("imports", ()))]
    _check_arguments(model, options, features, targets, settings)
    import_modules(imports)
    if not isinstance(model, str):
        model = ARCHITECTURES.name_of(model)
    if ":" in model:
        model = add_class(model)
    composer = Composer("train", settings.pop("config_dir", None))
    groups = composer.groups()
    _check_sections(settings, groups)
    corpus = data.partition("/")[0] if isinstance(data, str) else "custom"
    known = [*ARCHITECTURES.users_modules(model), *CORPORA.users_modules(corpus)]
    imports = list(dict.fromkeys([*imports, *known]))
    arguments: dict[str, Any] = {"model": model, **({"imports": imports} if imports else {})}
    from ercfusion.data.corpora.given import check_utterances, path_advice, write_given

    if isinstance(data, str):
        if data.lower().endswith((".csv", ".tsv")) or (corpus not in groups["data"] and os.path.exists(data)):
            raise ConfigError(path_advice(data))
        if features or targets:
            raise ConfigError(f"data={data!r} has its own features and targets. Omit features= and targets=.")
        arguments["data"] = data
    else:
        check_utterances(data)
        folder = expanded(str(settings.get("output", "outputs"))) / "corpora"
        arguments |= {"data": "custom", "data.raw": str(write_given(folder, data, features, targets).resolve())}
    arguments |= {f"model.{name}": _plain(f"options[{name!r}]", value) for name, value in (options or {}).items()}
    settings = {name: _plain(name, value) for name, value in {"seed": seed, **settings}.items()}
    entries = composer.entries({**arguments, **settings})
    typed = [part for assignment in entries for part in expand_protocol(assignment)]
    record, folder = begin(entries, composer.compose(typed), command("python entry", "train", *entries))
    if record is None:
        raise RunError("fit trains in one process. Use ercfusion train for distributed training.")
    return Run(folder, record)


def _imports(names: Any) -> Sequence[str]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"imports={names!r} is not a list. Give module names, for example imports=['my_models'].")
    return names


def _check_arguments(model: Any, options: Any, features: Any, targets: Any, settings: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for arguments of another type than :func:`fit` documents."""
    from ercfusion.data.corpora.given import check_features

    if not isinstance(model, str | type):
        kind = "None" if model is None else f"an object of the class {type(model).__name__}"
        raise ConfigError(
            f"model is {kind}. Give a name such as 'cogmen', 'module:Class' or a class, with its options in options=."
        )
    if not isinstance(options, Mapping | None):
        raise ConfigError(f"options={options!r} is not a mapping. Give options by name, for example {{'hidden': 16}}.")
    check_features(features)
    if targets is not None and not (
        isinstance(targets, Mapping) and all(isinstance(target, Mapping) for target in targets.values())
    ):
        raise ConfigError(
            f"targets={targets!r} is not a mapping of mappings. Write targets as in corpus.yaml, for example "
            "{'emotion': {'kind': 'single_label'}}."
        )
    if settings.get("resume") is not None:
        resume = continue_command(expanded(settings["resume"]))
        raise ConfigError(f"resume: fit starts new runs only. Run: {resume}")
    if not isinstance(settings.get("output", ""), str | os.PathLike):
        raise ConfigError(f"output={settings['output']!r} is not a path. Give a folder.")


def _check_sections(settings: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> None:
    """Raise :class:`ConfigError` for a section that is neither a mapping nor a name."""
    for name, value in settings.items():
        if name in groups and not isinstance(value, str | Mapping):
            raise ConfigError(
                f"{name}={value!r} is neither a mapping nor a name. Give the section's settings as a mapping, or a "
                f"name: {', '.join(groups[name])}."
            )


def _plain(name: str, value: Any) -> Any:
    """A setting as a command line can contain it: paths become text, numpy's numbers Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(f"{name}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, inner) for inner in value]
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ConfigError(f"{name} is a {type(value).__name__}. Give a text, number, list or mapping.")


def load(run: str | os.PathLike[str]) -> Run:
    """Open a finished run.

    Raises:
        RunError: no finished run, or a damaged one.
    """
    from ercfusion.records.record import read_record

    folder = expanded(run)
    return Run(folder, read_record(folder))


class Run:
    """A finished run.

    Args:
        folder: The run folder.
        record: The content of ``record.json``.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder
        self.record = record
        self.further: str | None = None
        self._learned: Run | None = None

    def task(self, name: str) -> Run:
        """View of one of the run's tasks, or of ``data.views``: its scores, predictions and figures.

        Raises:
            RunError: the run has no such task.
        """
        from ercfusion.records.record import task_record

        view = Run(self.folder, task_record(self.record, name))
        view.further = None if name == self.record["task"]["name"] else name
        if "source" in view.record:
            view._learned = self.task(view.record["source"])
        return view

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
        """One row per score: ``dev``, ``test``, and the 95 % test interval, ``low`` and ``high``."""
        import pandas

        metrics, intervals = self.record["metrics"], self.record["intervals"].get("test", {})
        columns = {split: pandas.Series(metrics[split], dtype=float) for split in ("dev", "test")}
        for position, end in enumerate(("low", "high")):
            columns[end] = pandas.Series({name: pair[position] for name, pair in intervals.items()}, dtype=float)
        order = list(dict.fromkeys([*metrics["test"], *metrics["dev"]]))
        return pandas.DataFrame(columns).reindex(order)

    @property
    def history(self) -> pandas.DataFrame:
        """One row per epoch: losses, dev scores, learning rate, seconds."""
        import pandas

        from ercfusion.training.callbacks import HISTORY, read_history

        return pandas.DataFrame(read_history(self.folder / HISTORY)).astype({"epoch": int}).set_index("epoch")

    def predictions(self, split: str = "test") -> pandas.DataFrame:
        """One row per utterance of a split: ids, truth, prediction, probabilities.

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
            table: pandas.DataFrame = pq.read_table(stream).to_pandas()
        return table[table["split"] == split].drop(columns="split").reset_index(drop=True)

    @property
    def figures(self) -> Figures:
        """Figures of the run (matplotlib): ``run.figures.confusion()``."""
        return Figures(self)

    @cached_property
    def recognizer(self) -> Recognizer:
        """The chosen model.

        Raises:
            ConfigError: the run's settings name modules not imported.
        """
        from ercfusion.tasks.recognizer import Recognizer
        from ercfusion.training.callbacks import MODEL

        names = self.record["config"]["imports"]
        require_trusted(names, f"import {', '.join(names)} first")
        return Recognizer.from_pretrained(self.folder / MODEL)

    def score_labels(self, labels: Sequence[str] | Mapping[str, str], split: str = "test") -> pandas.DataFrame:
        """Probabilities of labels by their texts, also of labels that were not learned; one row per utterance.

        Args:
            labels: Names, or a text per name, for a run with ``objective.label_texts``.
            split: Of the run's corpus.

        Raises:
            ConfigError: the run has no label texts.
        """
        import pandas

        from ercfusion.features.label_texts import encode_labels
        from ercfusion.features.loading import load_data
        from ercfusion.tasks.label_scores import score_labels

        self._require_split(split)
        task = self.record["task"]["name"]
        recognizer = self.recognizer
        settings = section_from("data", self.record["config"]["data"])
        names = list(labels)
        texts = [labels[name] for name in names] if isinstance(labels, Mapping) else names
        vectors = encode_labels(texts, settings.encoder)
        store = load_data(settings, refuse_changed=False).store(split)
        store = hidden_store(store, recorded_missing(self.record), split)
        columns = score_labels(recognizer, store, vectors, task)
        owners = [conversation.id for conversation in store.conversations for _ in conversation.turns]
        table = pandas.DataFrame({"conversation": owners, "turn": list(store.turn_ids)})
        return table.assign(**{f"p/{name}": columns[:, place] for place, name in enumerate(names)})

    def summary(self) -> str:
        """The text printed by ``ercfusion train`` at the end."""
        from ercfusion.tables.report import summary

        return summary(self.record).strip("\n")

    def _require_split(self, split: str) -> None:
        splits = list(self.record["splits"])
        if split not in splits:
            raise ConfigError(f"the run has no predictions for {split!r}. {did_you_mean(split, splits)}")


class Figures:
    """Figures of a run: ``training``, and those of its kind of task, for a split.

    >>> run.figures.confusion("dev")  # doctest: +SKIP
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def __dir__(self) -> list[str]:
        return ["training", *(name.replace("-", "_") for name in self._names())]

    def __repr__(self) -> str:
        return f"Figures({', '.join(dir(self))})"

    def training(self) -> Figure:
        """Losses and scores by epoch; of a view, those of the learned task."""
        if self._run._learned is not None:
            return self._run._learned.figures.training()
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
                raise RunError(f"{split} split: no labels to compare with. Choose a labelled split.")
            title = plot_title(record["protocol"], record["config"]["preset"]["model"], split)
            return PICTURES[wanted](part, None, title, record["corpus"]["synthetic"])

        return figure

    def _names(self) -> tuple[str, ...]:
        return task_kind(self._run.record["task"]["kind"]).pictures


def begin(
    overrides: Sequence[str], config: dict[str, Any], typed: str | None = None
) -> tuple[dict[str, Any] | None, Path]:
    """Start or resume one run.

    Args:
        overrides: As typed.
        config: Composed from them.
        typed: The recorded command line; None for that of this process.

    Returns:
        The record (None in additional processes) and the folder.
    """
    is_new = config["resume"] is None
    if not is_new:
        _check_resumed(overrides)  # before the slow imports

    from ercfusion.training import run
    from ercfusion.training.folder import has_begun, with_folder

    if not is_new:
        folder, config = _reopen(overrides, config)
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
        if (text := with_folder(str(error), folder)) != str(error):
            raise type(error)(text) from error
        if is_new:
            run.discard_if_empty(folder)
        raise
    except OSError as error:
        if error.errno is None or not run.is_first_process():
            raise
        # The files saved before are still good.
        if has_begun(folder):
            resume = continue_command(folder)
            raise RunError(f"{system_words(error)}.\nFree space or restore access, then run: {resume}") from error
        if is_new:
            run.discard_if_empty(folder)
        raise


def continue_command(folder: Path) -> str:
    """The command that continues a run."""
    return resume_command("interrupted run", "train", folder)


def _check_resumed(overrides: Sequence[str]) -> None:
    extra = [argument for argument in overrides if not argument.startswith(("resume=", "imports="))]
    if extra:
        raise ConfigError(f"resume= uses the settings of the run; {extra[0]!r} cannot be changed now. Omit it.")


def _reopen(overrides: Sequence[str], typed: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Folder and configuration of ``resume=``."""
    from ercfusion.records.record import RECORD
    from ercfusion.training import run
    from ercfusion.training.folder import check_config

    folder, config = run.open_run_folder(typed["resume"])
    with from_first_process():
        named = typed["imports"] if any(argument.startswith("imports=") for argument in overrides) else []
        import_again(named, config["imports"], "run")
        if not (folder / RECORD).is_file():
            require_trusted(config["imports"], resume_command("modules of a folder", "train", folder))
        check_config(config, folder)
    return folder, config
