"""How often intervals cover and tests find what is not there: ``python -m benchmarks.coverage``.

The truth is known here, because everything is drawn from a pool: conversations of the corpus ``demo`` with their labels
and exact posteriors, and for two models many simulated training runs. A run is the posterior sharpened or blurred, with
errors that all runs of its model share, errors of its own and a bias of its own towards some labels. Their sizes are
set so that the runs of the first model vary as much as those of ``cogmen`` on ``demo``, or a little more.

A replicate draws a test split of conversations and a few runs of each model from the pool, with replacement, and asks
whether the interval holds the pool's value, or whether a test claims a difference where there is none.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ercfusion.data.corpora.demo import DemoCorpus
from ercfusion.data.store import encode_targets
from ercfusion.data.task import TaskSpec
from ercfusion.evaluation.comparison import compare_all, paired_randomization
from ercfusion.evaluation.statistics import (
    conversation_bootstrap,
    difference_interval,
    seed_summary,
    two_level_bootstrap,
)
from ercfusion.tasks.outputs import Predictions
from ercfusion.tasks.sums import Statistic, conversation_sums, score_source

METRICS = ("weighted_f1", "macro_f1", "accuracy", "shift_accuracy")
SETTINGS = ((80, 5), (31, 5), (80, 2), (80, 1))
"""Conversations in the test split (80: of ``demo``; 31: of MOSI) and runs of each model."""

INTERVALS = ("one run", "mean of runs", "difference of means")
"""The interval of one run's score, for other conversations; of the mean of the runs, and of the difference of two
models' means, for other conversations and other runs.
"""
EXCHANGED = "test, exchanged: p < 0.05"
"""Two models whose predictions were exchanged, by a coin flip a conversation: the null hypothesis of the test."""
FRESH = ("test, fresh runs: p < 0.05", "test, fresh runs: shown")
"""Two times fresh runs of one model: a difference of seeds. By p alone, and by ``Comparison.shown``."""
ZERO = "difference of fresh runs"
STUDENT = "mean of runs, Student's t"
"""For comparison: the usual interval from the spread between runs, which knows nothing of other conversations."""
PLAIN = "one run, plain percentiles"
"""For comparison: the 2.5th to the 97.5th percentile of the resamples, without the two corrections."""

ACCEPTED = {**dict.fromkeys(INTERVALS, (0.92, 0.98)), EXCHANGED: (0.02, 0.08)}


@dataclass(frozen=True)
class Model:
    """How the runs of a model are simulated: noise is added to the logarithms of the exact posterior.

    Args:
        sharpness: Mean factor of the log-posterior.
        spread: Standard deviation of the factor's logarithm between runs.
        shared: Noise that all runs share, for every utterance and label.
        shared_conversation: Noise that all runs share, for every conversation and label.
        own: Noise of a single run, for every utterance and label.
        own_conversation: Noise of a single run, for every conversation and label.
        bias: Noise of a single run, for every label.
    """

    sharpness: float = 1.0
    spread: float = 0.03
    shared: float = 0.9
    shared_conversation: float = 1.2
    own: float = 0.65
    own_conversation: float = 0.3
    bias: float = 0.1


FIRST = Model()
SECOND = Model(shared=1.2)


@dataclass(frozen=True)
class Pool:
    """Runs of some models on the same conversations.

    Args:
        task: What was predicted.
        sums: For each model the arrays of ``conversation_sums``, (runs, conversations, ...).
    """

    task: TaskSpec
    sums: tuple[dict[str, NDArray[Any]], ...]

    @property
    def runs(self) -> int:
        return len(self.sums[0]["confusion"])

    @property
    def conversations(self) -> int:
        return self.sums[0]["confusion"].shape[1]


def make_pool(
    conversations: int = 1500, runs: int = 40, models: Sequence[Model] = (FIRST, SECOND), seed: int = 0
) -> Pool:
    """Draw the conversations and the runs."""
    corpus = DemoCorpus(seed=seed, train=1, dev=1, test=conversations)
    protocol = corpus.protocols["demo/balanced"]
    split = corpus.conversations(protocol)["test"]
    log = np.log(np.maximum(corpus.posterior(protocol, "test"), 1e-4))
    targets = encode_targets(split, protocol.task)
    rng = np.random.default_rng([seed, 1])
    lengths = np.array([len(conversation) for conversation in split])
    owner = np.repeat(np.arange(conversations), lengths)
    fixed: dict[str, Any] = {
        "task": protocol.task,
        "value": targets.value.numpy(),
        "valid": targets.valid.numpy(),
        "lengths": tuple(lengths.tolist()),
        "speaker": np.concatenate([conversation.speaker_numbers() for conversation in split]),
        "conversation_ids": tuple(conversation.id for conversation in split),
        "turn_ids": tuple(turn.id for conversation in split for turn in conversation.turns),
    }
    N, C = log.shape
    found = []
    for model in models:
        shared = model.shared * rng.standard_normal((N, C))
        shared += model.shared_conversation * rng.standard_normal((conversations, C))[owner]
        parts = []
        for _ in range(runs):
            logits = model.sharpness * np.exp(model.spread * rng.standard_normal()) * log + shared
            logits += model.own * rng.standard_normal((N, C))
            logits += model.own_conversation * rng.standard_normal((conversations, C))[owner]
            logits += model.bias * rng.standard_normal(C)
            output = np.exp(logits - logits.max(axis=1, keepdims=True))
            output /= output.sum(axis=1, keepdims=True)
            parts.append(conversation_sums(Predictions(output=output, **fixed)))
        found.append({key: np.stack([part[key] for part in parts]).astype(np.int32) for key in parts[0]})
    return Pool(protocol.task, tuple(found))


@dataclass(frozen=True)
class Spread:
    """How much the weighted F1 of a model's runs varies.

    Args:
        mean: Over runs, on all conversations of the pool.
        runs: Standard deviation between runs on the same 80 conversations.
        runs_alone: What would be left of it on infinitely many conversations.
        conversations: Standard deviation of one run's score between splits of 80 conversations.
    """

    mean: float
    runs: float
    runs_alone: float
    conversations: float


def describe(pool: Pool, model: int = 0, conversations: int = 80, draws: int = 500) -> Spread:
    """Spread of a model's weighted F1 over splits drawn from the pool."""
    source = score_source(pool.task, "weighted_f1")
    assert source is not None
    sums, statistic = pool.sums[model]["confusion"], source[1]
    rng = np.random.default_rng(0)
    scores = np.stack([
        statistic(sums[:, rng.integers(pool.conversations, size=conversations)].sum(axis=1)) for _ in range(draws)
    ])  # fmt: skip
    total = statistic(sums.sum(axis=1))
    together = (scores - scores.mean(axis=1, keepdims=True)).var(axis=0).mean() * pool.runs / (pool.runs - 1)
    on_pool = together * conversations / pool.conversations
    return Spread(
        mean=float(total.mean()),
        runs=float(np.sqrt(scores.var(axis=1, ddof=1).mean())),
        runs_alone=float(np.sqrt(max(0.0, total.var(ddof=1) - on_pool))),
        conversations=float(np.sqrt(scores.var(axis=0).mean())),
    )


