from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ercfusion._core.errors import BatchError
from ercfusion.data import ConversationBatch, SequenceValues, TaskTargets
from ercfusion.ops import Packing
from ercfusion.testing import make_task, random_batch


@pytest.fixture
def batch() -> ConversationBatch:
    """Two conversations of 2 and 1 utterances; audio is absent in the second utterance, where NaN is stored."""
    audio = torch.tensor([[1.0, 2.0, 3.0], [math.nan] * 3, [7.0, 8.0, 9.0]])
    steps = SequenceValues(torch.tensor([[1.0], [3.0], [math.nan], [5.0]]), torch.tensor([0, 2, 3, 4]))
    return ConversationBatch(
        packing=Packing([2, 1]),
        features={"text": torch.arange(6.0).view(3, 2), "audio": audio, "mocap": torch.tensor([[2.0], [9.0], [5.0]])},
        speaker=torch.tensor([0, 1, 0]),
        available=torch.tensor([[True, True, True], [True, False, False], [True, True, True]]),
        targets={"emotion": TaskTargets(torch.tensor([1, 0, 2]), torch.tensor([True, False, True]))},
        sequences={"mocap": steps},
        ids=("a", "b"),
    )


def test_sizes(batch: ConversationBatch) -> None:
    assert (batch.num_conversations, batch.num_utterances) == (2, 3)
    assert batch.modalities == ("text", "audio", "mocap")
    assert batch.offsets.tolist() == [0, 2, 3]
    assert batch.device == torch.device("cpu")
    assert [batch.column(name) for name in batch.modalities] == [0, 1, 2]


def test_values_of_absent_modalities_are_zero(batch: ConversationBatch) -> None:
    assert batch.values("audio").tolist() == [[1, 2, 3], [0, 0, 0], [7, 8, 9]]
    assert batch.values("mocap").tolist() == [[2], [0], [5]]
    assert torch.equal(batch.values("text"), batch.features["text"])
    with pytest.raises(BatchError, match=r"no modality 'autio'; it has text, audio, mocap. Did you mean 'audio'\?"):
        batch.values("autio")


def test_gradients_do_not_flow_through_absent_values(batch: ConversationBatch) -> None:
    audio = batch.features["audio"].clone().requires_grad_()
    replace(batch, features={**batch.features, "audio": audio}).values("audio").sum().backward()
    assert audio.grad is not None
    assert audio.grad.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]


def test_hide(batch: ConversationBatch) -> None:
    assert torch.equal(batch.present, batch.available)
    first = torch.tensor([[True, False, False], [False, True, False], [False, False, False]])
    second = torch.tensor([[False, False, False], [False, False, False], [False, False, True]])
    hidden = batch.hide(first).hide(second)
    assert hidden.drop is not None
    assert torch.equal(hidden.drop, first | second)
    assert torch.equal(hidden.available, batch.available)
    expected = [[False, True, True], [True, False, False], [True, True, False]]
    assert hidden.present.tolist() == expected
    assert hidden.values("text").tolist() == [[0, 0], [2, 3], [4, 5]]
    assert hidden.values("mocap").tolist() == [[2], [0], [0]]
    assert batch.drop is None


def test_sequences(batch: ConversationBatch) -> None:
    stored = batch.sequence("mocap")
    assert stored.values.tolist() == [[1], [3], [0], [5]]
    assert stored.offsets.tolist() == [0, 2, 3, 4]
    drop = torch.zeros(3, 3, dtype=torch.bool)
    drop[0, 2] = True
    assert batch.hide(drop).sequence("mocap").values.tolist() == [[0], [0], [0], [5]]


def test_an_utterance_feature_as_a_sequence(batch: ConversationBatch) -> None:
    stored = batch.sequence("audio")
    assert stored.offsets.tolist() == [0, 1, 2, 3]
    assert stored.values.tolist() == [[1, 2, 3], [0, 0, 0], [7, 8, 9]]


def test_a_sequence_may_have_no_steps() -> None:
    batch = random_batch((4, 3), steps={"audio": 3}, seed=1)
    steps = batch.sequences["audio"].offsets.diff()
    assert 0 in steps
    drop = torch.zeros_like(batch.available)
    drop[::2, 1] = True
    expected = [
        row for i, part in enumerate(batch.sequences["audio"].values.split(steps.tolist())) for row in part * (i % 2)
    ]
    assert torch.equal(batch.hide(drop).sequence("audio").values, torch.stack(expected))


