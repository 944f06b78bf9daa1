"""The DAG-ERC recurrence: windows and wavefront against plain loops, in values and in every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ercfusion.layers.dag import DagStack
from ercfusion.ops import Packing
from ercfusion.ops.dag import DagState, dag_recursion, dag_windows
from ercfusion.ops.dag_reference import (
    DAG_ATTENTIONS,
    DagWeights,
    dag_node,
    dag_recursion_reference,
    dag_windows_reference,
)

SHAPES = {
    "two_layers": ((5, 1, 8, 2), 2, (1,), 2),
    "one_layer": ((4, 3), 3, (2,), 1),
    "single_utterances": ((1, 1, 1), 2, (1,), 3),
    "one_utterance": ((1,), 1, (1, 5), 1),
    "deeper_than_long": ((2, 3), 2, (1,), 5),
    "two_stacks_nine_speakers": ((3, 14, 14, 1), 9, (1, 5), 4),
    "three_stacks": ((12, 1, 9), 2, (5, 1, 2), 2),
}


def make(
    lengths: tuple[int, ...], speakers: int, windows: tuple[int, ...], layers: int, width: int = 5
) -> tuple[Tensor, Tensor, Tensor, Packing, DagWeights]:
    torch.manual_seed(sum(lengths) + layers)
    packing = Packing(lengths)
    speaker = torch.randint(speakers, (packing.total,))
    first = torch.stack([dag_windows(speaker, packing, window) for window in windows])
    h = torch.randn(packing.total, width, dtype=torch.float64, requires_grad=True)
    weights = DagStack(width, layers, windows).double().weights
    for weight in weights:
        nn.init.normal_(weight, std=0.6)
    return h, first, speaker, packing, weights


@pytest.mark.parametrize("speakers", [1, 2, 9])
@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_windows(window: int, speakers: int) -> None:
    torch.manual_seed(window + speakers)
    packing = Packing((1, 30, 2, 17, 1))
    speaker = torch.randint(speakers, (packing.total,)) * 7 + 1  # numbers mean nothing
    assert torch.equal(dag_windows(speaker, packing, window), dag_windows_reference(speaker, packing, window))


def test_windows_by_hand() -> None:
    """A A B A | B A: back to the speaker's last utterance, else to the beginning."""
    packing, speaker = Packing((4, 2)), torch.tensor([0, 0, 1, 0, 1, 0])
    assert dag_windows(speaker, packing, 1).tolist() == [0, 0, 0, 1, 4, 4]
    assert dag_windows(speaker, packing, 2).tolist() == [0, 0, 0, 0, 4, 4]


def test_windows_of_no_size() -> None:
    with pytest.raises(ValueError, match="window must be at least 1, found 0"):
        dag_windows(torch.zeros(3, dtype=torch.long), Packing((3,)), 0)


@pytest.mark.parametrize("attention", DAG_ATTENTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_recursion(shape: str, attention: str) -> None:
    h, first, speaker, packing, weights = make(*SHAPES[shape])
    tensors = {"h": h, **weights._asdict()}
    measured = []
    for form in (dag_recursion, dag_recursion_reference):
        value = form(h, first, speaker, packing, weights, attention)  # type: ignore[operator]
        generator = torch.Generator().manual_seed(1)
        direction = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        gradients = torch.autograd.grad((value * direction).sum(), list(tensors.values()), allow_unused=True)
        with torch.no_grad():
            assert torch.equal(form(h, first, speaker, packing, weights, attention), value)  # type: ignore[operator]
        measured.append((value, gradients))
    (found, gradients), (expected, wanted) = measured
    assert found.shape == (*first.shape[:1], weights.attention.shape[1], *h.shape)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    for name, gradient, other in zip(tensors, gradients, wanted, strict=True):
        other = torch.zeros_like(gradient) if other is None else other  # nobody has a predecessor
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}")
        # The messages' weights see nothing where nobody has a predecessor; all others do.
        silent = max(packing.lengths) == 1 and name in ("message_weight", "relation", "attention")
        assert bool(gradient.any()) is not silent, name


