"""The outputs of another model for the training split: ``training.teacher``.

They are computed once, before the student's first epoch, and kept in the run folder. So a resumed run repeats the
uninterrupted one, and neither needs the teacher any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ercfusion._core.errors import ConfigError, RunError, TrainingError
from ercfusion._core.files import atomic_write, expanded, sha256_of
from ercfusion._core.schemas.reading import check, failure, parse_json
from ercfusion._core.schemas.tensors import read_header, tensor_bytes
from ercfusion.batch.batch import ConversationBatch
from ercfusion.config.settings import Config
from ercfusion.data.store import ConversationStore
from ercfusion.features.loading import load_data
from ercfusion.losses.concordance import SetRows
from ercfusion.records.record import RECORD
from ercfusion.records.run_schema import TeacherFile
from ercfusion.tasks.recognizer import Recognizer
from ercfusion.tasks.teaching import Taught
from ercfusion.training.callbacks import MODEL
from ercfusion.training.folder import TEACHER, read_config
from ercfusion.training.stages import STAGE

_HIDDEN, _LOGITS = "hidden", "logits "
"""Names of the tensors in the file: the second is before the name of a task."""
ADVICE = "Restore the file, or begin a new run."


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher answers for the S utterances of a training split; called with a batch of it.

    Args:
        hidden: (S, D), the input of its heads.
        logits: (S, L) by task.
        rows: Positions of utterances in the split.
        about: The record's part about the teacher.
    """

    hidden: Tensor
    logits: Mapping[str, Tensor]
    rows: SetRows
    about: Mapping[str, Any]

    def __call__(self, batch: ConversationBatch) -> Taught:
        """The outputs for the utterances of a training batch, on its device."""
        rows = self.rows.of(batch.ids, batch.packing.lengths)
        logits = {name: value[rows].to(batch.device) for name, value in self.logits.items()}
        return Taught(self.hidden[rows].to(batch.device), logits)


def teacher_outputs(
    config: Config, folder: Path, train: ConversationStore, student: Recognizer, identity: Mapping[str, str]
) -> TeacherOutputs | None:
    """The outputs of ``training.teacher``, from the run folder if they are there; None without a teacher.

    Args:
        config: Of the student.
        folder: Of its run.
        train: Its training split.
        student: Untrained.
        identity: Of its data (:func:`ercfusion.data.identity.data_identity`).

    Raises:
        ConfigError: the teacher has another corpus, protocol, task or label schema, or lacks an utterance.
        RunError: no finished run, or damaged files.
        TrainingError: an output is not finite.
    """
    if config.training.teacher is None:
        return None
    rows = SetRows(train.conversation_ids, train.lengths)
    if not (folder / TEACHER).is_file():
        tensors, about = _computed(config.training.teacher, train, student, identity)
    else:
        tensors, about = _read(folder / TEACHER)
        needed = {_HIDDEN, *(_LOGITS + task.name for task in student.tasks)}
        if not needed <= tensors.keys() or any(len(value) != rows.size for value in tensors.values()):
            problem = f": it does not have the {rows.size} utterances and the tasks of the training split"
            raise failure(RunError, folder / TEACHER, problem, ADVICE)
    logits = {name.removeprefix(_LOGITS): value for name, value in tensors.items() if name.startswith(_LOGITS)}
    return TeacherOutputs(tensors[_HIDDEN], logits, rows, about)


