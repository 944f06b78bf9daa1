"""Many small runs on one machine: threads, processes, and several seeds in one batched model.

``many-MODEL`` times epochs of ``python -m ercfusion.train``, with trainer, dev scores and checkpoint, in persistent
processes; their start is timed separately. ``many-seeds`` times forward, backward and update of eight seeds of
``concat`` on the same batches.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from benchmarks.cogmen import TASK, epoch_flops
from benchmarks.registry import EMOTIONS, Benchmark, Implementation, Inputs, Shape, draw_lengths, make_inputs
from ercfusion._core.pool import usable_cores
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.features import FeatureTable
from ercfusion.data.store import ConversationStore
from ercfusion.tasks.objective import Objective
from ercfusion.tasks.recognizer import Recognizer

# The origin in checkpoints; nothing is resumed here.
ORIGIN: dict[str, Any] = {"format": 1, "run": "", "config": {}, "data": {}, "packs": {}}

CORES = usable_cores()
EPOCHS = 2 * CORES
"""Epochs per timed call of ``many-MODEL``, over all processes."""

SEEDS = 8
"""Models in ``many-seeds``."""

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# Persistent processes


class _OverError(Exception):
    """The parent has closed the connection."""


class Gate:
    """In a worker process: starts as many epochs as the parent requests, and reports their end."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.left = 0

    def __call__(self) -> None:
        """Call this before every epoch."""
        if self.left == 0:
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            self.connection.send("ready")
            self.left = self.connection.recv()
            if self.left == 0:
                raise _OverError
        self.left -= 1


Worker = Callable[..., None]
"""A function that trains without end, calling its first argument, a :class:`Gate`, before every epoch."""


