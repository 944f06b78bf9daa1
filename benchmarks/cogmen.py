"""COGMEN compared with the literal algorithm: a training epoch, and its graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.literal_cogmen import LiteralCogmen, build_graph, relation_numbers
from benchmarks.registry import EMOTIONS, Benchmark, Implementation, Inputs, Shape, pad_batch
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.packing import Packing
from ercfusion.batch.task import TaskSpec
from ercfusion.models.cogmen import Cogmen
from ercfusion.ops.graph import WindowGraph
from ercfusion.tasks.objective import Objective
from ercfusion.tasks.recognizer import Recognizer

TASK = TaskSpec("emotion", "single_label", LabelSchema("benchmark", EMOTIONS))
LEARNING_RATE = 1e-4


def literal_model(shape: Shape, dropout: float = 0.5) -> LiteralCogmen:
    """The literal algorithm with fixed initial weights."""
    torch.manual_seed(0)
    return LiteralCogmen(
        shape.width,
        len(EMOTIONS),
        shape.speakers,
        past=shape.past,
        future=shape.future,
        dropout=dropout,
        **shape.model,
    )


def released_options(shape: Shape, *, mask_padding: bool, dropout: float = 0.5) -> dict[str, Any]:
    """Options of :class:`Cogmen` for the architecture of the literal algorithm."""
    return {
        **shape.model,
        "projection": 0,
        "lags": 0,
        "context_heads": 0,
        "past": shape.past,
        "future": shape.future,
        "relations": "speaker_pair",
        "direction": "released",
        "dropout": dropout,
        "residual": False,
        "norm": "batch",
        "norm_first": False,
        "activation": "relu",
        "mask_padding": mask_padding,
    }


def recognizer(shape: Shape, options: dict[str, Any]) -> Recognizer:
    """Our COGMEN with a head and fixed initial weights."""
    torch.manual_seed(0)
    return Recognizer("cogmen", InputSpec(shape.widths, speakers=shape.speakers), TASK, options)


# One training epoch


def literal_epoch(inputs: Inputs) -> Callable[[], None]:
    model = literal_model(inputs.shape).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    batches = inputs.padded

    def epoch() -> None:
        for batch in batches:
            optimizer.zero_grad()
            loss = F.nll_loss(model(batch["features"], batch["speaker"], batch["lengths"]), batch["labels"])
            loss.backward()
            optimizer.step()

    return epoch


def our_epoch(options: Callable[[Shape], dict[str, Any]]) -> Callable[[Inputs], Callable[[], None]]:
    def setup(inputs: Inputs) -> Callable[[], None]:
        model = recognizer(inputs.shape, options(inputs.shape)).train()
        objective = Objective({})
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

        def epoch() -> None:
            for batch in inputs.batches:
                optimizer.zero_grad()
                total, _ = objective(model, model(batch), batch)
                total.backward()
                optimizer.step()

        return epoch

    return setup


def masked_options(shape: Shape) -> dict[str, Any]:
    return released_options(shape, mask_padding=True)


def unmasked_options(shape: Shape) -> dict[str, Any]:
    return released_options(shape, mask_padding=False)


def default_options(shape: Shape) -> dict[str, Any]:
    return {"past": shape.past, "future": shape.future}


def same_parameters(literal: LiteralCogmen, ours: Recognizer) -> list[tuple[str, Tensor, Tensor, bool]]:
    """Name, literal parameter, our parameter, and True if one is the transpose of the other."""
    model = ours.architecture
    assert isinstance(model, Cogmen)
    conv, attention = literal.relational, literal.attention
    pairs: list[tuple[str, Any, Any, bool]] = [
        ("relational.weight", conv.weight, model.relational.weight, False),
        ("relational.root", conv.root, model.relational.root.weight, True),
        ("relational.bias", conv.bias, model.relational.root.bias, False),
    ]
    modules: list[tuple[str, Any, Any]] = [
        ("narrow", literal.narrow, model.narrow),
        ("query", attention.lin_query, model.attention.query),
        ("key", attention.lin_key, model.attention.key),
        ("value", attention.lin_value, model.attention.value),
        ("skip", attention.lin_skip, model.attention.skip),
        ("norm", literal.norm, model.norm),
        ("classifier", literal.classifier, model.classifier),
        ("output", literal.output, ours.head.linear),
    ]
    for number, (theirs, layer) in enumerate(zip(literal.encoder.layers, model.context.layers, strict=True)):
        pairs += [
            (f"context.{number}.qkv.weight", theirs.self_attn.in_proj_weight, layer.qkv.weight, False),
            (f"context.{number}.qkv.bias", theirs.self_attn.in_proj_bias, layer.qkv.bias, False),
        ]
        modules += [
            (f"context.{number}.out", theirs.self_attn.out_proj, layer.out),
            (f"context.{number}.up", theirs.linear1, layer.up),
            (f"context.{number}.down", theirs.linear2, layer.down),
            (f"context.{number}.norm_attention", theirs.norm1, layer.norm_attention),
            (f"context.{number}.norm_feedforward", theirs.norm2, layer.norm_feedforward),
        ]
    for name, left, right in modules:
        pairs += [(f"{name}.weight", left.weight, right.weight, False), (f"{name}.bias", left.bias, right.bias, False)]
    count = sum(parameter.numel() for parameter in literal.parameters())
    assert sum(pair[1].numel() for pair in pairs) == count, "a parameter of the literal algorithm has no counterpart"
    assert sum(parameter.numel() for parameter in ours.parameters()) == count, "ours has other parameters"
    return pairs


def check_epoch(mask_padding: bool) -> Callable[[Inputs], None]:
    """Logits, loss and gradients equal those of the literal algorithm with the same weights, without dropout.

    With masked padding, the literal algorithm gets one conversation at a time, without padding, and batch normalisation
    uses running statistics; otherwise those of the batch.
    """

    def check(inputs: Inputs) -> None:
        shape = inputs.shape
        literal = literal_model(shape, dropout=0.0).train(not mask_padding)
        ours = recognizer(shape, released_options(shape, mask_padding=mask_padding, dropout=0.0))
        ours.train(not mask_padding)
        pairs = same_parameters(literal, ours)
        with torch.no_grad():
            for _, theirs, mine, transposed in pairs:
                mine.copy_(theirs.t() if transposed else theirs)
        for batch in inputs.batches:
            literal.zero_grad()
            ours.zero_grad()
            parts = [pad_batch(part) for part in one_by_one(batch)] if mask_padding else [pad_batch(batch)]
            theirs = torch.cat([literal(part["features"], part["speaker"], part["lengths"]) for part in parts])
            mine = ours(batch)
            torch.testing.assert_close(mine.logits.log_softmax(-1), theirs, rtol=1e-3, atol=1e-4)
            F.nll_loss(theirs, batch.targets["emotion"].value).backward()
            Objective({})(ours, mine, batch)[0].backward()
            for name, left, right, transposed in pairs:
                expected = left.grad.t() if transposed else left.grad
                scale = float(expected.abs().max())
                torch.testing.assert_close(
                    right.grad,
                    expected,
                    rtol=0,
                    atol=1e-3 * scale + 1e-6,
                    msg=lambda text, name=name: f"{name}: {text}",
                )

    return check


def one_by_one(batch: ConversationBatch) -> Iterable[ConversationBatch]:
    """The conversations of a batch as batches."""
    lengths = batch.packing.lengths
    pieces = zip(
        lengths,
        zip(*(values.split(lengths) for values in batch.features.values()), strict=True),
        batch.speaker.split(lengths),
        batch.available.split(lengths),
        batch.targets["emotion"].value.split(lengths),
        batch.targets["emotion"].valid.split(lengths),
        strict=True,
    )
    for length, features, speaker, available, value, valid in pieces:
        targets = {"emotion": type(batch.targets["emotion"])(value, valid)}
        yield ConversationBatch(
            Packing([length]), dict(zip(batch.features, features, strict=True)), speaker, available, targets=targets
        )


def epoch_flops(padded: bool, options: Callable[[Shape], dict[str, Any]]) -> Callable[[Inputs], dict[str, float]]:
    """Operations of one epoch by part: (m, k) times (k, n) counts 2 m k n, the backward pass twice that.

    Only necessary operations: no gradient of the input. Attention counts L^2 per conversation (of the longest in the
    batch if ``padded``), graph attention and means of neighbours count edges.
    """

    def flops(inputs: Inputs) -> dict[str, float]:
        shape = inputs.shape
        model = recognizer(shape, options(shape)).architecture
        assert isinstance(model, Cogmen)
        real = slots = squares = edges = 0
        for batch in inputs.batches:
            packing = batch.packing
            lengths = (packing.longest,) * packing.size if padded else packing.lengths
            real += packing.total
            slots += sum(lengths)
            squares += sum(length**2 for length in lengths)
            edges += len(WindowGraph(packing, batch.speaker, shape.past, shape.future).edges[0])
        linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        weights = {name: layer.weight.numel() for name, layer in linear.items()}
        encoder = sum(count for name, count in weights.items() if name.startswith("context."))
        first = sum(count for name, count in weights.items() if name.startswith("project."))
        if not model.project.out_features:
            first = weights["context.layers.0.qkv"]
        rest = sum(weights.values()) - encoder
        width = model.narrow.in_features
        hidden, heads = model.relational.weight.shape[1], model.attention.heads
        relational = model.relational.weight[0].numel() * min(4, len(model.relational.weight))
        return {
            "Transformer, linear": 2 * 3 * slots * encoder,
            "Transformer, attention": 3 * 4 * squares * width * len(model.context.layers),
            "graph": 3 * 2 * (real * relational + edges * hidden) + 3 * 4 * edges * hidden * heads,
            "other linear": 2 * 3 * real * (rest + model.hidden_size * len(EMOTIONS)),
            "less: gradient of the input": -2.0 * (real if model.project.out_features else slots) * first,
        }

    return flops


def adam_traffic(options: Callable[[Shape], dict[str, Any]]) -> Callable[[Inputs], float]:
    """Bytes of one epoch's updates: parameter, gradient and two moments are read, all but the gradient written."""

    def traffic(inputs: Inputs) -> float:
        parameters = recognizer(inputs.shape, options(inputs.shape)).parameters()
        return 7.0 * 4 * sum(parameter.numel() for parameter in parameters) * len(inputs.batches)

    return traffic


