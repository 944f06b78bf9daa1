from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ercfusion.batch.packing import Packing
from ercfusion.layers import dialogue_steps
from ercfusion.layers.dialogue_rnn import DialogueCell, DialogueRecurrence
from ercfusion.layers.dialogue_steps import Steps, speaker_links, speaker_slots

# Lengths and the number of speakers: nobody the longest first, one utterance alone, ties, nine speakers.
SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((3, 1, 9, 4), 2),
    ((1,), 1),
    ((7,), 4),
    ((1, 1), 1),
    ((5, 5, 2), 1),
    ((14, 3, 12), 9),
]


def make(**options: Any) -> DialogueRecurrence:
    torch.manual_seed(0)
    return DialogueRecurrence(4, 5, 3, 6, **options).double()


def inputs(lengths: tuple[int, ...], speakers: int) -> tuple[Tensor, Tensor, Packing]:
    generator = torch.Generator().manual_seed(1)
    packing = Packing(lengths)
    x = torch.randn(packing.total, 4, generator=generator, dtype=torch.float64).requires_grad_()
    parts = []
    for length in lengths:  # everybody speaks once, as far as there is time, then anybody
        anybody = torch.randint(speakers, (length,), generator=generator)
        anybody[:speakers] = torch.randperm(speakers, generator=generator)[:length]
        parts.append(anybody)
    return x, torch.cat(parts), packing


def assert_same(model: DialogueRecurrence, x: Tensor, found: Tensor, expected: Tensor) -> None:
    """Values and the gradients of a random weighing, in the input and in every parameter."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = torch.autograd.grad((expected * weight).sum(), [x, *model.parameters()], allow_unused=True)
    left = torch.autograd.grad((found * weight).sum(), [x, *model.parameters()])  # ours leaves none without one
    names = ["x", *(name for name, _ in model.named_parameters())]
    for name, mine, theirs in zip(names, left, wanted, strict=True):
        expected_gradient = torch.zeros_like(mine) if theirs is None else theirs
        torch.testing.assert_close(mine, expected_gradient, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("lengths", "speakers"), SHAPES)
@pytest.mark.parametrize("listener", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_equals_the_reference(lengths: tuple[int, ...], speakers: int, listener: bool, bidirectional: bool) -> None:
    model = make(listener=listener, bidirectional=bidirectional)
    x, speaker, packing = inputs(lengths, speakers)
    assert len(speaker.unique()) == speakers
    found = model(x, speaker, packing)
    assert found.shape == (packing.total, model.out_features) == (packing.total, 12 if bidirectional else 6)
    assert_same(model, x, found, model.forward_reference(x, speaker, packing))


def gru(cell: torch.nn.GRUCell, hidden: Tensor, entered: Tensor) -> Tensor:
    gates, recurrent = cell.weight_ih @ entered + cell.bias_ih, cell.weight_hh @ hidden + cell.bias_hh
    D = len(hidden)
    r, z = (gates[part] + recurrent[part] for part in (slice(0, D), slice(D, 2 * D)))
    n = (gates[2 * D :] + r.sigmoid() * recurrent[2 * D :]).tanh()
    return (1 - z.sigmoid()) * n + z.sigmoid() * hidden


@pytest.mark.parametrize("listener", [False, True])
def test_three_utterances_by_the_equations(listener: bool) -> None:
    """Written out for speakers a, b, a, to test the reference itself."""
    model = make(listener=listener, bidirectional=False)
    cell = model.cells[0]
    assert isinstance(cell, DialogueCell)
    u = torch.randn(3, 4, dtype=torch.float64)
    zero_g, zero_q, zero_e = (torch.zeros(width, dtype=torch.float64) for width in (5, 3, 6))

    def heard(state: Tensor, t: int, said: Tensor) -> Tensor:
        return state if cell.listener_gru is None else gru(cell.listener_gru, state, torch.cat([u[t], said]))

    g1 = gru(cell.global_gru, zero_g, torch.cat([u[0], zero_q]))
    a1 = gru(cell.party_gru, zero_q, torch.cat([u[0], zero_g]))
    b1 = heard(zero_q, 0, a1)
    e1 = gru(cell.emotion_gru, zero_e, a1)
    g2 = gru(cell.global_gru, g1, torch.cat([u[1], b1]))
    b2 = gru(cell.party_gru, b1, torch.cat([u[1], g1]))  # only g1 to attend to
    a2 = heard(a1, 1, b2)
    e2 = gru(cell.emotion_gru, e1, b2)
    scores = [u[2] @ cell.query.weight.t() @ g for g in (g1, g2)]
    first = scores[0].exp() / (scores[0].exp() + scores[1].exp())
    a3 = gru(cell.party_gru, a2, torch.cat([u[2], first * g1 + (1 - first) * g2]))
    e3 = gru(cell.emotion_gru, e2, a3)
    expected = torch.stack([e1, e2, e3])
    speaker, packing = torch.tensor([0, 1, 0]), Packing((3,))
    torch.testing.assert_close(model.forward_reference(u, speaker, packing), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model(u, speaker, packing), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("listener", [False, True])
def test_dropout_by_its_masks(listener: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference with every new state multiplied by the number that the fast form drew for it, gradients included.

    Listeners' states are dropped by numbers of their own, so here that dropout is left out.
    """
    model = make(listener=listener, dropout=0.4)
    x, speaker, packing = inputs((4, 9, 1, 6), 3)
    masks: list[Tensor] = []
    draw = DialogueRecurrence._mask

    def keep(self: DialogueRecurrence, *arguments: Any) -> Tensor | None:
        masks.append(draw(self, *arguments))  # type: ignore[arg-type]
        return masks[-1]

    monkeypatch.setattr(DialogueRecurrence, "_mask", keep)
    kept = SimpleNamespace(one_hot=torch.nn.functional.one_hot, dropout=lambda values, p: values)
    monkeypatch.setattr(dialogue_steps, "F", kept)
    found = model.train()(x, speaker, packing)
    monkeypatch.undo()
    steps = Steps(packing, speaker, 2)
    kinds = ("global_gru", "party_gru", "emotion_gru")
    assert [mask.shape[2] for mask in masks] == [5, 3, 6]
    assert all(0.3 < float((mask == 0).double().mean()) < 0.5 for mask in masks)
    for d, cell in enumerate(model.cells):
        order = []
        for first, length in zip(packing.offsets.tolist(), packing.lengths, strict=False):
            order += list(range(first, first + length))[:: -1 if d else 1]
        for kind, mask in zip(kinds, masks, strict=True):
            rows = iter([mask[d, int(steps.row[d][i])] for i in order])
            getattr(cell, kind).register_forward_hook(lambda module, entered, out, rows=rows: out * next(rows))
    assert_same(model, x, found, model.forward_reference(x, speaker, packing))


