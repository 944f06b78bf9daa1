"""M2FNet compared with the same network of torch's padded encoder layers and attention: training steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import registry
from benchmarks.registry import EMOTIONS, Benchmark, Implementation, Inputs, Shape
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.models.m2fnet import M2FNet
from ercfusion.testing import without_dropout

LEARNING_RATE = 5e-4


def published_options(shape: Shape) -> dict[str, Any]:
    """The published form at a common width, with five fusion modules; small for the shape ``tiny``."""
    tiny = shape.model["hidden"] < 64
    return {
        "width": 16 if tiny else 256,
        "heads": 4 if tiny else 8,
        "feedforward": 24 if tiny else 512,
        "hidden": 16 if tiny else 256,
        "layers": 1,
        "fusions": 5,
        "norm_first": False,
        "activation": "relu",
        "lags": 0,
        "residual": False,
        "readout": "concat",
        "modality_dropout": 0.0,
    }


class Classified(nn.Module):
    """Our architecture and a linear layer, without dropout, with fixed initial weights."""

    def __init__(self, shape: Shape, options: Mapping[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode = M2FNet(InputSpec(shape.widths, speakers=shape.speakers), **options)
        self.head = nn.Linear(self.encode.hidden_size, len(EMOTIONS))
        without_dropout(self)

    def forward(self, batch: ConversationBatch) -> Tensor:
        """(N, classes)."""
        return self.head(self.encode(batch).hidden)


class PaddedM2FNet(nn.Module):
    """Torch's encoder layers and multi-head attention on padded conversations with a mask, without dropout.

    Shapes:
        features (B, L, D_m) by modality, mask (B, L) True at utterances -> (B, L, classes).
    """

    def __init__(self, shape: Shape, options: Mapping[str, Any]) -> None:
        super().__init__()
        width, heads = options["width"], options["heads"]
        self.project = nn.ModuleDict({name: nn.Linear(size, width) for name, size in shape.widths.items()})
        self.encoders = nn.ModuleDict(
            {
                name: nn.TransformerEncoderLayer(width, heads, options["feedforward"], 0.0, batch_first=True)
                for name in shape.widths
            }
        )
        self.others = [name for name in shape.widths if name != "text"]
        self.attend = nn.ModuleList(
            nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in self.others)
            for _ in range(options["fusions"])
        )
        self.fuse = nn.ModuleList(nn.Linear(width * len(shape.widths), width) for _ in range(options["fusions"]))
        self.readout = nn.Linear(width * len(shape.widths), options["hidden"])
        self.head = nn.Linear(options["hidden"], len(EMOTIONS))

    def forward(self, features: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """Logits (B, L, classes)."""
        x = {name: layer(features[name]) for name, layer in self.project.items()}
        for name, layer in self.encoders.items():
            x[name] = x[name] + layer(x[name], src_key_padding_mask=~mask)
        text = x["text"]
        for attend, fuse in zip(self.attend, self.fuse, strict=True):
            attended = [
                attention(text, x[name], text, key_padding_mask=~mask, need_weights=False)[0]
                for name, attention in zip(self.others, attend, strict=True)  # type: ignore[call-overload]
            ]
            text = fuse(torch.cat([*attended, text], dim=-1))
        return self.head(F.relu(self.readout(torch.cat([*(x[name] for name in self.others), text], dim=-1))))

    @torch.no_grad()
    def load(self, ours: Classified) -> None:
        """Copy the weights of our model."""
        model = ours.encode
        assert model.project is not None
        for name in self.project:
            self.project[name].load_state_dict(model.project.project[name].state_dict())
            mine, theirs = model.encoders[name][0].layers[0], self.encoders[name]  # type: ignore[index]
            theirs.self_attn.in_proj_weight.copy_(mine.qkv.weight)
            theirs.self_attn.in_proj_bias.copy_(mine.qkv.bias)
            for left, right in (
                (theirs.self_attn.out_proj, mine.out),
                (theirs.linear1, mine.up),
                (theirs.linear2, mine.down),
                (theirs.norm1, mine.norm_attention),
                (theirs.norm2, mine.norm_feedforward),
            ):
                left.load_state_dict(right.state_dict())
        for fusion, attend, fuse in zip(model.fusions, self.attend, self.fuse, strict=True):
            queries, values = (part.chunk(len(self.others)) for part in fusion.read_main.weight.chunk(2))
            query_bias, value_bias = (part.chunk(len(self.others)) for part in fusion.read_main.bias.chunk(2))
            for k, attention in enumerate(attend):  # type: ignore[arg-type, var-annotated]
                attention.in_proj_weight.copy_(torch.cat([queries[k], fusion.read_other[k].t(), values[k]]))
                attention.in_proj_bias.copy_(torch.cat([query_bias[k], 0 * query_bias[k], value_bias[k]]))
                attention.out_proj.weight.copy_(fusion.out[k].t())
                attention.out_proj.bias.copy_(fusion.out_bias[k, 0])
            fuse.load_state_dict(fusion.fuse.state_dict())
        self.readout.load_state_dict(model.readout.state_dict())
        self.head.load_state_dict(ours.head.state_dict())


def padded_epoch(inputs: Inputs) -> Callable[[], None]:
    torch.manual_seed(0)
    model = PaddedM2FNet(inputs.shape, published_options(inputs.shape))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches = [
        (
            {name: batch.packing.pad(value) for name, value in batch.features.items()},
            batch.packing.mask,
            batch.targets["emotion"].value,
        )
        for batch in inputs.batches
    ]

    def epoch() -> None:
        for features, mask, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(features, mask)[mask], labels).backward()
            optimizer.step()

    return epoch


def our_epoch(options: Callable[[Shape], dict[str, Any]]) -> Callable[[Inputs], Callable[[], None]]:
    def setup(inputs: Inputs) -> Callable[[], None]:
        model = Classified(inputs.shape, options(inputs.shape))
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

        def epoch() -> None:
            for batch in inputs.batches:
                optimizer.zero_grad()
                F.cross_entropy(model(batch), batch.targets["emotion"].value).backward()
                optimizer.step()

        return epoch

    return setup


def check_epoch(inputs: Inputs) -> None:
    """Equal logits and gradients of all features with shared weights, in double precision."""
    options = published_options(inputs.shape)
    ours = Classified(inputs.shape, options).double()
    theirs = PaddedM2FNet(inputs.shape, options).double()
    theirs.load(ours)
    for batch in inputs.batches:
        features = {name: value.double().requires_grad_() for name, value in batch.features.items()}
        packed = ConversationBatch(batch.packing, features, batch.speaker, batch.available, targets=batch.targets)
        mine = ours(packed)
        expected = theirs({name: batch.packing.pad(value) for name, value in features.items()}, batch.packing.mask)
        expected = batch.packing.pack(expected)
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)
        left = torch.autograd.grad(mine.square().sum(), list(features.values()))
        right = torch.autograd.grad(expected.square().sum(), list(features.values()))
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-9)


def main() -> None:
    """Print utterances per second of every implementation: ``python -m benchmarks.m2fnet``."""
    inputs = registry.make_inputs(registry.SHAPES["iemocap"])
    inputs = Inputs(inputs.shape, inputs.batches[:1])
    utterances = inputs.batches[0].num_utterances
    functions = {name: implementation.setup(inputs) for name, implementation in BENCHMARKS[0].implementations.items()}
    seconds = dict.fromkeys(functions, float("inf"))
    for number in range(6):  # the first round warms up
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if number:
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    for name, best in seconds.items():
        print(f"{name:10} {best:6.3f} s a step {utterances / best:7.0f} utterances/s {seconds['torch'] / best:6.2f}x")


BENCHMARKS = (
    Benchmark(
        name="m2fnet-epoch",
        description="training steps of one epoch: forward, backward and Adam, no dropout",
        implementations={
            "torch": Implementation("the published form of torch's own layers, padded and masked", padded_epoch),
            "published": Implementation("ours, the same network, packed", our_epoch(published_options), check_epoch),
            "default": Implementation("ours in its default form, another model", our_epoch(lambda shape: {})),
        },
    ),
)

if __name__ == "__main__":
    main()
