"""The LightningModule: optimisers, schedules, and what is logged."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ercfusion._core.errors import ConfigError, TrainingError
from ercfusion.batch.missing import draw
from ercfusion.config.missing_laws import parse
from ercfusion.config.settings import section_of
from ercfusion.data.corpora import open_corpus
from ercfusion.data.sampler import ConversationSampler
from ercfusion.data.store import ConversationStore
from ercfusion.tasks.objective import Objective
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.training.bert_adam import BertAdam
from ercfusion.training.module import OPTIMIZERS, ConversationModule, cosine_factor, linear_factor, train_loader

ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def store() -> ConversationStore:
    corpus = open_corpus("demo", train=4, dev=1, test=1)
    protocol = corpus.protocol()
    tables = list(corpus.features(protocol).values())
    return ConversationStore(corpus.conversations(protocol)["train"], tables, [protocol.task])


def module(
    store: ConversationStore,
    optimizer: dict[str, Any] = ADAMW,
    scheduler: dict[str, Any] | None = None,
    *,
    weights: dict[str, float] | None = None,
    unimodal: bool = False,
    maximize: bool = True,
    model: str = "bclstm",
    **more: Any,
) -> ConversationModule:
    torch.manual_seed(0)
    recognizer = Recognizer(model, store.inputs, store.tasks[0], unimodal=unimodal)
    recognizer.prepare(store)
    chosen = section_of("optimizer", optimizer), section_of("scheduler", scheduler or {"name": "constant"})
    made = ConversationModule(recognizer, Objective(weights or {}), *chosen, maximize=maximize, **more)
    made._trainer = SimpleNamespace(  # type: ignore[assignment]
        estimated_stepping_batches=20, current_epoch=4, lr_scheduler_configs=[], gradient_clip_val=None
    )
    return made


def test_modalities_are_hidden_in_training(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rate in (0.0, 0.4):
        made = module(store, modality_dropout=rate)
        monkeypatch.setattr(made, "log_dict", lambda *arguments, **options: None)
        made.recognizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].present))
        batch = store.batch(range(len(store)))
        torch.manual_seed(1)
        made.training_step(batch, 0)
        torch.manual_seed(1)
        made.training_step(batch, 0)
    plain, same, hidden, again = seen
    assert torch.equal(plain, batch.present)
    assert torch.equal(plain, same)
    assert torch.equal(hidden, again)  # from the generator that the trainer seeds, so that runs resume exactly
    assert not (hidden & ~plain).any()
    assert 0 < hidden.sum() < plain.sum()
    assert torch.equal(hidden.any(1), plain.any(1))


def test_a_law_hides_before_modality_dropout(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = store.batch(range(len(store)))
    seen = []
    for settings in (
        {"law": parse("rmm:0.4")},
        {"law": parse("rmm:0.4"), "modality_dropout": 0.4},
        {"law": parse("none")},
    ):
        made = module(store, **settings)
        monkeypatch.setattr(made, "log_dict", lambda *arguments, **options: None)
        made.recognizer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].present))
        torch.manual_seed(1)
        made.training_step(batch, 0)
    law, both, none = seen
    torch.manual_seed(1)
    # From the generator that the trainer seeds, so that runs resume exactly.
    assert torch.equal(law, batch.present & ~draw(parse("rmm:0.4"), batch).drop)
    assert not law.any(1).all()  # rmm may hide all modalities of an utterance
    assert not (both & ~law).any()
    assert both.sum() < law.sum()
    assert torch.equal(both.any(1), law.any(1))  # the dropout leaves one of those that are there
    assert torch.equal(none, batch.present)


def test_vectors_are_not_decayed(store: ConversationStore) -> None:
    made = module(store, model="cogmen")
    decayed, free = made.configure_optimizers().param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert {parameter.ndim for parameter in free["params"]} == {1}
    assert min(parameter.ndim for parameter in decayed["params"]) == 2
    together = {id(parameter) for parameter in (*decayed["params"], *free["params"])}
    assert together == {id(parameter) for parameter in made.parameters()}
    assert len(decayed["params"]) + len(free["params"]) == len(together)


def test_all_are_decayed_on_request(store: ConversationStore) -> None:
    made = module(store, model="broad_mamba", optimizer={**ADAMW, "decay_all": True})
    (group,) = made.configure_optimizers().param_groups
    assert group["weight_decay"] == 0.1
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in made.parameters()}


def test_parameters_marked_so_are_not_decayed(store: ConversationStore) -> None:
    made = module(store, model="broad_mamba")
    decayed, free = made.configure_optimizers().param_groups
    rates = {id(parameter) for name, parameter in made.named_parameters() if name.endswith("A_log")}
    assert rates
    assert rates <= {id(parameter) for parameter in free["params"]}
    together = {id(parameter) for parameter in (*decayed["params"], *free["params"])}
    assert together == {id(parameter) for parameter in made.parameters()}


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"name": "adam", "lr": 0.1}, torch.optim.Adam),
        ({"name": "adamw", "lr": 0.1, "betas": [0.8, 0.9]}, torch.optim.AdamW),
        ({"name": "bert_adam", "lr": 0.1, "betas": [0.8, 0.9], "eps": 1e-5, "tensor_clip": 1.0}, BertAdam),
        ({"name": "adadelta", "lr": 0.1, "rho": 0.9, "eps": 1e-6}, torch.optim.Adadelta),
        ({"name": "sgd", "lr": 0.1, "momentum": 0.5}, torch.optim.SGD),
    ],
)
def test_optimizers_take_their_settings(
    store: ConversationStore, settings: dict[str, Any], kind: type[torch.optim.Optimizer]
) -> None:
    optimizer = module(store, settings).configure_optimizers()
    assert type(optimizer) is kind
    for name, value in settings.items():
        if name != "name":
            assert optimizer.defaults[name] == (tuple(value) if isinstance(value, list) else value)
    assert {entry["name"] for entry in (ADAMW, settings)} <= set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "message"),
    [
        ({"name": "adamww", "lr": 0.1}, None, "optimizer.name='adamww' is unknown. Did you mean 'adamw'"),
        (ADAMW, {"name": "cosin"}, "scheduler.name='cosin' is unknown. Did you mean 'cosine'"),
        ({"name": "adam", "lr": -1}, None, r"optimizer\.lr must be at least 0, found -1"),
        ({"name": "adam", "lr": 0.1, "momentum": 1}, None, "optimizer has no setting 'momentum'"),
        (ADAMW, {"name": "plateau", "factor": 2}, r"scheduler\.factor must be at least 0 and below 1, found 2"),
    ],
)
def test_wrong_settings_are_named(
    store: ConversationStore, optimizer: dict[str, Any], scheduler: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        module(store, optimizer, scheduler).configure_optimizers()


def test_cosine_rises_linearly_and_falls_to_zero() -> None:
    factor = cosine_factor(100, 0.1)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(10) == 1.0
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0.0, abs=1e-12)
    assert factor(1000) == pytest.approx(0.0, abs=1e-12)
    falling = [factor(step) for step in range(10, 101)]
    assert falling == sorted(falling, reverse=True)
    assert cosine_factor(8, 0.0)(4) == pytest.approx(0.5 * (1 + math.cos(math.pi * 3 / 7)))
    assert cosine_factor(1, 1.0)(0) == 1.0


def test_linear_rises_and_falls_to_zero() -> None:
    factor = linear_factor(100, 0.1)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [factor(step) for step in (10, 55, 99, 100, 1000)] == pytest.approx([1.0, 0.5, 1 / 90, 0.0, 0.0])
    assert linear_factor(1, 1.0)(0) == 1.0


def test_linear_runs_over_all_steps(store: ConversationStore) -> None:
    made = module(store, ADAMW, {"name": "linear", "warmup": 0.25}).configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(20):  # the steps that the trainer announces
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(
        [0.01 * factor for factor in (*(n / 5 for n in range(1, 6)), *(n / 15 for n in range(15, 0, -1)))]
    )
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_cosine_runs_over_all_steps(store: ConversationStore) -> None:
    made = module(store, ADAMW, {"name": "cosine", "warmup": 0.25}).configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(20):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert max(rates) == pytest.approx(0.01)
    assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("maximize", [True, False])
def test_plateau_watches_the_dev_score(store: ConversationStore, maximize: bool) -> None:
    made = module(store, ADAMW, {"name": "plateau", "factor": 0.5, "patience": 1}, maximize=maximize)
    configured = made.configure_optimizers()
    scheduler, optimizer = configured["lr_scheduler"]["scheduler"], configured["optimizer"]
    assert configured["lr_scheduler"]["monitor"] == "dev/score"
    assert scheduler.mode == ("max" if maximize else "min")
    made.trainer.lr_scheduler_configs.append(SimpleNamespace(scheduler=scheduler))
    rates = []
    for score in (0.1, 0.2, 0.2, 0.1, 0.3) if maximize else (0.3, 0.2, 0.2, 0.3, 0.1):
        made.epoch_scored(score)
        made.lr_scheduler_step(scheduler, score)  # the trainer's own call must not count a second time
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.005, 0.005])


def test_other_schedules_are_stepped_by_the_trainer_only(store: ConversationStore) -> None:
    made = module(store, ADAMW, {"name": "cosine", "warmup": 0.0})
    scheduler = made.configure_optimizers()["lr_scheduler"]["scheduler"]
    made.trainer.lr_scheduler_configs.append(SimpleNamespace(scheduler=scheduler))
    made.epoch_scored(0.5)
    assert scheduler.last_epoch == 0
    scheduler.optimizer.step()
    made.lr_scheduler_step(scheduler, None)
    assert scheduler.last_epoch == 1


def test_every_term_is_logged(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(store, weights={"task": 1.0, "unimodal": 0.5}, unimodal=True, model="concat")
    logged: dict[str, Any] = {}

    def log_dict(values: dict[str, torch.Tensor], **settings: Any) -> None:
        logged.update(values)
        logged["settings"] = settings

    monkeypatch.setattr(made, "log_dict", log_dict)
    batch = store.batch([1, 3])
    total = made.eval().training_step(batch, 0)
    settings = logged.pop("settings")
    assert set(logged) == {"train/loss", "train/task", "train/unimodal"}
    assert not any(value.requires_grad for value in logged.values())
    assert float(logged["train/loss"]) == float(total.detach())
    assert float(total.detach()) == pytest.approx(float(logged["train/task"] + 0.5 * logged["train/unimodal"]))
    # The epoch's mean is over utterances, however they are spread over batches.
    assert settings["batch_size"] == int(batch.targets[store.tasks[0].name].valid.sum())


def test_a_loss_that_is_not_finite_says_where(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(store)
    monkeypatch.setattr(made, "log_dict", lambda *arguments, **settings: None)
    with torch.no_grad():
        made.recognizer.head.linear.weight.fill_(float("inf"))
    message = r"not finite \(task = (nan|inf)\) at epoch 5, batch 3 \(conversations demo-train-0002, demo-train-0000\)"
    with pytest.raises(TrainingError, match=message):
        made.training_step(store.batch([2, 0]), 2)
    many = store.batch([0, 1, 2, 3, 0, 1])
    with pytest.raises(TrainingError, match=r"demo-train-0003 and 2 more\)"):
        made.training_step(many, 0)


def test_the_loader_cuts_the_sampler_s_batches(store: ConversationStore) -> None:
    sampler = ConversationSampler(store.lengths, 3, seed=5)
    loader = train_loader(store, sampler, pin_memory=False)
    expected = [tuple(store.conversations[index].id for index in indices) for indices in sampler]
    assert [batch.ids for batch in loader] == expected
    assert len(loader) == len(expected) == 2
