"""The selective scan in plain torch: all channels, states and conversations at once, time in sequence.

For any device and for float64, if no faster backend accepts. The backward pass is written by hand after the equations
of :mod:`ercfusion.ops.scan.contract` and tested against :mod:`ercfusion.ops.scan.reference`. It computes the states
again, a range of steps at a time, so no tensor of the states of all utterances is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ercfusion.ops.scan.contract import ScanGradients, ScanInputs, accumulation_dtype
from ercfusion.ops.scan.reference import THRESHOLD

RECOMPUTED = 2**25
"""Numbers in the states and decays of a range of steps in the backward pass."""


class TorchScan:
    """Plain torch with hand-written gradients."""

    name = "torch"

    def declines(self, inputs: ScanInputs) -> str | None:
        """Declines complex tensors."""
        if any(x.is_complex() for x in inputs[:9] if isinstance(x, Tensor)):
            return "it is for real tensors"
        return None

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Outputs and final states; see :class:`ercfusion.ops.scan.contract.ScanBackend`."""
        inputs = ScanInputs(*arguments)
        plan = _Plan(inputs)
        h, final = plan.initial(inputs.initial), plan.state()
        outputs = []
        for dt, u, B, C, count in plan.steps():
            if len(h) > count:  # conversations that have ended
                final[count : len(h)] = h[count:]
                h = h[:count]
            h = torch.exp(dt * plan.A).mul_(h).addcmul_(dt * u, B)  # (F2)
            outputs.append(torch.matmul(h, C).squeeze(-1))
        final[: len(h)] = h
        y = torch.cat(outputs) if outputs else plan.u  # (F3), (F4)
        if inputs.D is not None:
            y = y + plan.channels(inputs.D) * plan.u
        if inputs.z is not None:
            y = y * F.silu(plan.take(inputs.z))
        return plan.put(y), plan.put_state(final)

    def backward(self, grad_out: Tensor, grad_final: Tensor | None, *arguments: Any) -> ScanGradients:
        """All gradients; see :class:`ercfusion.ops.scan.contract.ScanBackend`."""
        inputs = ScanInputs(*arguments)
        plan = _Plan(inputs)
        g = plan.take(grad_out)
        gy = g
        if inputs.z is not None:
            z = plan.take(inputs.z)
            gate = torch.sigmoid(z)
            gy = g * z * gate  # (B1)
        total = _Total(plan, gy)
        h, last = plan.initial(inputs.initial), plan.initial(grad_final)
        steps = list(plan.steps())
        # Forward once, saving the state before every range; then per range, last first: forward again with all states
        # and decays, and backward through them.
        size = max(1, RECOMPUTED // max(1, 2 * h.numel()))
        marks = []
        for first in range(0, len(steps), size):
            marks.append(h)
            if first + size < len(steps):
                for dt, u, B, _, count in steps[first : first + size]:
                    h = torch.exp(dt * plan.A).mul_(h[:count]).addcmul_(dt * u, B)
        a_lam = last[:0]
        for number in reversed(range(len(marks))):
            h = marks[number]
            part = steps[number * size : (number + 1) * size]
            recomputed = []
            for dt, u, B, C, count in part:
                before, decay = h[:count], torch.exp(dt * plan.A)
                h = (decay * before).addcmul_(dt * u, B)
                recomputed.append((before, decay, torch.matmul(h, C) if inputs.z is not None else None))
                total.after.append(h)
            for step, (before, decay, y) in zip(reversed(part), reversed(recomputed), strict=True):
                if len(a_lam) < step[-1]:  # the last step of these conversations: (B2) begins with the final gradient
                    a_lam = torch.cat([a_lam, last[len(a_lam) : step[-1]]])
                a_lam = total.add(a_lam, step, before, decay, y)
        if len(a_lam) < len(last):  # conversations without utterances: dinitial is the final gradient
            a_lam = torch.cat([a_lam, last[len(a_lam) :]])

        du, ddt, dB, dC, y = total.finish()
        dD = None
        if inputs.D is not None:
            skip = plan.channels(inputs.D)  # (B4), (F3), (B7)
            du, y = du + skip * gy, y + skip * plan.u if y is not None else None
            dD = plan.sum(gy * plan.u)
        dz = None
        if inputs.z is not None:
            assert y is not None
            dz = plan.put(g * y * gate * (1 + z * (1 - gate)))  # (B1)
        # (B6): the slope is the same for all states, so it is applied after the loop.
        ddelta = ddt * plan.slope if plan.slope is not None else ddt
        return ScanGradients(
            plan.put(du),
            plan.put(ddelta),
            total.dA.sum(0).flatten(1, 2),
            plan.put(dB, grouped=True),
            plan.put(dC, grouped=True),
            dD,
            dz,
            None if inputs.delta_bias is None else plan.sum(ddelta),
            None if inputs.initial is None else plan.put_state(a_lam),
        )


Step = tuple[Tensor, Tensor, Tensor, Tensor, int]


class _Plan:
    """Rows by step: those of step t are the t-th utterances, in reading direction, of all longer conversations.

    The longest conversation is first, so finished conversations are the last rows. Rows are (M, K, G, E, ...), with M =
    N utterances in the order of steps and E channels per group; states (B, K, G, E, S).
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

        self.u = self.take(inputs.u)
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
        """Per step: dt and u (b, K, G, E, 1), B (b, K, G, 1, S), C (b, K, G, S, 1), and b."""
        columns = (self.dt.unsqueeze(-1), self.u.unsqueeze(-1), self.B.unsqueeze(-2), self.C.unsqueeze(-1))
        return list(zip(*(column.split(self.counts) for column in columns), self.counts, strict=True))


class _Total:
    """Gradients, collected from the last step to the first; equations of :mod:`ercfusion.ops.scan.contract`."""

    def __init__(self, plan: _Plan, gy: Tensor) -> None:
        self.plan = plan
        self.gy = list(gy.unsqueeze(-1).split(plan.counts)) if plan.counts else []
        self.dA = plan.state()
        self.after: list[Tensor] = []
        self.parts: dict[str, list[Tensor]] = {name: [] for name in ("u", "dt", "B", "C", "y")}

    def add(self, a_lam: Tensor, step: Step, before: Tensor, decay: Tensor, y: Tensor | None) -> Tensor:
        """One step, from a_{t+1} lambda_{t+1} (``a_lam``) to a_t lambda_t.

        ``before`` is h_{t-1}, ``decay`` a_t, and ``y`` the first term of (F3).
        """
        dt, u, B, C, count = step
        gy, after = self.gy.pop(), self.after.pop()
        parts = self.parts
        lam = torch.addcmul(a_lam, gy, C.transpose(-1, -2))  # (B2)
        v = torch.matmul(lam, B.transpose(-1, -2))  # (B4)
        a_lam = decay.mul_(lam)
        r = a_lam * before  # (B5)
        parts["u"].append((dt * v).squeeze(-1))
        parts["dt"].append((u * v).squeeze(-1) + (r * self.plan.A).sum(-1))  # (B6)
        # (B3): the sum over the channels of a group is inside the product.
        parts["B"].append(torch.matmul((dt * u).transpose(-1, -2), lam).squeeze(-2))
        parts["C"].append(torch.matmul(gy.transpose(-1, -2), after).squeeze(-2))
        if y is not None:
            parts["y"].append(y.squeeze(-1))
        self.dA[:count].addcmul_(r, dt)  # (B5), summed over conversations at the end
        return a_lam

    def finish(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """du without D, ddt, dB, dC and, with z, y without D, in the order of steps."""
        if not self.plan.counts:
            empty = torch.zeros_like(self.plan.u)
            grouped = torch.zeros_like(self.plan.B)
            return empty, empty, grouped, grouped, empty
        u, dt, B, C = (torch.cat(self.parts[name][::-1]) for name in ("u", "dt", "B", "C"))
        return u, dt, B, C, torch.cat(self.parts["y"][::-1]) if self.parts["y"] else None
