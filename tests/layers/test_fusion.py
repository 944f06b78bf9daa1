from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ercfusion.batch.packing import Packing
from ercfusion.layers import fusion
from ercfusion.layers.fusion import ConcatFusion, FusionAttention, GatedFusion, ModalityDropout


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# FusionAttention


def attention_by_hand(
    layer: FusionAttention, main: Tensor, others: list[Tensor], lengths: tuple[int, ...], present: Tensor | None
) -> Tensor:
    """One conversation, one stream, one head and one query after the other."""
    D, K, H = main.shape[1], layer.others, layer.heads
    d = D // H
    weight, bias = layer.read_main.weight, layer.read_main.bias
    rows = []
    first = 0
    for n in lengths:
        text = main[first : first + n]
        here = torch.ones(n, K, dtype=torch.bool) if present is None else present[first : first + n]
        found = []
        for m in range(K):
            other = others[m][first : first + n]
            q = text @ weight[m * D : (m + 1) * D].t() + bias[m * D : (m + 1) * D]
            k = other @ layer.read_other[m][:, :D]
            if layer.values == "main":
                v = text @ weight[(K + m) * D : (K + m + 1) * D].t() + bias[(K + m) * D : (K + m + 1) * D]
            else:
                assert layer.value_bias is not None
                v = other @ layer.read_other[m][:, D:] + layer.value_bias[m]
            answers = []
            for i in range(n):
                keys = [j for j in range(n) if here[j, m] and (j <= i or not layer.causal)]
                if not keys:
                    answers.append(torch.zeros(D, dtype=main.dtype))
                    continue
                parts = []
                for h in range(H):
                    own = slice(h * d, (h + 1) * d)
                    score = torch.stack([q[i, own] @ k[j, own] / d**0.5 for j in keys]).softmax(0)
                    parts.append(sum(share * v[j, own] for share, j in zip(score, keys, strict=True)))
                answers.append(torch.cat(parts) @ layer.out[m] + layer.out_bias[m, 0])  # type: ignore[arg-type]
            found.append(torch.stack(answers))
        fused = torch.cat([*found, text], 1) @ layer.fuse.weight.t() + layer.fuse.bias
        rows.append(fused if layer.scale is None else text + layer.scale * fused)
        first += n
    return torch.cat(rows)


