"""Bridge tokens against one token, one head and one step after the other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.layers import BridgeTokenFusion
from ercfusion.layers.bridge import TokenAttention

D = 6


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer.double().eval()


def read_by_hand(layer: TokenAttention, tokens: Tensor, steps: Tensor, there: Tensor | None) -> Tensor:
    H, d = layer.heads, D // layer.heads
    rows = []
    for n in range(len(tokens)):
        keys = [layer.null, *(steps[n, t] for t in range(steps.shape[1]) if there is None or there[n, t])]
        for token in tokens[n]:
            q = layer.query.weight @ token + layer.query.bias
            mixed = []
            for h in range(H):
                part = slice(h * d, (h + 1) * d)
                scores = torch.stack([q[part] @ (layer.key.weight @ key)[part] / math.sqrt(d) for key in keys])
                values = torch.stack([(layer.value.weight @ key + layer.value.bias)[part] for key in keys])
                weights = scores.exp() / scores.exp().sum()
                mixed.append((weights[:, None] * values).sum(0))
            rows.append(layer.out.weight @ torch.cat(mixed) + layer.out.bias)
    return torch.stack(rows).view(tokens.shape)


def fused_by_hand(layer: BridgeTokenFusion, streams: list[Tensor], there: list[Tensor | None]) -> Tensor:
    tokens = torch.stack([layer.tokens] * len(streams[0]))
    for block in layer.layers:
        if block.among_tokens is not None:
            asking = F.layer_norm(tokens, (D,), block.norm_tokens.weight, block.norm_tokens.bias)
            tokens = tokens + read_by_hand(block.among_tokens, asking, asking, None)
        asking = F.layer_norm(tokens, (D,), block.norm_read.weight, block.norm_read.bias)
        total = torch.zeros_like(tokens)
        for read, steps, mask in zip(block.read, streams, there, strict=True):
            total = total + read_by_hand(read, asking, steps, mask)
        tokens = tokens + total / len(streams)
        x = F.layer_norm(tokens, (D,), block.norm_feedforward.weight, block.norm_feedforward.bias)
        tokens = tokens + F.gelu(x @ block.up.weight.t() + block.up.bias) @ block.down.weight.t() + block.down.bias
    return F.layer_norm(tokens, (D,), layer.norm.weight, layer.norm.bias)


@pytest.mark.parametrize("token_attention", [False, True])
@pytest.mark.parametrize("modalities", [1, 3])
def test_values_and_gradients(modalities: int, token_attention: bool) -> None:
    layer = BridgeTokenFusion(
        D, modalities, tokens=3, layers=2, heads=2, feedforward=5, dropout=0.5, token_attention=token_attention
    )
    random(layer)
    streams = [torch.randn(4, steps, D, dtype=torch.float64, requires_grad=True) for steps in (1, 3, 5)[:modalities]]
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False], [False, False, False]])
    there: list[Tensor | None] = [None, mask, None][:modalities]
    inputs = [*streams, *layer.parameters()]
    probe = torch.randn(4, 3, D, dtype=torch.float64)
    result = layer(streams, there)
    expected = fused_by_hand(layer, streams, there)
    assert result.shape == (4, 3, D)
    assert expected.std() > 0.1
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)
    ours = torch.autograd.grad((result * probe).sum(), inputs)
    theirs = torch.autograd.grad((expected * probe).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
        assert other.abs().max() > 0


def test_padding_is_not_read() -> None:
    layer = random(BridgeTokenFusion(D, 1, tokens=2, layers=1, heads=2, feedforward=4))
    steps = torch.randn(2, 3, D, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    before = layer([steps], [mask])
    torch.testing.assert_close(layer([torch.where(mask[..., None], steps, 1e6)], [mask]), before)
    torch.testing.assert_close(layer([steps[1:, :1]], [None]), before[1:])
    assert not torch.allclose(layer([steps[1:]], [None]), before[1:])


def test_wrong_sizes_are_named() -> None:
    layer = BridgeTokenFusion(D, 2, heads=2)
    with pytest.raises(ValueError, match=r"streams\[1\] must be \(4, T, 6\); found \(4, 6\)\. Give one row"):
        layer([torch.zeros(4, 1, D), torch.zeros(4, D)])
    with pytest.raises(ValueError, match="width 6 is not a multiple of 4 heads"):
        BridgeTokenFusion(D, 2, heads=4)
    for name in ("tokens", "layers"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, found 0"):
            BridgeTokenFusion(D, 2, heads=2, **{name: 0})
    with pytest.raises(ValueError, match="modalities must be at least 1"):
        BridgeTokenFusion(D, 0, heads=2)


def test_absent_modalities_do_not_enter_the_mean() -> None:
    layer = random(BridgeTokenFusion(D, 3, tokens=2, layers=2, heads=2, feedforward=8, dropout=0.0))
    assert isinstance(layer, BridgeTokenFusion)
    streams = [torch.randn(4, 3, D, dtype=torch.float64) for _ in range(3)]
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    result = layer(streams, None, present)
    torch.testing.assert_close(result[:1], layer([stream[:1] for stream in streams]))
    tokens = torch.stack([layer.tokens] * 4)
    for block in layer.layers:
        asking = block.norm_read(tokens)
        read = torch.stack([read(asking, steps, None) for read, steps in zip(block.read, streams, strict=True)], 1)
        mean = [read[n][present[n]].mean(0) if present[n].any() else torch.zeros_like(read[n, 0]) for n in range(4)]
        tokens = tokens + torch.stack(mean)
        tokens = tokens + block.down(F.gelu(block.up(block.norm_feedforward(tokens))))
    torch.testing.assert_close(result, layer.norm(tokens))
