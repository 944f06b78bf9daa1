"""Scores of sets of emotion words."""

from __future__ import annotations

from pathlib import Path

import pytest

from ercfusion._core.errors import ConfigError
from ercfusion.batch.labels import SCHEMAS
from ercfusion.metrics.wheel import WHEEL, EmotionWheel, hit_rate, read_wheel, wheel_f1, wheel_scores

SMALL = EmotionWheel("small", {"warm": {"joy": ["happy", "glad"], "love": []}, "cold": {"fear": ["afraid", "glad"]}})


def test_words_become_groups() -> None:
    assert SMALL.map(["Happy", " GLAD ", "nonsense"]) == {"warm", "cold"}  # glad: cold is first in the alphabet
    assert SMALL.map(["happy", "afraid"], 2) == {"joy", "fear"}
    assert SMALL.map([]) == frozenset()
    with pytest.raises(ConfigError, match="level=3 is not a level"):
        SMALL.map(["joy"], 3)


def test_scores_by_hand() -> None:
    truth = [["happy"], ["afraid", "love"], ["unknown"], ["joy", "fear"]]
    predicted = [["joy", "fear"], ["glad"], ["joy"], []]
    scores = wheel_scores(truth, predicted, SMALL)
    # Groups: {warm} by {warm, cold}; {cold, warm} by {cold}; the third is left out; the last counts 0.
    assert scores.samples == 3
    assert scores.precision == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert scores.recall == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert scores.f1 == pytest.approx(0.5)
    finer = wheel_scores(truth, predicted, SMALL, level=2)
    assert finer.precision == pytest.approx((1 / 2 + 1 + 0) / 3)
    both = [SMALL, WHEEL]
    each = [wheel_scores(truth, predicted, wheel).f1 for wheel in both]
    assert wheel_f1(truth, predicted, both) == pytest.approx(sum(each) / 2)


def test_the_own_wheel_knows_the_labels_of_corpora() -> None:
    words = {
        label for name in ("meld7", "emorynlp7", "iemocap9", "dailydialog7", "emodb7") for label in SCHEMAS[name].labels
    }
    assert [word for word in sorted(words) if not WHEEL.map([word])] == []
    assert WHEEL.map(["furious", "irritated"]) == {"anger"}
    forms = [form for group in WHEEL.groups.values() for word, others in group.items() for form in (word, *others)]
    assert len(forms) == len(set(forms))


def test_hits() -> None:
    labels, predicted = (
        ["anger", "joy", "pride", "schadenfreude"],
        [["mad", "sad"], ["glad"], ["joy"], ["Schadenfreude"]],
    )
    assert (
        hit_rate(labels, predicted) == 0.5
    )  # mad is anger; glad is happiness, not joy; an unknown word by its letters
    assert hit_rate(labels, predicted, level=1) == 1.0


def test_a_wheel_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("warm: {joy: [happy]}\ncold: {fear: []}\n")
    wheel = read_wheel(path)
    assert (wheel.name, wheel.map(["happy"])) == ("mine", {"warm"})
    for content in ("[1]", "warm: [joy]", "warm: {joy: happy}", "{}"):
        path.write_text(content)
        with pytest.raises(ConfigError, match="not an emotion wheel"):
            read_wheel(path)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="1 true and 2 predicted samples"):
        wheel_scores([["joy"]], [["joy"], []])
    with pytest.raises(ConfigError, match="no sample has a true word of the wheel 'ercfusion'"):
        wheel_scores([["xyz"]], [["joy"]])
    with pytest.raises(ConfigError, match="no samples to score"):
        hit_rate([], [])
    with pytest.raises(ConfigError, match="no emotion wheel was given"):
        wheel_f1([["joy"]], [["joy"]], [])
