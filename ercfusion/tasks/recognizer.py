"""The recognizer: standardised inputs, an architecture and heads. It is trained, saved and loaded as one module."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError, ErcfusionError, RunError, did_you_mean
from ercfusion._core.files import atomic_write, write_json
from ercfusion._core.schemas.reading import check, failure, read_json, shown
from ercfusion._core.schemas.tensors import read_header, tensor_bytes
from ercfusion.batch.batch import ConversationBatch
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.packing import Packing
from ercfusion.batch.predictions import Predictions
from ercfusion.batch.split import Split
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.views import fixed_thresholds, with_thresholds
from ercfusion.config.missing_policies import POLICIES
from ercfusion.layers import Standardize
from ercfusion.layers.absent import FILLS, FillAbsent
from ercfusion.models import ARCHITECTURES, architecture_class, build_architecture
from ercfusion.models.base import Architecture, Encoded, Request
from ercfusion.models.limits import allocation_limit
from ercfusion.ops.processes import standing_in
from ercfusion.tasks.heads import Head
from ercfusion.tasks.lent import TaskLabels, TaskRatings, label_names, rated_task
from ercfusion.tasks.model_schema import ModelConfig
from ercfusion.tasks.saved import DAMAGED, check_sum, check_tensors, file_state

FORMAT = 1


@dataclass
class TaskLogits:
    """(N, L) logits of one task, and those of its heads on single modalities."""

    logits: Tensor
    unimodal: dict[str, Tensor]


@dataclass
class Recognized:
    """Output of a recognizer for N utterances.

    Args:
        logits: (N, L), of the first task.
        encoded: Output of the architecture.
        unimodal: (N, L) by modality, from the heads on single modalities.
        others: Logits of further tasks by name.
    """

    logits: Tensor
    encoded: Encoded
    unimodal: dict[str, Tensor]
    others: dict[str, TaskLogits] = field(default_factory=dict)

    def of(self, recognizer: Recognizer) -> dict[str, TaskLogits]:
        """The logits of all tasks by name, in order."""
        return {recognizer.task.name: TaskLogits(self.logits, self.unimodal), **self.others}


class TaskHeads(nn.Module):
    """The heads of a further task, with ``settings`` of :class:`ercfusion.tasks.heads.Head`.

    Args:
        task: The task.
        width: Width of the architecture's vectors.
        widths: Widths of the modalities with a head.
    """

    def __init__(self, task: TaskSpec, width: int, widths: Mapping[str, int], **settings: Any) -> None:
        super().__init__()
        self.task = task
        self.head = Head(task, width, **settings)
        self.unimodal_heads = nn.ModuleDict({name: Head(task, own, **settings) for name, own in widths.items()})
        self.thresholds = nn.Buffer(torch.full((task.size,), 0.5))


class Recognizer(nn.Module):
    """Standardisation of the inputs, an architecture, and heads for its tasks.

    Args:
        architecture: A registered name, ``"module:Class"`` (of an imported module), or a class.
        inputs: Modalities and widths, from the data.
        task: The first task.
        others: Further tasks, each with its own heads.
        options: Options of the architecture.
        unimodal: Add a head per modality, for the objective term ``unimodal``.
        label_smoothing, regression_loss: See :class:`ercfusion.tasks.heads.Head`.
        label_dimension: Width of label vectors, for classifiers by similarity to label texts; see
            :func:`ercfusion.tasks.label_scores.set_label_vectors`.
        probe: Stop the gradient of the heads, so that the architecture learns from other terms of the objective.
        policy: What the model reads in place of an absent modality, see :attr:`ercfusion.batch.InputSpec.policy`; None:
            the policy of ``inputs``.

    Raises:
        ConfigError: Duplicate task names, options that need unimodal heads without them (or the reverse), a first task
            that the architecture cannot represent label by label, an unknown policy, or ``skip`` for an architecture
            that cannot.
    """

    def __init__(
        self,
        architecture: str | type[Architecture],
        inputs: InputSpec,
        task: TaskSpec,
        options: Mapping[str, Any] | None = None,
        *,
        unimodal: bool = False,
        label_smoothing: float = 0.0,
        regression_loss: str = "mse",
        label_dimension: int | None = None,
        probe: bool = False,
        others: Sequence[TaskSpec] = (),
        policy: str | None = None,
    ) -> None:
        super().__init__()
        if policy is not None:
            inputs = replace(inputs, policy=policy)
        if inputs.policy is not None and inputs.policy not in POLICIES:
            advice = did_you_mean(inputs.policy, POLICIES)
            raise ConfigError(f"missing.policy: {inputs.policy!r} is not a policy. {advice}")
        if len({task.name, *(other.name for other in others)}) <= len(others):
            names = ", ".join([task.name, *(other.name for other in others)])
            raise ConfigError(f"two tasks have one name: {names}. Name each task once.")
        declared = architecture_class(architecture).capabilities
        if label_wise := declared.label_wise:
            inputs = replace(inputs, labels=label_names(task, ARCHITECTURES.name_of(architecture)))
        self.task_ratings = TaskRatings(rated_task([task, *others]))
        if "ratings" in declared.asks:
            inputs = replace(inputs, dimensions=self.task_ratings.task.output_names)
        self.config: dict[str, Any] = {
            "format": FORMAT,
            "architecture": ARCHITECTURES.name_of(architecture),
            "options": dict(options or {}),
            "inputs": inputs.to_dict(),
            "task": task.to_dict(),
            "unimodal": unimodal,
            "label_smoothing": label_smoothing,
            "regression_loss": regression_loss,
            "probe": probe,
            **({"label_dimension": label_dimension} if label_dimension else {}),
            **({"others": [other.to_dict() for other in others]} if others else {}),
        }
        self.probe = probe
        self.frozen: list[nn.Module] = []
        self.inputs = inputs
        self.task = task
        self.standardize = Standardize(inputs.widths)
        self.architecture = build_architecture(architecture, inputs, options)
        can = self.architecture.capabilities
        if inputs.policy is not None and can.absent == "generated":
            raise ConfigError(
                f"missing.policy={inputs.policy}: {self.config['architecture']} generates absent modalities itself. "
                "Set missing.policy=null."
            )
        if inputs.policy == "skip" and not can.skips:
            raise ConfigError(
                f"missing.policy=skip: {self.config['architecture']} cannot skip absent modalities. Choose "
                f"{', '.join(FILLS)}."
            )
        self.fill = FillAbsent(inputs.widths, inputs.policy, trained=can.learns) if inputs.policy in FILLS else None
        if self.architecture.capabilities.needs_unimodal and not unimodal:
            raise ConfigError(
                f"with these options parts of {self.config['architecture']} learn only from a classifier per modality. "
                "Set objective.weights.unimodal=1 (or model.detach=false)."
            )

        settings: dict[str, Any] = {
            "label_smoothing": label_smoothing,
            "regression_loss": regression_loss,
            "label_dimension": label_dimension,
        }

        def head(width: int, *, linear: bool = True) -> Head:
            return Head(task, width, linear=linear, **settings)

        self.head = head(self.architecture.hidden_size, linear=not label_wise)
        self.task_labels = TaskLabels(self.head)
        self.unimodal_heads = nn.ModuleDict()
        if unimodal or "outcomes" in self.architecture.capabilities.asks:
            widths = self.representation_widths()
            if not widths:
                raise ConfigError(
                    f"{self.config['architecture']} with these options has no representation of single modalities. "
                    "Set objective.weights.unimodal=0."
                )
            self.unimodal_heads.update({name: head(width) for name, width in widths.items()})
        self.thresholds = nn.Buffer(torch.full((task.size,), 0.5))
        own = self.representation_widths() if unimodal and others else {}
        self.others = nn.ModuleDict(
            {other.name: TaskHeads(other, self.architecture.hidden_size, own, **settings) for other in others}
        )

    def train(self, mode: bool = True) -> Recognizer:
        """Set the mode of all modules except the ``frozen`` ones, which stay in eval mode."""
        super().train(mode)
        self._hold_frozen()
        return self

    def _hold_frozen(self) -> None:
        for module in self.frozen:
            module.training = False

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """All tasks; the first selects the checkpoint."""
        return (self.task, *(self.heads(name).task for name in self.others))

    def heads(self, task: str) -> Recognizer | TaskHeads:
        """The owner of ``head``, ``unimodal_heads`` and ``thresholds`` of a task."""
        return self if task == self.task.name else self.others[task]  # type: ignore[return-value]

    def representation_widths(self) -> dict[str, int]:
        """Widths of the representations of single modalities, measured on one generated utterance."""
        probe = ConversationBatch(
            packing=Packing([1]),
            features={name: torch.zeros(1, width) for name, width in self.inputs.widths.items()},
            speaker=torch.zeros(1, dtype=torch.long),
            available=torch.ones(1, len(self.inputs.widths), dtype=torch.bool),
        )
        was_training = self.architecture.training
        with torch.no_grad():
            encoded = self.architecture.eval()(probe)
        self.architecture.train(was_training)
        self._hold_frozen()
        return {name: value.shape[1] for name, value in encoded.modalities.items()}

    @torch.no_grad()
    def prepare(self, train: Split, *, standardize: bool = True) -> None:
        """Compute the input statistics and the label distribution of the training split."""
        if standardize:
            self.standardize.fit(train.batch(range(len(train))))
        for task in self.tasks:
            heads = self.heads(task.name)
            for head in (heads.head, *heads.unimodal_heads.values()):
                assert isinstance(head, Head)
                head.start_from_prior(train.targets[task.name])

    def forward(self, batch: ConversationBatch) -> Recognized:
        """Logits of the N utterances of ``batch``."""
        self.architecture.check_inputs(batch)
        batch = self.prepared(batch)
        with standing_in() if batch.stand_in else nullcontext():
            encoded = self.architecture(batch, **self.lent())
        read = _without_gradient if self.probe else _unchanged

        def logits(heads: Recognizer | TaskHeads) -> TaskLogits:
            unimodal = {name: head(read(encoded.modalities[name])) for name, head in heads.unimodal_heads.items()}
            if heads is self and self.head.linear is None:
                assert encoded.logits is not None, "a label-wise architecture returns logits"
                return TaskLogits(read(encoded.logits), unimodal)
            return TaskLogits(heads.head(read(encoded.hidden)), unimodal)

        own = logits(self)
        others = {name: logits(self.heads(name)) for name in self.others}
        return Recognized(own.logits, encoded, own.unimodal, others)

    def prepared(self, batch: ConversationBatch) -> ConversationBatch:
        """The batch as the architecture reads it: standardised, and filled if the policy does so."""
        batch = self.standardize.forward(batch)
        return batch if self.fill is None else self.fill(batch, self.standardize.apply_to)

    @property
    def policy(self) -> str | None:
        """See :attr:`ercfusion.batch.InputSpec.policy`."""
        return self.inputs.policy

    def with_policy(self, policy: str | None) -> Recognizer:
        """A copy with another policy, in eval mode, with the same trained values.

        Raises:
            ConfigError: The policy needs vectors that were not trained, or the architecture cannot skip.
        """
        config = {**self.config, "inputs": replace(self.inputs, policy=policy).to_dict()}
        with torch.random.fork_rng(devices=[]):
            other = _from_config(config, architecture_class(config["architecture"]))
        state, expected = self.state_dict(), other.state_dict()
        if untrained := sorted(expected.keys() - state.keys()):
            raise ConfigError(
                f"missing.policy={'null' if policy is None else policy}: the model was trained with missing.policy="
                f"{'null' if self.policy is None else self.policy} and has no vectors for it ({untrained[0]}). Choose "
                "another policy, or train with this one."
            )
        other.load_state_dict({name: value for name, value in state.items() if name in expected})
        return other.to(next(self.parameters()).device).eval()

    def lent(self) -> dict[str, Any]:
        """Functions and objects requested by the architecture (:attr:`Capabilities.asks`) by name."""
        lends: dict[Request, Any] = {
            "outcomes": self.outcomes,
            "labels": self.task_labels,
            "ratings": self.task_ratings,
        }
        return {name: lends[name] for name in self.architecture.capabilities.asks}

    def outcomes(self, modality: str, representation: Tensor) -> Tensor | None:
        """Logits of the classifier on one modality; see :class:`ercfusion.models.base.Outcomes`.

        Returns:
            See :meth:`ercfusion.batch.kinds.TaskKind.outcomes`: (N, 1, C) for a single label, (N, C, 2) (no, yes) for
            label sets, None for numbers.
        """
        logits: Tensor = self.unimodal_heads[modality](representation)
        return self.task.rules.outcomes(logits)

    def predict(self, store: Split, *, conversations: int = 64) -> Predictions:
        """Predictions of the first task for a split; see :meth:`predict_all`."""
        return self.predict_all(store, conversations=conversations)[self.task.name]

    @torch.no_grad()
    def predict_all(self, store: Split, *, conversations: int = 64) -> dict[str, Predictions]:
        """Predictions of every task by name for a split, in eval mode, on the device of the parameters."""
        device = next(self.parameters()).device
        was_training = self.training
        self.eval()
        logits: dict[str, list[Tensor]] = {task.name: [] for task in self.tasks}
        for batch in store.batches(conversations):
            for name, task_logits in self(batch.to(device)).of(self).items():
                logits[name].append(task_logits.logits.float())
        self.train(was_training)
        return {task.name: self._predictions(task, logits[task.name], store) for task in self.tasks}

    def _predictions(self, task: TaskSpec, logits: list[Tensor], store: Split) -> Predictions:
        head = self.heads(task.name).head
        output = torch.cat([head.outputs(part).double().cpu() for part in logits])
        spreads = [spread.double().cpu() for part in logits if (spread := head.spread(part)) is not None]
        targets = store.targets[task.name]
        return Predictions(
            task=task,
            output=output.numpy(),
            value=targets.value.numpy(),
            valid=targets.valid.numpy(),
            lengths=tuple(store.lengths),
            speaker=store.speaker.numpy(),
            conversation_ids=store.conversation_ids,
            turn_ids=store.turn_ids,
            thresholds=self._thresholds(task),
            spread=torch.cat(spreads).numpy() if spreads else None,
            votes=None if targets.votes is None else targets.votes.numpy(),
        )

    def set_thresholds(self, thresholds: np.ndarray, task: str | None = None) -> None:
        """Set the (K) decision thresholds of a task; None for the first task."""
        heads = self.heads(task or self.task.name)
        heads.thresholds.copy_(torch.from_numpy(np.asarray(thresholds, dtype=np.float32)))

    def fix_thresholds(self, rule: str) -> None:
        """Set the thresholds of all tasks by a rule of :func:`ercfusion.batch.views.fixed_thresholds`."""
        for task in self.tasks:
            thresholds = fixed_thresholds(task, rule)
            if task.rules.thresholds and thresholds is not None:
                self.set_thresholds(thresholds, task.name)

    def choose_thresholds(self, dev: Predictions, rule: str = "dev") -> Predictions:
        """Set the decision thresholds, for task kinds with thresholds; returns ``dev`` with them.

        Args:
            dev: Predictions of the dev split.
            rule: See :func:`ercfusion.batch.views.with_thresholds`.
        """
        (chosen,) = with_thresholds(dev, [dev], rule)
        if chosen.task.rules.thresholds and chosen.thresholds is not None:
            self.set_thresholds(chosen.thresholds, chosen.task.name)
        return replace(dev, thresholds=self._thresholds(dev.task))

    def _thresholds(self, task: TaskSpec) -> np.ndarray | None:
        return self.heads(task.name).thresholds.double().cpu().numpy() if task.rules.thresholds else None

    def checksum(self) -> str:
        """SHA-256 of configuration and tensors without thresholds, which are chosen after training."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            if name.rpartition(".")[2] != "thresholds":
                digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                digest.update(tensor_bytes(value))
        return digest.hexdigest()

    def save_pretrained(self, folder: str | Path, *, card: str = "") -> Path:
        """Write ``model.safetensors``, ``config.json`` and the card ``README.md`` (if given) into ``folder``.

        An existing model stays loadable: ``config.json`` contains both checksums while the weights are replaced.
        """
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        weights, content = folder / "model.safetensors", save(state)

        def describe(**more: Any) -> None:
            files = {weights.name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
            write_json(folder / "config.json", {**self.config, "files": files, **more})

        before = file_state(weights)
        if before is not None:
            describe(before={weights.name: before})
        with atomic_write(weights, "wb") as stream:
            stream.write(content)
        describe()
        if card:
            with atomic_write(folder / "README.md") as text:
                text.write(card)
        return folder

    @staticmethod
    def from_pretrained(folder: str | Path) -> Recognizer:
        """Load the model saved by :meth:`save_pretrained`, in eval mode.

        Raises:
            RunError: A file is missing, damaged or of another format, the files do not fit together, or the module of
                the architecture is not imported.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise RunError(f"{folder} is not a saved model: {name} is missing. Give a folder such as RUN/model.")
        where, weights = folder / "config.json", folder / "model.safetensors"
        config = read_json(where, advice=DAMAGED)
        version = config.get("format") if isinstance(config, dict) else None
        if version != FORMAT:
            advice = "Use the version of ercfusion that wrote it."
            raise failure(RunError, where, f": format {shown(version)}; this version reads {FORMAT}", advice)
        check(config, ModelConfig, where, advice=DAMAGED)
        tensors = read_header(weights, advice=DAMAGED)
        check_sum(config, weights)
        try:
            architecture = architecture_class(config["architecture"])
        except ConfigError as error:
            raise failure(RunError, where, f": {error}") from error
        # All parameters are in the file, so a construction that needs far more memory has wrong sizes.
        most = 8 * weights.stat().st_size + (512 << 20)
        try:
            with allocation_limit(config["architecture"], most):
                recognizer = _from_config(config, architecture)
        except ErcfusionError as error:
            raise failure(RunError, where, f": {error}", DAMAGED) from error
        check_tensors(recognizer.state_dict(), tensors, weights)
        try:
            recognizer.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise failure(RunError, weights, f" does not fit its config.json: {error}", DAMAGED) from error
        return recognizer.eval()


def _from_config(config: Mapping[str, Any], architecture: type[Architecture]) -> Recognizer:
    """An untrained recognizer with the configuration of another one."""
    return Recognizer(
        architecture,
        InputSpec.from_dict(config["inputs"]),
        TaskSpec.from_dict(config["task"]),
        config["options"],
        unimodal=config["unimodal"],
        label_smoothing=config["label_smoothing"],
        regression_loss=config["regression_loss"],
        label_dimension=config.get("label_dimension"),
        probe=config["probe"],
        others=[TaskSpec.from_dict(other) for other in config.get("others", [])],
    )


class _ZeroGradient(torch.autograd.Function):
    """The identity with a zero gradient.

    A detached copy would remove parameters from the graph, but distributed training waits for a gradient of every
    parameter, such as the vectors for absent modalities.
    """

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return torch.zeros_like(gradients[0])


def _without_gradient(value: Tensor) -> Tensor:
    return _ZeroGradient.apply(value)


def _unchanged(value: Tensor) -> Tensor:
    return value