def _computed(
    place: str, train: ConversationStore, student: Recognizer, identity: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Outputs by name, and the record's part about the teacher."""
    where = f"training.teacher={place}"
    if not expanded(place).is_dir():
        raise ConfigError(f"{where} is neither a stage of the recipe nor a folder. Give the folder of a finished run.")
    path, content = read_config(place)
    if not any((path / name).is_file() for name in (RECORD, STAGE)):
        raise RunError(f"{where}: the run is not complete. Resume it, or choose a finished run.")
    teacher = Recognizer.from_pretrained(path / MODEL)
    _check_tasks(where, teacher, student)
    settings = Config.from_dict(content)
    data = load_data(settings.data, refuse_changed=False)
    for key in ("corpus", "protocol", "utterances of the train split", f"files of {identity['corpus']}"):
        if (other := data.identity.get(key)) != identity[key]:
            is_digest = len(identity[key]) >= 64
            differs = f"other {key}" if is_digest else f"its {key} is {other}, the student's {identity[key]}"
            raise ConfigError(f"{where}: {differs}. Choose a teacher of the same corpus and protocol.")
    store = data.store("train")
    tensors = _outputs(where, teacher, store, [task.name for task in student.tasks])
    places = {key: row for row, key in enumerate(_keys(store))}
    missing = [key for key in _keys(train) if key not in places]
    if missing:
        raise ConfigError(
            f"{where}: it does not know {len(missing)} training utterances (first: {'/'.join(missing[0])}). Choose a "
            "teacher of the same training split."
        )
    order = torch.tensor([places[key] for key in _keys(train)])
    about = {
        "source": path.name,
        "model": settings.model.name,
        "protocol": data.protocol.id,
        "modalities": list(store.inputs.widths),
        "sha256": sha256_of(path / MODEL / "model.safetensors"),
    }
    return {name: value.index_select(0, order) for name, value in tensors.items()}, about


def _check_tasks(where: str, teacher: Recognizer, student: Recognizer) -> None:
    known = {task.name: task for task in teacher.tasks}
    for task in student.tasks:
        if task.name not in known:
            raise ConfigError(
                f"{where}: it did not learn the task {task.name!r}, only {', '.join(known)}. Choose another "
                "teacher, or other data.tasks."
            )
        if known[task.name].to_dict() != task.to_dict():
            raise ConfigError(
                f"{where}: its task {task.name!r} has other labels, kind or range. Choose a teacher of the same task."
            )
        own, other = (one.heads(task.name).head.rules.num_logits(task) for one in (student, teacher))
        if own != other:
            raise ConfigError(
                f"{where}: its classifier of {task.name!r} has {other} outputs, the student's {own}. Set the "
                "objective.regression_loss of the teacher."
            )


@torch.no_grad()
def _outputs(where: str, teacher: Recognizer, store: ConversationStore, tasks: list[str]) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {name: [] for name in (_HIDDEN, *(_LOGITS + task for task in tasks))}
    for batch in store.batches(64):
        taught = Taught.by(teacher, teacher(batch))
        parts[_HIDDEN].append(taught.hidden.float())
        for name in tasks:
            parts[_LOGITS + name].append(taught.logits[name].float())
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    finite = torch.stack([value.isfinite().all(1) for value in tensors.values()]).all(0)
    if not finite.all():
        first = _keys(store)[int((~finite).nonzero()[0])]
        raise TrainingError(
            f"{where}: its outputs for {int((~finite).sum())} training utterances are not finite (first: "
            f"{'/'.join(first)}). Check the features of these utterances."
        )
    return tensors


def _keys(store: ConversationStore) -> list[tuple[str, str]]:
    return [(conversation.id, turn.id) for conversation in store.conversations for turn in conversation.turns]


# The file


def write_teacher(folder: Path, outputs: TeacherOutputs) -> None:
    """Write :data:`ercfusion.training.folder.TEACHER`, unless it is there already."""
    from safetensors.torch import save

    if (folder / TEACHER).is_file():
        return
    tensors = {_HIDDEN: outputs.hidden, **{_LOGITS + name: value for name, value in outputs.logits.items()}}
    about = json.dumps({**outputs.about, "content": _checksum(tensors)})
    with atomic_write(folder / TEACHER, "wb") as stream:
        stream.write(save({name: value.contiguous() for name, value in tensors.items()}, {"teacher": about}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Outputs by name, and the record's part about the teacher."""
    from safetensors import safe_open

    read_header(path, advice=ADVICE)
    with safe_open(str(path), framework="pt") as stream:
        text = (stream.metadata() or {}).get("teacher", "")
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    about: dict[str, Any] = parse_json(text.encode(), path, error=RunError, advice=ADVICE)
    check(about, TeacherFile, path, advice=ADVICE)
    if about.pop("content") != _checksum(tensors):
        raise failure(RunError, path, " was changed or damaged: its checksum differs", ADVICE)
    return tensors, about


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()


def teacher_record(folder: Path) -> dict[str, Any]:
    """The record's part about the teacher; empty without one."""
    return {"teacher": _read(folder / TEACHER)[1]} if (folder / TEACHER).is_file() else {}


def teacher_line(about: Mapping[str, Any]) -> str:
    """What to print about the teacher."""
    return f"teacher {about['source']}: {about['model']} on {about['protocol']}, {', '.join(about['modalities'])}"
