"""Contrastive, triplet and spread losses against plain loops, in values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ercfusion.losses import (
    LabelContrast,
    MemoryQueue,
    _common,
    adaptive_margins,
    adaptive_triplet_loss,
    contrastive,
    covariance_loss,
    inter_class_contrastive,
    label_classes,
    label_contrastive,
    log_sums,
    rank_n_contrast,
    supervised_contrastive,
    triplet,
    triplet_loss,
    variance_loss,
)
from ercfusion.losses import reference as loops

MININGS = ("hard", "all", "active")
Loss = Callable[..., tuple[Tensor, Tensor]]


def vectors_and_labels(number: int = 15, width: int = 5) -> tuple[Tensor, Tensor]:
    """Random ones; one class has a single utterance."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(number, width, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 4, (number,), generator=generator)
    labels[2] = 6
    return vectors, labels


def memory() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    held = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return held / held.norm(dim=1, keepdim=True), torch.tensor([0, 1, 2, 3, 6, 6, 9])


def assert_equal(found: tuple[Tensor, Tensor], expected: Tensor, vectors: Tensor) -> None:
    value = found[0] / found[1]
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(each, vectors)[0] for each in (value, expected)]
    assert gradients[1].abs().max() > 1e-4
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


# Contrast


@pytest.mark.parametrize("chunk", [contrastive._ENTRIES, 40])
@pytest.mark.parametrize("held", [None, memory()], ids=["batch", "queue"])
@pytest.mark.parametrize("include_lonely", [False, True])
@pytest.mark.parametrize("others_only", [False, True])
def test_contrast_equals_the_loop(
    others_only: bool,
    include_lonely: bool,
    held: tuple[Tensor, Tensor] | None,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contrastive, "_ENTRIES", chunk)
    vectors, labels = vectors_and_labels()
    loss = inter_class_contrastive if others_only else supervised_contrastive
    settings: dict[str, Any] = {"temperature": 0.2, "include_lonely": include_lonely, "memory": held}
    expected = loops.contrastive_reference(
        vectors, labels, 0.2, others_only=others_only, include_lonely=include_lonely, memory=held
    )
    assert_equal(loss(vectors, labels, **settings), expected, vectors)
    if held is None:  # the lonely utterance counts, or does not
        assert float(loss(vectors, labels, **settings)[1]) == (15 if include_lonely else 14)


