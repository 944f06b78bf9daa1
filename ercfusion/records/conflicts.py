"""Agreement of single-modality runs, and which of them a fused run follows.

After CA-MER and MoSEAR, of which only the abstract and secondary descriptions were available: our reading, for any
number of modalities. An *expert* is a run with one modality. Utterances are divided by the experts' labels: do they
agree, and which of them are right?
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion._core.errors import ConfigError, RunError, did_you_mean
from ercfusion._core.files import StrPath, expanded
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.config.missing import split_law
from ercfusion.metrics.statistics import RESAMPLES, conversation_bootstrap
from ercfusion.records.groups import Group, check_comparable
from ercfusion.records.missing import modalities_of, recorded_missing
from ercfusion.records.predictions import prediction_file, read_predictions
from ercfusion.records.record import read_record, require_test_scores, task_record

FUSED = "fused"
"""Key of the fused run in accuracies."""
NONE = "none"
"""Key of the utterances on which it follows no expert."""


@dataclass(frozen=True)
class Voter:
    """A finished run and its predictions of one split.

    Args:
        folder: Of the run.
        record: From the view of the task.
        predictions: Of the split.
    """

    folder: Path
    record: Mapping[str, Any]
    predictions: Predictions

    @property
    def modalities(self) -> list[str]:
        """The modalities of its features."""
        return modalities_of(self.record)

    @property
    def name(self) -> str:
        """Model, modalities and seed."""
        model = self.record["config"]["preset"]["model"]
        return f"{model} on {', '.join(self.modalities)} (seed {self.record['seed']})"


def read_voters(paths: Sequence[StrPath], split: str = "test", task: str | None = None) -> list[Voter]:
    """Read one fused run and at least two experts, in any order.

    Args:
        paths: Folders of finished runs.
        split: A split in their predictions.
        task: A task of all runs; None for the one that chose the checkpoints.

    Returns:
        The fused run first, then the experts in the order of its modalities.

    Raises:
        RunError: Not a finished run, not one fused run, one run or modality twice, or runs on different data.
    """
    folders = [expanded(path) for path in paths]
    for place, folder in enumerate(folders):
        if folder.resolve() in [earlier.resolve() for earlier in folders[:place]]:
            raise RunError(f"{folder} is given twice. Give one run with several modalities, and one run per modality.")
    voters = [_read(folder, split, task) for folder in folders]
    fused = [voter for voter in voters if len(voter.modalities) > 1]
    experts = [voter for voter in voters if len(voter.modalities) == 1]
    listed = "; ".join(f"{voter.folder}: {', '.join(voter.modalities)}" for voter in voters)
    if len(fused) != 1:
        raise RunError(
            f"{len(fused)} of the runs have several modalities ({listed}). Give one of them, and one run per modality."
        )
    by_modality: dict[str, Voter] = {}
    for expert in experts:
        name = expert.modalities[0]
        if name in by_modality:
            raise RunError(f"{by_modality[name].folder} and {expert.folder} both have only {name}. Give one of them.")
        if name not in fused[0].modalities:
            raise RunError(
                f"{expert.folder} has the modality {name!r}, and {fused[0].folder} does not: it has "
                f"{', '.join(fused[0].modalities)}. Give runs with its modalities."
            )
        by_modality[name] = expert
    if len(experts) < 2:
        raise RunError(
            f"{len(experts)} of the runs {'has' if experts else 'have'} one modality ({listed}). Give two or more, "
            "each with another modality."
        )
    ordered = [fused[0], *(by_modality[name] for name in fused[0].modalities if name in by_modality)]
    check_comparable([Group(voter.name, (voter.record,)) for voter in ordered])
    first = fused[0].predictions
    for voter in ordered[1:]:
        other = voter.predictions
        same_turns = (other.conversation_ids, other.turn_ids) == (first.conversation_ids, first.turn_ids)
        if not same_turns or _truths(other) != _truths(first):
            raise RunError(
                f"{fused[0].folder} and {voter.folder} have different {split} utterances or labels. Give runs on the "
                "same data."
            )
    return ordered


def _read(folder: Path, split: str, task: str | None) -> Voter:
    whole = read_record(folder)
    require_test_scores([whole])
    record = task_record(whole, task)
    spec = TaskSpec.from_dict(dict(record["task"]))
    parts = read_predictions(folder / prediction_file(whole, spec.name), spec)
    if split not in parts:
        raise RunError(f"{folder} has no predictions of the split {split!r}. {did_you_mean(split, parts)}")
    try:
        parts[split].decisions()
    except ValueError as error:
        raise ConfigError(f"{error}. Choose a task with labels with task=.") from error
    return Voter(folder, record, parts[split])


def _truths(part: Predictions) -> list[str | None]:
    """Readable right answers; None without a unique one."""
    truths = part.task.rules.truths(part)
    known = [valid and truth is not None for truth, valid in zip(truths, part.valid, strict=True)]
    return [_text(truth) if there else None for truth, there in zip(truths, known, strict=True)]


def _text(answer: Any) -> str:
    return json.dumps(answer, sort_keys=True)


def conflict_report(voters: Sequence[Voter], split: str = "test", resamples: int = RESAMPLES) -> dict[str, Any]:
    """Accuracy of the fused run and of the experts by agreement, and which expert the fused run follows.

    Two answers are the same if all their labels are: for label sets the whole sets, for distributions the most probable
    labels. Utterances without a label, or with several most probable ones, are not counted.

    Args:
        voters: From :func:`read_voters`.
        split: Their split, for the report.
        resamples: Number of bootstrap resamples of conversations.

    Returns:
        Plain containers: ``subsets`` with ``experts`` (``all``, ``agree`` or ``disagree``), ``right`` (the experts that
        are right; None for any), ``utterances`` and ``accuracy`` by run; ``follows`` (shares of the utterances on which
        experts disagree); ``pairs`` with the same for two experts, and their ``gap``: accuracy of the fused run if only
        the first is right, minus if only the second is. Shares have ``value`` and ``interval`` (95 %, over
        conversations; None if not defined).

    Raises:
        RunError: The split has no labels.
    """
    parts = {FUSED: voters[0].predictions, **{voter.modalities[0]: voter.predictions for voter in voters[1:]}}
    truths = _truths(voters[0].predictions)
    kept = np.array([truth is not None for truth in truths], dtype=bool)
    if not kept.any():
        raise RunError(f"the split {split!r} has no labels: no expert is right or wrong. Choose another split.")
    codes: dict[str, int] = {}
    labels = {
        name: np.array([codes.setdefault(_text(answer), len(codes)) for answer in part.task.rules.answers(part)])[kept]
        for name, part in parts.items()
    }
    truth = np.array([codes.setdefault(str(text), len(codes)) for text in truths])[kept]
    count = _Counter(voters[0].predictions.conversation[kept], resamples)
    right = {name: own == truth for name, own in labels.items()}
    experts = [name for name in parts if name != FUSED]
    agree = np.all([labels[name] == labels[experts[0]] for name in experts], axis=0)

    def subset(kind: str, chosen: NDArray[np.bool_], correct: Sequence[str] | None = None) -> dict[str, Any]:
        accuracy = {name: count.share(right[name], chosen) for name in parts}
        names = None if correct is None else list(correct)
        return {"experts": kind, "right": names, "utterances": int(chosen.sum()), "accuracy": accuracy}

    def only(correct: Sequence[str]) -> NDArray[np.bool_]:
        exact: NDArray[np.bool_] = np.all([right[name] == (name in correct) for name in experts], axis=0)
        return exact

    groups = [group for size in range(len(experts) - 1, -1, -1) for group in itertools.combinations(experts, size)]
    first = voters[0]
    return {
        "split": split,
        "protocol": first.record["protocol"],
        "synthetic": bool(first.record["corpus"]["synthetic"]),
        "task": first.predictions.task.name,
        "runs": {
            name: {"run": str(voter.folder), "name": voter.name, "law": _law(voter, split)}
            for name, voter in zip(parts, voters, strict=True)
        },
        "utterances": int(kept.sum()),
        "conversations": count.size,
        "level": 0.95,
        "subsets": [
            subset("all", np.ones(len(truth), dtype=bool)),
            subset("agree", agree),
            subset("agree", agree & only(experts), experts),
            subset("agree", agree & only(()), ()),
            subset("disagree", ~agree),
            *(subset("disagree", ~agree & only(group), group) for group in groups),
        ],
        "follows": _follows(count, labels, experts, ~agree),
        "pairs": [_pair(count, labels, right, pair) for pair in itertools.combinations(experts, 2)],
    }


def _law(voter: Voter, split: str) -> str | None:
    """The law whose holes the predictions have; None for complete data."""
    law = split_law(recorded_missing(voter.record), split)
    return None if law.hides_nothing else str(law)


def _follows(
    count: _Counter, labels: Mapping[str, NDArray[Any]], experts: Sequence[str], chosen: NDArray[np.bool_]
) -> dict[str, Any]:
    """How often the fused run has each expert's label, and none of theirs."""
    same = {name: labels[FUSED] == labels[name] for name in experts}
    nobody = ~np.any(list(same.values()), axis=0)
    return {name: count.share(flags, chosen) for name, flags in {**same, NONE: nobody}.items()}


