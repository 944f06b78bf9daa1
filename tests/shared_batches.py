"""Training steps of several processes on shares of a batch, and what one process makes of the whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.kinds import KINDS
from ercfusion.config.compose import Composer
from ercfusion.config.settings import section_of
from ercfusion.config.terms import TERMS
from ercfusion.tasks.heads import class_weights
from ercfusion.tasks.objective import Objective, build_objective
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.tasks.teaching import Taught
from ercfusion.testing import make_task, random_store, without_dropout
from ercfusion.testing.batches import cast

# Conversations of the batches of a few steps, and the number of utterances of each conversation. Shares differ in size
# and in the longest conversation, and the last batch has one conversation for two processes.
LENGTHS = (2, 6, 3, 1, 4)
BATCHES = ([0, 1, 2], [3, 1], [4])
# Widths of presets are cut to this: it is a multiple of their numbers of heads.
WIDEST = 40
# Threads share a generator.
_BUILDING = threading.Lock()
# Draws of an encoder that are no dropout.
QUIET = {"frames": 0, "time_masks": 0, "band_masks": 0, "noise": 0.0}


@dataclass(frozen=True)
class Case:
    """What is trained. Must be of plain types: it travels to other processes."""

    name: str
    model: str = "concat"
    options: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    kind: str = "single_label"
    class_weights: str = "none"
    others: tuple[str, ...] = ()
    """Kinds of further tasks; the case's objective has weights for them."""
    complete: bool = False
    """Whether every batch comes twice, complete and with hidden modalities, for the terms with a teacher."""

    def build(self) -> tuple[Recognizer, Objective, Any]:
        """Without dropout, in float64 and in train mode; the same in every process."""
        torch.manual_seed(1)
        task = make_task(self.kind)
        steps = {"audio": 70} if self.model == "utterance_encoder" else {}
        others = [replace(make_task(kind), name=f"other_{kind}") for kind in self.others]
        store = random_store(LENGTHS, tasks=[task, *others], absent=0.2, labelled=0.8, steps=steps, seed=5)
        settings = section_of("objective", self.objective)
        recognizer = Recognizer(
            self.model,
            store.inputs,
            task,
            self.options,
            unimodal=settings.weights["unimodal"] > 0,
            label_smoothing=settings.label_smoothing,
            regression_loss=settings.regression_loss,
            others=others,
        )
        recognizer.prepare(store)
        targets = store.targets[task.name]
        weights = class_weights(targets, task, self.class_weights)
        further = {other.name: store.targets[other.name] for other in others}
        objective = build_objective(settings, recognizer, targets, weights, further, store, complete=self.complete)
        objective.terms.double()
        if objective.teaching is not None:
            objective.teaching.double()
        if objective.over_set is not None:
            objective.over_set.double()
        return without_dropout(recognizer.double().train()), objective.train(), store

    def share(self, store: Any, indices: Sequence[int], rank: int, size: int) -> ConversationBatch:
        """The share of process ``rank``, as the sampler and the loader deal it out."""
        own = list(indices)[rank::size]
        batch = store.batch(own) if own else replace(store.batch([1]), stand_in=True)
        return cast(batch, torch.float64)

    def steps(self, rank: int = 0, size: int = 1) -> list[dict[str, Tensor]]:
        """Of every batch the loss, its terms and all gradients; of the last one also the buffers."""
        with _BUILDING:
            recognizer, objective, store = self.build()
        found = []
        taught = None
        for indices in [each for each in BATCHES for _ in range(1 + self.complete)]:
            batch = complete = self.share(store, indices, rank, size)
            if taught is not None:
                drop = torch.zeros_like(batch.available)
                drop[:, 1] = batch.speaker == 0
                batch = batch.hide(drop)
            for module in (recognizer, objective):
                module.zero_grad(set_to_none=True)
            recognized = recognizer(batch)
            total, terms = objective(recognizer, recognized, batch, taught)
            taught = Taught.by(recognizer, recognized, complete) if self.complete and taught is None else None
            total.backward()
            values = {"loss": total.detach(), **{f"term {name}": value.detach() for name, value in terms.items()}}
            for part in (recognizer, objective):
                for name, parameter in part.named_parameters():
                    assert parameter.grad is not None, name
                    values[f"gradient of {name}"] = parameter.grad.clone()
            found.append(values)
        for part in (recognizer, objective):
            found[-1].update({f"buffer {name}": value.clone() for name, value in part.named_buffers()})
        return found


def averaged(parts: Sequence[list[dict[str, Tensor]]]) -> list[dict[str, Tensor]]:
    """What data-parallel training makes of the processes' gradients; all else has to be equal."""
    found = []
    for values in zip(*parts, strict=True):
        for name, value in values[0].items():
            if not name.startswith("gradient"):
                assert all(torch.equal(value, other[name]) for other in values[1:]), name
        found.append({name: torch.stack([v[name].double() for v in values]).mean(0) for name in values[0]})
    return found


