"""Broad learning layers, and fusion weighted by classifiers of the modalities.

N utterances, M modalities, D width, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.layers.fusion import check_present

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
}
FUSION_RULES = ("confidence", "entropy", "class_wise")


class BroadLearning(nn.Module):
    r"""Feature nodes, enhancement nodes, and a linear readout of both.

    Chen & Liu, "Broad Learning System: An Effective and Efficient Incremental Learning System Without the Need for Deep
    Architecture" (IEEE TNNLS 2018), section III:

    .. math::
        Z_i = \phi(X W_i + b_i), \quad H_j = \xi([Z_1 \ldots Z_n] W_j + b_j), \quad
        Y = [Z_1 \ldots Z_n, H_1 \ldots H_m] W

    Only the total number of nodes of each kind matters. By default gradients train all weights. In the paper the nodes'
    weights are random and W is a ridge solution: use ``trainable=False`` and :meth:`fit_ridge`.

    Args:
        width: D of the input.
        feature_groups, feature_width: n, and nodes per group.
        enhancement_groups, enhancement_width: m, and nodes per group; 0 for no enhancement nodes.
        activation: Of the enhancement nodes: ``linear``, ``tanh``, ``relu`` or ``gelu``.
        trainable: Train the nodes' weights. The readout is always trained.
        feature_activation: Of the feature nodes.
        out_features: Width of the readout; ``width`` if 0.

    Raises:
        ValueError: no feature nodes, a negative number, or an unknown activation.

    Shapes:
        x (..., width) -> (..., out_features); the nodes are (..., nodes).
    """

    feature_weight: Tensor
    feature_bias: Tensor
    enhancement_weight: Tensor
    enhancement_bias: Tensor

    def __init__(
        self,
        width: int,
        feature_groups: int = 8,
        feature_width: int = 16,
        enhancement_groups: int = 8,
        enhancement_width: int = 16,
        activation: str = "tanh",
        trainable: bool = True,
        *,
        feature_activation: str = "linear",
        out_features: int = 0,
    ) -> None:
        super().__init__()
        features, enhancements = feature_groups * feature_width, enhancement_groups * enhancement_width
        for name, size, least in (
            ("width", width, 1),
            ("feature_groups * feature_width", features, 1),
            ("enhancement_groups", enhancement_groups, 0),
            ("enhancement_width", enhancement_width, 0),
            ("out_features", out_features, 0),
        ):
            if size < least:
                raise ValueError(f"{name} must be at least {least}, found {size}")
        for name, value in (("activation", activation), ("feature_activation", feature_activation)):
            if value not in ACTIVATIONS:
                raise ValueError(f"{name} must be one of {', '.join(ACTIVATIONS)}; found {value!r}")
        self.activation, self.feature_activation = activation, feature_activation
        self.features, self.nodes_total = features, features + enhancements
        self._node_weights("feature", features, width, trainable)
        if enhancements:
            self._node_weights("enhancement", enhancements, features, trainable)
        self.readout = nn.Linear(self.nodes_total, out_features or width)

    def _node_weights(self, kind: str, nodes: int, inputs: int, trainable: bool) -> None:
        """Random weights that preserve the variance of the input, so that few nodes saturate."""
        weight = torch.empty(nodes, inputs).uniform_(-1, 1) * math.sqrt(3 / inputs)
        bias = torch.empty(nodes).uniform_(-1, 1) / math.sqrt(inputs)
        for name, value in ((f"{kind}_weight", weight), (f"{kind}_bias", bias)):
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def nodes(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., nodes): the feature nodes, then the enhancement nodes."""
        mapped = ACTIVATIONS[self.feature_activation](F.linear(x, self.feature_weight, self.feature_bias))
        if self.nodes_total == self.features:
            return mapped
        enhanced = ACTIVATIONS[self.activation](F.linear(mapped, self.enhancement_weight, self.enhancement_bias))
        return torch.cat([mapped, enhanced], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., out_features)."""
        return self.readout(self.nodes(x))

    @torch.no_grad()
    def fit_ridge(self, features: Tensor, targets: Tensor, penalty: float, *, intercept: bool = True) -> None:
        r"""Set the readout to the ridge solution :math:`W = (A^T A + \lambda I)^{-1} A^T Y` for nodes A.

        Computed in float64 by Cholesky factorisation.

        Args:
            features: (N, width), inputs of the layer.
            targets: (N, out_features).
            penalty: :math:`\lambda`, above 0.
            intercept: Fit a bias without penalty; False sets the bias to 0, as published.

        Raises:
            ValueError: shapes that do not fit, or a penalty that is not positive.
        """
        expected = (len(features), self.readout.out_features)
        if tuple(targets.shape) != expected or not len(features):
            raise ValueError(f"targets must be (N, out_features) = {expected}, found {tuple(targets.shape)}")
        if not penalty > 0:
            raise ValueError(f"penalty must be above 0, found {penalty}")
        A, Y = self.nodes(features).double(), targets.double()
        centre, level = (A.mean(0), Y.mean(0)) if intercept else (torch.zeros_like(A[0]), torch.zeros_like(Y[0]))
        A, Y = A - centre, Y - level
        gram = A.mT @ A
        gram.diagonal().add_(penalty)
        solution = torch.cholesky_solve(A.mT @ Y, torch.linalg.cholesky(gram))
        self.readout.weight.copy_(solution.mT)
        self.readout.bias.copy_(level - centre @ solution)


class ProbabilityGuidedFusion(nn.Module):
    r"""Weights the modalities of an utterance by the class probabilities predicted from each.

    The idea is that of Shou et al., "Revisiting Multi-modal Emotion Learning with Broad State Space Models and
    Probability-guidance Fusion" (arXiv 2404.17858); the formulas are ours. With :math:`p_m` the class probabilities
    from modality m, over the present modalities,

    - ``confidence``: :math:`w_m = \mathrm{softmax}_m(\max_c p_{mc} / T)`;
    - ``entropy``: :math:`w_m = \mathrm{softmax}_m(-H(p_m) / T)`, the entropy divided by its maximum;
    - ``class_wise``: :math:`w_{mc} = \mathrm{softmax}_m(p_{mc} / T)`, a weight per class, for fusing class scores.

    Then :math:`w \leftarrow (1 - \epsilon) w + \epsilon / M'` over the M' present modalities; all count as present if
    none is.

    Args:
        rule: ``confidence``, ``entropy`` or ``class_wise``.
        temperature: T above 0; large values make the weights equal.
        detach: Send no gradient through the weights to the classifiers.
        epsilon: In [0, 1].

    Raises:
        ValueError: an option out of its range, or arguments of another shape or type.

    Shapes:
        values (N, M, D), logits (N, M, C), present (N, M) bool -> (N, D). With Q questions, logits (N, M, Q, C); their
        confidence or entropy is averaged over the Q. For ``class_wise``: values (N, M, C) -> (N, C).
    """

    def __init__(
        self, rule: str = "confidence", *, temperature: float = 1.0, detach: bool = False, epsilon: float = 0.0
    ) -> None:
        super().__init__()
        if rule not in FUSION_RULES:
            raise ValueError(f"rule must be one of {', '.join(FUSION_RULES)}; found {rule!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, found {temperature}")
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must be in [0, 1], found {epsilon}")
        self.rule, self.temperature, self.detach, self.epsilon = rule, temperature, detach, epsilon

    def weights(self, logits: Tensor, present: Tensor | None = None) -> Tensor:
        """(N, M) weights with sum 1 over the modalities; for ``class_wise`` (N, M, C)."""
        if logits.ndim not in ((3,) if self.rule == "class_wise" else (3, 4)):
            more = "" if self.rule == "class_wise" else " or (N, M, Q, C)"
            raise ValueError(f"logits must be (N, M, C){more}, found {tuple(logits.shape)}")
        check_present(present, logits.shape[0], logits.shape[1])
        exact = torch.promote_types(logits.dtype, torch.float32)
        log_probability = (logits.detach() if self.detach else logits).to(exact).log_softmax(-1)
        if self.rule == "class_wise":
            score = log_probability.exp()
        elif self.rule == "confidence":
            score = log_probability.exp().amax(-1)
        else:
            # As a function of the logits its slope is finite at p = 0; the slope of p log p in p is not.
            score = (log_probability.exp() * log_probability).sum(-1) / math.log(max(logits.shape[-1], 2))
        if logits.ndim == 4:
            score = score.mean(-1)
        here = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device) if present is None else present
        here = here | ~here.any(1, keepdim=True)
        if self.rule == "class_wise":
            here = here.unsqueeze(-1)
        weight = (score / self.temperature).masked_fill(~here, -math.inf).softmax(1)
        return (1 - self.epsilon) * weight + self.epsilon * here / here.sum(1, keepdim=True)

    def forward(self, values: Tensor, logits: Tensor, present: Tensor | None = None) -> Tensor:
        """Fused values (N, D), or (N, C) for ``class_wise``."""
        weight = self.weights(logits, present)
        weight = weight if self.rule == "class_wise" else weight.unsqueeze(-1)
        if values.ndim != 3 or values.shape[:2] != logits.shape[:2] or weight.shape[2] not in (1, values.shape[2]):
            raise ValueError(f"values {tuple(values.shape)} do not fit logits {tuple(logits.shape)}")
        # Absent values may be NaN, and 0 times NaN would be NaN.
        return (weight.to(values.dtype) * torch.where(weight > 0, values, 0.0)).sum(1)
