"""From annotators' votes to targets: rules, soft labels, entropy and agreement.

Votes of an utterance are counts by label; ``labels`` are all C labels that could be chosen. An annotator may choose
several labels: then ``raters`` is the number of annotators, otherwise the number of votes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ercfusion._core.errors import did_you_mean
from ercfusion.batch.predictions import PROBABILITY_TOLERANCE

SMOOTHING = 0.05
"""Share of each vote that rater smoothing spreads over the other labels; Chou's public IEMOCAP files use it."""

Votes = Mapping[str, int]


def check_votes(votes: Votes, labels: Sequence[str]) -> None:
    """Raise ValueError unless the votes are whole numbers of at least 0 for known labels, with at least one vote.

    Args:
        votes: Counts by label; labels without votes may be absent.
        labels: The C labels.
    """
    for label, count in votes.items():
        if label not in labels:
            raise ValueError(f"votes for {label!r}, which is not a label. {did_you_mean(str(label), labels)}")
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise ValueError(
                f"{count!r} votes for {label!r}: a count is a whole number. Give the number of annotators."
            )
        if count < 0:
            raise ValueError(f"{count} votes for {label!r}: the count is negative. Give the number of annotators.")
    if not any(votes.values()):
        raise ValueError("all vote counts are 0. Leave out the votes of an utterance that nobody labelled.")


def majority(votes: Votes, labels: Sequence[str], raters: int | None = None) -> str | None:
    """The label chosen by more than half of the annotators; None if there is none, or two.

    Rule M of Chou: 6,890 of IEMOCAP's 10,039 utterances in the public files with nine labels.

    Args:
        votes, labels: See :func:`check_votes`.
        raters: Number of annotators; None if each has one vote.
    """
    check_votes(votes, labels)
    half = (sum(votes.values()) if raters is None else raters) / 2
    return _only([label for label in labels if votes.get(label, 0) > half])


def plurality(votes: Votes, labels: Sequence[str], raters: int | None = None) -> str | None:
    """The label with the most votes; None for a tie. Rule P of Chou: 7,497 of IEMOCAP's 10,039 utterances.

    Args:
        votes, labels: See :func:`check_votes`.
        raters: Not used; the arguments are those of :func:`majority`.
    """
    check_votes(votes, labels)
    most = max(votes.values())
    return _only([label for label in labels if votes.get(label, 0) == most])


def at_least(votes: Votes, labels: Sequence[str], least: int = 2) -> frozenset[str]:
    """The labels with at least ``least`` votes; if no label has so many, all with the most votes (never empty)."""
    check_votes(votes, labels)
    enough = min(least, max(votes.values()))
    return frozenset(label for label in labels if votes.get(label, 0) >= enough)


def above_uniform(votes: Votes, labels: Sequence[str]) -> frozenset[str]:
    """The labels with a share of the votes above 1 / C, strictly: the set of the all-inclusive rule (Chou).

    The set is empty if all C labels have equally many votes.
    """
    check_votes(votes, labels)
    total = sum(votes.values())
    # In whole numbers: 2 / 6 > 1 / 3 must not depend on rounding.
    return frozenset(label for label in labels if votes.get(label, 0) * len(labels) > total)


def distribution(votes: Votes, labels: Sequence[str], smoothing: float = 0.0) -> dict[str, float]:
    """Share of the votes of every label; see :func:`vote_shares`."""
    check_votes(votes, labels)
    shares = vote_shares([votes.get(label, 0) for label in labels], smoothing)
    return dict(zip(labels, map(float, shares), strict=True))


