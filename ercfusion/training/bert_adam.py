"""The optimiser of BERT's released code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class BertAdam(torch.optim.Optimizer):
    r"""Adam without bias correction, with decoupled weight decay (Devlin et al., NAACL 2019, released code).

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        p \leftarrow p - l (m / (\sqrt v + \epsilon) + d p)

    with rate l and decay d. The constant is outside the root, as in the released code. The first steps are up to
    :math:`(1 - \beta_1) / \sqrt{1 - \beta_2}`, about 3, times longer than those of AdamW: use a warm-up.

    Args:
        params: Parameters or groups of them.
        lr: l.
        betas: Decay rates of the running averages.
        eps: Constant added to the root.
        weight_decay: d.
        tensor_clip: Maximum norm of g per parameter tensor (1 in the released code, after a limit of 1 for the norm of
            all tensors, which makes it idle); 0 for none.

    Raises:
        ValueError: ``betas`` are not two numbers.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, ...] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        tensor_clip: float = 0.0,
    ) -> None:
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, found {len(betas)}. Give two.")
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "tensor_clip": tensor_clip})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the parameters with a gradient.

        Args:
            closure: Computes the loss again and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (first, second), rate = group["betas"], group["lr"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                    state["square"] = torch.zeros_like(parameter)
                gradient = parameter.grad
                if (limit := group["tensor_clip"]) > 0:
                    # As torch.nn.utils.clip_grad_norm_, without a read on the host.
                    gradient = gradient * (limit / (gradient.norm() + 1e-6)).clamp(max=1.0)
                mean: Tensor = state["mean"].lerp_(gradient, 1 - first)
                square: Tensor = state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-rate)
        return loss
