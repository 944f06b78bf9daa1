from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.models.cogmen import Cogmen
from ercfusion.testing import WIDTHS, random_batch, take

RELEASED: dict[str, Any] = {
    "projection": 0,
    "residual": False,
    "norm": "batch",
    "norm_first": False,
    "mask_padding": False,
    "direction": "released",
    "relations": "speaker_pair",
    "activation": "relu",
    "context_heads": 0,
    "lags": 0,
}


def released_output(model: Cogmen, batch: ConversationBatch, past: int, future: int, heads: int) -> Tensor:
    """The released program, literally: padded batch without a mask, edges by loops, PyTorch Geometric's layers."""
    from torch_geometric.nn import RGCNConv, TransformerConv

    width, hidden = sum(WIDTHS.values()), model.hidden_size
    state = model.state_dict()
    # Its SeqContext.
    encoder_layer = nn.TransformerEncoderLayer(width, heads, 20, batch_first=True)
    encoder = nn.TransformerEncoder(encoder_layer, 2, enable_nested_tensor=False).double().eval()
    names = {
        "self_attn.in_proj_weight": "qkv.weight",
        "self_attn.in_proj_bias": "qkv.bias",
        "self_attn.out_proj.weight": "out.weight",
        "self_attn.out_proj.bias": "out.bias",
        "linear1.weight": "up.weight",
        "linear1.bias": "up.bias",
        "linear2.weight": "down.weight",
        "linear2.bias": "down.bias",
        "norm1.weight": "norm_attention.weight",
        "norm1.bias": "norm_attention.bias",
        "norm2.weight": "norm_feedforward.weight",
        "norm2.bias": "norm_feedforward.bias",
    }
    encoder.load_state_dict(
        {
            f"layers.{n}.{theirs}": state[f"context.layers.{n}.{ours}"]
            for n in range(2)
            for theirs, ours in names.items()
        }
    )
    lengths = batch.packing.lengths
    features = torch.cat(list(batch.features.values()), 1)
    padded = torch.zeros(len(lengths), max(lengths), width, dtype=torch.float64)
    for b, part in enumerate(features.split(lengths)):
        padded[b, : len(part)] = part
    encoded = F.linear(encoder(padded), state["narrow.weight"], state["narrow.bias"])
    nodes = torch.cat([encoded[b, :length] for b, length in enumerate(lengths)])
    # Its batch_graphify: edges from the centre to the members of its window.
    edges, types, first = [], [], 0
    for length in lengths:
        for j in range(length):
            for k in range(max(0, j - past), min(length, j + future + 1)):
                speaker_j, speaker_k = int(batch.speaker[first + j]), int(batch.speaker[first + k])
                edges.append((first + j, first + k))
                types.append(4 * speaker_j + 2 * speaker_k + (0 if j < k else 1))
        first += length
    edge_index = torch.tensor(edges).t()
    # Its GNN and classifier.
    conv1 = RGCNConv(hidden, hidden, 8).double()
    conv2 = TransformerConv(hidden, hidden, heads=2).double()
    with torch.no_grad():
        conv1.weight.copy_(state["relational.weight"])
        conv1.root.copy_(state["relational.root.weight"].t())
        conv1.bias.copy_(state["relational.root.bias"])
        for name in ("query", "key", "value", "skip"):
            getattr(conv2, f"lin_{name}").load_state_dict(getattr(model.attention, name).state_dict())
    x = conv2(conv1(nodes, edge_index, torch.tensor(types)), edge_index)
    mean, variance = state["norm.running_mean"], state["norm.running_var"]
    x = (x - mean) / (variance + 1e-5).sqrt() * state["norm.weight"] + state["norm.bias"]
    x = F.leaky_relu(x, 0.01)
    return F.linear(x, state["classifier.weight"], state["classifier.bias"]).relu()


@pytest.mark.parametrize(("past", "future"), [(5, 5), (2, 0), (0, 3)])
def test_released_form(past: int, future: int) -> None:
    torch.manual_seed(0)
    model = Cogmen(
        InputSpec(WIDTHS), hidden=10, feedforward=20, graph_heads=2, past=past, future=future, **RELEASED
    ).double()
    batch = random_batch((3, 8, 1, 5), dtype=torch.float64)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model(batch)  # running statistics other than 0 and 1
    model.eval()
    with torch.no_grad():
        found = model(batch).hidden
        expected = released_output(model, batch, past, future, heads=8)  # 24 is a multiple of 8 and not of 7
    assert found.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_released_form_depends_on_the_batch() -> None:
    """The fault that the default form does not have."""
    torch.manual_seed(0)
    batch = random_batch((3, 12), dtype=torch.float64)
    for mask_padding in (True, False):
        model = Cogmen(InputSpec(WIDTHS), **{**RELEASED, "mask_padding": mask_padding}).double().eval()
        inside = model(batch).hidden[:3]
        alone = model(take(batch, [0])).hidden
        assert torch.allclose(inside, alone, atol=1e-9) is mask_padding


@pytest.mark.parametrize(("past", "future"), [(2, 0), (0, 2), (1, 2)])
@pytest.mark.parametrize("direction", ["paper", "released"])
def test_direction(direction: str, past: int, future: int) -> None:
    """Which outputs hear of a change of utterance 5: two layers, so two windows away.

    In the paper utterance t hears [t - past, t + future], so a change at s is heard by [s - future, s + past].
    """
    torch.manual_seed(0)
    model = Cogmen(InputSpec(WIDTHS), layers=0, past=past, future=future, direction=direction).double().eval()
    batch, changed = (random_batch((12,), dtype=torch.float64) for _ in range(2))
    changed.features["text"][5] += 1
    heard = (model(batch).hidden != model(changed).hidden).any(1).nonzero().squeeze(1).tolist()
    after, before = (past, future) if direction == "paper" else (future, past)
    assert heard == list(range(5 - 2 * before, 5 + 2 * after + 1))


