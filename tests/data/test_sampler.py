from __future__ import annotations

import random
from typing import Any

import pytest

from ercfusion.data.curriculum import PACINGS, Curriculum
from ercfusion.data.sampler import POOL, ConversationSampler, mix_seed


def lengths(count: int, seed: int = 0) -> list[int]:
    chance = random.Random(seed)
    return [chance.randint(1, 30) for _ in range(count)]


def epoch(sampler: ConversationSampler, number: int = 0) -> list[list[int]]:
    sampler.set_epoch(number)
    return list(sampler)


@pytest.mark.parametrize("length_aware", [True, False])
@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 16), (7, 3), (48, 16), (50, 16), (200, 4)])
def test_every_conversation_is_seen_once_an_epoch(count: int, batch_size: int, length_aware: bool) -> None:
    sampler = ConversationSampler(lengths(count), batch_size, seed=1, length_aware=length_aware)
    for number in range(3):
        batches = epoch(sampler, number)
        assert sorted(index for batch in batches for index in batch) == list(range(count))
        assert len(batches) == len(sampler) == -(-count // batch_size)
        assert sorted(map(len, batches), reverse=True)[:-1] == [batch_size] * (len(batches) - 1)


@pytest.mark.parametrize("length_aware", [True, False])
def test_seed_and_epoch_alone_decide(length_aware: bool) -> None:
    def made(seed: int) -> ConversationSampler:
        return ConversationSampler(lengths(60), 8, seed, length_aware=length_aware)

    fresh, used = made(3), made(3)
    list(used)
    epoch(used, 5)
    assert epoch(fresh, 2) == epoch(used, 2) == epoch(used, 2)
    assert epoch(made(3), 2) != epoch(made(3), 3)
    assert epoch(made(3), 2) != epoch(made(4), 2)
    # Not a renumbering either: epoch 1 of seed 0 is not epoch 0 of seed 1.
    assert epoch(made(0), 1) != epoch(made(1), 0)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(("count", "batch_size"), [(60, 6), (61, 6), (62, 6), (7, 3), (10, 7), (3, 3), (9, 4), (1, 4)])
def test_processes_share_the_batches_of_one(count: int, batch_size: int, world_size: int) -> None:
    def made(rank: int, size: int) -> ConversationSampler:
        return ConversationSampler(lengths(count), batch_size, 7, rank=rank, world_size=size)

    whole = epoch(made(0, 1), 4)
    shares = [epoch(made(rank, world_size), 4) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(whole)}
    assert {len(made(rank, world_size)) for rank in range(world_size)} == {len(whole)}
    for batch, *parts in zip(whole, *shares, strict=True):
        # Dealt out in turn, so that the order of one process can be restored.
        assert [parts[place % world_size][place // world_size] for place in range(len(batch))] == batch
        assert sum(map(len, parts)) == len(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def padded_over_real(batches: list[list[int]], sizes: list[int]) -> float:
    padded = sum(len(batch) * max(sizes[index] for index in batch) for batch in batches)
    return padded / sum(sizes)


def test_length_aware_batches_waste_little_padding() -> None:
    sizes = lengths(1000)
    aware = ConversationSampler(sizes, 16, 0, length_aware=True)
    unaware = ConversationSampler(sizes, 16, 0, length_aware=False)
    ratios = [[padded_over_real(epoch(sampler, number), sizes) for number in range(3)] for sampler in (aware, unaware)]
    assert max(ratios[0]) < 1.25
    assert min(ratios[1]) > 1.7


def test_length_aware_batches_stay_random() -> None:
    sizes = lengths(POOL * 8 * 2)
    sampler = ConversationSampler(sizes, 8, 0)
    batches = [epoch(sampler, number) for number in range(20)]
    partners = {index for epochs in batches for batch in epochs if 0 in batch for index in batch}
    assert len(partners) > 30  # not the same neighbours in length, epoch after epoch
    first = [sizes[epochs[0][0]] for epochs in batches]
    assert max(first) - min(first) > 10  # nor short conversations first


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (1, 2)])
def test_too_few_conversations_for_the_processes(batch_size: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"{world_size} processes need at least as many .* not {batch_size}"):
        ConversationSampler([3] * 5, batch_size, world_size=world_size)


def test_a_split_without_conversations() -> None:
    with pytest.raises(ValueError, match="no conversations"):
        ConversationSampler([], 4)


def test_mixed_seeds_are_unrelated() -> None:
    seeds = {mix_seed(seed, number) for seed in range(40) for number in range(40)}
    assert len(seeds) == 1600
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(1, 2) != mix_seed(2, 1) != mix_seed(2, 1, 0)
    assert mix_seed(-1) != mix_seed(1)
    # Each bit is set in about half of them.
    for bit in range(63):
        assert 600 < sum(seed >> bit & 1 for seed in seeds) < 1000


# Fewer batches and fewer steps


def test_a_limit_takes_the_first_batches_of_an_epoch() -> None:
    for limit, expected in ((2, 2), (99, 13), (0.5, 6), (1.0, 13), (0.001, 1), (None, 13)):
        sampler = ConversationSampler(lengths(50), 4, 1, limit=limit)
        whole = ConversationSampler(lengths(50), 4, 1)
        for number in range(3):
            assert epoch(sampler, number) == epoch(whole, number)[:expected]
            assert len(sampler) == expected
        assert sampler.steps(3) == 3 * expected
    shares = [ConversationSampler(lengths(50), 4, 1, limit=2, rank=rank, world_size=2) for rank in range(2)]
    assert [len(epoch(share)) for share in shares] == [2, 2]


def test_steps_of_accumulated_batches() -> None:
    sampler = ConversationSampler(lengths(50), 4, 1)  # 13 batches
    assert [sampler.steps(2, batches) for batches in (1, 2, 5, 13, 20)] == [26, 14, 6, 2, 2]
    paced = curriculum(31, buckets=3)
    sampler = ConversationSampler(lengths(31), 4, 1, curriculum=paced, limit=5)
    counts = [min(5, -(-paced.count(number) // 4)) for number in range(6)]
    assert len(set(counts)) > 1
    assert sampler.steps(6, 2) == sum(-(-count // 2) for count in counts)


# Curricula


def curriculum(count: int, **settings: Any) -> Curriculum:
    order = list(range(count))
    random.Random(count).shuffle(order)
    return Curriculum(tuple(map(str, range(count))), (0.5,) * count, tuple(order), **settings)


@pytest.mark.parametrize("length_aware", [True, False])
@pytest.mark.parametrize("pacing", PACINGS)
def test_an_epoch_uses_its_part_of_the_curriculum(pacing: str, length_aware: bool) -> None:
    paced = curriculum(43, buckets=5, pacing=pacing, epochs_per_bucket=2)
    settings: Any = {"seed": 3, "length_aware": length_aware}
    sampler = ConversationSampler(lengths(43), 4, **settings, curriculum=paced)
    plain = ConversationSampler(lengths(43), 4, **settings)
    total = 0
    for number in (*range(14), 3):  # in any order: nothing is remembered
        batches = epoch(sampler, number)
        assert sorted(index for batch in batches for index in batch) == paced.conversations(number)
        assert len(batches) == len(sampler) == -(-paced.count(number) // 4)
        assert sorted(map(len, batches), reverse=True)[:-1] == [4] * (len(batches) - 1)
        assert sampler.steps(number) + len(batches) == sampler.steps(number + 1)
        if number >= paced.full_from:
            assert batches == epoch(plain, number)
            total += 1
    assert total >= 4
    assert sampler.steps(0) == 0
    assert plain.steps(7) == 7 * 11


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("pacing", PACINGS)
def test_processes_share_the_batches_of_a_curriculum(pacing: str, world_size: int) -> None:
    paced = curriculum(31, buckets=6, pacing=pacing)

    def share(rank: int, size: int, number: int) -> list[list[int]]:
        sampler = ConversationSampler(lengths(31), 6, 7, rank=rank, world_size=size, curriculum=paced)
        batches = epoch(sampler, number)
        assert len(batches) == len(sampler)
        return batches

    for number in range(8):
        shares = [share(rank, world_size, number) for rank in range(world_size)]
        joined = [sorted(index for part in parts for index in part) for parts in zip(*shares, strict=True)]
        assert joined == [sorted(batch) for batch in share(0, 1, number)]


def test_curricula_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="a curriculum of 5 conversations for a split of 6"):
        ConversationSampler([3] * 6, 2, curriculum=curriculum(5, buckets=2))