def _serve(connection: Any, threads: int, worker: Worker, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    with suppress(_OverError, EOFError, KeyboardInterrupt):
        worker(Gate(connection), *arguments)


class Processes:
    """Worker processes; a call trains ``epochs`` epochs together.

    Args:
        workers: One (worker, its arguments) per process.
        threads: Torch's threads per process.
        epochs: Of all processes together; a multiple of their number.
    """

    def __init__(self, workers: Iterable[tuple[Worker, tuple[Any, ...]]], threads: int, epochs: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections, self._processes = [], []
        start = time.perf_counter()
        for worker, arguments in workers:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, threads, worker, arguments), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the connection
            self._connections.append(ours)
            self._processes.append(process)
        self._wait()
        self.startup = time.perf_counter() - start
        self.share = epochs // len(self._processes)
        self()  # the first epoch is slower

    def _wait(self) -> None:
        for connection in self._connections:
            connection.recv()

    def __call__(self) -> None:
        for connection in self._connections:
            connection.send(self.share)
        self._wait()

    def close(self) -> None:
        """End the processes."""
        for connection, process in zip(self._connections, self._processes, strict=True):
            connection.send(0)
            connection.close()
            process.join()


# The epoch of the command


def made_up_store(shape: Shape, conversations: int, seed: int) -> ConversationStore:
    """A random split with the shape's lengths, widths and speakers."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for number, length in enumerate(draw_lengths(shape, generator)[-conversations:]):
        labels = torch.randint(len(EMOTIONS), (length,), generator=generator).tolist()
        speakers = torch.randint(shape.speakers, (length,), generator=generator).tolist()
        turns = [
            Turn(str(place), str(speaker), targets={TASK.name: Target(EMOTIONS[label])})
            for place, (speaker, label) in enumerate(zip(speakers, labels, strict=True))
        ]
        parts.append(Conversation(str(number), tuple(turns), synthetic=True))
    keys = [key for conversation in parts for key in conversation.keys()]  # noqa: SIM118
    tables = [
        FeatureTable(name, keys, torch.randn(len(keys), width, generator=generator).numpy())
        for name, width in shape.widths.items()
    ]
    return ConversationStore(parts, tables, [TASK])


@cache
def settings(model: str) -> dict[str, Any]:
    """The settings of ``model=MODEL data=meld``, without an end."""
    from ercfusion.config.compose import Composer

    return Composer().compose(
        ["data=meld", f"model={model}", "training.max_epochs=1000000", "training.patience=0", "scheduler=constant"]
    )


def trainer_worker(gate: Gate, model: str, shape: Shape, seed: int) -> None:
    """The command's own training loop."""
    from ercfusion._core.terminal import prepare_logging
    from ercfusion.config.settings import Config
    from ercfusion.training import run

    os.environ["ERCFUSION_QUIET"] = "1"
    prepare_logging()
    train, dev = made_up_store(shape, shape.conversations, 0), made_up_store(shape, shape.conversations // 9 + 1, 1)
    config = copy.deepcopy(settings(model))
    config["seed"] = seed
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        gate()
        run.fit(Config.from_dict(config), Path(folder), train, dev, "weighted_f1", ORIGIN, on_epoch=lambda *_: gate())


def command_epochs(model: str, processes: int, threads: int) -> Callable[[Inputs], Callable[[], None]]:
    """``EPOCHS`` epochs of the command in these processes and threads."""

    def setup(inputs: Inputs) -> Processes:
        workers = [(trainer_worker, (model, inputs.shape, seed)) for seed in range(processes)]
        return Processes(workers, threads, EPOCHS)

    return setup


def linear_flops(inputs: Inputs, model: str) -> dict[str, float]:
    """Operations of one epoch in products with a weight matrix, with the LSTM's; see ``cogmen``."""
    options = {name: value for name, value in settings(model)["model"].items() if name != "name"}
    if model == "cogmen":
        return epoch_flops(False, lambda shape: options)(inputs)
    utterances = sum(batch.packing.total for batch in inputs.batches)
    recognizer = Recognizer(model, InputSpec(inputs.shape.widths, speakers=inputs.shape.speakers), TASK, options)
    matrices = {name: value.numel() for name, value in recognizer.named_parameters() if value.ndim == 2}
    # The first layers: their input needs no gradient.
    first = [count for name, count in matrices.items() if "weight_ih_l0" in name or ".encoders." in name]
    return {
        "products": 2.0 * 3 * utterances * sum(matrices.values()),
        "less: gradient of the input": -2.0 * utterances * sum(first),
    }


def command_flops(model: str) -> Callable[[Inputs], dict[str, float]]:
    def flops(inputs: Inputs) -> dict[str, float]:
        return {part: EPOCHS * amount for part, amount in linear_flops(inputs, model).items()}

    return flops


# Several seeds of one model, on the same batches


def concat_options() -> dict[str, Any]:
    return {name: value for name, value in settings("concat")["model"].items() if name != "name"}


class WithLoss(nn.Module):
    """A recognizer and its loss: a batch in, a number out."""

    def __init__(self, shape: Shape, seed: int, options: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.recognizer = Recognizer("concat", InputSpec(shape.widths, speakers=shape.speakers), TASK, options)
        self.objective = Objective({})

    def forward(self, batch: ConversationBatch) -> Tensor:
        return self.objective(self.recognizer, self.recognizer(batch), batch)[0]


def adamw(parameters: Iterable[Tensor], lr: float = 5e-4) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=DEVICE == "cuda")


class OneModel:
    """One seed: forward, backward, clipping and AdamW for every batch."""

    def __init__(self, shape: Shape, seed: int, options: dict[str, Any]) -> None:
        self.model = WithLoss(shape, seed, options).to(DEVICE).train()
        self.optimizer = adamw(self.model.parameters())

    def epoch(self, batches: Iterable[ConversationBatch]) -> None:
        for batch in batches:
            self.optimizer.zero_grad()
            self.model(batch).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()

    def states(self) -> list[dict[str, Tensor]]:
        return [{name: value.detach() for name, value in self.model.named_parameters()}]


class BatchedModels:
    """Several seeds at once: parameters stacked along a first dimension, the forward pass mapped over it."""

    def __init__(self, shape: Shape, seeds: Iterable[int], options: dict[str, Any]) -> None:
        models = [WithLoss(shape, seed, options).to(DEVICE).train() for seed in seeds]
        self.parameters, buffers = stack_module_state(models)
        self.count = len(models)
        self.optimizer = adamw(self.parameters.values())
        base = models[0]

        def losses(parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: ConversationBatch) -> Tensor:
            def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
                return functional_call(base, (parameters, buffers), (batch,))

            return vmap(one, randomness="different")(parameters, buffers)

        self._losses = lambda batch: losses(self.parameters, buffers, batch)

    def epoch(self, batches: Iterable[ConversationBatch]) -> None:
        for batch in batches:
            self.optimizer.zero_grad()
            # The models share no parameter, so the gradient of the sum contains each loss's gradient.
            self._losses(batch).sum().backward()
            self._clip(1.0)
            self.optimizer.step()

    def _clip(self, limit: float) -> None:
        """Clip each model by its own norm."""
        gradients = [value.grad for value in self.parameters.values() if value.grad is not None]
        squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0)
        factor = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))

    def states(self) -> list[dict[str, Tensor]]:
        return [
            {name: value.detach()[number] for name, value in self.parameters.items()} for number in range(self.count)
        ]


def on_device(inputs: Inputs) -> list[ConversationBatch]:
    return [batch.to(DEVICE) for batch in inputs.batches]


def synchronized(function: Callable[[], None]) -> Callable[[], None]:
    def timed() -> None:
        function()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return timed


