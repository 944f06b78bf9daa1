from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ercfusion.layers.broad import BroadLearning, ProbabilityGuidedFusion


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def assert_same(found: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected)
    weight = random(*found.shape, seed=9).detach()
    ours = torch.autograd.grad((found * weight).sum(), leaves)
    for one, other in zip(ours, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other)


# BroadLearning


def broad_by_groups(layer: BroadLearning, x: Tensor, n: int, m: int) -> Tensor:
    """Group by group, as in the paper's equations."""
    functions: dict[str, Any] = {"linear": lambda v: v, "tanh": torch.tanh, "relu": torch.relu}
    Z = []
    for W, b in zip(layer.feature_weight.chunk(n), layer.feature_bias.chunk(n), strict=True):
        Z.append(functions[layer.feature_activation](x @ W.t() + b))
    H = []
    if m:
        for W, b in zip(layer.enhancement_weight.chunk(m), layer.enhancement_bias.chunk(m), strict=True):
            H.append(functions[layer.activation](torch.cat(Z, 1) @ W.t() + b))
    return torch.cat([*Z, *H], 1) @ layer.readout.weight.t() + layer.readout.bias


@pytest.mark.parametrize(("features", "activation"), [("linear", "tanh"), ("tanh", "relu")])
@pytest.mark.parametrize("m", [0, 2])
def test_broad_learning_group_by_group(features: str, activation: str, m: int) -> None:
    torch.manual_seed(0)
    layer = BroadLearning(5, 3, 4, m, 6, activation, feature_activation=features, out_features=7).double()
    x = random(8, 5)
    assert layer.nodes(x).shape == (8, 12 + 6 * m)
    assert_same(layer(x), broad_by_groups(layer, x, 3, m), [x, *layer.parameters()])


def test_fixed_nodes_do_not_learn_and_travel_with_the_weights() -> None:
    torch.manual_seed(0)
    layer = BroadLearning(5, trainable=False)
    assert [name for name, _ in layer.named_parameters()] == ["readout.weight", "readout.bias"]
    other = BroadLearning(5, trainable=False)
    x = torch.randn(3, 5)
    assert not torch.equal(other.nodes(x), layer.nodes(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.nodes(x), layer.nodes(x))
    assert not any(p.requires_grad for p in (layer.feature_weight, layer.enhancement_weight))


def test_random_nodes_keep_the_variance() -> None:
    torch.manual_seed(0)
    layer = BroadLearning(256, 16, 32, 16, 32)
    nodes = layer.nodes(torch.randn(2000, 256)).detach()
    assert 0.9 < float(nodes[:, :512].std()) < 1.1
    assert 0.5 < float(nodes[:, 512:].std()) < 0.8  # tanh of a standard normal: 0.63


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("penalty", [0.01, 3.0])
def test_ridge_readout(intercept: bool, penalty: float) -> None:
    """Against scikit-learn, and by the normal equations: the gradient of the penalised squares is zero."""
    from sklearn.linear_model import Ridge

    torch.manual_seed(0)
    layer = BroadLearning(5, 3, 4, 2, 6, trainable=False, out_features=2).double()
    x, y = random(40, 5).detach(), random(40, 2, seed=1).detach() + 3
    layer.fit_ridge(x, y, penalty, intercept=intercept)
    oracle = Ridge(alpha=penalty, fit_intercept=intercept).fit(layer.nodes(x).numpy(), y.numpy())
    torch.testing.assert_close(layer(x), torch.from_numpy(oracle.predict(layer.nodes(x).numpy())))
    loss = (layer(x) - y).square().sum() + penalty * layer.readout.weight.square().sum()
    gradients = torch.autograd.grad(loss, [layer.readout.weight, layer.readout.bias])
    assert gradients[0].abs().max() < 1e-8
    assert bool(gradients[1].abs().max() < 1e-8) is intercept
    assert bool((layer.readout.bias == 0).all()) is not intercept


def test_ridge_is_solved_in_double_whatever_the_layer_is() -> None:
    torch.manual_seed(0)
    layer = BroadLearning(5, 4, 10, 4, 10, trainable=False, out_features=1)
    x, y = torch.randn(30, 5), torch.randn(30, 1)  # more nodes than rows: singular but for the penalty
    layer.fit_ridge(x, y, 1e-6)
    found = layer(x)
    assert found.isfinite().all()
    assert (found - y).abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_groups": 0}, r"feature_groups \* feature_width must be at least 1, found 0"),
        ({"enhancement_groups": -1}, "enhancement_groups must be at least 0, found -1"),
        ({"activation": "sine"}, "activation must be one of linear, tanh, relu, gelu; found 'sine'"),
        ({"feature_activation": "sine"}, "feature_activation must be one of"),
    ],
)
def test_broad_learning_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BroadLearning(5, **options)


def test_ridge_refuses() -> None:
    layer = BroadLearning(5)
    with pytest.raises(ValueError, match=r"targets must be \(N, out_features\) = \(3, 5\), found \(3, 2\)"):
        layer.fit_ridge(torch.zeros(3, 5), torch.zeros(3, 2), 1.0)
    with pytest.raises(ValueError, match="penalty must be above 0, found 0"):
        layer.fit_ridge(torch.zeros(3, 5), torch.zeros(3, 5), 0.0)


# ProbabilityGuidedFusion

PRESENT = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]]).bool()


