"""Self-distillation from the complete view: every batch twice, with an optimiser step each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from runs import TINY, assert_same_run, history, keep_states, python, refused, resume, train
from torch import Tensor
from torch.nn import functional

from ercfusion.batch.batch import ConversationBatch
from ercfusion.config.compose import Composer
from ercfusion.config.settings import section_of
from ercfusion.data.sampler import ConversationSampler, mix_seed
from ercfusion.data.store import ConversationStore
from ercfusion.losses import concordance
from ercfusion.tasks.objective import build_objective
from ercfusion.tasks.recognizer import Recognized, Recognizer
from ercfusion.tasks.teaching import Taught
from ercfusion.testing import make_task, random_store
from ercfusion.testing.batches import cast
from ercfusion.train import main
from ercfusion.training.callbacks import BatchSeed
from ercfusion.training.folder import quiet_trainer
from ercfusion.training.module import ConversationModule, TrainingBatches

MODEL = ("model=concat", "model.hidden=8", "recipe=self_distillation")
WEIGHTS = {"guidance": 0.5, "distillation": 0.1, "imputation": 0.6}


@pytest.fixture(scope="module")
def store() -> ConversationStore:
    return random_store(tasks=[make_task()], absent=0.1)


def module_of(store: ConversationStore, scheduler: str = "constant", steps: int | None = None) -> ConversationModule:
    torch.manual_seed(0)
    recognizer = Recognizer("concat", store.inputs, store.tasks[0], {"hidden": 8, "dropout": 0.3})
    recognizer.prepare(store)
    section = section_of("objective", {"weights": WEIGHTS})
    objective = build_objective(section, recognizer, store.targets["emotion"], complete=True)
    optimizer = section_of("optimizer", {"name": "sgd", "lr": 0.3, "momentum": 0.5, "weight_decay": 0.0})
    chosen = section_of("scheduler", {"name": scheduler})
    return ConversationModule(
        recognizer, objective, optimizer, chosen, steps=steps, modality_dropout=0.6, complete_pass=True
    )


def sampler_of(store: ConversationStore, size: int = 2) -> ConversationSampler:
    return ConversationSampler(store.lengths, size, passes=2)


def fitted(module: ConversationModule, store: ConversationStore, epochs: int = 2) -> ConversationModule:
    batches = TrainingBatches(store, sampler_of(store), pin_memory=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=0.5,
        callbacks=[BatchSeed(0)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )
    with quiet_trainer():
        trainer.fit(module, datamodule=batches)
    return module


def by_hand(module: ConversationModule, store: ConversationStore, epochs: int = 2, *, cleared: bool = True) -> None:
    """The published algorithm; the released code does not clear the gradients between the two steps."""
    recognizer, objective = module.recognizer, module.objective
    parameters = [*recognizer.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.3, momentum=0.5)
    recognizer.train()
    for epoch in range(epochs):
        sampler = ConversationSampler(store.lengths, 2)
        sampler.set_epoch(epoch)
        for number, indices in enumerate(sampler):
            batch = store.batch(indices)
            torch.manual_seed(mix_seed(0, 1 + epoch, 2 * number, 0))
            optimizer.zero_grad()
            recognized = recognizer(batch)
            loss, _ = objective(recognizer, recognized, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
            taught = Taught.by(recognizer, recognized, batch)
            torch.manual_seed(mix_seed(0, 1 + epoch, 2 * number + 1, 0))
            view = batch.hide(~module.hide(batch.present, batch.packing))
            if cleared:
                optimizer.zero_grad()
            loss, _ = objective(recognizer, recognizer(view), view, taught)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()


def differing(one: ConversationModule, other: ConversationModule) -> list[str]:
    states = one.state_dict(), other.state_dict()
    return [name for name, value in states[0].items() if not torch.allclose(value, states[1][name], atol=1e-6)]


def test_two_steps_per_batch_with_cleared_gradients(store: ConversationStore) -> None:
    result = fitted(module_of(store), store)
    expected = module_of(store)
    by_hand(expected, store)
    assert differing(result, expected) == []
    defect = module_of(store)
    by_hand(defect, store, cleared=False)
    assert len(differing(result, defect)) > 5


def test_the_first_pass_is_complete_and_teaches_the_second(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = module_of(store).train()
    monkeypatch.setattr(module, "log_dict", lambda *arguments, **options: None)
    seen: list[Any] = []
    module.recognizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].present))
    module.objective.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[3]))
    batch = store.batch(range(len(store)))
    for number in range(4):
        torch.manual_seed(number)
        module.training_step(batch, number)
    complete, hidden = seen[0::4], seen[2::4]
    assert all(torch.equal(present, batch.present) for present in complete)
    assert all((present <= batch.present).all() and present.sum() < batch.present.sum() for present in hidden)
    assert seen[1] is None
    assert seen[5] is None
    for taught in (seen[3], seen[7]):
        assert torch.equal(taught.complete.present, batch.present)
        assert not taught.hidden.requires_grad


@pytest.mark.parametrize("limit", [None, 2, 0.5])
def test_every_batch_comes_twice(limit: float | None) -> None:
    once = ConversationSampler([3, 1, 2, 5, 4], 2, limit=limit)
    twice = ConversationSampler([3, 1, 2, 5, 4], 2, limit=limit, passes=2)
    for epoch in range(3):
        once.set_epoch(epoch)
        twice.set_epoch(epoch)
        batches = list(twice)
        assert batches[0::2] == batches[1::2] == list(once)
        assert len(twice) == len(batches) == 2 * len(once)
    assert twice.steps(3) == 2 * once.steps(3)


def test_a_schedule_counts_both_steps(store: ConversationStore) -> None:
    module = fitted(module_of(store, "linear", sampler_of(store).steps(2)), store)
    (scheduler,) = [config.scheduler for config in module.trainer.lr_scheduler_configs]
    assert module.trainer.global_step == sampler_of(store).steps(2) == 2 * 2 * len(list(range(0, len(store), 2)))
    assert scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


def test_a_configuration_of_the_recipe() -> None:
    config = Composer().compose(["model=cogmen", "recipe=self_distillation"])
    assert config["training"]["complete_pass"] is True
    assert config["missing"] == {"train": "rate:0.5"}
    assert {name: config["objective"]["weights"][name] for name in WEIGHTS} == WEIGHTS
    assert "recipe" not in config
    one = Composer().compose(["model=cogmen", "recipe=self_distillation", "missing.train=rate:0.3"])
    assert one["missing"] == {"train": "rate:0.3"}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["training.accumulate_grad_batches=2"], "so training.accumulate_grad_batches=2 does not apply. Set it to 1."),
        (["missing.train=null"], "hidden in the second pass (missing.train=none). Set missing.train=rate:0.5"),
        (["missing.train=none"], "no modality is hidden in the second pass (missing.train=none)"),
        (["missing.train=rate:0"], "no modality is hidden in the second pass (missing.train=rate:0)"),
        (["missing.train=pattern:audio+text+visual"], "second pass (missing.train=pattern:text+audio+visual)"),
        (["data.modalities=[text]"], "missing.train=rate:0.5 hides nothing in a run with one modality, text."),
        (["training.complete_pass=false"], "objective.weights.guidance=0.5 needs a teacher."),
        (["training.teacher=other"], "are two teachers. Set training.complete_pass=false"),
    ],
)
def test_what_does_not_fit(typed: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    assert message in refused(main, [*TINY, *MODEL, *typed, f"run={tmp_path / 'run'}"], capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_pictures")
def test_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*MODEL, "model.dropout=0.2", "training.max_epochs=3", "missing.policy=learned"]
    settings += ["objective.weights.supcon=0.2", "objective.supcon.queue=16"]
    with monkeypatch.context() as patch:
        keep_states(patch, tmp_path)
        record = train(tmp_path / "whole", *settings, "training.patience=0")
    for name in WEIGHTS:
        assert float(history(tmp_path / "whole")[-1][f"train/{name}"]) > 0
    assert "teacher" not in record
    # The saved model has no decoders.
    model = Recognizer.from_pretrained(tmp_path / "whole/model")
    assert not [name for name in model.state_dict() if "decoder" in name]
    state = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert "objective.teaching.decoders.modality text.weight" in state
    queues = [state[f"{place}.vectors"] for place in ("complete_states.0", "objective.terms.supcon.queues.hidden")]
    assert not torch.equal(*queues)
    for epoch in ("1", "2", "3"):
        resume(tmp_path / epoch)
        assert_same_run(tmp_path / epoch, tmp_path / "whole")


KILLED = """
import os, signal, sys
from ercfusion.train import main
from ercfusion.training.module import ConversationModule

