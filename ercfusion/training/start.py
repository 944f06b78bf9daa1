"""Initial weights from another model, and parts that are not trained: ``training.start_from``, ``load``, ``freeze``.

Parts are beginnings of parameter names, up to a dot: ``architecture.project`` has ``architecture.project.weight`` but
not ``architecture.projection.weight``. Names of heads belong to tasks: a head is loaded into the head of the task
with the same name, also if the order of the tasks differs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError, nearest
from ercfusion._core.files import expanded, sha256_of, write_json
from ercfusion._core.schemas.reading import read_json
from ercfusion.config.sections import Training
from ercfusion.records.record import RECORD, read_record
from ercfusion.records.run_schema import Start as StartFile
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.training.cost import count_parameters
from ercfusion.training.folder import START

logger = logging.getLogger("ercfusion")

_LISTED = 12


@dataclass(frozen=True)
class Start:
    """How a training began.

    Args:
        source: Name of the folder of the initial weights; None for random ones.
        model: Model and protocol of these weights, if they are of a run.
        sha256: Of their file.
        loaded: Parts that were loaded.
        left: Parts of the model that the source does not have, or that were not asked for.
        frozen: Parts that are not trained.
        fixed_mode: Classes of frozen modules that behave differently in training, such as ``Dropout``; they stay in
            eval mode.
        trainable: Number of trained scalars.
        parameters: Number of all scalars.
    """

    source: str | None
    model: str | None
    sha256: str | None
    loaded: list[str]
    left: list[str]
    frozen: list[str]
    fixed_mode: list[str]
    trainable: int
    parameters: int

    def lines(self) -> list[str]:
        """What to print."""
        lines = []
        if self.source is not None:
            left = f"; not from there: {_listed(self.left)}" if self.left else ""
            lines.append(f"initial weights from {self.source}: {_listed(self.loaded) or 'none'}{left}")
        if self.frozen:
            mode = f"; in eval mode: {', '.join(self.fixed_mode)}" if self.fixed_mode else ""
            lines.append(
                f"frozen: {', '.join(self.frozen)}; {self.trainable:,} of {self.parameters:,} parameters are trained "
                f"({self.trainable / self.parameters:.0%}){mode}"
            )
        return lines


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def begin(recognizer: Recognizer, settings: Training, folder: Path, *, resumed: bool) -> Start | None:
    """Load the initial weights of a run, and freeze its parts; None if all is as usual.

    A resumed run has its weights from its checkpoint, so its ``start_from`` may be gone.

    Args:
        recognizer: Prepared; changed in place.
        settings: The section ``training``.
        folder: Of the run.

    Raises:
        ConfigError: a part that no parameter belongs to, a different shape, or nothing left to train.
        RunError: ``start_from`` is not a model.
    """
    if settings.load is not None and settings.start_from is None:
        raise ConfigError("training.load has no effect without training.start_from. Set start_from=RUN, or omit load.")
    if settings.start_from is None and not settings.freeze:
        return None
    if resumed:
        read: dict[str, Any] = read_json(folder / START, StartFile, advice="Restore the file, or begin a new run.")
        freeze(recognizer, settings.freeze)
        return Start(**read)
    source, model, checksum = None, None, None
    loaded: list[str] = []
    left: list[str] = []
    if settings.start_from is not None:
        path = model_folder(settings.start_from)
        other = Recognizer.from_pretrained(path)
        pairs = matching(recognizer, other, settings.load)
        with torch.no_grad():
            for own, given in pairs.values():
                own.copy_(given)
        source, model, checksum = _name(path), _origin(path), sha256_of(path / "model.safetensors")
        names = [name for name, _ in recognizer.named_parameters()]
        loaded, left = parts_of(names, pairs), parts_of(names, [name for name in names if name not in pairs])
    total = count_parameters(recognizer)
    fixed_mode = freeze(recognizer, settings.freeze)
    trainable = count_parameters(recognizer)
    return Start(source, model, checksum, loaded, left, list(settings.freeze), fixed_mode, trainable, total)


def write_start(folder: Path, start: Start) -> None:
    """Write :data:`START`."""
    write_json(folder / START, asdict(start))


def read_start(folder: Path) -> dict[str, Any] | None:
    """The content of :data:`START`; None without the file."""
    if not (folder / START).is_file():
        return None
    content: dict[str, Any] = read_json(folder / START, StartFile, advice="Restore the file, or begin a new run.")
    return content


def model_folder(path: str | Path) -> Path:
    """The folder of a saved model: that of a run, or the folder itself."""
    folder = expanded(path)
    return folder / "model" if (folder / "model").is_dir() else folder


def _name(folder: Path) -> str:
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name == "model" else resolved.name


def _origin(folder: Path) -> str | None:
    """Model and protocol of the run of a saved model, from its record."""
    run = folder.resolve().parent
    if folder.name != "model" or not (run / RECORD).is_file():
        return None
    record = read_record(run)
    return f"{record['config']['preset']['model']} on {record['protocol']}"


# Loading


def matching(target: Recognizer, source: Recognizer, parts: Sequence[str] | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Tensors to copy, by their name in ``target``: (own, given).

    Decision thresholds are left out: they are chosen after training.

    Args:
        target: The model to load into.
        source: The model with the weights.
        parts: Beginnings of names in ``target``; None for all tensors of both models.

    Raises:
        ConfigError: a part that ``target`` or ``source`` does not have; or shapes differ.
    """
    own = _tensors(target)
    given = {key: (name, tensor) for name, (key, tensor) in _tensors(source).items()}
    if parts is None and not any(name.startswith("architecture.") and key in given for name, (key, _) in own.items()):
        raise ConfigError(
            "training.start_from: its model and this one have no parameter of the architecture in common. Choose a run "
            "of the same model."
        )
    differing = [
        task.name
        for task in target.tasks
        for other in source.tasks
        if task.name == other.name and task.to_dict() != other.to_dict()
    ]
    chosen = {}
    for name, (key, tensor) in own.items():
        if parts is not None and not any(belongs(name, part) for part in parts):
            continue
        if key not in given or (parts is None and isinstance(key, tuple) and key[0] in differing):
            continue
        other_name, value = given[key]
        if value.shape != tensor.shape:
            raise ConfigError(
                f"training.start_from: {name} has the shape {list(tensor.shape)}, but {other_name} there has "
                f"{list(value.shape)}. Set the same model options, or set training.load to other parts."
            )
        chosen[name] = (tensor, value)
    for part in parts or ():
        if not any(belongs(name, part) for name in own):
            advice = _near(part, own)
            raise ConfigError(f"training.load: no parameter of the model begins with {part!r}. {advice}")
        if not any(belongs(name, part) for name in chosen):
            advice = _near(part, [name for name, _ in given.values()])
            raise ConfigError(f"training.load: the model of training.start_from has no parameter of {part!r}. {advice}")
    return chosen