def test_node_is_two_gru_cells() -> None:
    """torch's own cell as the oracle, with the published attention: a linear layer on the concatenation."""
    h, _, _, _, weights = make((6,), 2, (1,), 1)
    own, x, past = weights.node(0, 0), h[0], h[1:5]
    same = torch.tensor([True, False, False, True])
    cells = {"c": nn.GRUCell(5, 5).double(), "p": nn.GRUCell(5, 5).double()}
    sides = {
        ("c", "ih"): (own.input_weight[:15], own.input_bias[:15]),
        ("c", "hh"): (own.message_weight[:15], own.message_bias[:15]),
        ("p", "ih"): (own.message_weight[15:], own.message_bias[15:]),
        ("p", "hh"): (own.input_weight[15:], own.input_bias[15:]),
    }
    with torch.no_grad():
        for (cell, side), (weight, bias) in sides.items():
            getattr(cells[cell], f"weight_{side}").copy_(weight)
            getattr(cells[cell], f"bias_{side}").copy_(bias)
    linear = torch.cat([torch.randn(5, dtype=torch.float64), own.attention])  # whatever the query's half is
    score = torch.cat([x.expand(4, 5), past], 1) @ linear + 3.0
    values = torch.stack([own.relation[0 if mine else 1] @ vector for mine, vector in zip(same, past, strict=True)])
    message = (score.softmax(0) @ values)[None]
    expected = cells["c"](x[None], message) + cells["p"](message, x[None])
    torch.testing.assert_close(dag_node(x, past, same, own), expected[0], rtol=1e-12, atol=1e-12)


def test_only_the_gat_attention_asks() -> None:
    """With the state kept out of everything but the scores, who asks matters to ``gat`` alone."""
    h, _, _, _, weights = make((6,), 2, (1,), 1)
    own = weights.node(0, 0)
    with torch.no_grad():
        own.input_weight.zero_()
        own.message_weight[15:] = 0
        own.message_bias[15:] = 0
        own.input_bias[20:25] = -50.0  # GRU_p keeps nothing of its state
    for attention in DAG_ATTENTIONS:
        answers = [dag_node(h[n], h[2:], torch.ones(4, dtype=torch.bool), own, attention) for n in (0, 1)]
        assert torch.allclose(*answers, atol=1e-12) is (attention == "dagerc")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attention", DAG_ATTENTIONS)
def test_the_future_and_the_rest_of_the_batch_change_no_bit(attention: str, dtype: torch.dtype) -> None:
    h, _, speaker, packing, weights = make((9, 20, 4), 5, (1, 3), 3, width=40)
    h, weights = h.to(dtype), DagWeights(*(weight.to(dtype) for weight in weights))
    changed, other = h.detach().clone(), speaker.clone()
    later = (packing.position > 6) | (packing.conversation == 1)
    changed[later] += 1.0
    other[later] = 0
    outputs = []
    for vectors, spoke in ((h, speaker), (changed, other)):
        first = torch.stack([dag_windows(spoke, packing, window) for window in (1, 3)])
        outputs.append(dag_recursion(vectors, first, spoke, packing, weights, attention))  # type: ignore[arg-type]
    assert torch.equal(outputs[0][:, :, ~later], outputs[1][:, :, ~later])
    assert not torch.equal(outputs[0][:, :, later], outputs[1][:, :, later])


