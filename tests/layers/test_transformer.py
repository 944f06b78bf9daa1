from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ercfusion.layers import PackedTransformer, PackedTransformerLayer, transformer
from ercfusion.ops import Packing


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def names_of(oracle: nn.TransformerEncoderLayer) -> dict[str, nn.Parameter]:
    """The parameters of torch's layer under the names of ours."""
    attention = oracle.self_attn
    return {
        "qkv.weight": attention.in_proj_weight,
        "qkv.bias": attention.in_proj_bias,
        "out.weight": attention.out_proj.weight,
        "out.bias": attention.out_proj.bias,
        "up.weight": oracle.linear1.weight,
        "up.bias": oracle.linear1.bias,
        "down.weight": oracle.linear2.weight,
        "down.bias": oracle.linear2.bias,
        "norm_attention.weight": oracle.norm1.weight,
        "norm_attention.bias": oracle.norm1.bias,
        "norm_feedforward.weight": oracle.norm2.weight,
        "norm_feedforward.bias": oracle.norm2.bias,
    }


def bias_by_hand(table: Tensor, packing: Packing, speaker: Tensor, lags: int) -> Tensor:
    """(B, H, L, L) from the (H, 2 (2 lags + 1)) table, pair by pair; zero where there is padding."""
    index = torch.zeros(packing.size, packing.longest, packing.longest, dtype=torch.long)
    for b, length in enumerate(packing.lengths):
        who = speaker.split(packing.lengths)[b]
        for t in range(length):
            for u in range(length):
                distance = min(lags, max(-lags, t - u))
                index[b, t, u] = lags + distance + (2 * lags + 1 if who[t] == who[u] else 0)
    return table[:, index].transpose(0, 1)