original = ConversationModule.training_step
def dying(self, batch, number):
    if (self.current_epoch, number) == (1, 3):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, batch, number)
ConversationModule.training_step = dying
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_killed_between_the_two_passes(tmp_path: Path) -> None:
    settings = [*MODEL, "model.dropout=0.2", "training.max_epochs=3", "curriculum=emotion_shift", "scheduler=linear"]
    done = python("-c", KILLED, *TINY, *settings, f"run={tmp_path / 'killed'}")
    assert done.returncode == -signal.SIGKILL
    assert len(history(tmp_path / "killed")) == 1
    resume(tmp_path / "killed")
    train(tmp_path / "whole", *settings)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert os.path.isfile(tmp_path / "killed/record.json")


# Losses that read earlier batches


def plain_contrast(vectors: Tensor, labels: Tensor, earlier: list[tuple[Tensor, int]]) -> Tensor:
    """Equation 2 of Khosla et al. (2020), temperature 0.5, utterance by utterance, with earlier utterances as keys."""
    rows = list(zip(functional.normalize(vectors, dim=1), labels.tolist(), strict=True))
    losses = []
    for place, (vector, label) in enumerate(rows):
        keys = [*rows[:place], *rows[place + 1 :], *earlier]
        logits = torch.stack([vector @ key / 0.5 for key, _ in keys])
        same = [number for number, (_, other) in enumerate(keys) if other == label]
        if same:
            losses.append(logits.logsumexp(0) - logits[same].mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("queue", [5, 100])
def test_a_queue_has_earlier_utterances_of_its_own_pass(queue: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store(tasks=[make_task()])
    settings = {"weights": {"task": 0, "supcon": 2}, "supcon": {"queue": queue, "temperature": 0.5}}
    module = exact_module(store, settings, monkeypatch)
    earlier: dict[bool, list[tuple[Tensor, int]]] = {True: [], False: []}
    for batch, loss, recognized, complete in passes(module, store):
        hidden, labels = recognized.encoded.hidden, batch.targets["emotion"].value
        assert_same_gradient(module, loss, 2 * plain_contrast(hidden, labels, earlier[complete][:queue]))
        vectors = functional.normalize(hidden.detach(), dim=1)
        earlier[complete] = [*zip(vectors, labels.tolist(), strict=True), *earlier[complete]]
        term: Any = module.objective.terms["supcon"]
        states: list[Any] = [term.queues["hidden"], *module.complete_states]
        for expected, state in zip((earlier[False], earlier[True]), states, strict=True):
            vectors, classes = state.content()
            assert classes.tolist() == [label for _, label in expected[:queue]]
            for found, (vector, _) in zip(vectors, expected, strict=False):
                torch.testing.assert_close(found, vector, rtol=1e-12, atol=1e-12)


def test_concordance_over_the_set_is_that_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store(tasks=[make_task("regression", "vad")])
    module = exact_module(store, {"regression_loss": "ccc", "ccc_over": "set"}, monkeypatch)
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # heads compute their loss in float32
    latest: dict[bool, dict[tuple[str, int], tuple[Tensor, Tensor]]] = {True: {}, False: {}}
    for batch, loss, recognized, complete in passes(module, store):
        keys = [(name, row) for name, size in zip(batch.ids, batch.packing.lengths, strict=True) for row in range(size)]
        now = dict(zip(keys, zip(recognized.logits, batch.targets["vad"].value.double(), strict=True), strict=True))
        both = {**latest[complete], **now}
        predicted, target = (torch.stack(values) for values in zip(*both.values(), strict=True))
        expected = 1 - concordance(predicted, target).mean()
        assert_same_gradient(module, loss, expected, len(both) / len(now))
        latest[complete] |= {key: (own.detach(), truth) for key, (own, truth) in now.items()}
    assert len(latest[True]) == len(latest[False]) == store.num_utterances
    over_set: Any = module.objective.over_set
    states: list[Any] = [*over_set.heads.values(), *module.complete_states]
    own, other = states
    assert torch.equal(own.target, other.target)
    assert (own.prediction != other.prediction).any()


def test_a_queue_of_the_architecture_has_a_state_per_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store(tasks=[make_task()])
    options = {"width": 8, "latent": 4, "heads": 2, "queue": 64}
    module = exact_module(store, {}, monkeypatch, "carat", options)
    for _ in passes(module, store):
        pass
    own, other = module.recognizer.architecture.contrastive.queue, module.complete_states[0]  # type: ignore[union-attr]
    assert own.filled == other.filled > 0  # type: ignore[union-attr]
    assert not torch.equal(own.vectors, other.vectors)  # type: ignore[union-attr, arg-type]


def exact_module(
    store: ConversationStore,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    model: str = "concat",
    options: Mapping[str, Any] = MappingProxyType({"hidden": 8, "dropout": 0.0}),
) -> ConversationModule:
    """A module in float64 that logs nothing."""
    torch.manual_seed(0)
    section = section_of("objective", settings)
    recognizer = Recognizer(model, store.inputs, store.tasks[0], dict(options), regression_loss=section.regression_loss)
    recognizer.prepare(store)
    objective = build_objective(section, recognizer, next(iter(store.targets.values())), train=store, complete=True)
    chosen = section_of("optimizer", {"name": "sgd"}), section_of("scheduler", {"name": "constant"})
    module = ConversationModule(recognizer, objective, *chosen, modality_dropout=0.6, complete_pass=True).double()
    monkeypatch.setattr(module, "log_dict", lambda *arguments, **options: None)
    return module.train()


def passes(
    module: ConversationModule, store: ConversationStore
) -> Iterator[tuple[ConversationBatch, Tensor, Recognized, bool]]:
    """Both passes over some batches, with the same weights: batch, loss, outputs, whether the pass is complete."""
    outputs: list[Recognized] = []
    module.recognizer.register_forward_hook(lambda model, inputs, output: outputs.append(output))
    torch.manual_seed(1)
    number = 0
    for indices in ([4, 0], [1, 3], [2], [3, 2], [0, 1, 4]):
        batch = cast(store.batch(indices), torch.float64)
        for complete in (True, False):
            loss = module.training_step(batch, number)
            yield batch, loss, outputs[-1], complete
            number += 1


def assert_same_gradient(module: ConversationModule, loss: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    """Equal values, and the gradient of ``expected`` times ``factor``."""
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    parameters = list(module.recognizer.architecture.parameters())
    found, plain = (
        torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True) for value in (loss, expected)
    )
    assert any(gradient.abs().max() > 1e-6 for gradient in plain)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, factor * other, rtol=1e-9, atol=1e-12)
