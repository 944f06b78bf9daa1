"""What is to be predicted for every utterance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ercfusion.batch.labels import LabelSchema

TaskKind = Literal["single_label", "multi_label", "distribution", "regression"]
KINDS: tuple[TaskKind, ...] = ("single_label", "multi_label", "distribution", "regression")


@dataclass(frozen=True)
class TaskSpec:
    """One prediction task.

    Args:
        name: Key of the targets in a conversation, for example ``"emotion"``.
        kind: ``single_label`` (one of C), ``multi_label`` (any subset of C), ``distribution`` (a probability for each
            of C, from votes) or ``regression`` (one real number a dimension).
        schema: The labels; required for all kinds but ``regression``.
        dimensions: Names of the regressed values, for example ``("valence", "arousal", "dominance")``.
        low, high: Range of the regressed values, in the corpus's own unit.
        metric: The dev score on which a checkpoint is chosen; see :mod:`ercfusion.metrics.scores` for the names.
    """

    name: str
    kind: TaskKind
    schema: LabelSchema | None = None
    dimensions: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    metric: str = field(default="")

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"task {self.name!r}: kind {self.kind!r} is none of {KINDS}")
        if (self.kind == "regression") == (self.schema is not None):
            need = "takes no" if self.schema else "needs a"
            raise ValueError(f"task {self.name!r}: a {self.kind} task {need} schema")
        if self.kind == "regression" and not self.dimensions:
            raise ValueError(f"task {self.name!r}: a regression task names its dimensions")
        if not self.metric:
            object.__setattr__(self, "metric", "mae" if self.kind == "regression" else "weighted_f1")

    @property
    def size(self) -> int:
        """Number of outputs an utterance: C classes, or the number of regressed dimensions."""
        return len(self.dimensions) if self.schema is None else len(self.schema)

    @property
    def output_names(self) -> tuple[str, ...]:
        """A name for every output, in order."""
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