def _pair(
    count: _Counter,
    labels: Mapping[str, NDArray[Any]],
    right: Mapping[str, NDArray[np.bool_]],
    pair: tuple[str, str],
) -> dict[str, Any]:
    one, other = pair
    differ = labels[one] != labels[other]
    subsets = {one: right[one] & ~right[other], other: right[other] & ~right[one]}
    return {
        "experts": list(pair),
        "utterances": int(differ.sum()),
        "follows": _follows(count, labels, pair, differ),
        "only_right": {
            name: {"utterances": int(chosen.sum()), "accuracy": count.share(right[FUSED], chosen)}
            for name, chosen in subsets.items()
        },
        "gap": count.difference(right[FUSED], subsets[one], subsets[other]),
    }


class _Counter:
    """Shares of utterances with intervals over conversations."""

    def __init__(self, conversation: NDArray[Any], resamples: int) -> None:
        self._owner = np.unique(conversation, return_inverse=True)[1]
        self.size = int(self._owner.max()) + 1
        self._resamples = resamples

    def _sums(self, flags: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.bincount(self._owner, weights=flags, minlength=self.size).astype(np.float64)

    def share(self, flags: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> dict[str, Any]:
        """Share of ``flags`` among the ``chosen`` utterances."""
        sums = np.stack([self._sums(flags & chosen), self._sums(chosen)], axis=1)
        return self._result(sums, lambda total: _ratio(total[:, 0], total[:, 1]), (0.0, 1.0))

    def difference(
        self, flags: NDArray[np.bool_], first: NDArray[np.bool_], second: NDArray[np.bool_]
    ) -> dict[str, Any]:
        """Share among ``first`` minus share among ``second``."""
        masks = (flags & first, first, flags & second, second)
        sums = np.stack([self._sums(mask) for mask in masks], axis=1)
        return self._result(
            sums, lambda total: _ratio(total[:, 0], total[:, 1]) - _ratio(total[:, 2], total[:, 3]), (-1.0, 1.0)
        )

    def _result(self, sums: NDArray[np.float64], statistic: Any, bounds: tuple[float, float]) -> dict[str, Any]:
        value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
        if np.isnan(value):
            return {"value": None, "interval": None}
        ends = conversation_bootstrap(sums, statistic, self._resamples, bounds=bounds)
        interval = None if np.isnan(ends).any() else [round(end, 6) for end in ends]
        return {"value": round(value, 6), "interval": interval}


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """NaN without a whole."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def subset_name(subset: Mapping[str, Any]) -> str:
    """A subset of a report in words."""
    if subset["right"] is None:
        return {"all": "all utterances", "agree": "experts agree", "disagree": "experts disagree"}[subset["experts"]]
    if subset["experts"] == "agree":
        return "experts agree, right" if subset["right"] else "experts agree, wrong"
    if not subset["right"]:
        return "experts disagree, none right"
    *others, last = subset["right"]
    return f"only {', '.join(others)} and {last} right" if others else f"only {last} right"
