"""Prediction tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ercfusion._core.errors import did_you_mean
from ercfusion.batch.kinds import KINDS, TaskKind, task_kind
from ercfusion.batch.labels import LabelSchema


@dataclass(frozen=True)
class TaskSpec:
    """One prediction task.

    Args:
        name: Key of the targets in a conversation, for example ``"emotion"``.
        kind: A name of :data:`ercfusion.batch.kinds.KINDS`: ``single_label`` (one of C), ``multi_label`` (any subset of
            C), ``distribution`` (a probability for each of C, from votes), ``regression`` (one real number per
            dimension), ``intensity`` (any subset of C, with intensities), or a registered kind.
        schema: The labels, if the kind has any.
        dimensions: Names of the regressed values, for example ``("valence", "arousal", "dominance")``.
        low, high: Range of the regressed values, in the unit of the corpus, or of the intensities of active labels.
        metric: Dev score that selects the checkpoint, a name of :mod:`ercfusion.metrics.registry`.
    """

    name: str
    kind: str
    schema: LabelSchema | None = None
    dimensions: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    metric: str = field(default="")

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"task {self.name!r}: {self.kind!r} is not a task kind. {did_you_mean(self.kind, KINDS)}")
        self.rules.check(self)
        if not self.metric:
            object.__setattr__(self, "metric", self.rules.default_metric)

    def __repr__(self) -> str:
        outputs = ", ".join(self.output_names)
        return f"TaskSpec({self.name}: {self.kind}, {self.size} outputs: {outputs}; chosen on {self.metric})"

    @property
    def rules(self) -> TaskKind:
        """The kind: encoding, learning, decisions, scores, files and figures."""
        return task_kind(self.kind)

    @property
    def size(self) -> int:
        """Outputs per utterance: C classes, or the number of regressed dimensions."""
        return len(self.dimensions) if self.schema is None else len(self.schema)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return self.dimensions if self.schema is None else self.schema.labels

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for ``config.json`` and run records."""
        schema = None
        if self.schema is not None:
            schema = {
                "name": self.schema.name,
                "labels": list(self.schema.labels),
                "synonyms": dict(self.schema.synonyms),
                "neutral": self.schema.neutral,
            }
        return {
            "name": self.name,
            "kind": self.kind,
            "schema": schema,
            "dimensions": list(self.dimensions),
            "low": self.low,
            "high": self.high,
            "metric": self.metric,
        }

    @staticmethod
    def from_dict(state: dict[str, Any]) -> TaskSpec:
        """Inverse of :meth:`to_dict`."""
        schema = state["schema"]
        return TaskSpec(
            name=state["name"],
            kind=state["kind"],
            schema=None
            if schema is None
            else LabelSchema(schema["name"], tuple(schema["labels"]), schema["synonyms"], schema["neutral"]),
            dimensions=tuple(state["dimensions"]),
            low=state["low"],
            high=state["high"],
            metric=state["metric"],
        )
