"""A split as a few large tensors; batches are cut from it by index arithmetic."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ercfusion._core.errors import BatchError, CorpusFormatError
from ercfusion.batch.batch import ConversationBatch, SequenceValues, TaskTargets
from ercfusion.batch.inputs import InputSpec
from ercfusion.batch.missing import Hidden, Layout, draw
from ercfusion.batch.packing import Packing
from ercfusion.batch.task import TaskSpec
from ercfusion.config.missing_laws import Law
from ercfusion.data.conversation import Conversation
from ercfusion.data.features import FeatureTable
from ercfusion.data.sampler import mix_seed


def encode_targets(conversations: Sequence[Conversation], task: TaskSpec) -> TaskTargets:
    """Targets of all turns as tensors, in the order of the conversations.

    Raises:
        CorpusFormatError: a value does not fit the task.
    """
    turns = [(conversation, turn) for conversation in conversations for turn in conversation.turns]
    count, size = len(turns), task.size
    if task.rules.index_targets:
        value = torch.zeros(count, dtype=torch.long)
    else:
        value = torch.zeros(count, size)
    valid = torch.zeros(count, dtype=torch.bool)
    votes: Tensor | None = None
    for row, (conversation, turn) in enumerate(turns):
        target = turn.targets.get(task.name)
        if target is None or target.value is None:
            continue
        try:
            value[row] = torch.tensor(task.rules.encode(target.value, task))
            if target.votes is not None and task.schema is not None:
                votes = torch.zeros(count, size) if votes is None else votes
                for label, number in target.votes.items():
                    votes[row, task.schema.index(label)] = number
        except (CorpusFormatError, TypeError, ValueError) as error:
            raise CorpusFormatError(
                f"conversation {conversation.id!r}, turn {turn.id!r}: {target.value!r} is not a target of the "
                f"{task.kind} task {task.name!r}: {error}. Correct the value."
            ) from error
        valid[row] = True
    return TaskTargets(value, valid, votes)


class ConversationStore:
    """One split, from which batches are cut.

    Args:
        conversations: At least one.
        tables: Features in the order of models' inputs.
        tasks: Tasks whose targets are encoded.
        views: Further tasks in ``targets``, but not in the batches.

    Attributes:
        holes: What :meth:`hidden` hides in the batches; None for nothing.

    Raises:
        BatchError: no conversations, or no features of any turn.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        tables: Sequence[FeatureTable],
        tasks: Sequence[TaskSpec],
        views: Sequence[TaskSpec] = (),
    ) -> None:
        if not conversations:
            raise BatchError("the split has no conversations. Check the corpus with ercfusion.doctor.")
        if not tables:
            raise BatchError("no features were given. Give at least one feature table.")
        self.conversations = list(conversations)
        self.tasks = list(tasks)
        self.views = list(views)
        self.lengths = [len(conversation) for conversation in self.conversations]
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.speaker = torch.tensor([number for c in self.conversations for number in c.speaker_numbers()])
        self.inputs = InputSpec(
            {table.modality: table.width for table in tables},
            {table.modality: table.level for table in tables},
            speakers=self.num_speakers,
        )
        keys = [key for conversation in self.conversations for key in conversation.keys()]  # noqa: SIM118
        self.features: dict[str, Tensor] = {}
        self.sequences: dict[str, SequenceValues] = {}
        columns = []
        for table in tables:
            rows = table.rows(keys)
            columns.append(torch.from_numpy(rows >= 0))
            if table.offsets is None:
                self.features[table.modality] = _gather(table.values, rows)
            else:
                self.sequences[table.modality] = stored = _gather_sequences(table, rows)
                self.features[table.modality] = stored.means()
        self.available = torch.stack(columns, dim=1)
        if not bool(self.available.any()):
            first = "; ".join(f"{table.modality}: {table.keys[0] if table.keys else 'none'}" for table in tables)
            raise BatchError(
                f"none of the {len(keys)} turns of this split has any features (first looked for: {keys[0]}; first "
                f"held: {first}): they belong to another corpus or other splits. Use the features of this split."
            )
        self.targets = {task.name: encode_targets(self.conversations, task) for task in (*tasks, *views)}
        self.holes: Hidden | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        widths = "; ".join(f"{name} {width} ({self.inputs.levels[name]})" for name, width in self.inputs.widths.items())
        tasks = ", ".join(task.name for task in self.tasks)
        return (
            f"ConversationStore({len(self)} conversations, {self.num_utterances} utterances; {widths}; tasks {tasks})"
        )

    @property
    def conversation_ids(self) -> tuple[str, ...]:
        """Ids of the conversations, in order."""
        return tuple(conversation.id for conversation in self.conversations)

    @property
    def turn_ids(self) -> tuple[str, ...]:
        """Ids of the N utterances, in order."""
        return tuple(turn.id for conversation in self.conversations for turn in conversation.turns)

    @property
    def num_utterances(self) -> int:
        """Number of utterances of the split."""
        return int(self._starts[-1])

    @property
    def num_speakers(self) -> int:
        """The largest number of speakers in one conversation."""
        return int(self.speaker.max()) + 1

    @property
    def present(self) -> Tensor:
        """(N, M) bool, available and not hidden: as in the batches."""
        if self.holes is None:
            return self.available
        hidden = self.holes.drop.clone()
        for name, steps in self.holes.steps.items():
            counts = self.sequences[name].offsets.diff()
            owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
            left = torch.zeros_like(counts).index_add_(0, owner, (~steps).long())
            hidden[:, self.inputs.modalities.index(name)] |= (counts > 0) & (left == 0)
        return self.available & ~hidden

    @property
    def seen(self) -> dict[str, np.ndarray]:
        """By modality, its column of :attr:`present`: what :meth:`ercfusion.data.Corpus.reachable` needs."""
        return dict(zip(self.inputs.modalities, self.present.numpy().T, strict=True))

    def batch(self, indices: Sequence[int]) -> ConversationBatch:
        """The conversations at ``indices``, in that order, as one packed batch."""
        rows = self._rows(indices)
        batch = ConversationBatch(
            packing=Packing([self.lengths[index] for index in indices]),
            features={name: value[rows] for name, value in self.features.items()},
            speaker=self.speaker[rows],
            available=self.available[rows],
            targets={task.name: _rows(self.targets[task.name], rows) for task in self.tasks},
            sequences={name: _take_sequences(stored, rows) for name, stored in self.sequences.items()},
            ids=tuple(self.conversations[index].id for index in indices),
        )
        if self.holes is None:
            return batch
        steps = {name: hidden[_steps_of(self.sequences[name], rows)] for name, hidden in self.holes.steps.items()}
        return batch.hide(self.holes.drop[rows], steps)

    def hidden(self, law: Law, seed: int, split: str) -> ConversationStore:
        """The complete split with the holes of a law: a shallow copy, with the same features.

        Holes depend on the law's text, ``seed``, ``split`` and the ids of the conversations: not on batches, the order
        of conversations or modalities, or a process's random state.

        Args:
            law: A law for modalities of the split.
            seed: Setting ``missing.seed``.
            split: Name of the split.

        Raises:
            ConfigError: The law does not fit the modalities.
        """
        order = sorted(range(len(self)), key=self.conversation_ids.__getitem__)
        rows = self._rows(order)
        layout = Layout(
            Packing([self.lengths[index] for index in order]),
            self.inputs.modalities,
            self.available[rows],
            {name: stored.offsets.diff()[rows] for name, stored in self.sequences.items()},
            {name: len(stored.values) for name, stored in self.sequences.items()},
        )

        def generator(stream: str) -> torch.Generator:
            texts = (split, str(law), stream)
            return torch.Generator().manual_seed(mix_seed(seed, *(zlib.crc32(text.encode()) for text in texts)))

        drawn = draw(law, layout, generator)
        drop = torch.empty_like(drawn.drop)
        drop[rows] = drawn.drop
        steps = {}
        for name, ordered in drawn.steps.items():
            steps[name] = torch.empty_like(ordered)
            steps[name][_steps_of(self.sequences[name], rows)] = ordered
        copied = copy.copy(self)
        copied.holes = Hidden(drop, steps)
        return copied

    def _rows(self, indices: Sequence[int]) -> Tensor:
        """Rows of the utterances of the conversations at ``indices``, in that order."""
        starts = self._starts
        return torch.from_numpy(np.concatenate([np.arange(starts[index], starts[index + 1]) for index in indices]))

    def batches(self, conversations: int) -> Iterator[ConversationBatch]:
        """The split in order, as batches of ``conversations`` conversations."""
        for start in range(0, len(self), conversations):
            yield self.batch(range(start, min(start + conversations, len(self))))


