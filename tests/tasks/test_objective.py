from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ercfusion.data.batch import ConversationBatch
from ercfusion.errors import ConfigError
from ercfusion.tasks.objective import Objective, mean_over_processes
from ercfusion.tasks.recognizer import Recognized, Recognizer
from ercfusion.testing import make_task, random_batch, random_store, take

TASK = make_task()


@pytest.fixture
def recognizer() -> Recognizer:
    torch.manual_seed(0)
    return Recognizer("concat", random_store(tasks=[TASK]).inputs, TASK, {"hidden": 8}, unimodal=True).eval()


@pytest.fixture
def batch() -> ConversationBatch:
    return random_batch(tasks=[TASK], labelled=0.6, absent=0.2)


def recognize(recognizer: Recognizer, batch: ConversationBatch) -> Recognized:
    recognized = recognizer(batch)
    recognized.encoded.losses = {"smooth": torch.tensor(3.0), "sparse": torch.tensor(5.0)}
    return recognized


def quotient(recognizer: Recognizer, logits: Tensor, batch: ConversationBatch, weights: Tensor | None = None) -> Tensor:
    total, count = recognizer.head.loss(logits, batch.targets["emotion"], weights)
    return total / count


def test_terms(recognizer: Recognizer, batch: ConversationBatch) -> None:
    recognized = recognize(recognizer, batch)
    total, terms = Objective({})(recognizer, recognized, batch)
    assert list(terms) == ["task", "unimodal", "smooth", "sparse"]
    torch.testing.assert_close(terms["task"], quotient(recognizer, recognized.logits, batch))
    each = [quotient(recognizer, logits, batch) for logits in recognized.unimodal.values()]
    assert len(each) == 3
    torch.testing.assert_close(terms["unimodal"], torch.stack(each).sum())
    assert (terms["smooth"], terms["sparse"]) == (3.0, 5.0)
    torch.testing.assert_close(total, torch.stack(list(terms.values())).sum())


def test_weights(recognizer: Recognizer, batch: ConversationBatch) -> None:
    recognized = recognize(recognizer, batch)
    total, terms = Objective({"unimodal": 0.5, "smooth": 0.0, "sparse": 10.0})(recognizer, recognized, batch)
    torch.testing.assert_close(total, terms["task"] + 0.5 * terms["unimodal"] + 50.0)
    assert terms["smooth"] == 3.0  # what is logged is not weighted
    assert terms["sparse"] == 5.0


def test_class_weights(recognizer: Recognizer, batch: ConversationBatch) -> None:
    weights = torch.tensor([1.0, 0.0, 3.0, 0.5])
    objective = Objective({}, weights)
    recognized = recognizer(batch)
    _, terms = objective(recognizer, recognized, batch)
    torch.testing.assert_close(terms["task"], quotient(recognizer, recognized.logits, batch, weights))
    each = [quotient(recognizer, logits, batch, weights) for logits in recognized.unimodal.values()]
    torch.testing.assert_close(terms["unimodal"], torch.stack(each).sum())
    assert not objective.state_dict()  # from the data, not part of a model
    assert dict(objective.named_buffers()).keys() == {"class_weights"}


def test_unknown_term(recognizer: Recognizer, batch: ConversationBatch) -> None:
    with pytest.raises(ConfigError, match=r"objective.weights names the term 'smoth'. Did you mean 'smooth'\?"):
        Objective({"smoth": 1.0})(recognizer, recognize(recognizer, batch), batch)


def test_a_weight_for_unimodal_is_no_error_without_unimodal_heads(batch: ConversationBatch) -> None:
    torch.manual_seed(0)
    plain = Recognizer("concat", random_store(tasks=[TASK]).inputs, TASK)
    _, terms = Objective({"unimodal": 0.3})(plain, plain(batch), batch)
    assert list(terms) == ["task"]


def test_no_labelled_utterance_gives_zero(recognizer: Recognizer, batch: ConversationBatch) -> None:
    target = batch.targets["emotion"]
    unlabelled = replace(batch, targets={"emotion": replace(target, valid=torch.zeros_like(target.valid))})
    total, _ = Objective({})(recognizer, recognizer(unlabelled), unlabelled)
    total.backward()
    assert float(total.detach()) == 0
    assert all((parameter.grad == 0).all() for parameter in recognizer.parameters())


def test_processes_together_descend_on_the_mean_over_all_utterances(
    recognizer: Recognizer, batch: ConversationBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with unequal shares: the average of their gradients is the gradient over the whole batch."""
    objective = Objective({})
    parameters = list(recognizer.parameters())

    def gradient(part: ConversationBatch) -> list[Tensor]:
        total, _ = objective(recognizer, recognizer(part), part)
        return list(torch.autograd.grad(total, parameters))

    expected = gradient(batch)
    shares = [take(batch, [0, 4]), take(batch, [1, 2, 3])]
    counts = [float(share.targets["emotion"].valid.sum()) for share in shares]
    assert counts[0] != counts[1]
    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.fill_(sum(counts)))
    for found, *pair in zip(expected, *(gradient(share) for share in shares), strict=True):
        torch.testing.assert_close(torch.stack(pair).mean(0), found, rtol=1e-4, atol=1e-6)


def test_mean_over_processes_leaves_its_count_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.add_(6))
    count = torch.tensor(2.0)
    assert mean_over_processes(torch.tensor(10.0), count) == 10 / (8 / 4)
    assert count == 2
