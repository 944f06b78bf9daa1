"""Tensor fusion and its low-rank form, against loops over utterances and elements."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from ercfusion.layers.tensor_fusion import LowRankFusion, TensorFusion, low_rank_fusion_reference
from ercfusion.ops.tensor_fusion import (
    Grouping,
    choose_grouping,
    element_keep,
    outer_rows,
    tensor_fusion,
    tensor_fusion_reference,
)

WIDTHS = {1: (5,), 2: (3, 4), 3: (2, 5, 3), 4: (2, 1, 3, 2)}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def vectors(widths: Sequence[int], N: int) -> list[Tensor]:
    return [torch.randn(N, width, dtype=torch.float64, requires_grad=True) for width in widths]


def elements(widths: Sequence[int]) -> int:
    return math.prod(width + 1 for width in widths)


def value_and_gradients(run: Callable[[], Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
    value = run()
    weights = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value).sin()
    return [value, *torch.autograd.grad((value * weights).sum(), wanted)]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert right.abs().max() > 0
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def groupings(M: int) -> list[Grouping]:
    return [Grouping(split) for split in range(M)] + [Grouping(split, True) for split in range(1, M)]


# The contraction


@pytest.mark.parametrize("M", WIDTHS)
@pytest.mark.parametrize("N", [1, 7])
@pytest.mark.parametrize("temporary", [1, 300, 10**6])
def test_contraction_equals_the_loop(M: int, N: int, temporary: int) -> None:
    """In every grouping; in chunks of one utterance, of some that do not divide N, and all at once."""
    H = 4
    z = vectors(WIDTHS[M], N)
    weight = torch.randn(H, elements(WIDTHS[M]), dtype=torch.float64, requires_grad=True)
    expected = value_and_gradients(lambda: tensor_fusion_reference(z, weight), [*z, weight])
    for grouping in groupings(M):
        found = value_and_gradients(lambda g=grouping: tensor_fusion(z, weight, g, temporary=temporary), [*z, weight])
        assert_same(found, expected)


@pytest.mark.parametrize("M", WIDTHS)
@pytest.mark.parametrize("temporary", [1, 400, 10**6])
def test_masked_contraction_equals_the_loop_with_the_same_mask(M: int, temporary: int) -> None:
    H, N, p, seed = 3, 5, 0.4, 2**40 + 12345
    z = vectors(WIDTHS[M], N)
    K = elements(WIDTHS[M])
    weight = torch.randn(H, K, dtype=torch.float64, requires_grad=True)
    keep = element_keep(seed, range(N), range(K), p).double() / (1 - p)
    expected = value_and_gradients(lambda: tensor_fusion_reference(z, weight, keep=keep), [*z, weight])
    found = value_and_gradients(
        lambda: tensor_fusion(z, weight, element_dropout=p, seed=seed, temporary=temporary), [*z, weight]
    )
    assert_same(found, expected)


def test_chunks_do_not_divide() -> None:
    """What the two tests above rely on: that their sizes do give chunks, and a last one that is shorter."""
    from ercfusion.ops import tensor_fusion as module

    G, R, H = 24, 3, 4
    assert 300 // (G + R + 2 * H * R) not in (0, 1, 7)
    chunks = list(module._masked_chunks(vectors(WIDTHS[3], 300), 5_000))
    assert [len(chunk.rows) for chunk in chunks] == [128, 128, 44]
    assert len(list(chunks[0].tiles)) == R


def test_only_wanted_gradients() -> None:
    z = vectors(WIDTHS[3], 3)
    weight = torch.randn(4, elements(WIDTHS[3]), dtype=torch.float64)
    for grouping in (Grouping(1), Grouping(2, True)):
        expected = torch.autograd.grad(tensor_fusion_reference(z, weight).sum(), z)
        found = torch.autograd.grad(tensor_fusion(z, weight, grouping).sum(), z)
        assert_same(found, expected)
        fixed = [vector.detach() for vector in z]
        trained = weight.clone().requires_grad_()
        (found,) = torch.autograd.grad(tensor_fusion(fixed, trained, grouping).sum(), trained)
        (expected,) = torch.autograd.grad(tensor_fusion_reference(fixed, trained).sum(), trained)
        assert_same([found], [expected])


def test_no_utterances() -> None:
    z = vectors(WIDTHS[2], 0)
    weight = torch.randn(4, elements(WIDTHS[2]), dtype=torch.float64, requires_grad=True)
    for p in (0.0, 0.5):
        value = tensor_fusion(z, weight, element_dropout=p)
        assert value.shape == (0, 4)
        assert torch.equal(torch.autograd.grad(value.sum(), weight)[0], torch.zeros_like(weight))


def test_layout_is_that_of_the_written_out_tensor() -> None:
    """Element (i, j, k) of the tensor is z1[i] z2[j] z3[k], with a one in front of each, k fastest."""
    z = vectors(WIDTHS[3], 1)
    K = elements(WIDTHS[3])
    row = outer_rows([torch.cat([vector.new_ones(1, 1), vector], 1) for vector in z], z[0])[0]
    ones = [[1.0, *vector[0].tolist()] for vector in z]
    for number, (left, middle, right) in enumerate(itertools.product(*ones)):
        assert row[number].item() == pytest.approx(left * middle * right)
    torch.testing.assert_close(tensor_fusion(z, torch.eye(K, dtype=torch.float64))[0], row)


def test_grouping_by_cost() -> None:
    # The narrow modality is left, the product of the wide ones is summed over.
    assert choose_grouping((33, 129, 33), 64) == Grouping(1)
    assert choose_grouping((129, 129, 129), 64) == Grouping(1)
    # A narrow last modality: summing over it alone would make sums of three terms and a wide intermediate.
    assert choose_grouping((129, 3), 16) == Grouping(1, leading=True)
    assert choose_grouping((129, 33, 3), 64).leading
    # Many outputs, small vectors: the tensor itself is smaller than any intermediate.
    assert choose_grouping((5, 5), 64) == Grouping(0)
    assert choose_grouping((9,), 64) == Grouping(0)
    # A weight too large to be rearranged.
    assert not choose_grouping((513, 257, 3), 256).leading


# Dropout of single elements


def test_keep_is_a_function_of_the_place() -> None:
    whole = element_keep(7, range(40), range(1000), 0.3)
    assert torch.equal(element_keep(7, range(5, 17), range(300, 420), 0.3), whole[5:17, 300:420])
    assert not torch.equal(element_keep(8, range(40), range(1000), 0.3), whole)
    assert not torch.equal(element_keep(7 + 2**32, range(40), range(1000), 0.3), whole)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_keep_is_as_good_as_independent_draws(p: float) -> None:
    """Rates of rows, columns and all; agreement of neighbours and of rows; no repetition from one seed to the next."""
    rows, columns = 512, 2048
    keep = element_keep(123, range(rows), range(columns), p).double()
    n = rows * columns
    spread = math.sqrt(p * (1 - p))
    assert abs(keep.mean() - (1 - p)) < 5 * spread / math.sqrt(n)
    for dim, size in ((0, rows), (1, columns)):
        means = keep.mean(dim)
        # The variance of the means is that of independent draws, within its own spread.
        ratio = means.var() / (p * (1 - p) / size)
        assert abs(ratio - 1) < 5 * math.sqrt(2 / len(means))
    centred = (keep - (1 - p)) / spread
    other = (element_keep(124, range(rows), range(columns), p).double() - (1 - p)) / spread
    pairs = [
        (centred[:, 1:], centred[:, :-1]),
        (centred[1:], centred[:-1]),
        (centred[:, 2:], centred[:, :-2]),
        (centred[:, 64:], centred[:, :-64]),
        (centred[256:], centred[:-256]),
        (centred, other),
    ]
    for left, right in pairs:
        assert abs((left * right).mean()) < 5 / math.sqrt(left.numel())
    correlation = centred @ centred.t() / columns
    assert (correlation - torch.eye(rows)).fill_diagonal_(0).abs().max() < 6.5 / math.sqrt(columns)


def test_element_dropout_has_the_distribution_of_dropout_on_the_tensor() -> None:
    layer = TensorFusion((3, 2), 2, dropout=0.3, dropout_form="element").double()
    z = [vector.detach() for vector in vectors((3, 2), 1)]
    copies = 20_000
    many = [vector.expand(copies, -1) for vector in z]
    plain = nn.Dropout(0.3)
    with torch.no_grad():
        tensor = outer_rows([torch.cat([vector.new_ones(copies, 1), vector], 1) for vector in many], many[0])
        expected = plain(tensor) @ layer.weight.t() + layer.bias
        found = layer(many)
    exact = layer.eval()(z)[0]
    spread = expected.std(0)
    for sample in (found, expected):
        assert ((sample.mean(0) - exact).abs() < 5 * spread / math.sqrt(copies)).all()
    assert ((found.std(0) / spread - 1).abs() < 0.03).all()
    quantiles = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    difference = found.quantile(quantiles, 0) - expected.quantile(quantiles, 0)
    assert (difference.abs() < 0.05 * spread).all()


# The layer


@pytest.mark.parametrize("form", ["factor", "element"])
def test_layer_equals_its_naive_form_with_the_same_dropout(form: str) -> None:
    layer = TensorFusion(WIDTHS[3], 4, dropout=0.4, dropout_form=form, absent="learned").double()
    assert layer.absent is not None
    for vector in layer.absent:
        nn.init.normal_(vector)
    z = vectors(WIDTHS[3], 9)
    present = torch.rand(9, 3) < 0.7
    for training in (True, False):
        layer.train(training)
        results = []
        for naive in (True, False):
            layer.naive = naive
            torch.manual_seed(3)
            results.append(value_and_gradients(lambda: layer(z, present), [*z, *layer.parameters()]))
        assert_same(*results)


def test_checkpoints_fit_either_form() -> None:
    layer, plain = TensorFusion(WIDTHS[4], 3).double(), nn.Linear(elements(WIDTHS[4]), 3).double()
    layer.load_state_dict(plain.state_dict())
    z = vectors(WIDTHS[4], 4)
    tensor = outer_rows([torch.cat([vector.new_ones(4, 1), vector], 1) for vector in z], z[0])
    torch.testing.assert_close(layer(z), plain(tensor), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["tensor", "low rank"])
def test_absent_is_one_and_zeros(kind: str) -> None:
    layer: nn.Module = TensorFusion((3, 2), 2) if kind == "tensor" else LowRankFusion((3, 2), 2, 3)
    layer.double()
    z = vectors((3, 2), 4)
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    zeroed = [torch.where(present[:, m, None], vector, 0.0) for m, vector in enumerate(z)]
    expected = layer(zeroed)
    torch.testing.assert_close(layer(z, present), expected)
    spoiled = [torch.where(present[:, m, None], vector, math.nan) for m, vector in enumerate(z)]
    assert torch.equal(layer(spoiled, present), layer(z, present))
    gradients = torch.autograd.grad(layer(z, present).sum(), z)
    for m, gradient in enumerate(gradients):
        assert not gradient[~present[:, m]].any()
        assert gradient[present[:, m]].any()
    # Terms of the present modality alone stay: utterance 1 is a linear function of [1; z_1].
    if isinstance(layer, TensorFusion):
        alone = layer.weight.view(2, 4, 3)[:, :, 0]
        value = alone @ torch.cat([z[0].new_ones(1), z[0][1]]) + layer.bias
        torch.testing.assert_close(layer(z, present)[1], value)


def test_factor_dropout_keeps_the_ones_and_the_expectation() -> None:
    layer = TensorFusion((3, 2), 2, dropout=0.5).double()
    z = [vector.detach() for vector in vectors((3, 2), 1)]
    many = [vector.expand(40_000, -1) for vector in z]
    with torch.no_grad():
        sample = layer(many)
        assert ((sample.mean(0) - layer.eval()(z)[0]).abs() < 5 * sample.std(0) / 200).all()
        layer.train()
        nn.init.zeros_(layer.weight)
        layer.weight[:, 0] = 1.0  # the product of the ones alone
        torch.testing.assert_close(layer(many), (1 + layer.bias).expand(40_000, -1))


def test_kept_for_the_backward_pass_are_the_inputs_alone() -> None:
    layer = TensorFusion((8, 16, 8), 32)
    z = [torch.randn(50, width, requires_grad=True) for width in layer.widths]
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    for form, p in (("factor", 0.0), ("element", 0.5)):
        layer.dropout_form, layer.dropout = form, p
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layer(z)
        own = {tensor.data_ptr() for tensor in (*z, layer.weight)}
        assert {tensor.data_ptr() for tensor in kept} == own


@pytest.mark.parametrize("kind", ["tensor", "low rank"])
def test_half_precision_around_it_does_not_reach_the_products(kind: str) -> None:
    """Factors of 300 each: their product of three is beyond what half precision holds."""
    layer: nn.Module = TensorFusion((2, 2, 2), 3) if kind == "tensor" else LowRankFusion((2, 2, 2), 3, 2)
    z = [torch.full((4, 2), 300.0) for _ in range(3)]
    with torch.autocast("cpu", torch.float16):
        found = layer([vector.half() for vector in z])
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    expected = layer(z).detach()
    largest = float(expected.abs().max())
    assert largest > 65_504
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * largest)


def test_compiles() -> None:
    layer = TensorFusion((3, 4, 2), 5, dropout=0.3).eval()
    compiled = torch.compile(layer, backend="eager")
    for N in (6, 1, 9):
        z = [torch.randn(N, width) for width in layer.widths]
        torch.testing.assert_close(compiled(z), layer(z))
    torch.compiler.reset()


# Low rank


@pytest.mark.parametrize("M", WIDTHS)
@pytest.mark.parametrize("N", [1, 6])
def test_low_rank_equals_the_loop(M: int, N: int) -> None:
    layer = LowRankFusion(WIDTHS[M], 4, 3).double()
    nn.init.normal_(layer.bias)
    z = vectors(WIDTHS[M], N)
    parameters = list(layer.parameters())
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias", *(f"factors.{m}" for m in range(M))}
    found = value_and_gradients(lambda: layer(z), [*z, *parameters])
    expected = value_and_gradients(
        lambda: low_rank_fusion_reference(z, list(layer.factors), layer.weight, layer.bias), [*z, *parameters]
    )
    assert_same(found, expected)


def test_low_rank_is_tensor_fusion_with_a_low_rank_weight() -> None:
    layer = LowRankFusion((2, 3, 2), 2, 4).double()
    first, second, third = layer.factors
    weight = torch.einsum("r,roi,roj,rok->oijk", layer.weight, first, second, third).flatten(1)
    z = vectors((2, 3, 2), 5)
    torch.testing.assert_close(layer(z), tensor_fusion(z, weight) + layer.bias, rtol=1e-10, atol=1e-10)


# Wrong arguments


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TensorFusion((), 2), "widths must name 1 to 4 modalities, found 0"),
        (lambda: TensorFusion((1,) * 5, 2), "found 5"),
        (lambda: TensorFusion((2, 0), 2), "widths must be at least 1, found 0"),
        (lambda: TensorFusion((2,), 0), "out_features must be at least 1"),
        (lambda: TensorFusion((2,), 2, dropout=1.0), "dropout must be at least 0 and below 1, found 1"),
        (lambda: TensorFusion((2,), 2, dropout_form="row"), "dropout_form .* found 'row'"),
        (lambda: TensorFusion((2,), 2, absent="mean"), "absent .* found 'mean'"),
        (lambda: TensorFusion((2, 3), 2)([torch.ones(1, 2), torch.ones(1, 4)]), r"\(2, 3\), found \(2, 4\)"),
        (lambda: LowRankFusion((2,), 2, 0), "rank must be at least 1, found 0"),
        (lambda: LowRankFusion((), 2, 1), "widths must name at least 1"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("kind", ["tensor", "low rank"])
def test_wrong_shapes_are_named(kind: str) -> None:
    layer: nn.Module = TensorFusion((2, 3), 2) if kind == "tensor" else LowRankFusion((2, 3), 2, 2)
    padded, packed = [torch.ones(8, 9, width) for width in (2, 3)], [torch.ones(5, width) for width in (2, 3)]
    for z, present, message in (
        (padded, None, "z must be (N, d); found (8, 9, 2). Pack it with Packing(lengths).pack."),
        (packed[0], None, "z must be (N, d); found (2,). Pass a list of one tensor per modality."),
        (packed[:1], None, "z must have the widths (2, 3), found (2,)"),
        ([packed[0], packed[1][:4]], None, "z must have the same N; found [(5, 2), (4, 3)]"),
        (packed, torch.ones(5, 3).bool(), "present must be (N, M) = (5, 2) booleans; found (5, 3) of torch.bool. Use"),
        (packed, torch.ones(5, 2), "present must be (N, M) = (5, 2) booleans; found (5, 2) of torch.float32. Use"),
        (packed, torch.ones(8, 9, 2).bool(), "found (8, 9, 2) of torch.bool. Pack it with Packing(lengths).pack."),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            layer(z, present)