@pytest.mark.parametrize("temperature", [0.2, 0.02])
@pytest.mark.parametrize("tile", [(256, 1024), (2, 4)])
@pytest.mark.parametrize("held", [None, memory()], ids=["batch", "queue"])
@pytest.mark.parametrize("include_lonely", [False, True])
def test_contrast_of_all_anchors_equals_the_loop(
    include_lonely: bool,
    held: tuple[Tensor, Tensor] | None,
    tile: tuple[int, int],
    temperature: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the lower temperature, exponentials without a maximum would overflow in float32."""
    monkeypatch.setattr(log_sums, "_ROWS", tile[0])
    monkeypatch.setattr(log_sums, "_COLUMNS", tile[1])
    vectors, labels = vectors_and_labels()
    settings: dict[str, Any] = {"temperature": temperature, "include_lonely": include_lonely, "memory": held}
    expected = loops.contrastive_reference(
        vectors, labels, temperature, include_lonely=include_lonely, memory=held, anchors="all"
    )
    found = supervised_contrastive(vectors, labels, anchors="all", **settings)
    torch.testing.assert_close(supervised_contrastive(vectors, labels, anchors="all", classes=10, **settings), found)
    assert_equal(found, expected, vectors)
    if include_lonely:
        assert float(found[1]) == 15 + (7 if held else 0)


@pytest.mark.parametrize("number", [1, 2, 700])
def test_tiles_equal_one_large_product(number: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (number, number + number // 2)]
    vectors, fixed = (_common.unit(each) for each in rows)
    vectors.requires_grad_()
    if number == 1:
        fixed = fixed[:0]
    whole = torch.cat([vectors, fixed])
    found = log_sums.log_sums(vectors, fixed, 0.07)
    weights = torch.randn(len(whole), generator=generator, dtype=torch.float64)
    if number == 1:
        assert found.tolist() == [0.0]
        assert (torch.autograd.grad(found.sum(), vectors)[0] == 0).all()
        return
    expected = (whole @ whole.t() / 0.07).masked_fill(torch.eye(len(whole), dtype=torch.bool), -torch.inf).logsumexp(1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((each * weights).sum(), vectors)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_single_precision_keeps_its_digits_at_the_lowest_temperature() -> None:
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for dtype in (torch.float64, torch.float32):
        own = _common.unit(vectors.to(dtype)).requires_grad_()
        found = log_sums.log_sums(own, own.detach()[:0], log_sums.LOWEST_TEMPERATURE)
        results.append((found.detach().double(), torch.autograd.grad(found.sum(), own)[0].double()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("anchors", ["all", "batch"])
@pytest.mark.parametrize("held", [None, memory()], ids=["batch", "queue"])
def test_label_contrast_equals_the_loop(held: tuple[Tensor, Tensor] | None, anchors: str) -> None:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(4, 2, 3, 2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([[True, False], [True, True], [False, False], [True, False]])
    expected = loops.label_contrastive_reference(latents, positive, 0.2, memory=held, anchors=anchors)
    found = label_contrastive(latents, positive, temperature=0.2, memory=held, anchors=anchors)
    assert_equal(found, expected, latents)
    valid = torch.tensor([True, False, True, True])
    spoilt = latents.where(valid[:, None, None, None, None], torch.nan)
    expected = loops.label_contrastive_reference(latents[valid], positive[valid], 0.2, memory=held, anchors=anchors)
    found = label_contrastive(spoilt, positive, temperature=0.2, memory=held, anchors=anchors, valid=valid)
    assert_equal(found, expected, latents)


def test_label_classes_tell_modality_polarity_and_label() -> None:
    classes = label_classes(torch.tensor([[True, False, False]]), 2)
    assert classes.tolist() == [[[3, 1, 2], [9, 7, 8]]]
    both = torch.tensor([[True, True], [False, False]])
    assert sorted(label_classes(both, 3).flatten().tolist()) == list(range(12))


def test_the_label_queue_is_filled_in_training_only_and_continues() -> None:
    generator = torch.Generator().manual_seed(3)
    positive = torch.rand(4, 2, generator=generator) < 0.5
    steps = [torch.randn(4, 1, 3, 2, 5, generator=generator) for _ in range(3)]
    contrast, other = LabelContrast(5, queue=40), LabelContrast(5, queue=40)
    alone = float(LabelContrast(5, queue=0)(steps[0], positive))
    assert float(contrast.eval()(steps[0], positive)) == alone
    assert float(contrast.train()(steps[0], positive)) == alone  # an empty queue has no keys
    queue = contrast.queue
    assert queue is not None
    assert int(queue.filled) == 24
    torch.testing.assert_close(queue.content()[0], _common.unit(steps[0].flatten(0, 3)))
    assert torch.equal(queue.content()[1], label_classes(positive, 3).flatten())
    valid = torch.tensor([True, False, True, False])
    contrast(steps[1], positive, valid)
    assert int(queue.filled) == 36
    other.load_state_dict(contrast.state_dict())
    assert torch.equal(contrast(steps[2], positive), other(steps[2], positive))
    for name, value in contrast.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert int(queue.filled) == 40
    assert not torch.equal(contrast.eval()(steps[2], positive), torch.tensor(alone))
    assert float(contrast(steps[2], positive, torch.zeros(4, dtype=torch.bool))) == 0


def test_inter_class_contrast_does_not_push_positives_apart() -> None:
    """Where one positive is close already, the usual denominator pushes it away in favour of the other one."""
    anchor = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    held = (torch.eye(3, dtype=torch.float64), torch.tensor([0, 0, 1]))
    slopes = {}
    for loss in (supervised_contrastive, inter_class_contrastive):
        total, _ = loss(anchor, torch.tensor([0]), temperature=0.5, normalize=False, memory=held)
        slopes[loss] = torch.autograd.grad(total, anchor)[0][0]
    # The gradient is a weighted sum of the three keys: below 0 is drawn nearer, above 0 is pushed away.
    assert slopes[supervised_contrastive][0] > 0.9
    assert slopes[inter_class_contrastive].tolist() == pytest.approx([-1.0, -1.0, 2.0])


def test_queue_is_first_in_first_out_and_part_of_the_state() -> None:
    queue = MemoryQueue(4, 2)
    assert len(queue.content()[0]) == 0
    rows = torch.arange(12.0).view(6, 2)
    queue.push(rows[:3], torch.tensor([0, 1, 2]))
    held = queue.content()
    torch.testing.assert_close(held[0], rows[:3])
    queue.push(rows[3:5], torch.tensor([3, 4]))
    torch.testing.assert_close(queue.content()[0], rows[[3, 4, 0, 1]])
    assert queue.content()[1].tolist() == [3, 4, 0, 1]
    assert held[1].tolist() == [0, 1, 2]  # what was read before does not change
    other = MemoryQueue(4, 2)
    other.load_state_dict(queue.state_dict())
    torch.testing.assert_close(other.content(), queue.content())
    queue.push(torch.arange(14.0).view(7, 2), torch.arange(7))  # more than it holds
    assert queue.content()[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="size must be at least 1, found 0"):
        MemoryQueue(0, 2)


# Ranks


@pytest.mark.parametrize("targets", [(15, 1), (15, 2)])
@pytest.mark.parametrize("tied", [True, False])
def test_rank_n_contrast_equals_the_loop(targets: tuple[int, int], tied: bool) -> None:
    vectors, _ = vectors_and_labels()
    generator = torch.Generator().manual_seed(5)
    numbers = torch.rand(targets, generator=generator, dtype=torch.float64) * 4
    numbers = numbers.floor() if tied else numbers
    found = rank_n_contrast(vectors, numbers, temperature=1.5)
    assert float(found[1]) == 15 * 14
    assert_equal(found, loops.rank_n_contrast_reference(vectors, numbers, 1.5), vectors)


def test_rank_n_contrast_prefers_the_order_of_the_numbers() -> None:
    numbers = torch.arange(6.0)[:, None]
    sorted_, shuffled = (float(rank_n_contrast(numbers[order], numbers)[0]) for order in (range(6), [3, 0, 5, 1, 4, 2]))
    assert sorted_ < shuffled


# Triplets


@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.7])
def test_triplets_equal_the_loop(mining: str, margin: float) -> None:
    vectors, labels = vectors_and_labels()
    found = triplet_loss(vectors, labels, mining=mining, margin=margin)
    assert_equal(found, loops.triplet_reference(vectors, labels, mining=mining, margin=margin), vectors)


@pytest.mark.parametrize("entries", [triplet._ENTRIES, 500])
@pytest.mark.parametrize("form", [{}, {"scale": 0.3}, {"literal": True}, {"literal": True, "hinge": False}])
@pytest.mark.parametrize("mining", MININGS)
def test_adaptive_triplets_equal_the_loop(
    mining: str, form: dict[str, Any], entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triplet, "_ENTRIES", entries)
    vectors, labels = vectors_and_labels(11)
    found = adaptive_triplet_loss(vectors, labels, mining=mining, **form)
    assert_equal(found, loops.triplet_reference(vectors, labels, mining=mining, **form), vectors)


def test_triplets_of_plain_vectors() -> None:
    vectors = torch.tensor([[0.0], [3.0], [4.0], [10.0]])
    labels = torch.tensor([0, 0, 1, 1])
    # (3, 4), (3, 1), (6, 1), (6, 7): anchor by anchor the farthest positive and the closest negative.
    total, count = triplet_loss(vectors, labels, margin=2.0, normalize=False)
    assert (float(total), float(count)) == ((3 - 4 + 2) + (3 - 1 + 2) + (6 - 1 + 2) + (6 - 7 + 2), 4)


def stationary(slope: Callable[[Tensor], Tensor]) -> float:
    """Where a slope changes its sign between 0 and 1."""
    low, high = 0.0, 1.0
    sign = float(slope(torch.tensor(low, dtype=torch.float64))) > 0
    for _ in range(50):
        middle = (low + high) / 2
        if (float(slope(torch.tensor(middle, dtype=torch.float64))) > 0) == sign:
            low = middle
        else:
            high = middle
    return low


def test_the_published_margins_are_degenerate() -> None:
    """What the documentation says of ``literal=True``."""

    def slope(of: str) -> Callable[[Tensor], Tensor]:
        def at(distance: Tensor) -> Tensor:
            distance = distance.requires_grad_()
            other = torch.zeros((), dtype=torch.float64)
            if of == "positive":
                loss = triplet._adaptive(distance, other, other, scale=1.0, literal=True, hinge=False)
            else:
                loss = triplet._adaptive(other, distance, other, scale=1.0, literal=True, hinge=False)
            return torch.autograd.grad(loss, distance)[0]

        return at

    assert stationary(slope("positive")) == pytest.approx(math.log(8) / 4, abs=1e-6)
    assert stationary(slope("negative")) == pytest.approx(1 - math.log(16) / 4, abs=1e-6)
    assert float(slope("positive")(torch.tensor(0.3, dtype=torch.float64))) < 0  # pushed apart
    assert float(slope("negative")(torch.tensor(0.5, dtype=torch.float64))) > 0  # pulled together
    grid = torch.linspace(0, 1, 41, dtype=torch.float64)
    ap, an = torch.meshgrid(grid, grid, indexing="ij")
    # The hinge never closes, not even for the best of all triplets.
    assert (triplet._adaptive(ap, an, torch.ones_like(ap), scale=1.0, literal=True, hinge=False) > 1).all()
    assert float(adaptive_margins(torch.tensor(0.5), torch.tensor(2.0))) > 100


def test_the_default_margins_are_sound() -> None:
    grid = torch.linspace(0, 1, 41, dtype=torch.float64)
    ap, an = torch.meshgrid(grid, grid, indexing="ij")
    margins = 0.1 * adaptive_margins(ap, an)
    assert float(margins.min()) > 0.2
    assert float(margins.max()) <= 0.6
    assert (margins.diff(dim=0) < 0).all()  # larger for closer positives
    assert (margins.diff(dim=1) > 0).all()  # and for farther negatives
    loss = triplet._adaptive(ap, an, an, scale=0.1, literal=False, hinge=True)
    assert (loss[0, -1] == 0).all()  # a perfect triplet is left alone
    # Positives are only ever pulled, negatives only ever pushed.
    ap, an = ap.clone().requires_grad_(), an.clone().requires_grad_()
    loss = triplet._adaptive(ap, an, an.detach(), scale=0.1, literal=False, hinge=True)
    toward, away = torch.autograd.grad(loss.sum(), (ap, an))
    assert (toward >= 0).all()
    assert (away <= 0).all()
    assert toward.max() > 0 > away.min()


# Spread


def test_variance_and_covariance_equal_the_loops() -> None:
    vectors, _ = vectors_and_labels()
    assert_equal(variance_loss(vectors, target=1.3), loops.variance_reference(vectors, 1.3), vectors)
    assert_equal(covariance_loss(vectors), loops.covariance_reference(vectors), vectors)


def test_spread_of_known_vectors() -> None:
    spread = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]])
    for loss in (variance_loss, covariance_loss):
        assert float(loss(spread)[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(variance_loss(torch.ones(3, 2))[0] / 3) == pytest.approx(1 - 0.01)
    line = spread[:, :1].repeat(1, 2)
    assert float(covariance_loss(line)[0] / 4) == pytest.approx((16 / 3) ** 2)
    # On the unit sphere of many dimensions the variance term cannot be met, whatever the vectors.
    sphere = torch.nn.functional.normalize(torch.randn(400, 300, generator=torch.Generator().manual_seed(0)))
    assert float(variance_loss(sphere)[0] / 400) > 0.9


# All of them

LABELLED: dict[str, Loss] = {
    "supcon": supervised_contrastive,
    "supcon of all": lambda x, y, **more: supervised_contrastive(x, y, anchors="all", **more),
    "inter_class": inter_class_contrastive,
    **{f"triplet {mining}": lambda x, y, m=mining, **more: triplet_loss(x, y, mining=m, **more) for mining in MININGS},
    **{
        f"adaptive {mining}": lambda x, y, m=mining, **more: adaptive_triplet_loss(x, y, mining=m, **more)
        for mining in MININGS
    },
    "literal": lambda x, y, **more: adaptive_triplet_loss(x, y, literal=True, hinge=False, **more),
    "rank": lambda x, y, **more: rank_n_contrast(x, y[:, None].to(x.dtype), **more),
    "variance": lambda x, y, **more: variance_loss(x, **more),
    "covariance": lambda x, y, **more: covariance_loss(x, **more),
}


@pytest.mark.parametrize("name", LABELLED)
def test_only_valid_rows_count(name: str) -> None:
    vectors, labels = vectors_and_labels()
    valid = torch.arange(15) % 4 != 1
    spoilt = torch.where(valid[:, None], vectors, torch.nan)
    found = LABELLED[name](spoilt, labels.where(valid, -5), valid=valid)
    torch.testing.assert_close(found, LABELLED[name](vectors[valid], labels[valid]))
    (gradient,) = torch.autograd.grad(found[0], vectors)
    assert gradient.isfinite().all()
    assert (gradient[~valid] == 0).all()


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", LABELLED)
def test_nothing_to_compare_gives_zero_and_zero_gradients(name: str, number: int) -> None:
    """An empty batch, one utterance, and two of different classes; every parameter must still get a gradient."""
    vectors = torch.randn(number, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    total, count = LABELLED[name](vectors, torch.arange(number))
    (gradient,) = torch.autograd.grad(total, vectors)
    assert gradient.isfinite().all()
    if number < 2 or name not in ("rank", "variance", "covariance"):
        assert (float(total.detach()), float(count)) == (0.0, 0.0)
        assert (gradient == 0).all()


@pytest.mark.parametrize("name", LABELLED)
def test_equal_and_zero_vectors_give_finite_gradients(name: str) -> None:
    vectors = torch.ones(6, 3)
    vectors[4:] = 0.0
    vectors.requires_grad_()
    total, count = LABELLED[name](vectors, torch.tensor([0, 0, 1, 1, 0, 1]))
    (gradient,) = torch.autograd.grad(total / count.clamp(min=1), vectors)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LABELLED)
def test_autocast_changes_nothing_but_the_input(name: str, dtype: torch.dtype) -> None:
    vectors, labels = vectors_and_labels()
    half = (20 * vectors.detach()).to(dtype).requires_grad_()
    plain = half.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        found = LABELLED[name](half, labels)
    expected = LABELLED[name](plain, labels)
    torch.testing.assert_close(found, expected)
    assert found[0].dtype == torch.float32
    gradients = [torch.autograd.grad(total, x)[0] for total, x in ((found[0], half), (expected[0], plain))]
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(
        gradients[0].float(), gradients[1], rtol=2e-2, atol=1e-2 * float(gradients[1].abs().max())
    )


@pytest.mark.parametrize("name", [name for name in LABELLED if name not in ("variance", "covariance")])
def test_the_order_of_the_utterances_does_not_matter(name: str) -> None:
    vectors, labels = vectors_and_labels()
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(LABELLED[name](vectors[order], labels[order]), LABELLED[name](vectors, labels))


def test_values_out_of_range_are_named() -> None:
    vectors, labels = vectors_and_labels()
    for loss in (supervised_contrastive, inter_class_contrastive):
        with pytest.raises(ValueError, match="temperature must be above 0, found 0"):
            loss(vectors, labels, temperature=0)
    with pytest.raises(ValueError, match="mining must be one of hard, all, active; found 'semi'"):
        triplet_loss(vectors, labels, mining="semi")
    with pytest.raises(ValueError, match="margin must be at least 0, found -1"):
        triplet_loss(vectors, labels, margin=-1)
    with pytest.raises(ValueError, match="hinge=False goes with literal=True only"):
        adaptive_triplet_loss(vectors, labels, hinge=False)
    with pytest.raises(ValueError, match="scale must be above 0, found 0"):
        adaptive_triplet_loss(vectors, labels, scale=0)
    with pytest.raises(ValueError, match=r"expected vectors \(N, D\) and labels \(N\), found \(15, 5\) and \(4,\)"):
        supervised_contrastive(vectors, labels[:4])
    with pytest.raises(ValueError, match="anchors must be one of batch, all; found 'queue'"):
        supervised_contrastive(vectors, labels, anchors="queue")
    with pytest.raises(ValueError, match="anchors must be one of batch, all; found 'queue'"):
        LabelContrast(5, anchors="queue")
    with pytest.raises(ValueError, match=r"latents \(N, S, M, C, Z\) and positive \(N, C\), found \(15, 5\)"):
        label_contrastive(vectors, labels)
    with pytest.raises(ValueError, match=r"expected vectors \(N, D\) and targets \(N, K\)"):
        rank_n_contrast(vectors, labels)
    with pytest.raises(ValueError, match="target must be above 0"):
        variance_loss(vectors, target=0)


def test_distances_of_far_away_points_keep_their_digits() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]) + 1000
    expected = torch.tensor([[0.0, 5, 0], [5, 0, 5], [0, 5, 0]])
    torch.testing.assert_close(_common.distances(points), expected, rtol=1e-5, atol=2e-3)
