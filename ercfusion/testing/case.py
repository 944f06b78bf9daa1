"""One architecture under test, and the decorator turning a test of it into a public check."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ercfusion._core.registry import import_modules
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.task import TaskSpec
from ercfusion.models import Architecture
from ercfusion.tasks.objective import Objective
from ercfusion.tasks.recognizer import Recognized, Recognizer
from ercfusion.testing.batches import LENGTHS, WIDTHS, make_task, random_batch, random_store

Model = str | type[Architecture]
"""A registered name, ``"module:Class"``, or a class."""


class Check(Protocol):
    """Signature of every single check."""

    __name__: str

    def __call__(
        self,
        model: Model,
        task: TaskSpec | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        unimodal: bool = False,
    ) -> None:
        """Raise AssertionError unless the requirement is met."""


CHECKS: dict[str, Check] = {}
"""The single checks by requirement, in the order of :func:`check_model`."""


class Case:
    """One architecture under test; builds equal recognizers."""

    def __init__(
        self,
        model: Model,
        task: TaskSpec | None = None,
        options: Mapping[str, Any] | None = None,
        unimodal: bool = False,
    ) -> None:
        self.model, self.task, self.options, self.unimodal = model, task or make_task(), dict(options or {}), unimodal
        self.label = model if isinstance(model, str) else model.__name__
        if isinstance(model, str) and ":" in model:
            import_modules([model.partition(":")[0]])

    def build(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        steps: Mapping[str, int] | None = None,
        policy: str | None = None,
    ) -> Recognizer:
        """In train mode, with statistics of random training data; ``steps`` as in :func:`random_tables`."""
        torch.manual_seed(0)
        steps = steps or {}
        inputs = InputSpec(WIDTHS, dict.fromkeys(steps, "sequence"), speakers=2)
        recognizer = Recognizer(self.model, inputs, self.task, self.options, unimodal=self.unimodal, policy=policy)
        recognizer.prepare(random_store((6, 8), tasks=[self.task], absent=0.2, labelled=0.8, steps=steps, seed=7))
        return recognizer.to(dtype).train()

    def batch(self, lengths: Sequence[int] = LENGTHS, **arguments: Any) -> ConversationBatch:
        """A random batch with absent modalities and unlabelled turns."""
        settings: dict[str, Any] = {"absent": 0.3, "labelled": 0.8, **arguments}
        return random_batch(lengths, tasks=[self.task], **settings)

    def loss(self, recognizer: Recognizer, recognized: Recognized, batch: ConversationBatch) -> Tensor:
        """The objective with its default weights."""
        return Objective({})(recognizer, recognized, batch)[0]

    def gradients(self, recognizer: Recognizer, batch: ConversationBatch) -> dict[str, Tensor]:
        """Gradients of the loss; fails for a parameter without one."""
        recognizer.zero_grad(set_to_none=True)
        return self.backward(recognizer, recognizer(batch), batch)[1]

    def backward(
        self, recognizer: Recognizer, recognized: Recognized, batch: ConversationBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and :meth:`gradients` of it."""
        loss = self.loss(recognizer, recognized, batch)
        loss.backward()
        gradients = {}
        for name, parameter in recognizer.named_parameters():
            assert parameter.grad is not None, f"the parameter {name} gets no gradient: the loss does not use it"
            gradients[name] = parameter.grad
        return loss.detach(), gradients


def requirement(name: str) -> Callable[[Callable[[Case], None]], Check]:
    """Make a public check from a function of a case, and add it to :data:`CHECKS`."""

    def decorate(function: Callable[[Case], None]) -> Check:
        @functools.wraps(function)
        def check(
            model: Model,
            task: TaskSpec | None = None,
            options: Mapping[str, Any] | None = None,
            *,
            unimodal: bool = False,
        ) -> None:
            with torch.random.fork_rng(devices=[]):
                case = Case(model, task, options, unimodal)
                place = f"{case.label}, {case.task.kind}, requirement {name!r}"
                try:
                    function(case)
                except AssertionError as error:
                    raise AssertionError(f"{place}: {error}") from error
                except Exception as error:
                    raise AssertionError(f"{place}: raised {type(error).__name__}: {error}") from error

        del check.__wrapped__  # the signature is that of Check, not that of the wrapped function
        CHECKS[name] = check
        return check

    return decorate


def without_dropout(module: nn.Module) -> nn.Module:
    """Set every dropout probability in ``module`` to zero, in place, and return it.

    Of dropout layers, and the attributes ``dropout``, ``dropout_rate`` and ``dropout_p`` of attention and recurrent
    layers.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name in ("dropout", "dropout_rate", "dropout_p"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    return module
