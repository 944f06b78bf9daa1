from __future__ import annotations

import re

import pytest
import torch

from ercfusion.ops import Packing

LENGTHS = (3, 1, 5, 2)


def test_counts_and_indices() -> None:
    packing = Packing(LENGTHS)
    assert (packing.size, packing.total, packing.longest) == (4, 11, 5)
    assert packing.length.tolist() == [3, 1, 5, 2]
    assert packing.offsets.tolist() == [0, 3, 4, 9, 11]
    assert packing.conversation.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3]
    assert packing.position.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 1]
    assert packing.mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert repr(packing) == "Packing(4 conversations, 11 utterances, longest 5, cpu)"


@pytest.mark.parametrize("lengths", [LENGTHS, (4, 4), (6,), (1,), (1, 1, 1)])
@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)])
@pytest.mark.parametrize("fill", [0.0, -7.0])
def test_pad_and_pack(lengths: tuple[int, ...], trailing: tuple[int, ...], fill: float) -> None:
    torch.manual_seed(0)
    packing = Packing(lengths)
    values = torch.randn(packing.total, *trailing)
    padded = packing.pad(values, fill)
    assert padded.shape == (len(lengths), max(lengths), *trailing)
    for b, part in enumerate(values.split(lengths)):
        assert torch.equal(padded[b, : lengths[b]], part)
        assert (padded[b, lengths[b] :] == fill).all()
    assert torch.equal(packing.pack(padded), values)


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float64])
def test_pad_keeps_the_type(dtype: torch.dtype) -> None:
    packing = Packing((2, 1))
    values = torch.tensor([1, 0, 1]).to(dtype)
    padded = packing.pad(values)
    assert padded.dtype == dtype
    assert torch.equal(padded, torch.tensor([[1, 0], [1, 0]]).to(dtype))


@pytest.mark.parametrize("lengths", [(2, 3), (3,)])
def test_gradients_of_pad_and_pack(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    packing = Packing(lengths)
    values = torch.randn(packing.total, 2, dtype=torch.float64, requires_grad=True)
    padded = torch.randn(packing.size, packing.longest, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(packing.pad, (values,))
    assert torch.autograd.gradcheck(packing.pack, (padded,))


def test_padding_gets_no_gradient() -> None:
    packing = Packing((1, 3))
    padded = torch.zeros(2, 3, 2, requires_grad=True)
    packing.pack(padded).sum().backward()
    assert padded.grad is not None
    assert torch.equal(padded.grad, packing.mask[:, :, None].expand(2, 3, 2).float())


@pytest.mark.parametrize("lengths", [(), (3, 0), (-1,)])
def test_empty_conversations_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one utterance"):
        Packing(lengths)


def test_to_the_same_device_is_the_same_object() -> None:
    packing = Packing(LENGTHS)
    assert packing.to("cpu") is packing
    assert packing.to("meta").lengths == LENGTHS
    assert packing.to("meta").offsets.device.type == "meta"


# Masks


@pytest.mark.parametrize("lengths", [LENGTHS, (4, 4), (3,), (1, 1)])
@pytest.mark.parametrize("more", [0, 3])
def test_from_mask(lengths: tuple[int, ...], more: int) -> None:
    """A padded batch of any length comes back at its own length, with its values and gradients."""
    torch.manual_seed(0)
    L = max(lengths) + more
    mask = torch.arange(L) < torch.tensor(lengths)[:, None]
    packing = Packing.from_mask(mask)
    assert packing.lengths == lengths
    padded = torch.randn(len(lengths), L, 2, dtype=torch.float64, requires_grad=True)
    packed = packing.pack(padded)
    assert torch.equal(packed, padded[mask])
    back = packing.pad(packed, length=L)
    assert torch.equal(back, torch.where(mask[..., None], padded, 0.0))
    assert (packing.pad(packed, -1.0, length=L)[~mask] == -1).all()
    weights = torch.randn_like(back)
    (gradient,) = torch.autograd.grad((back * weights).sum(), padded)
    assert torch.equal(gradient, torch.where(mask[..., None], weights, 0.0))
    assert torch.autograd.gradcheck(lambda x: packing.pad(packing.pack(x), length=L), (padded,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_from_mask_is_on_the_device_of_the_mask() -> None:
    mask = torch.tensor([[True, False], [True, True]], device="cuda")
    packing = Packing.from_mask(mask)
    assert packing.lengths == (1, 2)
    assert packing.pad(packing.pack(mask), length=3).device == mask.device


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (torch.tensor([[True, True], [False, True]]), "conversation 1 begins with padding. Pass ~mask"),
        (torch.tensor([[True, True, True], [True, False, True]]), "conversation 1 has padding at position 1, before"),
        (torch.tensor([[True, False], [True, True], [False, False]]), "conversation 2 has no utterance"),
        (torch.ones(2, 3), r"\(B, L\) booleans.*found \(2, 3\) of torch.float32. Convert it with mask.bool"),
        (torch.ones(3, dtype=torch.bool), r"\(B, L\) booleans.*found \(3,\) of torch.bool"),
        (torch.ones(0, 3, dtype=torch.bool), "at least one utterance"),
    ],
)
def test_wrong_masks_are_refused(mask: torch.Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Packing.from_mask(mask)


@pytest.mark.parametrize("mask", [torch.ones(2, 3, dtype=torch.bool), torch.ones(3).bool(), torch.ones(2, 3).int()])
@pytest.mark.parametrize("array", [False, True])
def test_a_mask_is_not_lengths(mask: torch.Tensor, array: bool) -> None:
    lengths = mask.numpy() if array else mask
    with pytest.raises(ValueError, match=r"lengths must be B integers.* Use Packing\.from_mask\(mask\)"):
        Packing(lengths)  # type: ignore[arg-type]
    assert Packing(mask.int().reshape(-1)).total == mask.numel()  # type: ignore[arg-type]


# Shapes that do not fit


@pytest.mark.parametrize(
    ("lengths", "shape"), [((2, 3), (3, 3, 4)), ((2, 3), (1, 3, 4)), ((2, 8), (2, 7)), ((3,), (2, 3)), ((2, 3), (5,))]
)
def test_pack_refuses_another_batch(lengths: tuple[int, ...], shape: tuple[int, ...]) -> None:
    message = f"B = {len(lengths)} conversations and L at least {max(lengths)}; found {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        Packing(lengths).pack(torch.zeros(shape))


@pytest.mark.parametrize(("lengths", "shape"), [((2, 3), (2, 3, 4)), ((2, 3), (1,)), ((3,), (1, 3)), ((2, 3), ())])
def test_pad_refuses_another_number_of_utterances(lengths: tuple[int, ...], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"N = {sum(lengths)} utterances; found {shape}")):
        Packing(lengths).pad(torch.zeros(shape))


def test_pad_refuses_a_length_below_the_longest() -> None:
    with pytest.raises(ValueError, match="length must be at least 5, the longest conversation; found 4"):
        Packing(LENGTHS).pad(torch.zeros(11), length=4)