def seeds_one_by_one(inputs: Inputs) -> Callable[[], None]:
    models = [OneModel(inputs.shape, seed, concat_options()) for seed in range(SEEDS)]
    batches = on_device(inputs)

    def epochs() -> None:
        for model in models:
            model.epoch(batches)

    return synchronized(epochs)


def seeds_batched(inputs: Inputs) -> Callable[[], None]:
    models, batches = BatchedModels(inputs.shape, range(SEEDS), concat_options()), on_device(inputs)
    return synchronized(lambda: models.epoch(batches))


def seeds_worker(gate: Gate, shape: Shape, seeds: list[int], batched: bool) -> None:
    """Some of the seeds in a process: together if ``batched``, else one after another."""
    batches = on_device(make_inputs(shape))
    if batched:
        models: list[Any] = [BatchedModels(shape, seeds, concat_options())]
    else:
        models = [OneModel(shape, seed, concat_options()) for seed in seeds]
    while True:
        gate()
        for model in models:
            model.epoch(batches)


def seeds_in_processes(batched: bool) -> Callable[[Inputs], Callable[[], None]]:
    """One process with one thread per core; on a GPU one process per seed."""

    def setup(inputs: Inputs) -> Processes:
        count = SEEDS if DEVICE == "cuda" and not batched else min(SEEDS, CORES)
        shares = [list(range(first, SEEDS, count)) for first in range(count)]
        workers = [(seeds_worker, (inputs.shape, seeds, batched)) for seeds in shares]
        return Processes(workers, 1, count)

    return setup


def check_batched(inputs: Inputs) -> None:
    """Two epochs without dropout give the weights of each seed trained separately."""
    options = {**concat_options(), "dropout": 0.0, "input_dropout": 0.0}
    batches = on_device(inputs)
    batched = BatchedModels(inputs.shape, range(3), options)
    single = [OneModel(inputs.shape, seed, options) for seed in range(3)]
    for models in (batched, *single):
        models.epoch(batches)
        models.epoch(batches)
    for number, (together, model) in enumerate(zip(batched.states(), single, strict=True)):
        for name, expected in model.states()[0].items():
            torch.testing.assert_close(
                together[name],
                expected,
                rtol=1e-3,
                atol=2e-5,
                msg=lambda text, where=f"seed {number}, {name}": f"{where}: {text}",
            )


def seeds_flops(inputs: Inputs) -> dict[str, float]:
    return {part: SEEDS * amount for part, amount in linear_flops(inputs, "concat").items()}


def why_not_batched(model: str, shape: Shape) -> str | None:
    """Why a model cannot be mapped over its parameters, or None."""
    batch = make_inputs(shape).batches[0].to(DEVICE)
    models = [Recognizer(model, InputSpec(shape.widths, speakers=shape.speakers), TASK).to(DEVICE) for _ in range(2)]
    parameters, buffers = stack_module_state(models)

    def logits(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(models[0], (parameters, buffers), (batch,)).logits

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about operations without a batching rule
            vmap(logits, randomness="different")(parameters, buffers).sum().backward()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def command_benchmark(model: str) -> Benchmark:
    cores = max(2, CORES)  # equally many layouts, and tests, on every machine
    layouts = [(1, cores), (1, 1), (cores, 1), (cores, cores)]
    return Benchmark(
        name=f"many-{model}",
        description=f"{EPOCHS} epochs of model={model} data=meld by the command's trainer, dev scores, checkpoints",
        implementations={
            f"{processes} x {threads}": Implementation(
                f"{processes} processes of {threads} threads",
                command_epochs(model, processes, threads),
                flops=command_flops(model) if DEVICE == "cpu" else None,
                processes=True,
            )
            for processes, threads in layouts
        },
        memory=False,
        epochs=EPOCHS,
    )


FLOPS = seeds_flops if DEVICE == "cpu" else None

BENCHMARKS = (
    *(command_benchmark(model) for model in ("concat", "bclstm", "cogmen")),
    Benchmark(
        name="many-seeds",
        description=f"an epoch of each of {SEEDS} seeds of concat on the same batches: forward, backward, AdamW",
        implementations={
            "one by one": Implementation("one after the other, all threads", seeds_one_by_one, flops=FLOPS),
            "vmap": Implementation("one batched model, all threads", seeds_batched, check_batched, FLOPS),
            "processes": Implementation(
                "one process per core (GPU: per seed) with one thread",
                seeds_in_processes(False),
                flops=FLOPS,
                processes=True,
            ),
            "vmap in processes": Implementation(
                "one process per core with one thread, each with a batched model of its seeds",
                seeds_in_processes(True),
                flops=FLOPS,
                processes=True,
            ),
        },
        memory=False,
        epochs=SEEDS,
    ),
)
