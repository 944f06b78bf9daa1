"""Holes of every law: their distribution, and what they do not depend on."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from ercfusion._core.errors import BatchError, ConfigError
from ercfusion.batch.missing import Draws, Hidden, Layout, draw
from ercfusion.batch.packing import Packing
from ercfusion.config.fields import setting
from ercfusion.config.missing_laws import LAWS, Block, Law, Rate, in_order, law, parse
from ercfusion.testing import random_batch

NAMES = ("text", "audio", "visual", "gait")
EXAMPLES = (
    *("none", "pattern:text", "patterns:0.7", "rate:0.5", "rmm:0.5", "rmfm", "rmfm:0.3", "rmfm-released"),
    *("tmfm:0.4", "stmfm:0.5", "block:0.5"),
)


def test_every_law_is_tested() -> None:
    assert {text.partition(":")[0] for text in EXAMPLES} == set(LAWS)


def layout(
    lengths: Sequence[int], width: int, steps: dict[str, list[int]] | None = None, available: Tensor | None = None
) -> Layout:
    """Conversations of ``width`` modalities; everything is available unless stated."""
    packing = Packing(lengths)
    full = torch.ones(packing.total, width, dtype=torch.bool)
    counts = {name: torch.tensor(own) for name, own in (steps or {}).items()}
    rows = {name: sum(own) for name, own in (steps or {}).items()}
    return Layout(packing, NAMES[:width], full if available is None else available, counts, rows)


def sample(text: str, where: Layout, seed: int = 0) -> Hidden:
    return draw(parse(text), where, torch.Generator().manual_seed(seed))


def assert_distributed(drawn: Iterable[Hashable], expected: dict[Hashable, float]) -> None:
    """Frequencies are within 4.5 standard deviations of the probabilities, which sum to 1."""
    assert math.fsum(expected.values()) == pytest.approx(1)
    counts = Counter(drawn)
    total = sum(counts.values())
    assert set(counts) <= {key for key, probability in expected.items() if probability > 0}
    for key, probability in expected.items():
        deviation = math.sqrt(probability * (1 - probability) / total)
        assert abs(counts[key] / total - probability) <= 4.5 * deviation + 1e-12, (
            key,
            counts[key] / total,
            probability,
        )


def binomial(number: int, probability: float) -> dict[Hashable, float]:
    return {k: math.comb(number, k) * probability**k * (1 - probability) ** (number - k) for k in range(number + 1)}


def rows(mask: Tensor) -> list[tuple[bool, ...]]:
    return [tuple(row) for row in mask.tolist()]


# Utterances


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_pattern_is_the_same_everywhere(width: int) -> None:
    where = layout([3, 5], width)
    for size in range(1, width + 1):
        for kept in itertools.combinations(NAMES[:width], size):
            drop = sample(f"pattern:{'+'.join(kept)}", where).drop
            assert rows(~drop) == [tuple(name in kept for name in NAMES[:width])] * 8
    assert not sample("none", where).drop.any()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_incomplete_patterns_are_equally_likely(width: int) -> None:
    drop = sample("patterns:0.7", layout([20] * 2000, width)).drop
    incomplete = [kept for kept in itertools.product((False, True), repeat=width) if any(kept) and not all(kept)]
    assert len(incomplete) == 2**width - 2
    expected: dict[Hashable, float] = {kept: 0.7 / len(incomplete) for kept in incomplete}
    expected[(True,) * width] = 0.3 if incomplete else 1.0
    assert_distributed(rows(~drop), expected)


@pytest.mark.parametrize(
    "available", [kept for kept in itertools.product((False, True), repeat=3) if any(kept)], ids=str
)
def test_patterns_leave_an_available_modality(available: tuple[bool, ...]) -> None:
    mask = torch.tensor([available] * 20_000)
    drop = sample("patterns:0.6", layout([20_000], 3, available=mask)).drop
    allowed = [
        kept
        for kept in itertools.product((False, True), repeat=3)
        if not all(kept) and any(one and there for one, there in zip(kept, available, strict=True))
    ]
    expected: dict[Hashable, float] = {kept: 0.6 / len(allowed) for kept in allowed}
    assert_distributed(rows(~drop), expected | {(True,) * 3: 0.4})


@pytest.mark.parametrize("available", [kept for kept in itertools.product((False, True), repeat=3) if any(kept)])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.7])
def test_rates_leave_an_available_modality(available: tuple[bool, ...], rate: float) -> None:
    mask = torch.tensor([available] * 20_000)
    drop = sample(f"rate:{rate}", layout([20_000], 3, available=mask)).drop
    present = [column for column in range(3) if available[column]]
    expected: Counter[Hashable] = Counter()
    for hidden in itertools.product((False, True), repeat=3):
        probability = math.prod(rate if one else 1 - rate for one in hidden)
        if not all(hidden[column] for column in present):
            expected[hidden] += probability
            continue
        for stays in present:
            expected[tuple(one and column != stays for column, one in enumerate(hidden))] += probability / len(present)
    assert_distributed(rows(drop), dict(expected))
    share = drop[:, present].float().mean().item()
    assert share == pytest.approx(rate - rate ** len(present) / len(present), abs=0.01)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_extreme_rates(width: int) -> None:
    where = layout([50] * 40, width)
    for text in ("rate:0", "rmm:0", "patterns:0", "rmfm:0", "tmfm:0", "stmfm:0", "block:0", "none"):
        assert not sample(text, where).drop.any(), text
        assert parse(text).hides_nothing
    for text in ("rmm:1", "rmfm:1", "tmfm:1", "stmfm:1", "block:1"):
        assert sample(text, where).drop.all(), text
    assert_distributed(rows(~sample("rate:1", where).drop), dict.fromkeys(rows(torch.eye(width) > 0), 1 / width))
    assert (~sample("patterns:1", where).drop).all(1).sum() == (2000 if width == 1 else 0)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_rmm_may_hide_everything(width: int) -> None:
    drop = sample("rmm:0.3", layout([50] * 400, width)).drop
    expected: dict[Hashable, float] = {
        hidden: math.prod(0.3 if one else 0.7 for one in hidden)
        for hidden in itertools.product((False, True), repeat=width)
    }
    assert_distributed(rows(drop), expected)


@pytest.mark.parametrize(
    ("length", "share", "size"), [(7, 0.5, 4), (5, 0.5, 2), (6, 0.25, 2), (9, 0.1, 1), (1, 0.4, 0)]
)
def test_a_block_of_turns(length: int, share: float, size: int) -> None:
    where = layout([length] * 8000, 2)
    drop = sample(f"block:{share}", where).drop.view(8000, length, 2)
    assert size == round(share * length)
    starts = [tuple(first <= place < first + size for place in range(length)) for first in range(length - size + 1)]
    starts = starts[: len(starts) if size else 1]
    for column in range(2):
        assert_distributed(rows(drop[:, :, column]), {key: 1 / len(starts) for key in starts})
    pairs = [(first, second) for first in starts for second in starts]
    assert_distributed(
        [tuple(map(tuple, pair)) for pair in drop.transpose(1, 2).tolist()],
        {pair: 1 / len(pairs) for pair in pairs},
    )


def test_blocks_of_conversations_of_different_lengths() -> None:
    lengths = [1, 9, 4, 30, 2]
    drop = sample("block:0.5", layout(lengths, 3)).drop
    for own in drop.split(lengths):
        assert own.sum(0).tolist() == [round(0.5 * len(own))] * 3
        for column in own.unbind(1):
            hidden = column.nonzero().flatten()
            assert not len(hidden) or len(hidden) == hidden[-1] - hidden[0] + 1


# Steps


def counts_of(hidden: Tensor, counts: Sequence[int]) -> list[int]:
    return [int(part.sum()) for part in hidden.split(list(counts))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rmfm", dict.fromkeys(range(6), 1 / 6)),  # binomial with a uniform rate: uniform
        ("rmfm:0.3", binomial(5, 0.3)),
        ("rmfm-released", binomial(5, 0.5)),
        ("tmfm:0.3", binomial(5, 0.3)),
        ("stmfm:0.5", {2: 1.0}),
    ],
)
def test_number_of_hidden_steps(text: str, expected: dict[Hashable, float]) -> None:
    steps = {"text": [5] * 12_000, "audio": [5] * 12_000}
    hidden = sample(text, layout([12_000], 2, steps))
    assert not hidden.drop.any()
    for name in steps:
        assert_distributed(counts_of(hidden.steps[name], steps[name]), expected)
    # The same law, with turns as steps.
    drop = sample(text, layout([5] * 12_000, 2)).drop
    for column in range(2):
        assert_distributed(counts_of(drop[:, column], [5] * 12_000), expected)


@pytest.mark.parametrize("text", ["rmfm", "rmfm:0.5", "rmfm-released"])
def test_modalities_lose_different_steps(text: str) -> None:
    steps = {"text": [2] * 20_000, "audio": [2] * 20_000}
    hidden = sample(text, layout([20_000], 2, steps)).steps
    pairs = zip(*(counts_of(hidden[name], steps[name]) for name in steps), strict=True)
    own = {0: 1 / 3, 1: 1 / 3, 2: 1 / 3} if text == "rmfm" else {0: 0.25, 1: 0.5, 2: 0.25}
    assert_distributed(pairs, {(i, j): own[i] * own[j] for i in own for j in own})


@pytest.mark.parametrize("text", ["tmfm:0.5", "stmfm:0.4"])
def test_modalities_lose_the_same_steps(text: str) -> None:
    counts = [0, 1, 5, 12, 3] * 20
    steps = {"text": counts, "visual": counts}
    hidden = sample(text, layout([50, 50], 4, steps))
    assert torch.equal(hidden.steps["text"], hidden.steps["visual"])
    assert torch.equal(hidden.drop[:, 1], hidden.drop[:, 3])
    assert 20 < int(hidden.drop[:, 1].sum()) < 80
    assert not hidden.drop[:, [0, 2]].any()
    # A model without the other sequence loses the same steps and turns.
    without = sample(text, layout([50, 50], 2, {"text": counts}))
    assert torch.equal(without.steps["text"], hidden.steps["text"])
    assert torch.equal(without.drop[:, 1], hidden.drop[:, 1])


def test_a_block_of_steps_starts_anywhere() -> None:
    counts = [5] * 9000
    hidden = sample("stmfm:0.4", layout([9000], 1, {"text": counts})).steps["text"].view(-1, 5)
    starts = [tuple(first <= place < first + 2 for place in range(5)) for first in range(4)]
    assert_distributed(rows(hidden), dict.fromkeys(starts, 0.25))


@pytest.mark.parametrize("text", ["tmfm:0.5", "stmfm:0.4"])
def test_unaligned_sequences_share_relative_times(text: str) -> None:
    longer, shorter = [12, 8, 0, 3, 7] * 10, [4, 0, 0, 3, 5] * 10
    hidden = sample(text, layout([50], 2, {"text": longer, "audio": shorter})).steps
    parts = zip(hidden["text"].split(longer), hidden["audio"].split(shorter), strict=True)
    for long, short in parts:
        assert short.tolist() == [bool(long[place * len(long) // len(short)]) for place in range(len(short))]
    assert hidden["audio"].any()
    assert not hidden["audio"].all()


# What holes do not depend on


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_order_of_modalities_has_no_influence(text: str) -> None:
    batch = random_batch((3, 20, 7), absent=0.2, steps={"audio": 6}, seed=2)
    order = [2, 0, 1]
    names = [batch.modalities[column] for column in order]
    swapped = replace(
        batch,
        features={name: batch.features[name] for name in names},
        available=batch.available[:, order],
        sequences=dict(batch.sequences),
    )
    first = draw(parse(text), batch, torch.Generator().manual_seed(3))
    second = draw(parse(text), swapped, torch.Generator().manual_seed(3))
    assert torch.equal(first.drop[:, order], second.drop)
    assert first.steps.keys() == second.steps.keys()
    assert all(torch.equal(first.steps[name], second.steps[name]) for name in first.steps)


@pytest.mark.parametrize("text", EXAMPLES)
def test_draws_repeat_and_use_the_global_generator(text: str) -> None:
    batch = random_batch((3, 20, 7), absent=0.2, steps={"audio": 6}, seed=2)
    torch.manual_seed(5)
    first = draw(parse(text), batch)
    state = torch.get_rng_state()
    # A law makes the same draws whatever is available: the random numbers after it are the same.
    torch.manual_seed(5)
    draw(parse(text), replace(batch, available=~batch.available))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = draw(parse(text), batch)
    assert torch.equal(first.drop, again.drop)
    assert all(torch.equal(first.steps[name], again.steps[name]) for name in first.steps)
    assert torch.equal(draw(parse(text), batch, torch.Generator().manual_seed(5)).drop, first.drop)


@pytest.mark.parametrize("text", EXAMPLES)
@pytest.mark.parametrize("steps", [{}, {"audio": 4}, {"text": 3, "audio": 3, "visual": 3}], ids=["0", "1", "3"])
def test_laws_only_hide(text: str, steps: dict[str, int]) -> None:
    batch = random_batch((1, 30, 8, 60), absent=0.4, steps=steps, seed=4)
    hidden = draw(parse(text), batch, torch.Generator().manual_seed(0))
    changed = batch.hide(hidden.drop, hidden.steps)
    assert torch.equal(changed.available, batch.available)
    assert not (changed.present & ~batch.present).any()
    if LAWS[text.partition(":")[0]].keeps_one:
        there = batch.present.clone()
        for name, stored in batch.sequences.items():
            there[:, batch.column(name)] &= stored.offsets.diff() > 0
        assert torch.equal((changed.present & there).any(1), there.any(1))
        assert 0 < int(there.any(1).sum()) < batch.num_utterances


def test_values_hidden_before_count_as_not_available() -> None:
    batch = random_batch((40,), seed=1)
    drop = torch.zeros_like(batch.available)
    drop[:, 0] = True
    hidden = batch.hide(drop)
    again = hidden.hide(draw(parse("rate:1"), hidden, torch.Generator().manual_seed(0)).drop)
    assert again.present.sum(1).tolist() == [1] * 40
    assert not again.present[:, 0].any()


def test_larger_rates_hide_more_with_the_same_numbers() -> None:
    where = layout([100], 3)
    for name in ("rate", "rmm", "patterns", "rmfm", "tmfm"):
        smaller, larger = (sample(f"{name}:{rate}", where).drop for rate in (0.3, 0.6))
        assert (smaller <= larger).all(), name
        assert smaller.sum() < larger.sum()


def test_streams_keep_modalities_independent_of_others() -> None:
    def generator(stream: str) -> torch.Generator:
        return torch.Generator().manual_seed(sum(stream.encode()))

    for text in ("rmm:0.5", "rmfm", "block:0.5", "rmfm-released"):
        both, one = (draw(parse(text), layout([30, 4], width), generator).drop for width in (3, 1))
        assert torch.equal(both[:, :1], one), text
        assert not torch.equal(both[:, 1:2], one), text


def test_laws_are_checked_before_drawing() -> None:
    batch = random_batch((4,))
    with pytest.raises(ConfigError, match=r"no modality 'gait' here, only text, audio, visual"):
        draw(parse("pattern:gait"), batch)
    with pytest.raises(ConfigError, match=r"rate must be from 0 to 1, found nan"):
        draw(Rate(math.nan), batch)
    with pytest.raises(ConfigError, match=r"rate must be from 0 to 1, found none"):
        draw(Block(), batch)


def test_own_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ercfusion.config.missing_laws.LAWS", dict(LAWS))

    def after(law: AfterTurns, where: Layout, draws: Draws) -> Hidden:
        late = where.packing.position >= law.turns
        return Hidden((late & (draws(where.packing.total, "late") < 1))[:, None].expand(where.available.shape))

    @law("after_turns")
    @dataclass(frozen=True)
    class AfterTurns(Law):
        """Everything after the first turns is hidden."""

        function = staticmethod(after)
        turns: float = setting(None, "complete turns", low=0)

    drop = sample("after_turns:2", layout([1, 4], 2)).drop
    assert drop.tolist() == [[False] * 2] * 3 + [[True] * 2] * 2


def test_order_of_columns() -> None:
    assert in_order(("visual", "text", "audio")) == ["text", "audio", "visual"]
    assert list(layout([2], 3).vectors) == [0, 1, 2]


# Batches


def test_hidden_steps_shorten_sequences() -> None:
    batch = random_batch((3, 5), steps={"audio": 6}, seed=3)
    stored = batch.sequences["audio"]
    counts = stored.offsets.diff().tolist()
    assert 0 in counts
    generator = torch.Generator().manual_seed(1)
    hidden = torch.rand(len(stored.values), generator=generator) < 0.5
    hidden[: counts[0]] = True
    none = torch.zeros_like(batch.available)
    shorter = batch.hide(none, {"audio": hidden})
    means, before, after = shorter.features["audio"], stored.values.split(counts), shorter.sequences["audio"]
    kept = [~part for part in hidden.split(counts)]
    pieces = after.values.split(after.offsets.diff().tolist())
    places = after.places.split(after.offsets.diff().tolist())
    for row, (values, left) in enumerate(zip(before, kept, strict=True)):
        assert torch.equal(pieces[row], values[left])
        assert places[row].tolist() == left.nonzero().flatten().tolist()
        emptied = bool(len(left)) and not left.any()
        assert bool(shorter.present[row, 1]) == (bool(batch.present[row, 1]) and not emptied)
        if left.all():
            assert torch.equal(means[row], batch.features["audio"][row])
        elif left.any():
            torch.testing.assert_close(means[row], values[left].mean(0))
    assert not shorter.present[0, 1]
    assert batch.present[0, 1]
    # Nothing else changes, and nothing in the old batch.
    assert torch.equal(shorter.features["text"], batch.features["text"])
    assert torch.equal(shorter.available, batch.available)
    assert len(batch.sequences["audio"].values) == len(hidden)
    assert batch.sequences["audio"].positions is None
    assert stored.places.tolist() == [place for count in counts for place in range(count)]
    # A second time: places are still those of the complete sequence.
    twice = shorter.hide(none, {"audio": torch.arange(len(after.values)) % 2 == 0})
    assert torch.equal(twice.sequences["audio"].places, after.places[1::2])


def test_hiding_no_step_changes_nothing() -> None:
    batch = random_batch((3, 5), steps={"audio": 6}, absent=0.2, seed=3)
    steps = {"audio": torch.zeros(len(batch.sequences["audio"].values), dtype=torch.bool)}
    same = batch.hide(torch.zeros_like(batch.available), steps)
    assert torch.equal(same.present, batch.present)
    for name in batch.modalities:
        assert same.values(name).equal(batch.values(name))
    assert torch.equal(same.sequences["audio"].offsets, batch.sequences["audio"].offsets)
    assert torch.equal(same.sequences["audio"].places, batch.sequences["audio"].places)


@pytest.mark.parametrize("content", [math.nan, math.inf, 1e30])
def test_hidden_steps_do_not_reach_means_or_gradients(content: float) -> None:
    batch = random_batch((3, 5), steps={"audio": 6}, seed=3)
    stored = batch.sequences["audio"]
    hidden = torch.arange(len(stored.values)) % 3 != 0
    spoiled = torch.where(hidden[:, None], content, stored.values).requires_grad_()
    changed = replace(batch, sequences={"audio": replace(stored, values=spoiled)})
    none = torch.zeros_like(batch.available)
    shorter, expected = changed.hide(none, {"audio": hidden}), batch.hide(none, {"audio": hidden})
    assert torch.equal(shorter.values("audio").detach(), expected.values("audio"))
    assert torch.equal(shorter.sequence("audio").values.detach(), expected.sequence("audio").values)
    (shorter.values("audio").sum() + shorter.sequence("audio").values.square().sum()).backward()
    assert spoiled.grad is not None
    assert spoiled.grad.isfinite().all()
    assert not spoiled.grad[hidden].any()


def test_copies_keep_positions() -> None:
    batch = random_batch((3, 5), steps={"audio": 6}, seed=3)
    hidden = torch.arange(len(batch.sequences["audio"].values)) % 2 == 0
    shorter = batch.hide(torch.zeros_like(batch.available), {"audio": hidden})
    places = shorter.sequences["audio"].places
    for copied in (shorter.to("cpu"), shorter.map_tensors(Tensor.clone)):
        assert torch.equal(copied.sequences["audio"].places, places)
        assert copied.sequences["audio"].positions is not None
        assert torch.equal(copied.sequence("audio").places, places)
    moved = shorter.to("meta").sequences["audio"].positions
    assert moved is not None
    assert moved.device.type == "meta"
    assert batch.sequence("text").places.tolist() == [0] * 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batches_keep_positions() -> None:
    batch = random_batch((3, 5), steps={"audio": 6}, seed=3)
    hidden = torch.arange(len(batch.sequences["audio"].values)) % 2 == 0
    pinned = batch.hide(torch.zeros_like(batch.available), {"audio": hidden}).pin_memory()
    positions = pinned.sequences["audio"].positions
    assert positions is not None
    assert positions.is_pinned()
    on_device = pinned.to("cuda")
    for text in EXAMPLES:
        expected, drawn = (draw(parse(text), one, torch.Generator().manual_seed(1)) for one in (pinned, on_device))
        assert torch.equal(drawn.drop.cpu(), expected.drop)
        assert all(torch.equal(drawn.steps[name].cpu(), expected.steps[name]) for name in expected.steps)


def test_wrong_steps() -> None:
    batch = random_batch((3, 5), steps={"audio": 6}, seed=3)
    none, size = torch.zeros_like(batch.available), len(batch.sequences["audio"].values)
    with pytest.raises(
        BatchError, match=r"steps of 'text' cannot be hidden: it has one vector per utterance. Use drop"
    ):
        batch.hide(none, {"text": torch.zeros(8, dtype=torch.bool)})
    with pytest.raises(BatchError, match=r"no modality 'adio'.*Did you mean 'audio'"):
        batch.hide(none, {"adio": torch.zeros(size, dtype=torch.bool)})
    with pytest.raises(BatchError, match=rf"must be bool of shape \({size},\), found torch.bool \(3,\). Give one"):
        batch.hide(none, {"audio": torch.zeros(3, dtype=torch.bool)})
    with pytest.raises(BatchError, match=r"found torch.float32"):
        batch.hide(none, {"audio": torch.zeros(size)})
