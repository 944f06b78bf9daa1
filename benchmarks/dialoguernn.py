"""DialogueRNN compared with the literal algorithm: a training epoch, without and with updated listeners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import registry
from benchmarks.literal_dialoguernn import LiteralDialogueRnn
from benchmarks.registry import EMOTIONS, SHAPES, Benchmark, Implementation, Inputs, Shape
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.layers.dialogue_rnn import DialogueRecurrence
from ercfusion.models.dialoguernn import DialogueRnn

LEARNING_RATE = 1e-4
DROPOUTS = {"dropout": 0.1, "state_dropout": 0.1, "emotion_dropout": 0.25}

SETTINGS: dict[str, dict[str, Any]] = {
    # Text vectors and widths of the authors' runs.
    "iemocap": {
        "widths": {"text": 100},
        "batch": 30,
        "model": {"global_size": 500, "party_size": 500, "emotion_size": 300, "hidden": 600},
    },
    "meld": {
        "widths": {"text": 600, "audio": 300},
        "batch": 30,
        "model": {"global_size": 150, "party_size": 150, "emotion_size": 100, "hidden": 200},
    },
    "tiny": {"model": {"global_size": 6, "party_size": 5, "emotion_size": 4, "hidden": 7}},
}
"""Changes to the shapes of the registry, except their conversations."""


def make_inputs(shape: Shape, seed: int = 0) -> Inputs:
    name = next(name for name, other in SHAPES.items() if other == shape)
    return registry.make_inputs(replace(shape, **SETTINGS[name]), seed)


class Ours(nn.Module):
    """Our DialogueRNN with a linear classifier: a batch -> logits (N, classes)."""

    def __init__(self, shape: Shape, *, listener: bool = False, **dropouts: float) -> None:
        super().__init__()
        self.encoder = DialogueRnn(
            InputSpec(shape.widths, speakers=shape.speakers),
            projection=0,
            residual=False,
            listener=listener,
            **shape.model,
            **dropouts,
        )
        self.output = nn.Linear(self.encoder.hidden_size, len(EMOTIONS))

    def forward(self, batch: ConversationBatch) -> Tensor:
        return self.output(self.encoder(batch).hidden)


def literal_model(shape: Shape, *, listener: bool, **dropouts: float) -> LiteralDialogueRnn:
    torch.manual_seed(0)
    return LiteralDialogueRnn(shape.width, len(EMOTIONS), shape.speakers, listener=listener, **shape.model, **dropouts)


def our_model(shape: Shape, *, listener: bool, **dropouts: float) -> Ours:
    torch.manual_seed(0)
    return Ours(shape, listener=listener, **dropouts)


def literal_epoch(listener: bool) -> Callable[[Inputs], Callable[[], None]]:
    def setup(inputs: Inputs) -> Callable[[], None]:
        model = literal_model(inputs.shape, listener=listener, **DROPOUTS).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        batches = inputs.padded

        def epoch() -> None:
            for batch in batches:
                optimizer.zero_grad()
                F.nll_loss(model(batch["features"], batch["speaker"], batch["lengths"]), batch["labels"]).backward()
                optimizer.step()

        return epoch

    return setup


def our_epoch(listener: bool) -> Callable[[Inputs], Callable[[], None]]:
    def setup(inputs: Inputs) -> Callable[[], None]:
        model = our_model(inputs.shape, listener=listener, **DROPOUTS).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

        def epoch() -> None:
            for batch in inputs.batches:
                optimizer.zero_grad()
                F.cross_entropy(model(batch), batch.targets["emotion"].value).backward()
                optimizer.step()

        return epoch

    return setup


def check_epoch(listener: bool) -> Callable[[Inputs], None]:
    """Log-probabilities, loss and gradients equal those of the literal algorithm with the same weights, without
    dropout.
    """

    def check(inputs: Inputs) -> None:
        none = dict.fromkeys(DROPOUTS, 0.0)
        literal = literal_model(inputs.shape, listener=listener, **none)
        ours = our_model(inputs.shape, listener=listener, **none)
        theirs = dict(literal.named_parameters())
        mine = {_literal_name(name): parameter for name, parameter in ours.named_parameters()}
        assert {name: p.shape for name, p in theirs.items()} == {name: p.shape for name, p in mine.items()}
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(theirs[name])
        for batch, padded in zip(inputs.batches, inputs.padded, strict=True):
            literal.zero_grad()
            ours.zero_grad()
            expected = literal(padded["features"], padded["speaker"], padded["lengths"])
            actual = ours(batch).log_softmax(1)
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
            F.nll_loss(expected, padded["labels"]).backward()
            F.nll_loss(actual, batch.targets["emotion"].value).backward()
            for name, parameter in mine.items():
                wanted = theirs[name].grad
                scale = float(wanted.abs().max())
                torch.testing.assert_close(
                    parameter.grad,
                    wanted,
                    rtol=0,
                    atol=1e-3 * scale + 1e-7,
                    msg=lambda text, name=name: f"{name}: {text}",
                )

    return check


def _literal_name(name: str) -> str:
    return name.removeprefix("encoder.").removeprefix("recurrence.")


def epoch_flops(listener: bool) -> Callable[[Inputs], dict[str, float]]:
    """Operations of one epoch by part: (m, k) times (k, n) counts 2 m k n, the backward pass twice that.

    Only necessary operations: no gradient of the input. Attention counts its pairs.
    """

    def flops(inputs: Inputs) -> dict[str, float]:
        model = our_model(inputs.shape, listener=listener)
        recurrence = model.encoder.recurrence
        assert isinstance(recurrence, DialogueRecurrence)
        cells = sum(p.numel() for name, p in recurrence.named_parameters() if "listener" not in name and p.ndim == 2)
        first = (
            2
            * inputs.shape.width
            * sum(inputs.shape.model[key] * factor for key, factor in (("global_size", 4), ("party_size", 3)))
        )
        listeners = sum(p.numel() for name, p in recurrence.named_parameters() if "listener" in name and p.ndim == 2)
        real = sum(batch.packing.total for batch in inputs.batches)
        squares = sum(length**2 for batch in inputs.batches for length in batch.packing.lengths)
        rest = sum(p.numel() for name, p in model.named_parameters() if "recurrence" not in name and p.ndim == 2)
        # Keys and values, forward and backward, over half of the square in each of two directions.
        context = 3 * 2 * 2 * squares * inputs.shape.model["global_size"]
        emotions = 3 * 2 * 2 * squares * recurrence.out_features
        return {
            "recurrence": 3 * 2 * real * cells,
            "listeners": 3 * 2 * real * listeners,
            "context attention": context,
            "emotion attention": emotions,
            "other linear": 3 * 2 * real * rest,
            "less: gradient of the input": -2.0 * real * first,
        }

    return flops


def adam_traffic(inputs: Inputs) -> float:
    """Bytes of one epoch's updates: parameter, gradient and two moments are read, all but the gradient written."""
    parameters = our_model(inputs.shape, listener=False).parameters()
    return 7.0 * 4 * sum(parameter.numel() for parameter in parameters) * len(inputs.batches)


def _benchmark(name: str, description: str, listener: bool, target: float) -> Benchmark:
    return Benchmark(
        name=name,
        description=description,
        implementations={
            "literal": Implementation("the released algorithm, written literally", literal_epoch(listener)),
            "packed": Implementation(
                "ours, same architecture and widths",
                our_epoch(listener),
                check_epoch(listener),
                epoch_flops(listener),
                adam_traffic if not listener else None,
            ),
        },
        targets={"packed": target},
        make_inputs=make_inputs,
    )


BENCHMARKS = (
    _benchmark("dialoguernn-epoch", "one training epoch: forward, backward and Adam", listener=False, target=4.0),
    _benchmark("dialoguernn-listener", "the same with the listeners' states updated", listener=True, target=1.5),
)
