from __future__ import annotations

from typing import Any

import pytest
import torch
from quick import first
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.models.tfn import Tfn
from ercfusion.models.vectors import PresentBatchNorm
from ercfusion.testing import WIDTHS, check_model, make_task, random_batch
from ercfusion.testing.case import CHECKS

SMALL: dict[str, Any] = {"projection": 8, "width": 4, "post": 6}
RELEASED: dict[str, Any] = {
    "context": "none",
    "layers": 3,
    "norm": "batch",
    "activation": "relu",
    "text_linear": True,
    "dropout_form": "element",
    "post_norm": False,
    "post_dropout": 0.0,
}


def make(widths: Any = WIDTHS, **options: Any) -> Tfn:
    torch.manual_seed(0)
    return Tfn(InputSpec(widths), **{**SMALL, **options}).double().eval()


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no context": {"context": "none"},
    "causal": {"bidirectional": False, "absent": "learned"},
    "absent is zero": {"absent": "zero", "dropout_form": "element"},
}
SLOW = {"compile", "overfits", "policies", "hidden_steps"}


@pytest.mark.parametrize("name", first(2, reversed(VARIANTS)))
def test_meets_the_requirements(name: str) -> None:
    check_model(Tfn, options={**SMALL, "width": 8, **VARIANTS[name]}, only=set(CHECKS) - SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_compiles_and_learns(name: str) -> None:
    check_model(Tfn, options={**SMALL, "width": 8, **VARIANTS[name]}, only=SLOW)


def test_meets_the_requirements_as_released() -> None:
    """All but the one that takes time: torch.compile is tried on the form without context."""
    check_model(Tfn, options={**RELEASED, "width": 8}, only=set(CHECKS) - {"compile"})


@pytest.mark.parametrize("options", [{}, {"lags": 0, "bidirectional": False}], ids=["default", "causal"])
def test_meets_the_requirements_with_a_transformer(options: dict[str, Any]) -> None:
    only = ["gradients", "batch_invariance", "absent_content", "missing_aware", "context", "speakers"]
    check_model(Tfn, options={**SMALL, "context": "transformer", **options}, only=only)


def test_meets_the_requirements_with_other_tasks() -> None:
    check_model(Tfn, make_task("regression"), {"context": "none"}, only=["finite", "gradients", "overfits"])
    check_model(Tfn, make_task("multi_label"), unimodal=True, only=["finite", "gradients", "batch_invariance"])


def literal(model: Tfn, batch: ConversationBatch, activation: Any) -> Tensor:
    """Without context, one utterance after the other, with the tensor written out."""
    state = model.state_dict()
    outputs = []
    for row in range(batch.num_utterances):
        tensor = torch.ones(1, dtype=torch.float64)
        for column, name in enumerate(batch.modalities):
            z = torch.zeros(model.fuse.widths[column], dtype=torch.float64)
            if batch.available[row, column]:
                x = batch.features[name][row]
                weight, bias = state[f"vectors.norm.{name}.weight"], state[f"vectors.norm.{name}.bias"]
                x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * weight + bias
                z = activation(state[f"vectors.dense.{name}.0.weight"] @ x + state[f"vectors.dense.{name}.0.bias"])
            tensor = torch.outer(tensor, torch.cat([torch.ones(1, dtype=torch.float64), z])).flatten()
        h = state["fuse.weight"] @ tensor + state["fuse.bias"]
        if "post_norm.weight" in state:
            h = (h - h.mean()) / (h.var(correction=0) + 1e-5).sqrt()
        h = activation(h)
        outputs.append(activation(state["post.weight"] @ h + state["post.bias"]))
    return torch.stack(outputs)


@pytest.mark.parametrize(("activation", "function"), [("gelu", F.gelu), ("relu", F.relu), ("tanh", torch.tanh)])
@pytest.mark.parametrize("widths", [{"text": 5}, {"audio": 4, "text": 5}, WIDTHS, {**WIDTHS, "mocap": 3}])
def test_by_its_formula(widths: dict[str, int], activation: str, function: Any) -> None:
    model = make(widths, context="none", activation=activation, text_width=3, post_norm=activation != "relu", layers=1)
    batch = random_batch((3, 1, 5), widths=widths, absent=0.3, dtype=torch.float64)
    assert model.vectors.widths == {name: 3 if name == "text" else 4 for name in widths}
    found = model(batch).hidden
    torch.testing.assert_close(found, literal(model, batch, function), rtol=1e-10, atol=1e-10)
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("context", ["lstm", "transformer"])
@pytest.mark.parametrize("widths", [{"text": 5}, {"visual": 2, "audio": 4}, {**WIDTHS, "mocap": 3}])
def test_any_modalities_in_context(widths: dict[str, int], context: str) -> None:
    model = make(widths, context=context)
    batch = random_batch(widths=widths, absent=0.3, dtype=torch.float64)
    encoded = model(batch)
    assert encoded.hidden.isfinite().all()
    assert list(encoded.modalities) == list(widths)


def test_context_is_added_to_the_projected_modality() -> None:
    model = make(norm="none")
    batch = random_batch((4, 6), absent=0.3, dtype=torch.float64)
    z = model.vectors(batch)
    projected = model.vectors.project(batch)
    for name, value in z.items():
        x = F.gelu(projected[name])
        parts = [model.vectors.context[name].lstm(part[None])[0][0] for part in x.split(batch.packing.lengths)]
        torch.testing.assert_close(value, model.vectors.dense[name](x + torch.cat(parts)))


@pytest.mark.parametrize("absent", ["zero", "learned", "context"])
def test_what_stands_for_an_absent_modality(absent: str) -> None:
    """Utterance 2 lacks text. Only ``context`` tells the others' text apart there; terms of text vanish with zero."""
    model = make({"text": 5, "audio": 4}, absent=absent)
    batch = random_batch((5,), widths={"text": 5, "audio": 4}, dtype=torch.float64)
    drop = torch.zeros_like(batch.available)
    drop[2, 0] = True
    hidden = model(batch.hide(drop)).hidden
    other = random_batch((5,), widths={"text": 5, "audio": 4}, dtype=torch.float64)
    other.features["text"].add_(torch.randn_like(other.features["text"]))
    changed = model(other.hide(drop)).hidden
    assert not torch.equal(changed[1], hidden[1])
    assert torch.equal(changed[2], hidden[2]) is (absent != "context")
    if absent == "learned":
        assert model.fuse.absent is not None
        nn.init.normal_(model.fuse.absent[0])
        assert not torch.equal(model(batch.hide(drop)).hidden[2], hidden[2])


def test_text_linear_leaves_out_the_last_activation_of_text_alone() -> None:
    model = make(context="none", activation="relu", layers=2, text_linear=True)
    z = model.vectors(random_batch((30,), dtype=torch.float64))
    assert z["text"].min() < 0
    assert z["audio"].min() == z["visual"].min() == 0
    assert [type(part) for part in model.vectors.dense["text"]] == [nn.Linear, nn.ReLU, nn.Linear]


def test_batch_norm_over_the_utterances_that_are_there() -> None:
    norm = PresentBatchNorm(3).double()
    oracle = nn.BatchNorm1d(3).double()
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([True, False, True, True, False, True, True, False])
    for _ in range(2):
        found = norm(x, present)
        torch.testing.assert_close(found[present], oracle(x[present]))
        assert not found[~present].any()
    one = torch.arange(8) == 3
    before = norm.running_mean.clone()
    found = norm(x, one)
    assert torch.equal(norm.running_mean, before)
    torch.testing.assert_close(found[one], oracle.eval()(x[one]))
    assert torch.equal(norm(x, torch.zeros_like(present)), torch.zeros_like(x))
    torch.testing.assert_close(norm.eval()(x, present)[present], oracle(x[present]))


def product_accuracy(model: nn.Module, hidden: int, batches: list[ConversationBatch], labels: list[Tensor]) -> float:
    torch.manual_seed(0)
    head = nn.Linear(hidden, 2)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(head(model.train()(batches[0]).hidden), labels[0]).backward()
        optimizer.step()
    with torch.no_grad():
        return float((head(model.eval()(batches[1]).hidden).argmax(1) == labels[1]).float().mean())


def product_batches(N: int = 400) -> tuple[list[ConversationBatch], list[Tensor]]:
    """The label is the sign of the product of one number in text and one in audio: neither alone says anything."""
    batches, labels = [], []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        features = {name: torch.randn(N, 4, generator=generator) for name in ("text", "audio")}
        for value in features.values():
            value[:, 0] = value[:, 0].sign()
        batches.append(
            ConversationBatch(
                Packing([N // 20] * 20),
                features,
                torch.zeros(N, dtype=torch.long),
                torch.ones(N, 2, dtype=torch.bool),
            )
        )
        labels.append((features["text"][:, 0] * features["audio"][:, 0] > 0).long())
    return batches, labels


@pytest.mark.parametrize("context", ["none", "lstm"])
def test_evidence_in_a_product(context: str) -> None:
    batches, labels = product_batches()
    torch.manual_seed(0)
    model = Tfn(InputSpec({"text": 4, "audio": 4}), context=context, projection=16, width=8, post=16, norm="none")
    assert product_accuracy(model, 16, batches, labels) > 0.95


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"projection": 7}, "projection must be even and above 0, found 7"),
        ({"fusion_dropout": 1.0}, "dropout must be at least 0 and below 1, found 1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(**options)


def test_five_modalities_are_too_many() -> None:
    with pytest.raises(ValueError, match="1 to 4 modalities, found 5"):
        make(dict.fromkeys("abcde", 2))


def test_batch_norm_gives_absent_rows_zeros_in_evaluation() -> None:
    layer = PresentBatchNorm(3)
    x, present = torch.randn(6, 3), torch.tensor([True, False, True, True, False, True])
    layer.train()(x, present)
    found = layer.eval()(x, present)
    assert (found[~present] == 0).all()
    expected = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)
    torch.testing.assert_close(found[present], expected[present])
    assert (expected[~present] != 0).all()