def test_dropout_is_for_training_and_reaches_listeners() -> None:
    x, speaker, packing = inputs((4, 9), 3)
    for listener in (False, True):
        model = make(listener=listener, dropout=0.4)
        expected = model.forward_reference(x, speaker, packing)
        torch.testing.assert_close(model.eval()(x, speaker, packing), expected, rtol=1e-10, atol=1e-12)
        assert not torch.equal(model.train()(x, speaker, packing), model(x, speaker, packing))
    # Keeping only the listeners' dropout.
    model._mask = lambda *arguments: None  # type: ignore[method-assign]
    assert not torch.equal(model(x, speaker, packing), model(x, speaker, packing))


@pytest.mark.parametrize("listener", [False, True])
def test_a_conversation_alone_and_in_a_batch(listener: bool) -> None:
    model = make(listener=listener)
    lengths = (3, 1, 9, 4)
    x, speaker, packing = inputs(lengths, 3)
    parts = [
        model(part, who, Packing([len(part)]))
        for part, who in zip(x.split(lengths), speaker.split(lengths), strict=True)
    ]
    torch.testing.assert_close(model(x, speaker, packing), torch.cat(parts), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("listener", [False, True])
def test_numbers_of_speakers_do_not_matter_but_who_speaks_does(listener: bool) -> None:
    model = make(listener=listener)
    x, speaker, packing = inputs((8, 3, 11), 4)
    expected = model(x, speaker, packing)
    # Permuted, beyond any count, and equal numbers in different conversations or not.
    for changed in (3 - speaker, 1000 * speaker - 7, speaker + 10 * packing.conversation):
        assert torch.equal(model(x, changed, packing), expected)
    other = speaker.clone()
    other[2] = 3 - other[2]
    assert not torch.equal(model(x, other, packing)[:8], expected[:8])
    assert torch.equal(model(x, other, packing)[8:], expected[8:])


def test_the_first_half_reads_forwards_and_the_second_backwards() -> None:
    model = make()
    x, speaker, packing = inputs((7,), 2)
    changed = x.detach().clone()
    changed[3] += 1
    moved = (model(x, speaker, packing) != model(changed, speaker, packing)).unflatten(1, (2, 6)).any(2)
    assert moved[:, 0].tolist() == [False] * 3 + [True] * 4
    assert moved[:, 1].tolist() == [True] * 4 + [False] * 3


def test_what_is_stored_for_the_backward_pass_is_right_to_the_last_number() -> None:
    """Against numerical differences, with masks: an oracle that shares nothing with autograd."""
    model = make(dropout=0.3).train()
    x, speaker, packing = inputs((3, 5, 1), 2)
    names = [name for name, _ in model.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(3)
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x, speaker, packing))

    assert torch.autograd.gradcheck(run, (x, *model.parameters()), fast_mode=True)


def test_links_and_slots_of_speakers() -> None:
    packing = Packing((5, 1, 4))
    speaker = torch.tensor([7, 2, 7, 7, 2, 2, 0, 7, 0, 2])
    previous, following = speaker_links(packing, speaker)
    none = 10
    assert previous.tolist() == [none, none, 0, 2, 1, none, none, none, 6, none]
    assert following.tolist() == [2, 4, 3, none, none, none, 8, none, none, none]
    assert speaker_slots(packing, speaker).tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0, 2]


def test_under_autocast_the_steps_keep_their_precision() -> None:
    model = make().float()
    x, speaker, packing = inputs((5, 2), 2)
    narrow = x.detach().to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(narrow, speaker, packing)
    expected = model(narrow.detach().float(), speaker, packing)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    found.sum().backward()
    assert narrow.grad is not None
    assert narrow.grad.dtype == torch.bfloat16
    assert narrow.grad.abs().max() > 0


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"party_size and emotion_size must be at least 1; found 4, 5, 0, 6"):
        DialogueRecurrence(4, 5, 0, 6)
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and below 1, found 1\.0"):
        DialogueRecurrence(4, 5, 3, 6, dropout=1.0)
