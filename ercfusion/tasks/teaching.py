"""Objective terms with a teacher: the model's own view of the complete batch, or another model.

Names, settings and meanings are in :data:`ercfusion.config.terms.TEACHER_TERMS`. They need no labels: all utterances
count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ercfusion._core.errors import ConfigError
from ercfusion.batch.batch import ConversationBatch
from ercfusion.config.terms import TEACHER_TERMS, Distillation, Guidance, Imputation
from ercfusion.losses import imputation_loss, representation_distance
from ercfusion.ops.processes import Shares
from ercfusion.tasks.recognizer import Recognized, Recognizer


@dataclass(frozen=True)
class Taught:
    """The outputs of a teacher for the N utterances of a batch, without gradient.

    Args:
        hidden: (N, D), the input of its heads.
        logits: (N, L) by task.
        complete: The batch that it saw, if it is the model itself.
    """

    hidden: Tensor
    logits: Mapping[str, Tensor]
    complete: ConversationBatch | None = None

    @staticmethod
    def by(recognizer: Recognizer, recognized: Recognized, complete: ConversationBatch | None = None) -> Taught:
        """What ``recognizer`` teaches with its outputs."""
        logits = {name: task.logits.detach() for name, task in recognized.of(recognizer).items()}
        return Taught(recognized.encoded.hidden.detach(), logits, complete)


class TeacherTerms(nn.Module):
    """The terms of :data:`ercfusion.config.terms.TEACHER_TERMS` with a weight.

    With another model as the teacher, the representation passes a linear layer to the teacher's width first. The
    imputation has a linear layer from the head's input to each modality. Both are trained, and are not part of
    saved models.

    Args:
        settings: By term.
        recognizer: The student.
        teacher: Width of the vectors of another model; None: the teacher is the complete view.
    """

    def __init__(self, settings: Mapping[str, Any], recognizer: Recognizer, teacher: int | None) -> None:
        super().__init__()
        self.settings = dict(settings)
        width = recognizer.architecture.hidden_size
        self.project: nn.Module = nn.Identity()
        if "guidance" in self.settings and teacher is not None:
            self.project = nn.Linear(width, teacher)
        inputs = recognizer.inputs.widths if "imputation" in self.settings else {}
        self.decoders = nn.ModuleDict({f"modality {name}": nn.Linear(width, own) for name, own in inputs.items()})

    def forward(
        self,
        recognizer: Recognizer,
        recognized: Recognized,
        batch: ConversationBatch,
        shares: Shares,
        taught: Taught,
        weights: Mapping[str, float],
        options: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, Tensor]:
        """The terms by name, scalars.

        Args:
            recognizer: The student.
            recognized: Its outputs.
            batch: Its input.
            shares: Of the batch.
            taught: Of the same utterances.
            weights: Of further tasks by name; the first task, and the others, have 1.
            options: Settings of each task's loss.
        """
        terms = {}
        hidden = shares.gather(recognized.encoded.hidden)
        if isinstance(guidance := self.settings.get("guidance"), Guidance):
            total, count = representation_distance(
                self.project(hidden), shares.gather(taught.hidden), distance=guidance.distance
            )
            terms["guidance"] = _mean(total, count)
        if isinstance(distillation := self.settings.get("distillation"), Distillation):
            losses = []
            for name, logits in recognized.of(recognizer).items():
                own, given = shares.gather(logits.logits), shares.gather(taught.logits[name])
                each = recognizer.heads(name).head.divergence(
                    own, given, temperature=distillation.temperature, **options[name]
                )
                weight = 1.0 if name == recognizer.task.name else weights.get(name, 1.0)
                losses.append(weight * _mean(each.sum(), each.new_tensor(len(each))))
            terms["distillation"] = torch.stack(losses).sum()
        if isinstance(imputation := self.settings.get("imputation"), Imputation):
            assert taught.complete is not None, "only the complete view has the hidden inputs"
            sums = []
            for name in recognizer.inputs.widths:
                lost = shares.gather(hidden_rows(taught.complete, batch, name))
                values = recognizer.standardize.apply_to(name, taught.complete.features[name])
                rows = lost.nonzero().squeeze(1)
                predicted = self.decoders[f"modality {name}"](hidden.index_select(0, rows))
                target = shares.gather(values).index_select(0, rows)
                sums.append(torch.stack(imputation_loss(predicted, target, beta=imputation.beta)))
            total, count = torch.stack(sums).sum(0)
            terms["imputation"] = _mean(total, count)
        return terms

    def idle(self, hidden: Tensor) -> Tensor:
        """Zero, with a gradient of zero for all parameters: distributed training waits for one of each."""
        layers = [layer for layer in (self.project, *self.decoders.values()) if isinstance(layer, nn.Linear)]
        return torch.stack([hidden.new_zeros(()), *(layer(hidden[:0]).sum() for layer in layers)]).sum()


def hidden_rows(complete: ConversationBatch, view: ConversationBatch, modality: str) -> Tensor:
    """(N) bool, the utterances of which ``view`` lacks the modality, or steps of it, but ``complete`` does not."""
    column = complete.column(modality)
    there = complete.present[:, column]
    lost = ~view.present[:, column]
    if modality in complete.sequences:
        steps = (batch.sequences[modality].offsets.diff() for batch in (view, complete))
        fewer, all_steps = steps
        lost = lost | (fewer < all_steps)
    return there & lost


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / count.clamp(min=1e-12)


def build_teacher_terms(
    weights: Mapping[str, float],
    parts: Mapping[str, Any],
    recognizer: Recognizer,
    *,
    complete: bool,
    teacher: int | None,
) -> TeacherTerms | None:
    """The terms with a weight; None without any.

    Args:
        weights: ``objective.weights``.
        parts: Settings by term.
        recognizer: The student.
        complete: Whether the teacher is the complete view.
        teacher: Width of the vectors of another model as the teacher.

    Raises:
        ConfigError: see :func:`check_teaching`.
    """
    check_teaching(weights, complete=complete, teacher=teacher is not None)
    chosen = {name: parts[name] for name in TEACHER_TERMS if weights.get(name, 0.0) != 0}
    return TeacherTerms(chosen, recognizer, teacher) if chosen else None


def check_teaching(weights: Mapping[str, float], *, complete: bool, teacher: bool) -> None:
    """Raise :class:`ConfigError` for terms without their teacher, or a teacher without terms."""
    chosen = [name for name in TEACHER_TERMS if weights.get(name, 0.0) != 0]
    if complete and teacher:
        raise ConfigError(
            "training.complete_pass=true and training.teacher are two teachers. Set training.complete_pass=false, or "
            "training.teacher=null."
        )
    if chosen and not (complete or teacher):
        raise ConfigError(
            f"objective.weights.{chosen[0]}={weights[chosen[0]]:g} needs a teacher. Choose recipe=self_distillation or "
            "recipe=guided, or set the weight to 0."
        )
    if teacher and "imputation" in chosen:
        raise ConfigError(
            "objective.weights.imputation is for training.complete_pass=true: another model has no hidden inputs. "
            "Set it to 0."
        )
    if teacher and not chosen:
        raise ConfigError(
            "training.teacher has no effect without a weight on guidance or distillation. Set "
            "objective.weights.distillation=1, or training.teacher=null."
        )
