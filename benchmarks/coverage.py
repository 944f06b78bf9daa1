"""Coverage of intervals and false positives of tests: ``python -m benchmarks.coverage``.

Everything is drawn from a pool with known truth: conversations of the corpus ``demo`` with their labels and exact
posteriors, and simulated training runs of two models. A run is the posterior sharpened or blurred, with errors shared
by all runs of its model, its own errors, and its own bias towards some labels. The runs of the first model vary as much
as those of ``cogmen`` on ``demo``, or a little more.

Further cases exceed the conditions of the intervals: few conversations, more variable seeds, rare classes, nearly
perfect scores. They give the limits of :mod:`ercfusion.metrics.cautions`.

A replicate draws a test split of conversations with replacement, and a few different runs per model. It counts whether
the interval contains the pool's value, and whether a test claims a difference where none exists.
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

from ercfusion.batch.predictions import Predictions
from ercfusion.batch.task import TaskSpec
from ercfusion.data.corpora.demo import DemoCorpus
from ercfusion.data.store import encode_targets
from ercfusion.metrics.cautions import cautions
from ercfusion.metrics.comparison import compare_all, paired_randomization
from ercfusion.metrics.inputs import conversation_sums
from ercfusion.metrics.metric import Statistic
from ercfusion.metrics.registry import get_metric, score_source
from ercfusion.metrics.statistics import (
    conversation_bootstrap,
    difference_interval,
    seed_summary,
    two_level_bootstrap,
)

METRICS = ("weighted_f1", "macro_f1", "accuracy", "shift_accuracy")

INTERVALS = ("one run", "mean of runs", "difference of means")
"""Of one run's score, for other conversations; of the mean of the runs and of the difference of two models' means, for
other conversations and other runs.
"""
EXCHANGED = "test, exchanged: p < 0.05"
"""Two models whose predictions were exchanged by a coin flip per conversation: the null hypothesis of the test."""
FRESH = ("test, fresh runs: p < 0.05", "test, fresh runs: shown")
"""Two sets of runs of one model, which differ by seeds: by p only, and by ``Comparison.shown``."""
ZERO = "difference of fresh runs"
STUDENT = "mean of runs, Student's t"
"""For comparison: the interval from the spread between runs, which ignores other conversations."""
PLAIN = "one run, plain percentiles"
"""For comparison: 2.5th to 97.5th percentile of the resamples, without the two corrections."""
NONE = "one run: no interval"
CAUTION = "one run: with a caution"
SURE = "one run, no caution"
SURE_MEAN = "mean of runs, no caution"
"""Shares without an interval, and with a caution; coverage of intervals without a caution."""

ACCEPTED = {**dict.fromkeys(INTERVALS, (0.92, 0.98)), EXCHANGED: (0.02, 0.08)}


@dataclass(frozen=True)
class Model:
    """A model's simulated runs: noise added to the logarithms of the exact posterior.

    Args:
        sharpness: Mean factor of the log-posterior.
        spread: Standard deviation of the factor's logarithm between runs.
        shared: Noise shared by all runs, per utterance and label.
        shared_conversation: Noise shared by all runs, per conversation and label.
        own: Noise of one run, per utterance and label.
        own_conversation: Noise of one run, per conversation and label.
        bias: Noise of one run, per label.
        help: Added for the true label, for nearly perfect scores.
    """

    sharpness: float = 1.0
    spread: float = 0.03
    shared: float = 0.9
    shared_conversation: float = 1.2
    own: float = 0.65
    own_conversation: float = 0.3
    bias: float = 0.1
    help: float = 0.0


FIRST = Model()
SECOND = Model(shared=1.2)


@dataclass(frozen=True)
class Case:
    """A simulation.

    Args:
        title: Readable name.
        models: The two compared models.
        settings: Conversations in the test split, and runs per model.
        metrics: Names of the scores.
        rare: As for :func:`make_pool`.
    """

    title: str
    models: tuple[Model, Model]
    settings: tuple[tuple[int, int], ...]
    metrics: tuple[str, ...] = ("weighted_f1",)
    rare: float | None = None


CASES = {
    # 80 conversations: of demo; 31: of MOSI.
    "usual": Case("as demo and MOSI", (FIRST, SECOND), ((80, 5), (31, 5), (80, 2), (80, 1)), METRICS),
    "few": Case(
        "few conversations",
        (FIRST, SECOND),
        (*((number, 5) for number in (2, 3, 5, 8, 12, 20)), (5, 2), (12, 1)),
        ("weighted_f1", "macro_f1"),
    ),
    **{
        f"seeds-{number}": Case(
            f"seeds that differ more, {number}",
            (Model(bias=bias), Model(bias=bias, shared=1.2)),
            ((80, 2), (80, 3), (80, 5)),
        )
        for number, bias in enumerate((1.0, 1.6, 1.9), start=1)
    },
    "rare": Case("two classes of 0.3 %", (FIRST, SECOND), ((80, 5), (280, 5)), ("macro_f1", "weighted_f1"), rare=0.003),
    **{
        f"perfect-{number}": Case(
            f"nearly perfect scores, {number}", (Model(help=known), Model(help=known, shared=1.2)), ((80, 5), (31, 5))
        )
        for number, known in enumerate((5.0, 9.0), start=1)
    },
}


@dataclass(frozen=True)
class Pool:
    """Runs of some models on the same conversations.

    Args:
        task: The task.
        sums: Per model the arrays of ``conversation_sums``, (runs, conversations, ...).
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
    conversations: int = 1500,
    runs: int = 40,
    models: Sequence[Model] = (FIRST, SECOND),
    seed: int = 0,
    rare: float | None = None,
) -> Pool:
    """Draw the conversations and the runs.

    Args:
        conversations, runs: Number of conversations, and of runs per model.
        models, seed: Simulation of the runs, and seed.
        rare: Share of the labelled utterances of each of the last two labels; others of these labels become unlabelled,
            and the models know the shares.
    """
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
    if rare is not None:
        share = np.bincount(fixed["value"], minlength=C) / N
        # Two labels of r each and a rest of 1 - 2 r.
        share_left = rare / (1 - 2 * rare) * share[:-2].sum() / share[-2:]
        log = log.copy()
        log[:, -2:] += np.log(share_left)
        chance = np.where(fixed["value"] < C - 2, 1.0, np.append(np.ones(C - 2), share_left)[fixed["value"]])
        fixed["valid"] = fixed["valid"] & (np.random.default_rng([seed, 2]).random(N) < chance)
    true = np.eye(C)[fixed["value"]]
    sums = []
    for model in models:
        shared = model.shared * rng.standard_normal((N, C))
        shared += model.shared_conversation * rng.standard_normal((conversations, C))[owner]
        parts = []
        for _ in range(runs):
            logits = model.sharpness * np.exp(model.spread * rng.standard_normal()) * log + shared
            logits += model.own * rng.standard_normal((N, C))
            logits += model.own_conversation * rng.standard_normal((conversations, C))[owner]
            logits += model.bias * rng.standard_normal(C) + model.help * true
            output = np.exp(logits - logits.max(axis=1, keepdims=True))
            output /= output.sum(axis=1, keepdims=True)
            parts.append(conversation_sums(Predictions(output=output, **fixed)))
        sums.append({key: np.stack([part[key] for part in parts]).astype(np.int32) for key in parts[0]})
    return Pool(protocol.task, tuple(sums))