def vote_shares(counts: ArrayLike, smoothing: float = 0.0) -> NDArray[np.float64]:
    """Soft labels (..., C) of vote counts (..., C).

    With rater smoothing every vote has 1 - ``smoothing`` on its label and ``smoothing`` / (C - 1) on each other label;
    the soft label is the mean over the votes. Chou's public IEMOCAP files have 0.05, for example
    (0.95, 0.00625, ...) with nine labels and one vote.

    Args:
        counts: Votes, at least one per row.
        smoothing: From 0 to below 1.

    Raises:
        ValueError: a negative count, a row without votes, ``smoothing`` out of range, or smoothing of one label.
    """
    votes = np.asarray(counts, dtype=np.float64)
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be from 0 to below 1, found {smoothing}. Choose a number in this range.")
    if (votes < 0).any():
        raise ValueError("a vote count is negative. Give counts of at least 0.")
    total = votes.sum(-1, keepdims=True)
    if not (total > 0).all():
        raise ValueError("a row has no votes. Leave out utterances without votes.")
    shares: NDArray[np.float64] = votes / total
    if smoothing == 0:
        return shares
    others = votes.shape[-1] - 1
    if others == 0:
        raise ValueError("smoothing needs at least two labels. Set smoothing to 0.")
    return np.asarray((1 - smoothing) * shares + smoothing / others * (1 - shares))


def sets_above_uniform(shares: ArrayLike) -> NDArray[np.bool_]:
    """The 1/C decision: (..., C) bool, labels with a share strictly above 1/C, from shares or probabilities (..., C).

    A uniform row gives the empty set. Chou: targets and predictions are both decided this way.
    """
    values = np.asarray(shares, dtype=np.float64)
    return np.asarray(values > 1 / values.shape[-1] + PROBABILITY_TOLERANCE)


def vote_entropy(counts: ArrayLike) -> NDArray[np.float64]:
    """Entropy (...) in nats of vote counts or shares (..., C): 0 if all agree, log C if all labels have equal shares.

    Raises:
        ValueError: See :func:`vote_shares`.
    """
    shares = vote_shares(counts)
    return np.asarray(-(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(-1) + 0.0)


def agreement(counts: ArrayLike) -> NDArray[np.float64]:
    """Share (...) of the pairs of votes with the same label, from counts (..., C); NaN for a single vote.

    Fleiss (1971), equation 2: sum_c n_c (n_c - 1) / (n (n - 1)).

    Raises:
        ValueError: See :func:`vote_shares`.
    """
    vote_shares(counts)  # its checks
    votes = np.asarray(counts, dtype=np.float64)
    total = votes.sum(-1)
    pairs = total * (total - 1)
    agreeing = (votes * (votes - 1)).sum(-1)
    return np.asarray(np.divide(agreeing, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0))


@dataclass(frozen=True)
class VoteRule:
    """A rule that gives the target of a task.

    Args:
        name: Its key in :data:`RULES`.
        kind: Kind of the task.
        metric: Dev score that selects the checkpoint.
        description: One line.
        target: From votes, labels and the number of annotators to the target; None without a label.
    """

    name: str
    kind: str
    metric: str
    description: str
    target: Callable[[Votes, Sequence[str], int | None], Any]


_RULES = (
    VoteRule("majority", "single_label", "weighted_f1", "the label of more than half of the annotators", majority),
    VoteRule("plurality", "single_label", "weighted_f1", "the label with the most votes, if only one", plurality),
    VoteRule(
        "distribution",
        "distribution",
        "kl",
        "shares of the votes",
        lambda votes, labels, raters: distribution(votes, labels),
    ),
    VoteRule(
        "smoothed",
        "distribution",
        "kl",
        f"shares of the votes, each with {1 - SMOOTHING:g} on its label",
        lambda votes, labels, raters: distribution(votes, labels, SMOOTHING),
    ),
    VoteRule(
        "all_inclusive",
        "multi_label",
        "macro_f1",
        "all labels with a share of the votes above 1/C",
        lambda votes, labels, raters: above_uniform(votes, labels),
    ),
    VoteRule(
        "at_least_two",
        "multi_label",
        "micro_f1",
        "all labels with at least two votes; if there is none, those with the most",
        lambda votes, labels, raters: at_least(votes, labels),
    ),
)
RULES: Mapping[str, VoteRule] = MappingProxyType({rule.name: rule for rule in _RULES})
"""The rules by name. ``distribution``, ``smoothed`` and ``all_inclusive`` keep every utterance with a vote."""


def _only(labels: Sequence[str]) -> str | None:
    return labels[0] if len(labels) == 1 else None
