"""DAG-ERC compared with the literal algorithm: a training epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import registry
from benchmarks.literal_dagerc import LiteralDagErc
from benchmarks.registry import EMOTIONS, SHAPES, Benchmark, Implementation, Inputs, Shape
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.models.dagerc import DagErc
from ercfusion.ops.dag import dag_windows

LEARNING_RATE = 5e-4
DROPOUT = 0.2
WINDOW = 1

SETTINGS: dict[str, dict[str, Any]] = {
    # Text vectors, layers and batches of the authors' commands.
    "iemocap": {"widths": {"text": 1024}, "batch": 16, "model": {"hidden": 300, "layers": 4}},
    "meld": {"widths": {"text": 1024}, "batch": 64, "model": {"hidden": 300, "layers": 2}},
    "tiny": {"widths": {"text": 6}, "model": {"hidden": 7, "layers": 3}},
}
"""Changes to the shapes of the registry, except their conversations."""


def make_inputs(shape: Shape, seed: int = 0) -> Inputs:
    name = next(name for name, other in SHAPES.items() if other == shape)
    return registry.make_inputs(replace(shape, **SETTINGS[name]), seed)


class Ours(nn.Module):
    """Our DAG-ERC as released, with a linear classifier: a batch -> logits (N, classes)."""

    def __init__(self, shape: Shape, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.encoder = DagErc(
            InputSpec(shape.widths, speakers=shape.speakers),
            projection=0,
            window=WINDOW,
            attention="dagerc",
            mlp_layers=2,
            dropout=dropout,
            input_dropout=0.0,
            **shape.model,
        )
        self.output = nn.Linear(self.encoder.hidden_size, len(EMOTIONS))

    def forward(self, batch: ConversationBatch) -> Tensor:
        return self.output(self.encoder(batch).hidden)


def literal_model(shape: Shape, dropout: float = DROPOUT) -> LiteralDagErc:
    torch.manual_seed(0)
    return LiteralDagErc(shape.width, len(EMOTIONS), window=WINDOW, dropout=dropout, **shape.model)


def our_model(shape: Shape, dropout: float = DROPOUT) -> Ours:
    torch.manual_seed(0)
    return Ours(shape, dropout)


# One training epoch. The authors' AdamW has no weight decay, which makes it Adam.


def literal_epoch(inputs: Inputs) -> Callable[[], None]:
    model = literal_model(inputs.shape).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches = inputs.padded

    def epoch() -> None:
        for batch in batches:
            optimizer.zero_grad()
            F.nll_loss(model(batch["features"], batch["speaker"], batch["lengths"]), batch["labels"]).backward()
            optimizer.step()

    return epoch


def our_epoch(inputs: Inputs) -> Callable[[], None]:
    model = our_model(inputs.shape).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def epoch() -> None:
        for batch in inputs.batches:
            optimizer.zero_grad()
            F.cross_entropy(model(batch), batch.targets["emotion"].value).backward()
            optimizer.step()

    return epoch


def arranged(literal: LiteralDagErc, read: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """``read`` of the literal algorithm's parameters, with the names and layout of ours.

    The half of the attention applied to the receiver, and its bias, cancel in the softmax; ours has neither.
    """
    tensors_by_name = {}
    for name, linear in {
        "encoder.encode.linear": literal.encode,
        "encoder.readout.0": literal.first,
        "encoder.readout.2": literal.second,
        "output": literal.output,
    }.items():
        tensors_by_name[f"{name}.weight"], tensors_by_name[f"{name}.bias"] = read(linear.weight), read(linear.bias)
    stacks: dict[str, list[Tensor]] = {}
    for layer in literal.layers:
        first, second, attention = layer.utterance_gru, layer.message_gru, layer.attention
        width = first.hidden_size
        parts = {
            "input_weight": torch.cat([read(first.weight_ih), read(second.weight_hh)]),
            "input_bias": torch.cat([read(first.bias_ih), read(second.bias_hh)]),
            "message_weight": torch.cat([read(first.weight_hh), read(second.weight_ih)]),
            "message_bias": torch.cat([read(first.bias_hh), read(second.bias_ih)]),
            "relation": torch.stack([read(attention.same.weight), read(attention.other.weight)]),
            "query": read(attention.score.weight)[0, width:],
        }
        for name, tensor in parts.items():
            stacks.setdefault(name, []).append(tensor)
    for name, tensors in stacks.items():
        tensors_by_name[f"encoder.recur.{name}"] = torch.stack(tensors)[None]
    return tensors_by_name


def check_epoch(inputs: Inputs) -> None:
    """Log-probabilities, loss and gradients equal those of the literal algorithm with the same weights, without
    dropout.
    """
    literal, ours = literal_model(inputs.shape, dropout=0.0), our_model(inputs.shape, dropout=0.0)
    theirs, mine = arranged(literal, lambda parameter: parameter.detach()), dict(ours.named_parameters())
    assert {name: p.shape for name, p in theirs.items()} == {name: p.shape for name, p in mine.items()}
    cancelled = sum(layer.attention.score.weight.shape[1] // 2 + 1 for layer in literal.layers)
    assert sum(p.numel() for p in literal.parameters()) == sum(p.numel() for p in mine.values()) + cancelled
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(theirs[name])
    for batch, padded in zip(inputs.batches, inputs.padded, strict=True):
        literal.zero_grad()
        ours.zero_grad()
        expected = literal(padded["features"], padded["speaker"], padded["lengths"])
        actual = ours(batch).log_softmax(1)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        loss, our_loss = F.nll_loss(expected, padded["labels"]), F.nll_loss(actual, batch.targets["emotion"].value)
        torch.testing.assert_close(our_loss, loss)
        loss.backward()
        our_loss.backward()
        wanted = arranged(literal, lambda parameter: parameter.grad)
        for name, parameter in mine.items():
            scale = float(wanted[name].abs().max())
            torch.testing.assert_close(
                parameter.grad,
                wanted[name],
                rtol=0,
                atol=1e-3 * scale + 1e-7,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        for layer in literal.layers:
            score = layer.attention.score
            for grad in (score.weight.grad[:, : score.in_features // 2], score.bias.grad):
                torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-6)


def epoch_flops(inputs: Inputs) -> dict[str, float]:
    """Operations of one epoch by part: (m, k) times (k, n) counts 2 m k n, the backward pass twice that.

    Only necessary operations: no gradient of the features, no message to the first utterance and from the last, and
    sums of predecessors before the projection. Attention counts edges.
    """
    model = our_model(inputs.shape)
    weights = model.encoder.recur
    _, layers, _, width = weights.input_weight.shape
    real = receivers = edges = messages = 0
    for batch in inputs.batches:
        first = dag_windows(batch.speaker, batch.packing, WINDOW).tolist()
        spoke = batch.speaker.tolist()
        real += len(first)
        for i, low in enumerate(first):
            receivers += low < i
            edges += i - low
            messages += len({spoke[j] == spoke[i] for j in range(low, i)})
    dense = sum(p.numel() for name, p in model.named_parameters() if "recur" not in name and p.ndim == 2)
    cells, relation = weights.input_weight[0, 0].numel(), width**2
    return {
        "GRUs": 3.0 * 2 * layers * (real + receivers) * cells,
        "relations": 3.0 * 2 * layers * messages * relation,
        # Scores of the senders, as many as receivers, and the sums over the edges.
        "attention": 3.0 * 2 * layers * (receivers + edges) * width,
        "other linear": 3.0 * 2 * real * dense,
        # The features enter the first linear layer and the readout.
        "less: gradient of the input": -2.0 * real * 2 * inputs.shape.width * width,
    }


def adam_traffic(inputs: Inputs) -> float:
    """Bytes of one epoch's updates: parameter, gradient and two moments are read, all but the gradient written."""
    parameters = our_model(inputs.shape).parameters()
    return 7.0 * 4 * sum(parameter.numel() for parameter in parameters) * len(inputs.batches)


BENCHMARKS = (
    Benchmark(
        name="dagerc-epoch",
        description=f"one training epoch: forward, backward and Adam, dropout {DROPOUT}",
        implementations={
            "literal": Implementation("the released algorithm, written literally", literal_epoch),
            "wavefront": Implementation(
                "ours, same architecture and widths", our_epoch, check_epoch, epoch_flops, adam_traffic
            ),
        },
        targets={"wavefront": 10.0},
        make_inputs=make_inputs,
    ),
)