@dataclass(frozen=True)
class Spread:
    """Variation of the weighted F1 of a model's runs.

    Args:
        mean: Over runs, on all conversations of the pool.
        runs: Standard deviation between runs on the same 80 conversations.
        runs_alone: Its limit for infinitely many conversations.
        conversations: Standard deviation of one run's score between splits of 80 conversations.
    """

    mean: float
    runs: float
    runs_alone: float
    conversations: float


def describe(pool: Pool, model: int = 0, conversations: int = 80, draws: int = 500) -> Spread:
    """Variation of a model's weighted F1 over splits drawn from the pool."""
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
    """Shares of the replicates whose interval contains the truth, or whose test claims a difference.

    The truth is the score on all conversations of the pool, of the run or as :func:`true_mean`. With one run per model
    there are no intervals of means. Replicates without an interval are not counted; shares of no replicate are NaN.
    """
    source = score_source(pool.task, metric)
    assert source is not None
    key, statistic = source
    first, second = (model[key] for model in pool.sums[:2])
    truth = [statistic(model.sum(axis=1)) for model in (first, second)]
    bounds = get_metric(metric).bounds
    collected: dict[str, list[float]] = {}
    for number in range(replicates):
        rng = np.random.default_rng([seed, number])
        drawn = rng.integers(pool.conversations, size=conversations)
        of_second = rng.permutation(pool.runs)[:runs]
        of_first, of_fresh = rng.permutation(pool.runs)[: 2 * runs].reshape(2, runs)
        one, other = first[np.ix_(of_first, drawn)], second[np.ix_(of_second, drawn)]
        fresh = first[np.ix_(of_fresh, drawn)]
        flips = rng.random(conversations) < 0.5
        exchanged = [
            np.where(flips.reshape(1, -1, *[1] * (one.ndim - 2)), *sides) for sides in ((one, other), (other, one))
        ]
        (null,) = compare_all(
            {"one": one, "fresh": fresh},
            statistic,
            resamples=resamples,
            permutations=permutations,
            seed=number,
            bounds=bounds,
        )
        of_one = conversation_bootstrap(one[0], statistic, resamples, seed=number, bounds=bounds)
        covers = _holds(of_one, truth[0][of_first[0]])
        doubtful = bool(cautions(pool.task, metric, one[:1], missing=np.isnan(covers)))
        outcomes: dict[str, float] = {
            "one run": covers,
            NONE: np.isnan(covers),
            CAUTION: doubtful and not np.isnan(covers),
            SURE: np.nan if doubtful else covers,
            PLAIN: _holds(plain_percentiles(one[0], statistic, resamples, number), truth[0][of_first[0]]),
            EXCHANGED: paired_randomization(*exchanged, statistic, permutations, number) < 0.05,
            FRESH[0]: null.p < 0.05,
            FRESH[1]: null.shown,
        }
        if runs > 1:
            both_levels = two_level_bootstrap(one, statistic, resamples, seed=number, bounds=bounds)
            difference = difference_interval(one, other, statistic, resamples, seed=number, bounds=bounds)
            student = seed_summary(statistic(one.sum(axis=1)))
            means = true_mean(truth[0], of_first), true_mean(truth[1], of_second)
            of_mean = _holds(both_levels, means[0])
            outcomes |= {
                "mean of runs": of_mean,
                SURE_MEAN: np.nan if cautions(pool.task, metric, one, missing=np.isnan(of_mean)) else of_mean,
                "difference of means": _holds(difference, means[0] - means[1]),
                ZERO: _holds((null.low, null.high), 0.0),
                STUDENT: _holds((student["low"], student["high"]), means[0]),
            }
        for name, outcome in outcomes.items():
            collected.setdefault(name, []).append(float(outcome))
    return {name: _share(values) for name, values in collected.items()}