def test_pad_and_pack(batch: ConversationBatch) -> None:
    padded, mask = batch.pad(batch.features["text"], fill=-1)
    assert padded.tolist() == [[[0, 1], [2, 3]], [[4, 5], [-1, -1]]]
    assert mask.tolist() == [[True, True], [True, False]]
    assert torch.equal(batch.pack(padded), batch.features["text"])


def test_map_tensors_reaches_every_tensor_of_utterances(batch: ConversationBatch) -> None:
    votes = replace(batch.targets["emotion"], votes=torch.ones(3, 4))
    full = replace(batch, targets={"emotion": votes}, drop=torch.zeros_like(batch.available))
    seen = []

    def change(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor.clone()

    copy = full.map_tensors(change)
    tensors = [*full.features.values(), full.speaker, full.available, full.drop, votes.value, votes.valid, votes.votes]
    tensors += [full.sequences["mocap"].values, full.sequences["mocap"].offsets]
    assert {id(tensor) for tensor in seen} == {id(tensor) for tensor in tensors}
    assert len(seen) == len(tensors)
    assert copy.ids == full.ids
    assert copy.packing is full.packing
    assert copy.features["text"] is not full.features["text"]
    assert torch.equal(copy.features["text"], full.features["text"])
    assert copy.targets["emotion"].votes is not votes.votes


def test_to(batch: ConversationBatch) -> None:
    moved = batch.to("meta")
    assert moved.device.type == "meta"
    assert moved.packing.device.type == "meta"
    assert {value.device.type for value in moved.features.values()} == {"meta"}
    assert moved.targets["emotion"].value.device.type == "meta"
    assert moved.sequences["mocap"].offsets.device.type == "meta"
    assert moved.packing.lengths == (2, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pin_memory(batch: ConversationBatch) -> None:
    pinned = batch.pin_memory()
    assert all(value.is_pinned() for value in pinned.features.values())
    moved = pinned.to("cuda", non_blocking=True)
    assert torch.equal(moved.values("audio").cpu(), batch.values("audio"))


def test_shapes_are_checked(batch: ConversationBatch) -> None:
    with pytest.raises(BatchError, match=r"features 'text' have shape \(2, 2\); the batch has 3 utterances"):
        replace(batch, features={**batch.features, "text": torch.zeros(2, 2)})
    with pytest.raises(BatchError, match=r"features 'text' have shape \(3,\)"):
        replace(batch, features={**batch.features, "text": torch.zeros(3)})
    with pytest.raises(BatchError, match=r"available must be bool of shape \(3, 3\), found torch.bool \(3, 2\)"):
        replace(batch, available=torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(BatchError, match=r"drop must be bool of shape \(3, 3\), found torch.float32 \(3, 3\)"):
        batch.hide(torch.ones(3, 3))
    with pytest.raises(BatchError, match=r"speaker must have shape \(3,\), found \(2,\)"):
        replace(batch, speaker=torch.zeros(2, dtype=torch.long))


def test_random_batches_are_awkward() -> None:
    """What the tests rest on: absent and unlabelled places hold poison, and the seed decides everything."""
    tasks = [make_task(), make_task("regression", "valence")]
    batch = random_batch(tasks=tasks, absent=0.4, labelled=0.5, speakers=3)
    assert batch.packing.lengths == (1, 4, 9, 2, 14)
    assert not batch.available[-1].any()
    assert batch.available[0].all()
    for name in batch.modalities:
        absent = ~batch.available[:, batch.column(name)]
        assert batch.features[name][absent].isnan().all()
        assert batch.features[name][~absent].isfinite().all()
    emotion, valence = batch.targets["emotion"], batch.targets["valence"]
    assert (emotion.value[~emotion.valid] < 0).all()
    assert valence.value[~valence.valid].isnan().all()
    assert 0 < int(emotion.valid.sum()) < batch.num_utterances
    again = random_batch(tasks=tasks, absent=0.4, labelled=0.5, speakers=3)
    other = random_batch(tasks=tasks, absent=0.4, labelled=0.5, speakers=3, seed=1)
    assert torch.equal(again.values("text"), batch.values("text"))
    assert not torch.equal(other.values("text"), batch.values("text"))
    assert int(batch.speaker.max()) == 2
