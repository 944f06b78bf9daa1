"""Batch normalisation with the same result in distributed training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ercfusion.ops.processes import differentiable_sum, processes, stands_in, sum_over_processes


class SharedBatchNorm(nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` with the statistics of the whole batch in distributed training.

    In train mode every process must call it. Unlike :class:`torch.nn.SyncBatchNorm` it works on the CPU. With fewer
    than two rows in the whole batch it uses the running statistics and does not update them.

    Shapes:
        (N, D) -> (N, D).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised rows, (N, D) -> (N, D)."""
        if not self.training or (processes() == 1 and len(x) > 1):
            return super().forward(x)
        if processes() == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        rows = wide[:0] if stands_in() else wide
        number = int(sum_over_processes(torch.tensor(len(rows), device=x.device)))
        mean = differentiable_sum(rows.sum(0)) / max(number, 1)
        variance = differentiable_sum((rows - mean).square().sum(0)) / max(number, 1)
        if number < 2:
            # Zero, but part of the graph: the other processes wait for its gradient.
            unused = 0.0 * (mean.sum() + variance.sum())
            normal = F.batch_norm(wide, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
            return (normal + unused).to(x.dtype)
        with torch.no_grad():
            spread = variance * (number / (number - 1))
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(spread.to(self.running_var), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normal = (wide - mean) * (variance + self.eps).rsqrt()
        return (normal * self.weight + self.bias).to(x.dtype)