def make(values: str = "main", others: int = 2, **options: bool) -> FusionAttention:
    layer = FusionAttention(6, others, 2, 0.0, values=values, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("presence", ["all", "some", "none of one"])
@pytest.mark.parametrize("lengths", [(3, 1, 5), (4, 4), (5,), (1,)])
@pytest.mark.parametrize(
    ("values", "others", "options"),
    [
        ("main", 2, {}),
        ("other", 2, {}),
        ("main", 1, {"residual": True}),
        ("main", 3, {"causal": True}),
        ("other", 2, {"causal": True, "residual": True}),
    ],
)
def test_attention_equals_the_loops(
    values: str,
    others: int,
    options: dict[str, bool],
    lengths: tuple[int, ...],
    presence: str,
    one_by_one: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fusion, "LONG", 1 if one_by_one else 1000)
    layer = make(values, others, **options)
    N = sum(lengths)
    inputs = [torch.randn(N, 6, dtype=torch.float64, requires_grad=True) for _ in range(others + 1)]
    present = None
    if presence != "all":
        present = torch.rand(N, others) < 0.6
        present[: lengths[0], 0] &= presence == "some"
    found = layer(inputs[0], inputs[1:], Packing(lengths), present)
    expected = attention_by_hand(layer, inputs[0], inputs[1:], lengths, present)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(expected)
    wanted = [*inputs, *layer.parameters()]
    left = torch.autograd.grad((found * weight).sum(), wanted, materialize_grads=True, allow_unused=True)
    right = torch.autograd.grad((expected * weight).sum(), wanted, materialize_grads=True, allow_unused=True)
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_attention_equals_torch() -> None:
    """torch's own multi-head attention under the same weights, where keys and values are what the paper says."""
    layer = make(others=1)
    oracle = nn.MultiheadAttention(6, 2, batch_first=True).double()
    with torch.no_grad():
        query, value = layer.read_main.weight.split(6)
        oracle.in_proj_weight.copy_(torch.cat([query, layer.read_other[0].t(), value]))
        oracle.in_proj_bias.copy_(
            torch.cat([layer.read_main.bias[:6], torch.zeros(6, dtype=torch.float64), layer.read_main.bias[6:]])
        )
        oracle.out_proj.weight.copy_(layer.out[0].t())
        oracle.out_proj.bias.copy_(layer.out_bias[0, 0])
    packing = Packing((5, 2, 4))
    text, sound = (torch.randn(11, 6, dtype=torch.float64) for _ in range(2))
    T, A = packing.pad(text), packing.pad(sound)
    heard = packing.pack(oracle(T, A, T, key_padding_mask=~packing.mask, need_weights=False)[0])
    expected = layer.fuse(torch.cat([heard, text], 1))
    torch.testing.assert_close(layer(text, [sound], packing), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("values", ["main", "other"])
def test_absent_content_reaches_nothing(values: str) -> None:
    layer = make(values)
    packing = Packing((4, 3))
    main, *others = (torch.randn(7, 6, dtype=torch.float64) for _ in range(3))
    present = torch.tensor([[True, False]] * 4 + [[False, False], [True, True], [True, False]])
    others = [torch.where(present[:, m, None], other, torch.nan) for m, other in enumerate(others)]
    out = layer(main, others, packing, present)
    assert out.isfinite().all()
    out.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())
    # The first conversation has none of the second stream at all: what that MHA would add, its bias included, is gone.
    with torch.no_grad():
        layer.out_bias[1] += 1
    again = layer(main, others, packing, present)
    assert torch.equal(again[:4], out[:4])
    assert not torch.isclose(again[4:], out[4:]).all(1).any()


def test_long_and_short_paths_agree_at_the_real_threshold() -> None:
    layer = make().eval()
    lengths = (fusion.LONG + 5, 3, 20)
    packing = Packing(lengths)
    streams = [torch.randn(packing.total, 6, dtype=torch.float64) for _ in range(3)]
    together = layer(streams[0], streams[1:], packing)
    first = 0
    for n in lengths:
        alone = [stream[first : first + n] for stream in streams]
        torch.testing.assert_close(
            layer(alone[0], alone[1:], Packing([n])), together[first : first + n], rtol=1e-11, atol=1e-11
        )
        first += n


def test_attention_dropout_acts_in_training_only() -> None:
    layer = FusionAttention(6, 2, 2, 0.5)
    x = [torch.randn(5, 6) for _ in range(3)]
    packing = Packing((5,))
    assert not torch.equal(layer(x[0], x[1:], packing), layer(x[0], x[1:], packing))
    layer.eval()
    assert torch.equal(layer(x[0], x[1:], packing), layer(x[0], x[1:], packing))


def test_residual_starts_near_the_main_stream() -> None:
    layer = FusionAttention(32, 2, 4, residual=True).eval()
    x = [torch.randn(9, 32) for _ in range(3)]
    moved = layer(x[0], x[1:], Packing((5, 4))) - x[0]
    assert 0.005 < float(moved.detach().square().mean().sqrt()) < 0.2


def test_attention_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="width 6 is not a multiple of 4 heads"):
        FusionAttention(6, 2, 4)
    with pytest.raises(ValueError, match="others must be at least 1, found 0"):
        FusionAttention(6, 0, 2)
    with pytest.raises(ValueError, match="values must be 'main' or 'other', found 'text'"):
        FusionAttention(6, 1, 2, values="text")
    with pytest.raises(ValueError, match="built for 2 other streams, got 1"):
        make()(torch.zeros(3, 6), [torch.zeros(3, 6)], Packing((3,)))


# GatedFusion