@pytest.mark.parametrize("lengths", [(3, 1, 6), (4, 4), (5,), (1,)])
@pytest.mark.parametrize(("causal", "lags"), [(False, 0), (True, 0), (False, 2), (True, 9)])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_equals_torch(
    one_by_one: bool,
    norm_first: bool,
    activation: str,
    causal: bool,
    lags: int,
    lengths: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transformer, "LONG", 1 if one_by_one else 1000)
    packing = Packing(lengths)
    layer = PackedTransformerLayer(
        8, 2, 12, dropout=0.0, norm_first=norm_first, activation=activation, causal=causal, lags=lags
    ).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    oracle = nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first
    ).double()
    matching: dict[str, Tensor] = dict(names_of(oracle))
    if lags:
        matching["bias.weight"] = torch.zeros(2, 2 * (2 * lags + 1), dtype=torch.float64, requires_grad=True)
    assert matching.keys() == dict(layer.named_parameters()).keys()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            matching[name].copy_(parameter)
    x = torch.randn(packing.total, 8, dtype=torch.float64)
    speaker = torch.randint(3, (packing.total,))
    weight = torch.randn(packing.total, 8, dtype=torch.float64)

    def expected(x: Tensor) -> Tensor:
        L = packing.longest
        mask = torch.zeros(packing.size, 2, L, L, dtype=torch.float64)
        if lags:
            mask = bias_by_hand(matching["bias.weight"], packing, speaker, lags)
        hidden = ~packing.mask[:, None, None, :]
        if causal:
            hidden = hidden | torch.ones(L, L, dtype=torch.bool).triu(1)
        return packing.pack(oracle(packing.pad(x), src_mask=mask.masked_fill(hidden, -math.inf).flatten(0, 1)))

    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, oracle_out = layer(ours, packing, speaker), expected(theirs)
    torch.testing.assert_close(out, oracle_out, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad((out * weight).sum(), [ours, *layer.parameters()])
    names = [name for name, _ in layer.named_parameters()]
    wanted = torch.autograd.grad((oracle_out * weight).sum(), [theirs, *(matching[name] for name in names)])
    for name, left, right in zip(["x", *names], found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


def test_a_fresh_bias_changes_nothing() -> None:
    x, packing, speaker = torch.randn(9, 8), Packing((5, 4)), torch.tensor([0, 1] * 4 + [0])
    torch.manual_seed(0)
    plain = PackedTransformer(2, 8, 2, 12).eval()
    torch.manual_seed(0)
    biased = PackedTransformer(2, 8, 2, 12, lags=3).eval()
    torch.testing.assert_close(biased(x, packing, speaker), plain(x, packing))
    with pytest.raises(ValueError, match="a layer with lags needs the speakers"):
        biased(x, packing)


@pytest.mark.parametrize("norm_first", [True, False])
def test_causal_ignores_the_future(norm_first: bool) -> None:
    packing = Packing((6, 4))
    stack = PackedTransformer(2, 8, 2, 12, norm_first=norm_first, causal=True).eval()
    x = torch.randn(packing.total, 8)
    changed = torch.where((packing.position > 2)[:, None], torch.randn_like(x), x)
    before, after = stack(x, packing), stack(changed, packing)
    past = packing.position <= 2
    assert torch.equal(before[past], after[past])
    assert not torch.equal(before[~past], after[~past])


def test_conversations_do_not_mix() -> None:
    packing = Packing((6, 4))
    stack = PackedTransformer(2, 8, 2, 12).eval()
    x = torch.randn(packing.total, 8)
    changed = torch.where((packing.conversation == 1)[:, None], torch.randn_like(x), x)
    before, after = stack(x, packing), stack(changed, packing)
    assert torch.equal(before[:6], after[:6])
    assert not torch.isclose(before[6:], after[6:]).all()


def test_stack() -> None:
    x = torch.randn(5, 8)
    packing = Packing((2, 3))
    assert torch.equal(PackedTransformer(0, 8, 2, 12)(x, packing), x)
    assert not list(PackedTransformer(0, 8, 2, 12).parameters())
    pre, post = (PackedTransformer(2, 8, 2, 12, norm_first=norm_first).eval() for norm_first in (True, False))
    by_hand = x
    for layer in pre.layers:
        by_hand = layer(by_hand, packing)
    torch.testing.assert_close(pre(x, packing), nn.functional.layer_norm(by_hand, (8,)))
    by_hand = x
    for layer in post.layers:
        by_hand = layer(by_hand, packing)
    assert torch.equal(post(x, packing), by_hand)


def test_dropout_only_in_training() -> None:
    layer = PackedTransformerLayer(8, 2, 12, dropout=0.5)
    x, packing = torch.randn(5, 8), Packing((5,))
    assert not torch.equal(layer(x, packing), layer(x, packing))
    layer.eval()
    assert torch.equal(layer(x, packing), layer(x, packing))


def test_errors() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of 4 heads"):
        PackedTransformerLayer(10, 4, 8)
    with pytest.raises(ValueError, match="activation must be"):
        PackedTransformerLayer(8, 4, 8, activation="tanh")


class Doubled(nn.Module):
    """In the place of a dropout: shows where it acts."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("norm_first", [False, True])
def test_where_dropout_acts(norm_first: bool) -> None:
    """On both branches, between the two layers of the feed-forward part, and on the attention weights."""
    packing = Packing((3, 1, 6))
    x = torch.randn(packing.total, 8)
    layer = PackedTransformerLayer(8, 2, 16, 0.0, norm_first=norm_first)

    def attend(y: Tensor) -> Tensor:
        return layer._attend(y, packing, None, None)

    def feed(y: Tensor) -> Tensor:
        return layer.down(2 * layer.activation(layer.up(y)))

    layer.dropout = Doubled()  # type: ignore[assignment]
    if norm_first:
        y = x + 2 * attend(layer.norm_attention(x))
        expected = y + 2 * feed(layer.norm_feedforward(y))
    else:
        y = layer.norm_attention(x + 2 * attend(x))
        expected = layer.norm_feedforward(y + 2 * feed(y))
    torch.testing.assert_close(layer(x, packing), expected)
    layer.dropout_rate = 0.5
    assert not torch.allclose(layer.train()(x, packing), expected)
    torch.testing.assert_close(layer.eval()(x, packing), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_rows_that_are_not_present_are_never_read(
    one_by_one: bool, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "LONG", 2 if one_by_one else 48)
    encoder = PackedTransformer(2, 8, 2, 12, 0.0, causal=causal).eval()
    present = torch.tensor([True, False, True, True, False, False, True, True])
    packing, x = Packing([4, 2, 2]), torch.randn(8, 8)
    result = encoder(x, packing, present=present)
    cut = Packing([3, 2])  # without the rows that are absent
    torch.testing.assert_close(result[present], encoder(x[present], cut))
    other = torch.where(present[:, None], x, torch.randn(8, 8))
    torch.testing.assert_close(encoder(other, packing, present=present)[present], result[present])
    # Each of the others attends to itself, and to the present ones of its conversation.
    torch.testing.assert_close(result[4:5], encoder(x[4:5], Packing([1])))
    assert not torch.allclose(result[1], encoder(x[1:2], Packing([1]))[0])