# Building the graphs of one epoch


def literal_graphs(inputs: Inputs) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    shape, batches = inputs.shape, inputs.padded
    numbers = relation_numbers(shape.speakers)
    return lambda: [
        build_graph(batch["lengths"], batch["speaker"], shape.past, shape.future, numbers) for batch in batches
    ]


def window_graphs(inputs: Inputs) -> list[WindowGraph]:
    """Graphs without computed properties; the released direction exchanges past and future."""
    shape = inputs.shape
    return [
        WindowGraph(
            Packing(batch.packing.lengths),
            batch.speaker,
            shape.future,
            shape.past,
            relations="speaker_pair",
            num_speakers=shape.speakers,
        )
        for batch in inputs.batches
    ]


def our_edges(inputs: Inputs) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    return lambda: [(graph.edges, graph.relation) for graph in window_graphs(inputs)]


def our_blocks(inputs: Inputs) -> Callable[[], list[Tensor]]:
    return lambda: [graph.relation_blocks for graph in window_graphs(inputs)]


def triples(edges: Tensor, relation: Tensor) -> set[tuple[int, ...]]:
    """Edges as (source, target, relation)."""
    rows = list(map(tuple, torch.cat([edges, relation[None]]).t().tolist()))
    assert len(rows) == len(set(rows)), "an edge occurs twice"
    return set(rows)