def gates_by_hand(layer: GatedFusion, streams: list[Tensor], present: Tensor | None) -> Tensor:
    N, D = streams[0].shape
    M = len(streams)
    rows = []
    for i in range(N):
        here = [m for m in range(M) if present is None or present[i, m]]
        seen = torch.cat([streams[m][i] if m in here else torch.zeros(D, dtype=torch.float64) for m in range(M)])
        score = (layer.gate.weight @ seen + layer.gate.bias).view(M, -1)
        out = torch.zeros(D, dtype=torch.float64)
        for m in here:
            weight = score[m].sigmoid()
            if layer.norm == "softmax":
                weight = score[m].exp() / torch.stack([score[k].exp() for k in here]).sum(0)
            out = out + weight * streams[m][i]
        rows.append(out)
    return torch.stack(rows)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("norm", ["softmax", "sigmoid"])
@pytest.mark.parametrize("gate", ["scalar", "vector"])
@pytest.mark.parametrize("M", [1, 2, 4])
def test_gates_equal_the_loops(M: int, gate: str, norm: str, missing: bool) -> None:
    layer = GatedFusion(3, M, gate=gate, norm=norm, main=0, start=1.0).double()
    streams = [torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(M)]
    present = None
    if missing:
        present = torch.rand(6, M) < 0.6
        present[2] = False
    found, expected = layer(streams, present), gates_by_hand(layer, streams, present)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    weight = torch.randn_like(expected)
    wanted = [*streams, *layer.parameters()]
    left = torch.autograd.grad((found * weight).sum(), wanted, materialize_grads=True, allow_unused=True)
    right = torch.autograd.grad((expected * weight).sum(), wanted, materialize_grads=True, allow_unused=True)
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("norm", ["softmax", "sigmoid"])
def test_gates_start_towards_the_main_modality_and_know_who_is_absent(norm: str) -> None:
    layer = GatedFusion(4, 3, norm=norm, main=2, start=4.0)
    nn.init.zeros_(layer.gate.weight)
    streams = [torch.full((3, 4), torch.nan), torch.randn(3, 4), torch.randn(3, 4)]
    present = torch.tensor([[False, True, True], [False, True, False], [False, False, False]])
    weights = layer.weights(streams, present)
    assert weights.isfinite().all()
    assert (weights[0, 2] > 2 * weights[0, 1]).all()
    assert (weights[~present] == 0).all()
    if norm == "softmax":
        torch.testing.assert_close(weights.sum(1)[:2], torch.ones(2, 4))
    assert torch.equal(layer(streams, present)[2], torch.zeros(4))


def test_gates_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="gate must be 'scalar' or 'vector', found 'x'"):
        GatedFusion(4, 2, gate="x")
    with pytest.raises(ValueError, match="norm must be 'softmax' or 'sigmoid', found 'x'"):
        GatedFusion(4, 2, norm="x")
    with pytest.raises(ValueError, match="main must be -1 or one of 2 modalities, found 2"):
        GatedFusion(4, 2, main=2)


# ConcatFusion


@pytest.mark.parametrize("missing", [False, True])
def test_concatenation_equals_the_loops(missing: bool) -> None:
    widths = (3, 5, 2)
    layer = ConcatFusion(widths, 4, 6, dropout=0.0).double()
    nn.init.normal_(layer.absent)
    streams = [torch.randn(5, width, dtype=torch.float64) for width in widths]
    present = torch.rand(5, 3) < 0.5 if missing else None
    rows = []
    for i in range(5):
        parts = []
        for m in range(3):
            linear = layer.encoders[m][0]  # type: ignore[index]
            here = present is None or bool(present[i, m])
            parts.append((linear.weight @ streams[m][i] + linear.bias).relu() if here else layer.absent[m])
        rows.append((layer.fuse[0].weight @ torch.cat(parts) + layer.fuse[0].bias).relu())
    expected = torch.stack(rows)
    if present is not None:
        streams = [torch.where(present[:, m, None], x, torch.nan) for m, x in enumerate(streams)]
    found = layer(streams, present)
    torch.testing.assert_close(found, expected)
    wanted = list(layer.parameters())
    left = torch.autograd.grad(found.square().sum(), wanted, materialize_grads=True, allow_unused=True)
    right = torch.autograd.grad(expected.square().sum(), wanted, materialize_grads=True, allow_unused=True)
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


