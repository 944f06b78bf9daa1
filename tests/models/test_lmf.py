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
from ercfusion.models.lmf import Lmf
from ercfusion.testing import WIDTHS, check_model, make_task, random_batch
from ercfusion.testing.case import CHECKS

SMALL: dict[str, Any] = {"projection": 8, "width": 8, "fused": 8, "rank": 3}
RELEASED: dict[str, Any] = {
    "context": "none",
    "layers": 3,
    "norm": "batch",
    "activation": "relu",
    "text_linear": True,
    "post_norm": False,
    "post_dropout": 0.0,
}


def make(widths: Any = WIDTHS, **options: Any) -> Lmf:
    torch.manual_seed(0)
    return Lmf(InputSpec(widths), **{**SMALL, **options}).double().eval()


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no context": {"context": "none"},
    "absent is zero": {"absent": "zero"},
    "causal": {"bidirectional": False, "absent": "learned"},
}
SLOW = {"compile", "overfits", "policies", "hidden_steps"}


@pytest.mark.parametrize("name", first(2, reversed(VARIANTS)))
def test_meets_the_requirements(name: str) -> None:
    check_model(Lmf, options={**SMALL, **VARIANTS[name]}, only=set(CHECKS) - SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_compiles_and_learns(name: str) -> None:
    check_model(Lmf, options={**SMALL, **VARIANTS[name]}, only=SLOW)


def test_meets_the_requirements_as_released() -> None:
    """All but the one that takes time: torch.compile is tried on the form without context."""
    check_model(Lmf, options={**SMALL, **RELEASED}, only=set(CHECKS) - {"compile"})


def test_meets_the_requirements_with_other_tasks() -> None:
    check_model(Lmf, make_task("regression"), {"context": "none"}, only=["finite", "gradients", "overfits"])
    check_model(Lmf, make_task("multi_label"), unimodal=True, only=["finite", "gradients", "batch_invariance"])


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("widths", [{"text": 5}, {"audio": 4, "text": 5}, WIDTHS, {**WIDTHS, "mocap": 3, "pose": 2}])
def test_by_its_formula(widths: dict[str, int], post_norm: bool) -> None:
    model = make(widths, context="none", audio_width=3, post_norm=post_norm, layers=1)
    nn.init.normal_(model.fuse.bias)
    batch = random_batch((3, 1, 5), widths=widths, absent=0.3, dtype=torch.float64)
    state = model.state_dict()
    rows = []
    for row in range(batch.num_utterances):
        product = torch.ones(3, 8, dtype=torch.float64)
        for column, name in enumerate(widths):
            z = torch.zeros(3 if name == "audio" else 8, dtype=torch.float64)
            if batch.available[row, column]:
                x = F.layer_norm(batch.features[name][row], (widths[name],))
                z = torch.tanh(state[f"vectors.dense.{name}.0.weight"] @ x + state[f"vectors.dense.{name}.0.bias"])
            one = torch.cat([torch.ones(1, dtype=torch.float64), z])
            product = product * (state[f"fuse.factors.{column}"] @ one)
        rows.append(state["fuse.weight"] @ product + state["fuse.bias"])
    expected = torch.stack(rows)
    found = model(batch).hidden
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, F.layer_norm(expected, (8,)) if post_norm else expected, rtol=1e-8, atol=1e-8)


def test_every_part_of_the_fusion_is_trained() -> None:
    """The weights of the ranks and the bias too, which a copy of the published code leaves as they were drawn."""
    model = make().train()
    before = {name: value.clone() for name, value in model.fuse.named_parameters()}
    assert set(before) == {"weight", "bias", "factors.0", "factors.1", "factors.2"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(random_batch(dtype=torch.float64)).hidden.pow(3).sum().backward()
    optimizer.step()
    for name, value in model.fuse.named_parameters():
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("context", ["none", "lstm"])
def test_evidence_in_a_product(context: str) -> None:
    """The label is the sign of the product of one number in text and one in audio: neither alone says anything."""
    batches, labels = [], []
    N = 400
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        features = {name: torch.randn(N, 4, generator=generator) for name in ("text", "audio")}
        for value in features.values():
            value[:, 0] = value[:, 0].sign()
        there = torch.ones(N, 2, dtype=torch.bool)
        batches.append(ConversationBatch(Packing([20] * (N // 20)), features, torch.zeros(N, dtype=torch.long), there))
        labels.append((features["text"][:, 0] * features["audio"][:, 0] > 0).long())
    torch.manual_seed(0)
    model = Lmf(InputSpec({"text": 4, "audio": 4}), context=context, projection=16, width=8, fused=16, norm="none")
    head = nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)

    def logits(batch: ConversationBatch) -> Tensor:
        return head(model(batch).hidden)

    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(logits(batches[0]), labels[0]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert (logits(batches[1]).argmax(1) == labels[1]).float().mean() > 0.95


@pytest.mark.parametrize(("initial", "variance"), [("glorot", 2 / (129 + 64)), ("released", 2 / ((129 + 4) * 64))])
def test_initial_factors(initial: str, variance: float) -> None:
    """The released code takes the variance of a stack of matrices for that of a matrix."""
    model = make({"text": 5, "audio": 4}, width=128, fused=64, rank=4, initial=initial)
    for factor in model.fuse.factors:
        assert float(factor.detach().std()) == pytest.approx(variance**0.5, rel=0.05)
