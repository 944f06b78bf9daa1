"""The input description of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ercfusion._core.errors import BatchError

Level = Literal["utterance", "sequence"]


@dataclass(frozen=True)
class InputSpec:
    """Modalities of a model in column order, with their widths and levels.

    Args:
        widths: Dimensions of each modality's vectors.
        levels: ``utterance`` (one vector per turn, the default) or ``sequence`` (T_i vectors per turn).
        speakers: Largest number of speakers in one training conversation, for models that number speakers.
        labels: Output names of the first task, only for architectures with
            :attr:`ercfusion.models.base.Capabilities.label_wise`.
        dimensions: Names of the numbers of :class:`ercfusion.models.base.Ratings`, only for architectures that request
            them.
        policy: What a model reads in place of an absent modality, one of
            ``ercfusion.config.missing_policies.POLICIES``; None: as the architecture does
            (:attr:`ercfusion.models.base.Capabilities.absent`).
    """

    widths: Mapping[str, int]
    levels: Mapping[str, Level] = field(default_factory=dict)
    speakers: int = 2
    labels: tuple[str, ...] = ()
    dimensions: tuple[str, ...] = ()
    policy: str | None = None

    def __post_init__(self) -> None:
        if not self.widths:
            raise BatchError("a model needs at least one modality. Give widths a modality and its width.")
        object.__setattr__(self, "widths", {name: int(width) for name, width in self.widths.items()})
        object.__setattr__(self, "levels", {name: self.levels.get(name, "utterance") for name in self.widths})

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in column order of the availability mask."""
        return tuple(self.widths)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers."""
        names = {"labels": list(self.labels), "dimensions": list(self.dimensions), "policy": self.policy}
        given = {key: value for key, value in names.items() if value}
        return {"widths": dict(self.widths), "levels": dict(self.levels), "speakers": self.speakers, **given}

    @staticmethod
    def from_dict(state: Mapping[str, Any]) -> InputSpec:
        """Inverse of :meth:`to_dict`."""
        names = {key: tuple(state.get(key, ())) for key in ("labels", "dimensions")}
        return InputSpec(state["widths"], state["levels"], state["speakers"], **names, policy=state.get("policy"))
