"""The selective scan by torch alone: all channels, states and conversations at once, time in sequence.

For any device and for float64; where nothing faster accepts. The gradients are written out (they follow from the
recurrence by hand; :mod:`ercfusion.ops.scan.reference` is what they are tested against), and states are computed again
in the backward pass, a stretch of steps at a time, so that no tensor of all states of all utterances is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.ops.scan.contract import ScanGradients, ScanInputs, accumulation_dtype
from ercfusion.ops.scan.reference import THRESHOLD

KEPT = 2**25
"""Numbers in the states and decays that the backward pass keeps at a time, beside one state a stretch."""


class TorchScan:
    """Plain torch with hand-written gradients."""

    name = "torch"

    def declines(self, inputs: ScanInputs) -> str | None:
        """Complex tensors."""
        if any(x.is_complex() for x in inputs[:9] if isinstance(x, Tensor)):
            return "it is for real tensors"
        return None

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """See :class:`ercfusion.ops.scan.contract.ScanBackend`."""
        inputs = ScanInputs(*arguments)
        plan = _Plan(inputs)
        h, final = plan.initial(inputs.initial), plan.state()
        outputs = []
        for dt, x, B, C, count in plan.steps():
            if len(h) > count:
                final[count : len(h)] = h[count:]
                h = h[:count]
            h = torch.exp(dt * plan.A).mul_(h).addcmul_(dt * x, B)
            outputs.append(torch.matmul(h, C).squeeze(-1))
        final[: len(h)] = h
        y = torch.cat(outputs) if outputs else plan.x
        if inputs.D is not None:
            y = y + plan.channels(inputs.D) * plan.x
        if inputs.z is not None:
            y = y * F.silu(plan.take(inputs.z))
        return plan.put(y), plan.put_state(final)

    def backward(self, grad_out: Tensor, grad_final: Tensor | None, *arguments: Any) -> ScanGradients:
        """See :class:`ercfusion.ops.scan.contract.ScanBackend`."""
        inputs = ScanInputs(*arguments)
        plan = _Plan(inputs)
        gated = plan.take(grad_out)
        gy = gated
        if inputs.z is not None:
            z = plan.take(inputs.z)
            gate = torch.sigmoid(z)
            gy = gated * z * gate
        total = _Total(plan, gy)
        h, last = plan.initial(inputs.initial), plan.initial(grad_final)
        steps = list(plan.steps())
        stretch = max(1, KEPT // max(1, 2 * h.numel()))
        marks = []
        for first in range(0, len(steps), stretch):
            marks.append(h)
            if first + stretch < len(steps):
                for dt, x, B, _, count in steps[first : first + stretch]:
                    h = torch.exp(dt * plan.A).mul_(h[:count]).addcmul_(dt * x, B)
        carried = last[:0]
        for number in reversed(range(len(marks))):
            h = marks[number]
            stretched = steps[number * stretch : (number + 1) * stretch]
            kept = []
            for dt, x, B, C, count in stretched:
                before, decay = h[:count], torch.exp(dt * plan.A)
                h = (decay * before).addcmul_(dt * x, B)
                kept.append((before, decay, torch.matmul(h, C) if inputs.z is not None else None))
                total.after.append(h)
            for step, (before, decay, y) in zip(reversed(stretched), reversed(kept), strict=True):
                if len(carried) < step[-1]:  # conversations of which this is the last step
                    carried = torch.cat([carried, last[len(carried) : step[-1]]])
                carried = total.add(carried, step, before, decay, y)
        if len(carried) < len(last):  # conversations without utterances
            carried = torch.cat([carried, last[len(carried) :]])

        du, ddt, dB, dC, y = total.finish()
        dD = None
        if inputs.D is not None:
            skip = plan.channels(inputs.D)
            du, y = du + skip * gy, y + skip * plan.x if y is not None else None
            dD = plan.sum(gy * plan.x)
        dz = None
        if inputs.z is not None:
            assert y is not None
            dz = plan.put(gated * y * gate * (1 + z * (1 - gate)))
        ddelta = ddt * plan.slope if plan.slope is not None else ddt
        return ScanGradients(
            plan.put(du),
            plan.put(ddelta),
            total.A.sum(0).flatten(1, 2),
            plan.put(dB, grouped=True),
            plan.put(dC, grouped=True),
            dD,
            dz,
            None if inputs.delta_bias is None else plan.sum(ddelta),
            None if inputs.initial is None else plan.put_state(carried),
        )


Step = tuple[Tensor, Tensor, Tensor, Tensor, int]


class _Plan:
    """Rows by step: those of step t are the t-th utterances, in reading direction, of all that have so many.

    The longest conversation first, so that those which are over drop out at the end. Rows are (M, K, G, E, ...), with
    M = N utterances in the order of steps and E channels a group; states (B, K, G, E, S).
    """

    def __init__(self, inputs: ScanInputs) -> None:
        self.dtype = accumulation_dtype(*inputs[:9])[0]
        self.K, self.N, width = inputs.u.shape
        self.G, self.S = inputs.B.shape[2:]
        self.E = width // self.G
        self.lengths = inputs.lengths
        self.device = inputs.u.device
        self.order = sorted(range(len(self.lengths)), key=lambda b: -self.lengths[b])
        start = [0]
        for length in self.lengths:
            start.append(start[-1] + length)
        self.counts: list[int] = []
        rows: list[list[int]] = [[] for _ in inputs.reverse]
        alive = len(self.order)
        for t in range(max(self.lengths, default=0)):
            while self.lengths[self.order[alive - 1]] <= t:
                alive -= 1
            self.counts.append(alive)
            for k, backwards in enumerate(inputs.reverse):
                chosen = self.order[:alive]
                rows[k] += [start[b + 1] - 1 - t if backwards else start[b] + t for b in chosen]
        index = torch.tensor(rows, dtype=torch.long).view(self.K, self.N)
        place = torch.empty_like(index).scatter_(1, index, torch.arange(self.N).expand(self.K, -1))
        self.index, self.place = index.to(self.device), place.to(self.device)
        self.sequence = torch.tensor(self.order, device=self.device)

        self.x = self.take(inputs.u)
        self.slope: Tensor | None = None
        raw = self.take(inputs.delta)
        if inputs.delta_bias is not None:
            raw = raw + self.channels(inputs.delta_bias)
        self.dt = raw
        if inputs.softplus:
            self.dt = F.softplus(raw, threshold=THRESHOLD)
            self.slope = torch.where(raw > THRESHOLD, torch.ones_like(raw), torch.sigmoid(raw))
        self.A = inputs.A.to(self.dtype).unflatten(1, (self.G, self.E))
        self.B = self.take(inputs.B, grouped=True)
        self.C = self.take(inputs.C, grouped=True)

    def take(self, x: Tensor, grouped: bool = False) -> Tensor:
        """(K, N, D) -> (M, K, G, E); (K, N, G, S) -> (M, K, G, S)."""
        rows = torch.stack([x[k].index_select(0, self.index[k]) for k in range(self.K)], 1).to(self.dtype)
        return rows if grouped else rows.unflatten(2, (self.G, self.E))

    def put(self, rows: Tensor, grouped: bool = False) -> Tensor:
        """The inverse of :meth:`take`."""
        rows = rows if grouped else rows.flatten(2, 3)
        return torch.stack([rows[:, k].index_select(0, self.place[k]) for k in range(self.K)])

    def channels(self, x: Tensor) -> Tensor:
        """(K, D) -> (K, G, E)."""
        return x.to(self.dtype).unflatten(1, (self.G, self.E))

    def sum(self, rows: Tensor) -> Tensor:
        """(M, K, G, E) -> (K, D)."""
        return rows.sum(0).flatten(1, 2)

    def state(self) -> Tensor:
        """Memory for (B, K, G, E, S)."""
        shape = (len(self.lengths), self.K, self.G, self.E, self.S)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def initial(self, state: Tensor | None) -> Tensor:
        """(K, B, D, S) -> (B, K, G, E, S), the longest conversation first; zeros for None."""
        if state is None:
            return self.state()
        return state.index_select(1, self.sequence).transpose(0, 1).to(self.dtype).unflatten(2, (self.G, self.E))

    def put_state(self, state: Tensor) -> Tensor:
        """The inverse of :meth:`initial`."""
        return state.flatten(2, 3).transpose(0, 1).index_select(1, self.sequence.argsort())

    def steps(self) -> Sequence[Step]:
        """By step: dt and x (b, K, G, E, 1), B (b, K, G, 1, S), C (b, K, G, S, 1), and b."""
        columns = (self.dt.unsqueeze(-1), self.x.unsqueeze(-1), self.B.unsqueeze(-2), self.C.unsqueeze(-1))
        return list(zip(*(column.split(self.counts) for column in columns), self.counts, strict=True))


class _Total:
    """Gradients while the steps are walked from the last to the first.

    ``lambda``, the gradient of a state, is what its readout gives and what the next step hands back:
    lambda_t = C_t gy_t + exp(dt_{t+1} A) lambda_{t+1}.
    """

    def __init__(self, plan: _Plan, gy: Tensor) -> None:
        self.plan = plan
        self.gy = list(gy.unsqueeze(-1).split(plan.counts)) if plan.counts else []
        self.A = plan.state()
        self.after: list[Tensor] = []
        self.found: dict[str, list[Tensor]] = {name: [] for name in ("u", "dt", "B", "C", "y")}

    def add(self, carried: Tensor, step: Step, before: Tensor, decay: Tensor, y: Tensor | None) -> Tensor:
        """One step; returns exp(dt A) lambda."""
        dt, x, B, C, count = step
        gy, after = self.gy.pop(), self.after.pop()
        found = self.found
        state_gradient = torch.addcmul(carried, gy, C.transpose(-1, -2))
        into = torch.matmul(state_gradient, B.transpose(-1, -2))
        decayed = decay.mul_(state_gradient)
        change = decayed * before
        found["u"].append((dt * into).squeeze(-1))
        found["dt"].append((x * into).squeeze(-1) + (change * self.plan.A).sum(-1))
        found["B"].append(torch.matmul((dt * x).transpose(-1, -2), state_gradient).squeeze(-2))
        found["C"].append(torch.matmul(gy.transpose(-1, -2), after).squeeze(-2))
        if y is not None:
            found["y"].append(y.squeeze(-1))
        self.A[:count].addcmul_(change, dt)
        return decayed

    def finish(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """du, ddt, dB, dC and, where it was asked for, y, in the order of steps."""
        if not self.plan.counts:
            empty = torch.zeros_like(self.plan.x)
            grouped = torch.zeros_like(self.plan.B)
            return empty, empty, grouped, grouped, empty
        u, dt, B, C = (torch.cat(self.found[name][::-1]) for name in ("u", "dt", "B", "C"))
        return u, dt, B, C, torch.cat(self.found["y"][::-1]) if self.found["y"] else None