def test_direction_does_not_matter_where_the_window_is_symmetric() -> None:
    outputs = []
    for direction in ("paper", "released"):
        torch.manual_seed(0)
        model = Cogmen(InputSpec(WIDTHS), past=3, future=3, direction=direction).eval()
        outputs.append(model(random_batch()).hidden)
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("width", "heads"),
    [
        (1380, 10),
        (868, 7),
        (1280, 8),
        (612, 9),
        (768, 8),
        (512, 8),
        (100, 10),
        (883, 1),
        (848, 8),
        (803, 11),
        (115, 1),
        (80, 8),
        (35, 7),
    ],
)
def test_heads_rule_of_the_released_code(width: int, heads: int) -> None:
    with torch.device("meta"):
        model = Cogmen(InputSpec({"text": width}), **RELEASED)
    assert model.context.layers[0].heads == heads


def test_parameters_of_the_released_form() -> None:
    """At the released 1380 dimensions: 26.71 million in front of the graph, 0.13 million in the graph."""
    widths = {"text": 100, "audio": 768, "visual": 512}
    with torch.device("meta"):
        model = Cogmen(InputSpec(widths), hidden=100, graph_heads=1, feedforward=2048, **RELEASED)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    oracle = nn.TransformerEncoderLayer(1380, 10, 2048, device="meta")
    assert parts["context"] == 2 * sum(p.numel() for p in oracle.parameters())
    assert round((parts["context"] + parts["narrow"]) / 1e6, 2) == 26.71
    assert round((parts["relational"] + parts["attention"]) / 1e6, 2) == 0.13


def test_lags_tell_near_from_far() -> None:
    """Two neighbours that swap their contents: without lags the graph alone cannot tell, with them it can."""
    batch, swapped = (random_batch((7,), dtype=torch.float64) for _ in range(2))
    for value in swapped.features.values():
        value[[1, 2]] = value[[2, 1]]
    batch.speaker.zero_()
    swapped.speaker.zero_()
    for lags in (0, 3):
        torch.manual_seed(0)
        model = Cogmen(InputSpec(WIDTHS), layers=0, past=-1, future=-1, lags=lags).double().eval()
        if model.attention.bias is not None:
            nn.init.normal_(model.attention.bias.weight)
        with torch.no_grad():
            model.relational.weight.zero_()  # relations do tell before from after
            before, after = model(batch).hidden[0], model(swapped).hidden[0]
        assert torch.allclose(before, after, atol=1e-12) is (lags == 0)


def test_lags_reach_the_transformer() -> None:
    """With the graph cut off, whoever speaks matters in the default form by the Transformer's bias alone."""
    batch = random_batch((7,), dtype=torch.float64)
    other = random_batch((7,), dtype=torch.float64)
    other.speaker[:] = torch.tensor([0, 1, 0, 0, 0, 1, 1])
    assert not torch.equal(batch.speaker, other.speaker)
    for lags in (0, 3):
        torch.manual_seed(0)
        model = Cogmen(InputSpec(WIDTHS), lags=lags).double().eval()
        with torch.no_grad():
            for layer in model.context.layers:
                if layer.bias is not None:
                    layer.bias.weight.normal_()
            model.norm.weight.zero_()
            model.norm.bias.zero_()
        assert torch.equal(model(batch).hidden, model(other).hidden) is (lags == 0)


def test_numbered_speakers_come_from_the_training_data() -> None:
    for speakers in (1, 3):
        model = Cogmen(InputSpec(WIDTHS, speakers=speakers), relations="speaker_pair")
        assert len(model.relational.weight) == 2 * speakers**2
    assert len(Cogmen(InputSpec(WIDTHS, speakers=9)).relational.weight) == 4


def test_the_residual_path_goes_past_the_graph() -> None:
    torch.manual_seed(0)
    batch = random_batch()
    for residual in (True, False):
        model = Cogmen(InputSpec(WIDTHS), residual=residual).eval()
        with torch.no_grad():
            model.norm.weight.zero_()  # whatever the graph says, it says zero
            model.norm.bias.zero_()
        hidden = model(batch).hidden
        assert bool((hidden == hidden[0]).all()) is not residual


@pytest.mark.parametrize("residual", [True, False])
def test_dropout_around_the_classifier(residual: bool) -> None:
    """On what the classifier reads, if it reads more than the graph, and on what it makes."""
    model = Cogmen(InputSpec(WIDTHS), dropout=0.5, residual=residual).train()
    read: list[Tensor] = []
    model.classifier.register_forward_hook(lambda _, given, made: read.extend((given[0], made)))
    hidden = model(random_batch((6, 3))).hidden
    assert bool((read[0] == 0).any()) == residual
    kept = hidden > 0
    assert 0.3 < float(kept.sum() / (read[1] > 0).sum()) < 0.7
    torch.testing.assert_close(hidden[kept], 2 * read[1][kept])


def test_modalities_are_summed() -> None:
    model = Cogmen(InputSpec(WIDTHS)).eval()
    batch = random_batch()
    read: list[Tensor] = []
    model.fuse.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    model(batch)
    parts = list(model.project(batch).values())
    torch.testing.assert_close(read[0], parts[0] + parts[1] + parts[2])
