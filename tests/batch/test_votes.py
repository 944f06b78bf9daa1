import math
from fractions import Fraction

import numpy as np
import pytest

from ercfusion.batch.votes import (
    RULES,
    above_uniform,
    agreement,
    at_least,
    distribution,
    majority,
    plurality,
    vote_entropy,
    vote_shares,
)

LABELS = ("neutral", "angry", "sad", "happy")
FIVE = {"neutral": 1, "angry": 2, "sad": 2}  # Chou's example: (0.2, 0.4, 0.4, 0) gives angry and sad


def test_the_example_of_five_votes():
    assert majority(FIVE, LABELS) is None
    assert plurality(FIVE, LABELS) is None
    assert above_uniform(FIVE, LABELS) == {"angry", "sad"}
    assert at_least(FIVE, LABELS) == {"angry", "sad"}
    assert distribution(FIVE, LABELS) == {"neutral": 0.2, "angry": 0.4, "sad": 0.4, "happy": 0.0}


@pytest.mark.parametrize(
    ("votes", "most", "unique"),
    [
        ({"sad": 1}, "sad", "sad"),
        ({"sad": 3, "angry": 2}, "sad", "sad"),
        ({"sad": 2, "angry": 2}, None, None),  # half is not more than half
        ({"sad": 2, "angry": 1, "happy": 1}, None, "sad"),
        ({"sad": 1, "angry": 1, "happy": 1}, None, None),
    ],
)
def test_majority_and_plurality(votes, most, unique):
    assert majority(votes, LABELS) == most
    assert plurality(votes, LABELS) == unique


def test_annotators_with_several_labels():
    # Three annotators: {sad, angry}, {sad}, {happy}; of four votes two are not more than half, of three annotators are.
    votes = {"sad": 2, "angry": 1, "happy": 1}
    assert majority(votes, LABELS) is None
    assert majority(votes, LABELS, raters=3) == "sad"
    # Two labels may have a majority of the annotators; then there is no single one.
    assert majority({"sad": 2, "angry": 2}, LABELS, raters=2) is None


def test_at_least():
    assert at_least({"sad": 3, "angry": 2, "happy": 1}, LABELS) == {"sad", "angry"}
    assert at_least({"sad": 1, "angry": 1}, LABELS) == {"sad", "angry"}
    assert at_least({"sad": 3, "angry": 2, "happy": 1}, LABELS, 3) == {"sad"}


def test_one_over_c_at_its_ends():
    assert above_uniform({"sad": 1}, LABELS) == {"sad"}
    assert above_uniform(dict.fromkeys(LABELS, 5), LABELS) == frozenset()
    # A share of exactly 1/C is not above it, for every C: no rounding decides.
    for size in range(2, 12):
        labels = [f"label {number}" for number in range(size)]
        votes = {labels[0]: 3, labels[1]: 3 * (size - 1)}
        assert above_uniform(votes, labels) == ({labels[1]} if size > 2 else frozenset())


def test_shares_against_a_loop():
    chance = np.random.default_rng(0)
    counts = chance.integers(0, 4, size=(20, 5))
    counts[:, 0] += counts.sum(1) == 0
    for smoothing in (0.0, 0.05, 0.3):
        shares = vote_shares(counts, smoothing)
        for row, votes in zip(shares, counts, strict=True):
            expected = [0.0] * 5
            for label, number in enumerate(votes):
                for _ in range(number):
                    for other in range(5):
                        expected[other] += (1 - smoothing if other == label else smoothing / 4) / votes.sum()
            assert row == pytest.approx(expected, abs=1e-15)


def test_numbers_of_the_public_files():
    # Nine labels, raters of IEMOCAP: one or three annotators.
    assert vote_shares([1] + [0] * 8, 0.05) == pytest.approx([0.95] + [0.00625] * 8)
    assert vote_shares([2, 1] + [0] * 7, 0.05)[:3] == pytest.approx([0.635417, 0.320833, 0.00625], abs=1e-6)


def test_entropy():
    counts = [[5, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [2, 2, 1, 0]]
    expected = [0.0, 0.0, math.log(4), -(0.8 * math.log(0.4) + 0.2 * math.log(0.2))]
    assert vote_entropy(counts) == pytest.approx(expected)
    # Shares have the entropy of their votes, and zero is not negative.
    assert vote_entropy(vote_shares(counts)) == pytest.approx(expected)
    assert not np.signbit(vote_entropy(counts)).any()


def test_agreement_of_pairs():
    assert agreement([[5, 0, 0], [1, 1, 1], [3, 2, 0]])[:2].tolist() == [1.0, 0.0]
    # Of the ten pairs of five votes three and one agree.
    assert agreement([3, 2, 0]) == pytest.approx(float(Fraction(4, 10)))
    assert math.isnan(float(agreement([1, 0, 0])))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("votes", "words"),
    [
        ({"sad": -1, "angry": 2}, "-1 votes for 'sad'"),
        ({"sad": 1.5}, "a whole number"),
        ({"sad": True}, "a whole number"),
        ({"sad": 0}, "all vote counts are 0"),
        ({}, "all vote counts are 0"),
        ({"sadd": 1}, "Did you mean 'sad'?"),
    ],
)
def test_wrong_votes(rule, votes, words):
    with pytest.raises(ValueError, match=r"votes|vote counts") as caught:
        RULES[rule].target(votes, LABELS, None)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("counts", "smoothing", "words"),
    [
        ([1, -1, 2], 0.0, "negative"),
        ([[1, 2], [0, 0]], 0.0, "no votes"),
        ([1, 2], 1.0, "below 1"),
        ([1, 2], -0.1, "from 0"),
        ([3], 0.05, "at least two labels"),
    ],
)
def test_wrong_counts(counts, smoothing, words):
    with pytest.raises(ValueError, match=words):
        vote_shares(counts, smoothing)