def true_mean(values: NDArray[Any], chosen: NDArray[Any]) -> float:
    """Mean of a model's scores, corrected to infinitely many runs.

    The mean of n of N different runs varies around the mean of all with only (N - n) / N of the variance.
    """
    share = 1 - len(chosen) / len(values)
    own, all_of_them = values[chosen].mean(), values.mean()
    return float(own + (all_of_them - own) / np.sqrt(share))


def _share(values: Sequence[float]) -> float:
    numbers = [value for value in values if not np.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else float("nan")


def plain_percentiles(sums: NDArray[Any], statistic: Statistic, resamples: int, seed: int) -> tuple[float, float]:
    """The uncorrected percentile interval."""
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    summed = drawn.astype(float) @ sums.reshape(len(sums), -1)
    low, high = np.nanquantile(statistic(summed.reshape(-1, *sums.shape[1:])), [0.025, 0.975])
    return float(low), float(high)


def _holds(interval: tuple[float, float], value: float) -> float:
    """1 if the interval contains the value, else 0; NaN without an interval."""
    return float("nan") if np.isnan(interval).any() else float(interval[0] <= value <= interval[1])


# The command

ROWS = (*INTERVALS, ZERO, NONE, CAUTION, SURE, SURE_MEAN, PLAIN, STUDENT, EXCHANGED, *FRESH)
_WHERE_NEEDED = (NONE, CAUTION, SURE, SURE_MEAN)
_USUAL_ONLY = (PLAIN, STUDENT)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Percentages of one case: one row per setting and question, one column per metric."""
    metrics = list(dict.fromkeys(result["metric"] for result in results))
    rows = [["conversations", "runs", "in % of the replicates", *metrics, "accepted"]]
    for setting in dict.fromkeys((result["conversations"], result["runs"]) for result in results):
        shares_of = {e["metric"]: e["shares"] for e in results if (e["conversations"], e["runs"]) == setting}
        plain = not any(shares[NONE] or shares[CAUTION] for shares in shares_of.values())
        for name in ROWS:
            if not all(name in shares for shares in shares_of.values()) or (plain and name in _WHERE_NEEDED):
                continue
            if name in _USUAL_ONLY and results[0]["case"] != "usual":
                continue
            accepted = "{:.0f} to {:.0f}".format(*(100 * end for end in ACCEPTED[name])) if name in ACCEPTED else ""
            shares = [shares_of[metric][name] for metric in metrics]
            cells = ["-" if np.isnan(share) else f"{100 * share:.1f}" for share in shares]
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
    parser.add_argument("--replicates", type=int, default=200, help="splits per setting and metric")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--metrics", nargs="+", default=METRICS, choices=METRICS, help="among those of a case")
    parser.add_argument("--conversations", type=int, default=1000, help="size of the pool")
    parser.add_argument("--runs", type=int, default=40, help="per model in the pool")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args(arguments)
    start = time.process_time()
    pools: dict[Any, Pool] = {}
    content: dict[str, Any] = {"replicates": options.replicates, "pools": {}, "results": []}
    print(f"pools: {options.conversations} conversations of demo/balanced, {options.runs} simulated runs of 2 models")
    for name in options.cases:
        case = CASES[name]
        metrics = [metric for metric in case.metrics if metric in options.metrics]
        if not metrics:
            continue
        if (case.models, case.rare) not in pools:
            pools[case.models, case.rare] = make_pool(options.conversations, options.runs, case.models, rare=case.rare)
        pool = pools[case.models, case.rare]
        spreads = [describe(pool, model) for model in range(len(pool.sums))]
        print(f"\n{name}: {case.title}")
        for number, spread in enumerate(spreads, start=1):
            print(
                f"  model {number}: weighted F1 {spread.mean:.3f}; standard deviation {spread.conversations:.4f} "
                f"between splits of 80 conversations,\n    {spread.runs:.4f} between runs on one split "
                f"({spread.runs_alone:.4f} with infinitely many conversations)"
            )
        results = [
            {
                "case": name,
                "conversations": conversations,
                "runs": runs,
                "metric": metric,
                "shares": measure(pool, metric, conversations, runs, options.replicates),
            }
            for conversations, runs in case.settings
            for metric in metrics
        ]
        print(f"\n{table(results)}", flush=True)
        content["pools"][name] = [asdict(spread) for spread in spreads]
        content["results"] += results
    error = 100 * np.sqrt(0.05 * 0.95 / options.replicates)
    seconds = time.process_time() - start
    print(
        f"\n{options.replicates} replicates: standard error {error:.1f} at 5 or 95 %; {seconds:.0f} s of processor time"
    )
    if options.json:
        options.json.write_text(json.dumps(content, indent=1).replace("NaN", "null") + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