def check_edges(inputs: Inputs) -> None:
    for literal, ours in zip(literal_graphs(inputs)(), our_edges(inputs)(), strict=True):
        assert triples(*literal) == triples(*ours)


def check_blocks(inputs: Inputs) -> None:
    for literal, blocks, batch in zip(literal_graphs(inputs)(), our_blocks(inputs)(), inputs.batches, strict=True):
        conversation, t, s = (blocks < 2 * inputs.shape.speakers**2).nonzero().t()
        first = batch.packing.offsets[conversation]
        assert triples(*literal) == triples(torch.stack([first + s, first + t]), blocks[conversation, t, s])


BENCHMARKS = (
    Benchmark(
        name="cogmen-epoch",
        description="one training epoch: forward, backward and Adam, dropout 0.5",
        implementations={
            "literal": Implementation(
                "the released algorithm, written literally",
                literal_epoch,
                flops=epoch_flops(True, unmasked_options),
                traffic=adam_traffic(unmasked_options),
            ),
            "released, masked": Implementation(
                "ours, same architecture and width, padding masked",
                our_epoch(masked_options),
                check_epoch(mask_padding=True),
                epoch_flops(False, masked_options),
                adam_traffic(masked_options),
            ),
            "released, unmasked": Implementation(
                "ours, same architecture and width, padding attended to as released",
                our_epoch(unmasked_options),
                check_epoch(mask_padding=False),
                epoch_flops(True, unmasked_options),
                adam_traffic(unmasked_options),
            ),
            "default": Implementation(
                "ours in its default form, another model: projected to 128, pre-norm, residual",
                our_epoch(default_options),
                flops=epoch_flops(False, default_options),
                traffic=adam_traffic(default_options),
            ),
        },
        targets={"released, masked": 2.0},
    ),
    Benchmark(
        name="cogmen-graph",
        description="the graphs of all batches of an epoch: edges and relations",
        implementations={
            "literal": Implementation("nested loops, one tensor an edge", literal_graphs),
            "edges": Implementation("WindowGraph(...).edges and .relation", our_edges, check_edges),
            "blocks": Implementation("WindowGraph(...).relation_blocks", our_blocks, check_blocks),
        },
        targets={"edges": 50.0, "blocks": 50.0},
        memory=False,
    ),
)