def assert_equal_steps(case: Case, found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for number, (values, others) in enumerate(zip(found, expected, strict=True)):
        assert values.keys() == others.keys()
        for name, value in values.items():
            where = f"{case.name}, batch {number + 1}, {name}: "
            torch.testing.assert_close(
                value.double(),
                others[name].double(),
                rtol=1e-6,
                atol=1e-8,
                msg=lambda text, where=where: where + text,
            )


def objective_cases() -> list[Case]:
    """Every registered term, every loss of every kind of task."""
    found = []
    for name in TERMS:
        kind: str = "regression" if name == "rank" else "single_label"
        settings: dict[str, Any] = {"of": "both", "projection": 3, **({"queue": 7} if name == "supcon" else {})}
        found.append(Case(name, objective={"weights": {name: 0.7, "unimodal": 0.3}, name: settings}, kind=kind))
    found.append(Case("triplet, all", objective={"weights": {"triplet": 1.0}, "triplet": {"mining": "all"}}))
    found.append(Case("focal", objective={"loss": "focal"}, class_weights="effective"))
    found.append(Case("class_balanced", objective={"loss": "class_balanced", "label_smoothing": 0.1}))
    for kind in KINDS:
        weights = "none" if kind == "regression" else "balanced"
        found.append(Case(f"task {kind}", kind=kind, class_weights=weights))
    weights = {"weights": {"other_regression": 0.5, "other_multi_label": 2.0, "unimodal": 0.3, "supcon": 0.1}}
    several = {**weights, "class_weights": "balanced"}
    others = ("regression", "multi_label", "distribution")
    found.append(Case("several tasks", objective=several, class_weights="balanced", others=others))
    for loss in ("kl", "chosen_labels", "class_balanced"):
        objective = {"loss": loss, "penalty": True, "label_smoothing": 0.05, "weights": {"unimodal": 0.3}}
        found.append(Case(f"distribution, {loss}", kind="distribution", objective=objective))
    found.append(Case("penalty of sets", kind="multi_label", objective={"penalty": True}))
    for loss in ("mae", "ccc", "gaussian"):
        found.append(Case(f"regression, {loss}", kind="regression", objective={"regression_loss": loss}))
    over_set = {"regression_loss": "ccc", "ccc_over": "set", "weights": {"other_regression": 0.5, "unimodal": 0.3}}
    found.append(Case("concordance over the set", objective=over_set, others=("regression",)))
    weights = {"guidance": 0.5, "distillation": 0.1, "imputation": 0.6, "other_regression": 0.5}
    found.append(Case("complete pass", objective={"weights": weights}, others=("regression",), complete=True))
    return found


def model_cases() -> list[Case]:
    """Every preset of every architecture, with its own objective."""
    composer = Composer("train")
    found = []
    for preset in composer.groups()["model"]:
        config = composer.compose([f"model={preset}"])
        options = {
            key: min(value, WIDEST) if type(value) is int else value
            for key, value in config["model"].items()
            if key != "name"
        }
        quiet = {key: value for key, value in QUIET.items() if key in options}
        weights = {"weights": config["objective"]["weights"]}
        found.append(Case(preset, config["model"]["name"], {**options, **quiet}, weights))
    # Normalisations that no preset chooses.
    found.append(Case("tfn, batch", "tfn", {"norm": "batch", "projection": 8, "context_layers": 1}))
    return found


class Threads:
    """Threads of this process that stand for processes: each has a rank, and what they exchange passes between them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.size = size
        self._local = threading.local()
        self._barrier = threading.Barrier(size, timeout=60)
        self._slots: list[Any] = [None] * size
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: hasattr(self._local, "rank"))
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: size)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: self._local.rank)
        monkeypatch.setattr(torch.distributed, "all_gather", self._all_gather)
        monkeypatch.setattr(torch.distributed, "all_reduce", self._all_reduce)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """``work(rank)`` of every thread."""
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def do(rank: int) -> None:
            self._local.rank = rank
            try:
                results[rank] = work(rank)
            except BaseException as error:
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=do, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        assert not errors
        return results

    def _exchange(self, value: Tensor) -> list[Tensor]:
        self._slots[self._local.rank] = value.clone()
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def _all_gather(self, out: list[Tensor], value: Tensor) -> None:
        for target, part in zip(out, self._exchange(value), strict=True):
            target.copy_(part)

    def _all_reduce(self, value: Tensor, op: Any = None) -> None:
        parts = torch.stack(self._exchange(value))
        value.copy_(parts.amax(0) if op == torch.distributed.ReduceOp.MAX else parts.sum(0))


def work_of_a_process(rank: int, size: int, cases: Sequence[Case], folder: str) -> None:
    """Train all cases as one of ``size`` processes, and write down what came out."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting-point", rank=rank, world_size=size
    )
    torch.save([case.steps(rank, size) for case in cases], f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