# Replicates


def measure(
    pool: Pool,
    metric: str,
    conversations: int,
    runs: int,
    replicates: int,
    resamples: int = 1000,
    permutations: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Shares of the replicates in which an interval held the truth, or a test claimed a difference.

    The truth is the score on all conversations of the pool: of the one run, or in the mean over all runs of the pool.
    With one run a model, the intervals of means are left out: nothing is known of other runs.
    """
    source = score_source(pool.task, metric)
    assert source is not None
    key, statistic = source
    first, second = (model[key] for model in pool.sums[:2])
    truth = [statistic(model.sum(axis=1)) for model in (first, second)]
    counted: dict[str, int] = {}
    for number in range(replicates):
        rng = np.random.default_rng([seed, number])
        chosen = rng.integers(pool.conversations, size=conversations)
        of_first, of_second, of_fresh = rng.integers(pool.runs, size=(3, runs))
        one, other = first[np.ix_(of_first, chosen)], second[np.ix_(of_second, chosen)]
        fresh = first[np.ix_(of_fresh, chosen)]
        flips = rng.random(conversations) < 0.5
        exchanged = [
            np.where(flips.reshape(1, -1, *[1] * (one.ndim - 2)), *sides) for sides in ((one, other), (other, one))
        ]
        (null,) = compare_all(
            {"one": one, "fresh": fresh}, statistic, resamples=resamples, permutations=permutations, seed=number
        )
        means = truth[0].mean(), truth[0].mean() - truth[1].mean()
        outcomes = {
            "one run": _holds(conversation_bootstrap(one[0], statistic, resamples, seed=number), truth[0][of_first[0]]),
            PLAIN: _holds(plain_percentiles(one[0], statistic, resamples, number), truth[0][of_first[0]]),
            EXCHANGED: paired_randomization(*exchanged, statistic, permutations, number) < 0.05,
            FRESH[0]: null.p < 0.05,
            FRESH[1]: null.shown,
        }
        if runs > 1:
            both_levels = two_level_bootstrap(one, statistic, resamples, seed=number)
            difference = difference_interval(one, other, statistic, resamples, seed=number)
            student = seed_summary(statistic(one.sum(axis=1)))
            outcomes |= {
                "mean of runs": _holds(both_levels, means[0]),
                "difference of means": _holds(difference, means[1]),
                ZERO: _holds((null.low, null.high), 0.0),
                STUDENT: _holds((student["low"], student["high"]), means[0]),
            }
        for name, outcome in outcomes.items():
            counted[name] = counted.get(name, 0) + bool(outcome)
    return {name: number / replicates for name, number in counted.items()}


def plain_percentiles(sums: NDArray[Any], statistic: Statistic, resamples: int, seed: int) -> tuple[float, float]:
    """The textbook's percentile interval."""
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    summed = drawn.astype(float) @ sums.reshape(len(sums), -1)
    low, high = np.nanquantile(statistic(summed.reshape(-1, *sums.shape[1:])), [0.025, 0.975])
    return float(low), float(high)


def _holds(interval: tuple[float, float], value: float) -> bool:
    return bool(interval[0] <= value <= interval[1])


# The command


def table(results: Sequence[dict[str, Any]]) -> str:
    """Percentages, a row a setting and question, a column a metric."""
    metrics = list(dict.fromkeys(entry["metric"] for entry in results))
    rows = [["conversations", "runs", "in % of the replicates", *metrics, "accepted"]]
    for setting in dict.fromkeys((entry["conversations"], entry["runs"]) for entry in results):
        found = {e["metric"]: e["shares"] for e in results if (e["conversations"], e["runs"]) == setting}
        for name in (*INTERVALS, ZERO, PLAIN, STUDENT, EXCHANGED, *FRESH):
            if not all(name in shares for shares in found.values()):
                continue
            accepted = "{:.0f} to {:.0f}".format(*(100 * end for end in ACCEPTED[name])) if name in ACCEPTED else ""
            cells = [f"{100 * found[metric][name]:.1f}" for metric in metrics]
            rows.append([*(str(number) for number in setting), name, *cells, accepted])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = (2,)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.split("\n\n")[0])
    parser.add_argument("--replicates", type=int, default=400, help="splits drawn for each setting and metric")
    parser.add_argument("--metrics", nargs="+", default=METRICS, choices=METRICS)
    parser.add_argument("--conversations", type=int, default=1500, help="in the pool")
    parser.add_argument("--runs", type=int, default=40, help="of each model in the pool")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    chosen = parser.parse_args(arguments)
    start = time.perf_counter()
    pool = make_pool(chosen.conversations, chosen.runs)
    spreads = [describe(pool, model) for model in range(len(pool.sums))]
    print(
        f"pool: {chosen.conversations} conversations of demo/balanced, {chosen.runs} simulated runs of each of 2 models"
    )
    for number, spread in enumerate(spreads, start=1):
        print(f"  model {number}: weighted F1 {spread.mean:.3f}, standard deviations on splits of 80 conversations:")
        print(f"    {spread.conversations:.4f} of one run between splits")
        print(
            f"    {spread.runs:.4f} between runs on one split ({spread.runs_alone:.4f} on all conversations there are)"
        )
    results: list[dict[str, Any]] = []
    for conversations, runs in SETTINGS:
        for metric in chosen.metrics:
            shares = measure(pool, metric, conversations, runs, chosen.replicates)
            results.append({"conversations": conversations, "runs": runs, "metric": metric, "shares": shares})
    seconds = time.perf_counter() - start
    error = 100 * np.sqrt(0.05 * 0.95 / chosen.replicates)
    print(f"\n{table(results)}\n")
    print(f"{chosen.replicates} replicates: a standard error of {error:.1f} where 5 or 95 is right; {seconds:.0f} s")
    if chosen.json:
        content = {"replicates": chosen.replicates, "pool": [asdict(spread) for spread in spreads], "results": results}
        chosen.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
