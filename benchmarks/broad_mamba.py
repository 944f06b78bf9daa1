"""Broad Mamba: a training epoch compared with literal Mamba blocks, and its scans and convolutions.

The literal form has the equations and no kernel: padded batches, conversations reversed one by one, decays of all
utterances, channels and states as one tensor, and a loop over utterances. Both have the same weights.

For the parts, calls of the scan or the convolution are recorded with their inputs, and replayed forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.registry import EMOTIONS, SHAPES, Benchmark, Implementation, Inputs, Shape, make_inputs
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.layers import mamba as mamba_layers
from ercfusion.layers.mamba import BidirectionalMamba, Mamba
from ercfusion.models.broad_mamba import BroadMamba

LEARNING_RATE = 1e-3
TINY = {"width": 16, "state": 4, "feature_groups": 1, "enhancement_groups": 1}


class Ours(nn.Module):
    """Broad Mamba with a linear classifier, and one on each modality: a batch -> logits (N, classes)."""

    def __init__(self, shape: Shape, **options: Any) -> None:
        super().__init__()
        small = TINY if shape.batch < 8 else {}
        self.encoder = BroadMamba(InputSpec(shape.widths, speakers=shape.speakers), **{**small, **options})
        self.output = nn.Linear(self.encoder.hidden_size, len(EMOTIONS))
        self.guides = nn.ModuleDict({name: nn.Linear(self.encoder.hidden_size, len(EMOTIONS)) for name in shape.widths})

    def forward(self, batch: ConversationBatch) -> Tensor:
        return self.output(self.encoder(batch, outcomes=self.outcomes).hidden)

    def outcomes(self, modality: str, representation: Tensor) -> Tensor:
        return self.guides[modality](representation).unsqueeze(1)


def our_model(shape: Shape, **options: Any) -> Ours:
    torch.manual_seed(0)
    return Ours(shape, **options)


class LiteralMixer(nn.Module):
    """Both directions of a block on padded tensors, with our parameters."""

    def __init__(self, ours: BidirectionalMamba) -> None:
        super().__init__()
        self.forwards, self.backwards = ours.forwards, ours.backwards

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        padded = packing.pad(x)
        ahead = literal_block(self.forwards, padded)
        turned = literal_block(self.backwards, turn_around(padded, packing))
        return packing.pack(ahead + turn_around(turned, packing))


def turn_around(padded: Tensor, packing: Packing) -> Tensor:
    """Every conversation reversed, its padding unchanged."""
    rows = [torch.cat([row[:n].flip(0), row[n:]]) for row, n in zip(padded, packing.lengths, strict=True)]
    return torch.stack(rows)


def literal_block(block: Mamba, x: Tensor) -> Tensor:
    """(B, L, d) -> (B, L, d)."""
    R, S = block.dt_rank, block.d_state
    inside, gate = block.in_proj(x).chunk(2, dim=-1)
    u = F.silu(block.conv1d(inside.mT)[..., : x.shape[1]]).mT
    delta, B, C = block.x_proj(u).split([R, S, S], dim=-1)
    delta = F.softplus(block.dt_proj(delta))
    decay = torch.exp(delta.unsqueeze(-1) * -block.A_log.exp())  # (B, L, E, S)
    added = delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1)
    h = torch.zeros_like(decay[:, 0])
    rows = []
    for t in range(x.shape[1]):
        h = decay[:, t] * h + added[:, t]
        rows.append(torch.einsum("bes,bs->be", h, C[:, t]))
    y = torch.stack(rows, dim=1) + block.D * u
    return block.out_proj(y * F.silu(gate))


def literal_model(shape: Shape, **options: Any) -> Ours:
    model = our_model(shape, **options)
    for block in model.modules():
        if isinstance(getattr(block, "mixer", None), BidirectionalMamba):
            block.mixer = LiteralMixer(block.mixer)
    return model


def epoch(make: Callable[[Shape], Ours]) -> Callable[[Inputs], Callable[[], None]]:
    def setup(inputs: Inputs) -> Callable[[], None]:
        model = make(inputs.shape).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

        def run() -> None:
            for batch in inputs.batches:
                optimizer.zero_grad()
                F.cross_entropy(model(batch), batch.targets["emotion"].value).backward()
                optimizer.step()

        return run

    return setup


def part(name: str) -> Callable[[Inputs], Callable[[], None]]:
    """All calls of one operator in an epoch, forward and backward, with their recorded inputs."""

    def setup(inputs: Inputs) -> Callable[[], None]:
        operator = getattr(mamba_layers, name)
        calls: list[tuple[list[Any], dict[str, Any], Tensor]] = []

        def leaf(value: Any) -> Any:
            return value.detach().clone().requires_grad_() if isinstance(value, Tensor) else value

        def record(*arguments: Any, **options: Any) -> Tensor:
            result: Tensor = operator(*arguments, **options)
            calls.append(([leaf(value) for value in arguments], dict(options), torch.randn_like(result)))
            return result

        model = our_model(inputs.shape)
        setattr(mamba_layers, name, record)
        try:
            for batch in inputs.batches:
                model(batch)
        finally:
            setattr(mamba_layers, name, operator)

        def run() -> None:
            for arguments, options, grad in calls:
                tensors = [value for value in arguments if isinstance(value, Tensor)]
                torch.autograd.grad(operator(*arguments, **options), tensors, grad)

        return run

    return setup


def check_epoch(inputs: Inputs) -> None:
    """Logits and gradients equal those of the literal blocks, without dropout."""
    none = {"dropout": 0.0, "input_dropout": 0.0}
    ours = our_model(inputs.shape, **none)
    literal = literal_model(inputs.shape, **none)
    for batch in inputs.batches:
        losses = []
        for model in (ours, literal):
            model.zero_grad()
            logits = model(batch)
            F.cross_entropy(logits, batch.targets["emotion"].value).backward()
            losses.append(logits.detach())
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
        theirs = dict(literal.named_parameters())
        for name, parameter in ours.named_parameters():
            wanted = theirs[name].grad
            scale = float(wanted.abs().max())
            torch.testing.assert_close(
                parameter.grad, wanted, rtol=0, atol=2e-3 * scale + 1e-7, msg=lambda text, name=name: f"{name}: {text}"
            )


def epoch_flops(inputs: Inputs) -> dict[str, float]:
    """Operations of one epoch by part: (m, k) times (k, n) counts 2 m k n, the backward pass twice that."""
    model = our_model(inputs.shape)
    utterances = sum(batch.packing.total for batch in inputs.batches)
    blocks = [part for part in model.modules() if isinstance(part, Mamba)]
    inside = ("A_log", "conv1d.weight", "speaker.weight")
    linear = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and not name.endswith(inside))
    first = sum(width for width in inputs.shape.widths.values()) * model.encoder.hidden_size
    # One exp counts as one operation: decay, two products and sums, readout; backward three times that.
    states = sum(block.d_inner * block.d_state for block in blocks)
    taps = sum(block.d_inner * block.d_conv for block in blocks)
    return {
        "linear": 3 * 2.0 * utterances * linear,
        "scan": 4 * 7.0 * utterances * states,
        "convolution": 3 * 2.0 * utterances * taps,
        "less: gradient of the input": -2.0 * utterances * first,
    }


def adam_traffic(inputs: Inputs) -> float:
    """Bytes of one epoch's updates: parameter, gradient and two moments are read, all but the gradient written."""
    return 7.0 * 4 * sum(parameter.numel() for parameter in our_model(inputs.shape).parameters()) * len(inputs.batches)


BENCHMARKS = (
    Benchmark(
        name="broad_mamba-epoch",
        description="one training epoch: forward, backward and AdamW; then only its scans and convolutions",
        implementations={
            "literal": Implementation("padded Mamba blocks, a loop over utterances", epoch(literal_model)),
            "packed": Implementation("ours", epoch(our_model), check_epoch, epoch_flops, adam_traffic),
            "scan alone": Implementation("all scans of the epoch, replayed", part("selective_scan")),
            "convolution alone": Implementation("all convolutions of the epoch, replayed", part("causal_conv")),
        },
        targets={"packed": 5.0},
    ),
)


def shares(inputs: Inputs, epochs: int = 4, shown: int = 12) -> None:
    """Print the share of each operator's own time, by torch's profiler."""
    run = epoch(our_model)(inputs)
    run()  # first use compiles
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(epochs):
            run()
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    for row in rows[:shown]:
        print(f"{row.self_cpu_time_total / total:6.1%} {row.count // epochs:6d} calls  {row.key}")


if __name__ == "__main__":  # only the profile
    shares(make_inputs(SHAPES["iemocap"]))
