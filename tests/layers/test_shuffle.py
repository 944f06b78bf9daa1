from __future__ import annotations

import torch

from ercfusion.layers import shuffle_labels

N, M, C = 9, 3, 4


def numbered() -> torch.Tensor:
    """Values (N, M, C, 2) that tell utterance, modality and label."""
    return torch.arange(N * M * C, dtype=torch.float64).view(N, M, C, 1).repeat(1, 1, 1, 2)


def test_every_valid_representation_is_used_once_with_its_own_label() -> None:
    torch.manual_seed(0)
    values, positive = numbered(), torch.rand(N, C) < 0.5
    valid = torch.arange(N) % 4 != 2
    found, labels = shuffle_labels(values, positive, valid)
    assert found.shape == values.shape
    assert labels.shape == (N, M, C)
    moved = False
    for c in range(C):
        assert sorted(found[:, :, c, 0].flatten().tolist()) == sorted(values[:, :, c, 0].flatten().tolist())
        for slot in range(M):
            places = []
            for b in range(N):
                place = int(found[b, slot, c, 0])
                sample, label = place // (M * C), place % C
                assert label == c
                assert labels[b, slot, c] == positive[sample, c]
                assert valid[sample] or sample == b
                places.append(sample)
            # A permutation of the utterances per slot and label.
            assert sorted(places) == list(range(N))
            moved = moved or places != sorted(places)
    assert moved
    kept = ~valid
    assert torch.equal(found[kept], values[kept])
    assert torch.equal(labels[kept], positive[kept][:, None].expand(-1, M, C))


def test_seeds_decide_and_gradients_return_to_their_source() -> None:
    values, positive = numbered().requires_grad_(), torch.ones(N, C, dtype=torch.bool)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(shuffle_labels(values, positive)[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    (gradient,) = torch.autograd.grad((draws[0] * draws[0].detach()).sum(), values)
    assert torch.equal(gradient, values)


def test_permutations_are_uniform() -> None:
    """Every utterance and every modality is drawn equally often for every place."""
    torch.manual_seed(0)
    values, positive = numbered(), torch.ones(N, C, dtype=torch.bool)
    drawn = torch.stack([shuffle_labels(values, positive)[0][..., 0] for _ in range(900)])
    modality, sample = (drawn // C) % M, drawn // (M * C)
    for place, number in ((modality, M), (sample, N)):
        shares = torch.stack([(place == each).double().mean(0) for each in range(number)])
        assert (shares - 1 / number).abs().max() < 0.08
    # Labels are drawn independently of each other.
    assert float((sample[..., 0] == sample[..., 1]).double().mean()) < 1.3 / N
