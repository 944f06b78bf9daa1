from __future__ import annotations

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