def fused_by_hand(values: Tensor, logits: Tensor, present: Tensor, rule: str, T: float, eps: float) -> Tensor:
    rows = []
    for i in range(len(values)):
        here = [m for m in range(values.shape[1]) if present[i, m]] or list(range(values.shape[1]))
        scores = []
        for m in here:
            questions = logits[i, m] if logits.ndim == 4 else logits[i, m][None]
            parts = []
            for q in questions:
                p = q.exp() / q.exp().sum()
                entropy = -(p * p.log()).sum() / math.log(len(p))
                parts.append({"confidence": p.max(), "entropy": -entropy, "class_wise": p}[rule])
            scores.append(torch.stack(parts).mean(0))
        raised = [(score / T).exp() for score in scores]
        total = torch.stack(raised).sum(0)
        rows.append(
            torch.stack(
                [
                    ((1 - eps) * one / total + eps / len(here)) * values[i, m]
                    for one, m in zip(raised, here, strict=True)
                ]
            ).sum(0)
        )
    return torch.stack(rows)


@pytest.mark.parametrize("rule", ["confidence", "entropy", "class_wise"])
@pytest.mark.parametrize(("T", "eps"), [(1.0, 0.0), (0.2, 0.3)])
@pytest.mark.parametrize("questions", [0, 2])
def test_fusion_by_hand(rule: str, T: float, eps: float, questions: int) -> None:
    if questions and rule == "class_wise":
        with pytest.raises(ValueError, match=r"logits must be \(N, M, C\), found \(5, 3, 2, 4\)"):
            ProbabilityGuidedFusion(rule)(random(5, 3, 4), random(5, 3, 2, 4))
        return
    values = random(5, 3, 4 if rule == "class_wise" else 6)
    logits = random(5, 3, *[questions] * bool(questions), 4, seed=1)
    layer = ProbabilityGuidedFusion(rule, temperature=T, epsilon=eps)
    found = layer(values, logits, PRESENT)
    assert_same(found, fused_by_hand(values, logits, PRESENT, rule, T, eps), [values, logits])
    everything = torch.ones_like(PRESENT)
    torch.testing.assert_close(layer(values, logits), fused_by_hand(values, logits, everything, rule, T, eps))


@pytest.mark.parametrize("rule", ["confidence", "entropy", "class_wise"])
def test_what_is_absent_weighs_nothing(rule: str) -> None:
    layer = ProbabilityGuidedFusion(rule, epsilon=0.2)
    values, logits = random(5, 3, 4).detach(), random(5, 3, 4, seed=1).detach()
    weights = layer.weights(logits, PRESENT)
    some = PRESENT.any(1)
    assert bool((weights[some][~PRESENT[some]] == 0).all())
    assert bool((weights[some][PRESENT[some]] > 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights.sum(1)))
    expected = layer(values, logits, PRESENT)
    for content in (float("nan"), float("inf")):
        gone = ~PRESENT & some[:, None]
        values[gone] = content
        assert torch.equal(layer(values, logits, PRESENT), expected)
        values.requires_grad_()
        (gradient,) = torch.autograd.grad(layer(values, logits, PRESENT).sum(), values)
        assert bool(gradient.isfinite().all())
        assert bool((gradient[gone] == 0).all())
        values = values.detach()


def test_the_surer_modality_weighs_more() -> None:
    logits = torch.tensor([[[4.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    for rule in ("confidence", "entropy"):
        cold = ProbabilityGuidedFusion(rule, temperature=0.1).weights(logits)[0].tolist()
        assert cold[0] > cold[1] > cold[2]
        hot = ProbabilityGuidedFusion(rule, temperature=1e6).weights(logits)[0]
        torch.testing.assert_close(hot, torch.full((3,), 1 / 3))


def test_certain_classifiers_have_finite_gradients() -> None:
    for rule in ("confidence", "entropy", "class_wise"):
        logits = torch.tensor([[[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]]]).requires_grad_()
        weights = ProbabilityGuidedFusion(rule).weights(logits)
        (gradient,) = torch.autograd.grad(weights[:, 0].sum(), logits)
        assert weights.isfinite().all()
        assert gradient.isfinite().all()


def test_detach() -> None:
    values, logits = random(5, 3, 4), random(5, 3, 4, seed=1)
    ProbabilityGuidedFusion("entropy", detach=True)(values, logits).sum().backward()
    assert values.grad is not None
    assert logits.grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "vote"}, "rule must be one of confidence, entropy, class_wise; found 'vote'"),
        ({"temperature": 0.0}, "temperature must be above 0, found 0.0"),
        ({"epsilon": 1.5}, r"epsilon must be in \[0, 1\], found 1.5"),
    ],
)
def test_fusion_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbabilityGuidedFusion(**options)


def test_fusion_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"values \(5, 3, 2\) do not fit logits \(5, 3, 4\)"):
        ProbabilityGuidedFusion("class_wise")(random(5, 3, 2), random(5, 3, 4))
    with pytest.raises(ValueError, match=r"logits must be \(N, M, C\) or \(N, M, Q, C\), found \(5, 3\)"):
        ProbabilityGuidedFusion()(random(5, 3, 2), random(5, 3))


def test_a_wrong_present_is_named() -> None:
    layer, x = ProbabilityGuidedFusion(), torch.ones(5, 2, 3)
    for present in (torch.ones(5, 3).bool(), torch.ones(5, 2), torch.ones(1, 5, 2).bool()):
        with pytest.raises(ValueError, match=r"present must be \(N, M\) = \(5, 2\) booleans; found"):
            layer(x, x, present)