def _rows(targets: TaskTargets, rows: Tensor) -> TaskTargets:
    votes = None if targets.votes is None else targets.votes[rows]
    return TaskTargets(targets.value[rows], targets.valid[rows], votes)


def _gather(values: np.ndarray, rows: np.ndarray) -> Tensor:
    gathered = np.zeros((len(rows), values.shape[1]), dtype=np.float32)
    present = rows >= 0
    gathered[present] = values[rows[present]]
    return torch.from_numpy(gathered)


def _gather_sequences(table: FeatureTable, rows: np.ndarray) -> SequenceValues:
    assert table.offsets is not None
    starts = np.where(rows >= 0, table.offsets[rows], 0)
    stops = np.where(rows >= 0, table.offsets[rows + 1], 0)
    index = np.concatenate([np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)])
    values = np.ascontiguousarray(table.values[index], dtype=np.float32)
    offsets = np.concatenate([[0], np.cumsum(stops - starts)])
    return SequenceValues(torch.from_numpy(values), torch.from_numpy(offsets))


def _steps_of(stored: SequenceValues, rows: Tensor) -> Tensor:
    """Indices of the steps of the utterances in ``rows``, in this order."""
    counts = stored.offsets.diff()[rows]
    ends = counts.cumsum(0)
    return torch.arange(int(counts.sum())) + torch.repeat_interleave(stored.offsets[rows] - ends + counts, counts)


def _take_sequences(stored: SequenceValues, rows: Tensor) -> SequenceValues:
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), stored.offsets.diff()[rows].cumsum(0)])
    return SequenceValues(stored.values[_steps_of(stored, rows)], offsets)
