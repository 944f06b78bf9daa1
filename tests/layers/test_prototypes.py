from __future__ import annotations

import pytest
import torch
from shared_batches import Threads
from torch import Tensor

from ercfusion.batch.packing import Packing
from ercfusion.layers import LabelPrototypes
from ercfusion.ops.processes import Shares

Batch = tuple[Tensor, Tensor, Tensor]


def batches(number: int = 3, rows: int = 7, M: int = 2, C: int = 4, Z: int = 3) -> list[Batch]:
    """Latent vectors, labels and valid rows; the last label is never positive."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(rows, M, C, Z, generator=generator, dtype=torch.float64),
            (torch.rand(rows, C, generator=generator) < 0.4) & (torch.arange(C) < C - 1),
            torch.rand(rows, generator=generator) < 0.7,
        )
        for _ in range(number)
    ]


def one_after_another(data: list[Batch], momentum: float) -> Tensor:
    """The specification: one utterance after another."""
    _, M, C, Z = data[0][0].shape
    result = torch.zeros(2, M, C, Z, dtype=torch.float64)
    for latents, positive, valid in data:
        for b in range(len(latents)):
            for m in range(M):
                for c in range(C):
                    if valid[b]:
                        side = int(positive[b, c])
                        result[side, m, c] = momentum * result[side, m, c] + (1 - momentum) * latents[b, m, c]
    return result


def mixture(latents: Tensor, prototypes: Tensor, soft: bool) -> Tensor:
    """The specification of the forward pass; a zero prototype has no update."""
    result = torch.zeros_like(latents)
    for b in range(latents.shape[0]):
        for m in range(latents.shape[1]):
            for c in range(latents.shape[2]):
                z, sides = latents[b, m, c], [side for side in (0, 1) if prototypes[side, m, c].abs().sum() > 0]
                cosines = {side: torch.cosine_similarity(z, prototypes[side, m, c], dim=0) for side in sides}
                if not sides:
                    continue
                if soft:
                    total = sum(cosines[side].exp() for side in sides)
                    parts = [cosines[side].exp() / total * prototypes[side, m, c] for side in sides]
                    result[b, m, c] = torch.stack(parts).sum(0)
                else:
                    result[b, m, c] = prototypes[max(sides, key=lambda side: float(cosines[side].detach())), m, c]
    return result


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.99])
def test_update_equals_one_utterance_after_another(momentum: float) -> None:
    layer = LabelPrototypes(2, 4, 3, momentum=momentum).double()
    data = batches()
    for latents, positive, valid in data:
        layer.update(latents.where(valid[:, None, None, None], torch.nan), positive, valid)
    torch.testing.assert_close(layer.prototypes, one_after_another(data, momentum), rtol=1e-12, atol=1e-14)
    assert not layer.updated[1, :, 3].any()
    assert layer.updated[0].all()


@pytest.mark.parametrize("soft", [True, False])
def test_mixture_equals_the_loop(soft: bool) -> None:
    layer = LabelPrototypes(2, 4, 3).double().train(soft)
    (latents, positive, valid), *_ = batches()
    layer.update(latents, positive, valid)
    latents = latents.flip(0).requires_grad_()
    found, expected = layer(latents), mixture(latents, layer.prototypes.clone(), soft)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    weights = torch.randn_like(found)
    layer.update(latents.detach(), positive, valid)  # before the backward pass
    if soft:
        gradients = [torch.autograd.grad((each * weights).sum(), latents)[0] for each in (found, expected)]
        assert gradients[1].abs().max() > 1e-4
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    else:
        assert not found.requires_grad


@pytest.mark.parametrize("soft", [True, False])
def test_without_an_update_a_prototype_has_no_weight(soft: bool) -> None:
    layer = LabelPrototypes(1, 2, 3).train(soft)
    latents = torch.randn(4, 1, 2, 3, requires_grad=True)
    found = layer(latents)
    assert (found == 0).all()
    layer.update(latents, torch.tensor([[True, True]] * 4), torch.tensor([False] * 4))
    assert torch.equal(layer(latents), found)
    layer.update(latents, torch.tensor([[True, False]] * 4))
    found = layer(latents)
    torch.testing.assert_close(
        found, torch.stack([layer.prototypes[1, :, 0], layer.prototypes[0, :, 1]], 1).expand(4, 1, 2, 3)
    )
    if soft:
        assert torch.autograd.grad(found.sum(), latents)[0].isfinite().all()


def test_a_modality_can_be_left_to_the_others() -> None:
    layer, other = LabelPrototypes(2, 4, 3).double(), LabelPrototypes(2, 4, 3).double()
    (latents, positive, valid), *_ = batches()
    layer.update(latents, positive, valid)
    other.update(latents, positive, torch.stack([valid, torch.zeros_like(valid)], 1))
    torch.testing.assert_close(other.prototypes[:, 0], layer.prototypes[:, 0])
    assert (other.prototypes[:, 1] == 0).all()


def test_the_state_continues() -> None:
    layer, other = LabelPrototypes(2, 4, 3), LabelPrototypes(2, 4, 3)
    first, second, _ = batches()
    layer.update(*first)
    other.load_state_dict(layer.state_dict())
    for each in (layer, other):
        each.update(*second)
    assert torch.equal(layer.prototypes, other.prototypes)
    assert torch.equal(layer(second[0].float()), other(second[0].float()))


def test_processes_have_the_prototypes_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    (latents, positive, valid), *_ = batches()
    whole = LabelPrototypes(2, 4, 3).double()
    whole.update(latents, positive, valid)
    # Conversations of 2, 3 and 2 utterances: the first and last of them in the first process.
    rows = [torch.tensor([0, 1, 5, 6]), torch.tensor([2, 3, 4])]
    packings = [Packing([2, 2]), Packing([3])]

    def share(rank: int) -> Tensor:
        layer = LabelPrototypes(2, 4, 3).double()
        own = rows[rank]
        layer.update(latents[own], positive[own], valid[own], Shares(packings[rank]))
        return layer.prototypes

    for found in Threads(monkeypatch, 2).run(share):
        assert torch.equal(found, whole.prototypes)


def test_a_momentum_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="momentum must be from 0 to below 1, found 1"):
        LabelPrototypes(1, 1, 1, momentum=1.0)
