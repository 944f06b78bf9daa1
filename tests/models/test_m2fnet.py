from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ercfusion.batch.inputs import InputSpec
from ercfusion.models.m2fnet import M2FNet
from ercfusion.testing import CHECKS, WIDTHS, check_model, random_batch, without_dropout

PUBLISHED: dict[str, Any] = {
    "encode": "raw",
    "norm_first": False,
    "activation": "relu",
    "lags": 0,
    "residual": False,
    "readout": "concat",
    "modality_dropout": 0.0,
}


@pytest.mark.slow
def test_compiles() -> None:
    """As small as it can be with every part in it: what is traced grows with the number of layers."""
    check_model(M2FNet, options={"layers": 1, "fusions": 1, "readout": "gated"}, only=["compile"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"causal": True, "values": "other", "readout": "gated"},
        {"main": "visual", "outer_residual": False, "layers": 2, "fusions": 0},
        {"layers": 0, "readout": "gated", "residual": False},
        {**PUBLISHED, "width": 32, "feedforward": 48, "hidden": 32, "fusions": 5},
    ],
    ids=["causal", "no fusion", "no encoder", "published"],
)
def test_requirements_of_variants(options: dict[str, Any]) -> None:
    check_model(M2FNet, options=options, only=[check for check in CHECKS if check != "compile"])


def test_unimodal_heads() -> None:
    check_model(M2FNet, unimodal=True, only=["finite", "gradients", "batch_invariance"])


def test_a_model_without_encoder_and_fusion_reads_one_utterance() -> None:
    check_model(M2FNet, options={"layers": 0, "fusions": 0}, only=["context", "speakers"])


def test_published_form_from_torch_parts() -> None:
    """Padded, torch's own encoder layers and multi-head attention, with the paper's roles of the streams."""
    torch.manual_seed(0)
    width, heads = 24, 2
    model = M2FNet(
        InputSpec(WIDTHS), width=width, heads=heads, feedforward=20, layers=2, fusions=3, hidden=10, **PUBLISHED
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.eval()
    batch = random_batch((3, 8, 1, 5), dtype=torch.float64, absent=0.0)
    packing = batch.packing
    padding = ~packing.mask
    streams: dict[str, Tensor] = {}
    for name, size in WIDTHS.items():
        x = packing.pad(batch.features[name])
        for block in model.encoders[name]:  # type: ignore[union-attr]
            ours = block.layers[0]
            layer = nn.TransformerEncoderLayer(size, ours.heads, 20, batch_first=True).double().eval()
            with torch.no_grad():
                layer.self_attn.in_proj_weight.copy_(ours.qkv.weight)
                layer.self_attn.in_proj_bias.copy_(ours.qkv.bias)
                for left, right in (
                    (layer.self_attn.out_proj, ours.out),
                    (layer.linear1, ours.up),
                    (layer.linear2, ours.down),
                    (layer.norm1, ours.norm_attention),
                    (layer.norm2, ours.norm_feedforward),
                ):
                    left.weight.copy_(right.weight)
                    left.bias.copy_(right.bias)
            x = x + layer(x, src_key_padding_mask=padding)
        streams[name] = model.narrow[name](x)
    text, others = streams.pop("text"), list(streams.values())
    for fusion in model.fusions:
        found = []
        query, value = (part.chunk(2) for part in fusion.read_main.weight.chunk(2))
        query_bias, value_bias = (part.chunk(2) for part in fusion.read_main.bias.chunk(2))
        for k, other in enumerate(others):
            attention = nn.MultiheadAttention(width, heads, batch_first=True).double()
            with torch.no_grad():
                attention.in_proj_weight.copy_(torch.cat([query[k], fusion.read_other[k].t(), value[k]]))
                attention.in_proj_bias.copy_(torch.cat([query_bias[k], torch.zeros_like(query_bias[k]), value_bias[k]]))
                attention.out_proj.weight.copy_(fusion.out[k].t())
                attention.out_proj.bias.copy_(fusion.out_bias[k, 0])
            found.append(attention(text, other, text, key_padding_mask=padding, need_weights=False)[0])
        text = fusion.fuse(torch.cat([*found, text], -1))
    expected = packing.pack(model.readout(torch.cat([*others, text], -1)).relu())
    with torch.no_grad():
        found_hidden = model(batch).hidden
    assert found_hidden.abs().max() > 0.1
    torch.testing.assert_close(found_hidden, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("encode", ["projected", "raw"])
@pytest.mark.parametrize("readout", ["concat", "gated"])
@pytest.mark.parametrize("names", [("text",), ("audio",), ("visual", "text"), ("audio", "visual")])
def test_any_modalities(names: tuple[str, ...], readout: str, encode: str) -> None:
    torch.manual_seed(0)
    widths = {name: WIDTHS[name] for name in names}
    model = M2FNet(InputSpec(widths), width=16, hidden=8, readout=readout, encode=encode)
    assert model.main == ("text" if "text" in names else names[0])
    assert bool(model.fusions) is (len(names) > 1)
    batch = random_batch((4, 2), widths=widths)
    out = model(batch)
    assert out.hidden.shape == (6, 8)
    assert list(out.modalities) == list(names)
    (out.hidden.sum() + sum(value.sum() for value in out.modalities.values())).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_modalities_are_hidden_in_training_only() -> None:
    torch.manual_seed(0)
    model = M2FNet(InputSpec(WIDTHS), width=16, dropout=0.0, modality_dropout=0.5)
    batch = random_batch((9, 9), absent=0.0)
    assert not torch.equal(model(batch).hidden, model(batch).hidden)
    assert torch.equal(model.eval()(batch).hidden, model(batch).hidden)
    assert torch.equal(without_dropout(model).train()(batch).hidden, model.eval()(batch).hidden)


def test_gates_start_at_the_main_stream() -> None:
    for start, same in ((0.0, False), (60.0, True)):
        torch.manual_seed(0)
        model = M2FNet(InputSpec(WIDTHS), width=16, readout="gated", gate_start=start, fusions=0).eval()
        batch, changed = random_batch((6,), absent=0.0), random_batch((6,), absent=0.0)
        changed.features["audio"][:] += 1
        assert torch.allclose(model(batch).hidden, model(changed).hidden, atol=1e-6) is same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"main": "smell"}, "main='smell' is not a modality of the data. Choose from text, audio, visual"),
        ({"width": 30}, "width 30 is not a multiple of 4 heads"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        M2FNet(InputSpec(WIDTHS), **options)