@pytest.mark.parametrize("attention", DAG_ATTENTIONS)
def test_state(attention: str) -> None:
    """One utterance at a time, past the size its memory starts with."""
    h, first, speaker, packing, weights = make((37,), 3, (1, 4), 3)
    expected = dag_recursion(h, first, speaker, packing, weights, attention)  # type: ignore[arg-type]
    state = DagState(DagWeights(*(w.detach() for w in weights)), (1, 4), attention)  # type: ignore[arg-type]
    steps = [state.step(h[t], int(speaker[t])) for t in range(37)]
    torch.testing.assert_close(torch.stack(steps, 2), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_large_scores(dtype: torch.dtype) -> None:
    """Scores beyond what exp() can take; compared with the reference in double precision."""
    h, first, speaker, packing, weights = make((1, 11, 4), 3, (1, 2), 2)
    with torch.no_grad():
        weights.attention.mul_(2000.0)
    expected = dag_recursion_reference(h, first, speaker, packing, weights)
    halves = DagWeights(*(weight.detach().to(dtype).requires_grad_() for weight in weights))
    with torch.autocast("cpu", torch.bfloat16):
        found = dag_recursion(h, first, speaker, packing, halves)
        wide = dag_recursion(h.bfloat16(), first, speaker, packing, weights)
    assert found.dtype == dtype
    assert wide.dtype == torch.float64
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), list(halves)))
    first_utterance = packing.position == 0  # no attention, so no winner that rounding could change
    torch.testing.assert_close(
        found[:, :, first_utterance].double(), expected[:, :, first_utterance], rtol=0.1, atol=0.1
    )
    assert found.isfinite().all()


def test_scores_far_apart_in_single_precision() -> None:
    h, first, speaker, packing, weights = make((11, 4), 3, (2,), 1)
    with torch.no_grad():
        weights.attention.mul_(300.0)
    expected = dag_recursion_reference(h, first, speaker, packing, weights)
    single = DagWeights(*(weight.detach().float() for weight in weights))
    found = dag_recursion(h.float(), first, speaker, packing, single)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_backward_twice() -> None:
    h, first, speaker, packing, weights = make((5, 3), 2, (1,), 2)
    value = dag_recursion(h, first, speaker, packing, weights).sum()
    one = torch.autograd.grad(value, [h, *weights], retain_graph=True)
    two = torch.autograd.grad(value, [h, *weights])
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.slow
def test_a_compiler_leaves_the_steps_alone() -> None:
    """Under ``torch.compile`` the recursion runs as it is: only what is around it is traced."""
    traced: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        traced.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph

    def around(h: Tensor, first: Tensor, speaker: Tensor, packing: Packing, weights: DagWeights) -> Tensor:
        return dag_recursion(h * 2, first, speaker, packing, weights) + 1

    torch.compiler.reset()
    compiled = torch.compile(around, backend=keep)
    for lengths in ((5, 3), (3, 7)):
        arguments = make(lengths, 2, (1,), 2)
        leaves = [arguments[0], *arguments[4]]
        expected, found = around(*arguments), compiled(*arguments)
        assert torch.equal(found, expected)
        for one, two in zip(*(torch.autograd.grad(y.sum(), leaves) for y in (found, expected)), strict=True):
            assert torch.equal(one, two)
    torch.compiler.reset()
    scalar = ("mul", "add", "eq", "not_", "lt", "le", "gt", "ge", "ne", "and_", "or_")  # with checks of lengths
    assert traced
    assert {name.removeprefix("<built-in function ").rstrip(">") for name in traced} <= set(scalar)


def test_refusals() -> None:
    h, first, speaker, packing, weights = make((5, 3), 2, (1,), 2)
    with pytest.raises(ValueError, match="attention must be one of dagerc, gat; found 'dot'"):
        dag_recursion(h, first, speaker, packing, weights, "dot")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"need h \(8, 5\) and first \(1, 8\); found \(8, 5\) and \(2, 8\)"):
        dag_recursion(h, first.repeat(2, 1), speaker, packing, weights)
    with pytest.raises(ValueError, match="attention must be one of"):
        DagState(weights, (1,), "dot")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1 stacks need as many windows .* found \(1, 2\)"):
        DagState(weights, (1, 2))