# ModalityDropout


def test_modality_dropout_hides_and_leaves_something() -> None:
    packing = Packing((400, 300, 300))
    present = torch.rand(1000, 3) < 0.8
    layer = ModalityDropout(0.3)
    left = layer(present, packing)
    assert not (left & ~present).any()
    assert torch.equal(left.any(1), present.any(1))
    three = present.all(1)
    share = left[three].float().mean(0)
    # 0.7, and all three where all would be hidden (0.3 ** 3)
    assert torch.allclose(share, torch.tensor(0.727), atol=0.06), share
    assert torch.equal(layer.eval()(present, packing), present)
    assert torch.equal(ModalityDropout(0.0)(present, packing), present)


def test_modality_dropout_spares_one_and_hides_in_whole_conversations() -> None:
    packing = Packing((5, 1, 3) * 30)
    present = torch.ones(packing.total, 3, dtype=torch.bool)
    left = ModalityDropout(0.5, conversations=True, spare=1)(present, packing)
    assert left[:, 1].all()
    for part in left.split(packing.lengths):
        assert (part == part[0]).all()
    assert 0.3 < float(left[:, 0].float().mean()) < 0.7
    with pytest.raises(ValueError, match=r"p must be from 0 to 1, found 1\.5"):
        ModalityDropout(1.5)


# Wrong shapes


PACKING = Packing([2, 3])
LAYERS = {
    "gated": (GatedFusion(4, 2), "streams"),
    "concat": (ConcatFusion((4, 4), 3, 4), "streams"),
    "attention": (FusionAttention(4, 2, 2), "others"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_wrong_shapes_are_named(name: str) -> None:
    layer, argument = LAYERS[name]

    def run(streams: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        if isinstance(layer, FusionAttention):
            return layer(torch.ones(5, 4), streams, PACKING, present)
        return layer(streams, present)

    x = torch.ones(5, 4)
    assert run([x, x], torch.ones(5, 2).bool()).shape == (5, 4)
    for streams, present, message in (
        ([torch.ones(2, 3, 4)] * 2, None, f"{argument} must be (N, d); found (2, 3, 4). Pack it with Packing(lengths)"),
        ([x, x[:, :3]], None, f"{argument} must have the widths (4, 4), found (4, 3)"),
        ([x, x[:4]], None, f"{argument} must have the same N; found [(5, 4), (4, 4)]"),
        ([x, x], torch.ones(5, 1).bool(), "present must be (N, M) = (5, 2) booleans; found (5, 1) of torch.bool"),
        ([x, x], torch.ones(5, 2), "present must be (N, M) = (5, 2) booleans; found (5, 2) of torch.float32"),
        ([x, x], torch.ones(2, 3, 2).bool(), "found (2, 3, 2) of torch.bool. Pack it with Packing(lengths).pack."),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            run(streams, present)


def test_fusion_attention_names_a_wrong_main_stream_or_packing() -> None:
    layer, x = FusionAttention(4, 1, 2), torch.ones(5, 4)
    with pytest.raises(ValueError, match=re.escape("main must be (N, d); found (2, 3, 4). Pack it with Packing(")):
        layer(torch.ones(2, 3, 4), [x], PACKING)
    with pytest.raises(ValueError, match=r"same N; found 5, 5 and 6\. Give Packing the lengths of this batch"):
        layer(x, [x], Packing([2, 4]))


@pytest.mark.parametrize("shape", [(4, 2), (2, 3, 2), (5,), ()])
@pytest.mark.parametrize("training", [True, False])
def test_modality_dropout_names_a_wrong_present(shape: tuple[int, ...], training: bool) -> None:
    layer = ModalityDropout(0.5).train(training)
    with pytest.raises(ValueError, match=re.escape(f"booleans; found {shape} of torch.bool")):
        layer(torch.ones(shape).bool(), PACKING)
    with pytest.raises(ValueError, match=re.escape("found (5, 2) of torch.float32")):
        layer(torch.ones(5, 2), PACKING)