def _tensors(recognizer: Recognizer) -> dict[str, tuple[str | tuple[str, str], Tensor]]:
    """Parameters and buffers by name, each with a key that is equal in another model: heads have their task in it."""
    tensors: dict[str, tuple[str | tuple[str, str], Tensor]] = {}
    for name, tensor in recognizer.state_dict(keep_vars=True).items():
        first, _, rest = name.partition(".")
        if name.rpartition(".")[2] == "thresholds":
            continue
        if first in ("head", "unimodal_heads"):
            tensors[name] = ((recognizer.task.name, name), tensor)
        elif first == "others":
            task, _, own = rest.partition(".")
            tensors[name] = ((task, own), tensor)
        else:
            tensors[name] = (name, tensor)
    return tensors


# Freezing


def freeze(recognizer: Recognizer, parts: Sequence[str]) -> list[str]:
    """Exclude parameters from training; modules inside the parts stay in eval mode.

    Args:
        recognizer: Changed in place, and set to train mode.
        parts: Beginnings of parameter names.

    Returns:
        Names of the classes of these modules that behave differently in training, sorted.

    Raises:
        ConfigError: a part that is neither a module nor the beginning of a parameter's name, or no parameter is left.
    """
    if not parts:
        return []
    names = dict(recognizer.named_parameters())
    modules = dict(recognizer.named_modules())
    for part in parts:
        # A module may have no parameters with these data, such as a part per pair of modalities.
        if part not in modules and not any(belongs(name, part) for name in names):
            advice = _near(part, names)
            raise ConfigError(f"training.freeze: no parameter begins with {part!r}. {advice}")
    for name, parameter in names.items():
        if any(belongs(name, part) for part in parts):
            parameter.requires_grad_(False)
    if not count_parameters(recognizer):
        raise ConfigError("training.freeze: no parameter is left to train. Name fewer parts.")
    recognizer.frozen = [module for name, module in modules.items() if any(belongs(name, part) for part in parts)]
    recognizer.train()
    return sorted({type(module).__name__ for module in recognizer.frozen if _depends_on_mode(module)})


def _depends_on_mode(module: nn.Module) -> bool:
    """Whether a module drops values, or normalises over the batch, in train mode."""
    rates = [getattr(module, name, 0) for name in ("p", "dropout", "dropout_rate")]
    drops = any(isinstance(rate, int | float) and rate > 0 for rate in rates)
    return drops or isinstance(module, nn.modules.batchnorm._BatchNorm)


# Names


def belongs(name: str, part: str) -> bool:
    """Whether a parameter's name begins with a part, up to a dot."""
    return name == part or name.startswith(f"{part}.")


def parts_of(names: Sequence[str], chosen: Iterable[str]) -> list[str]:
    """The shortest list of parts that has exactly the names ``chosen`` of all ``names``."""
    wanted = [name for name in names if name in set(chosen)]
    others = [name for name in names if name not in set(wanted)]
    parts: list[str] = []
    for name in wanted:
        if any(belongs(name, part) for part in parts):
            continue
        pieces = name.split(".")
        candidates = (".".join(pieces[:count]) for count in range(1, len(pieces) + 1))
        parts.append(next(one for one in candidates if not any(belongs(other, one) for other in others)))
    return parts


def _near(part: str, names: Iterable[str] | Mapping[str, Any]) -> str:
    """A sentence with the nearest parts, or with the first levels of all names."""
    known: dict[str, None] = {}
    for name in names:
        pieces = name.split(".")
        known.update(dict.fromkeys(".".join(pieces[:count]) for count in range(1, len(pieces) + 1)))
    if close := nearest(part, known, 3):
        return f"Did you mean {' or '.join(map(repr, close))}?"
    top = [name for name in known if name.count(".") == (1 if name.startswith("architecture.") else 0)]
    return f"Choose from: {_listed(top)}."
