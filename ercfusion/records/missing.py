"""Missing modalities of a run: splits under its laws, and the record's part about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ercfusion._core.errors import RunError
from ercfusion.config.missing import laws_text, split_law, used_laws
from ercfusion.config.missing_laws import Law, parse
from ercfusion.config.sections import Missing
from ercfusion.config.settings import section_from
from ercfusion.records.words import named_run

if TYPE_CHECKING:
    from ercfusion.data.store import ConversationStore
    from ercfusion.tasks.recognizer import Recognizer


def hidden_store(store: ConversationStore, missing: Missing, split: str) -> ConversationStore:
    """A split as the run scores it: with the fixed masks of its law (:func:`ercfusion.config.missing.split_law`)."""
    law = split_law(missing, split)
    return store if law.hides_nothing else store.hidden(law, missing.seed, split)


def recorded_missing(record: Mapping[str, Any]) -> Missing:
    """The section ``missing`` of a run."""
    section: Missing = section_from("missing", record["config"].get("missing") or {})
    return section


@dataclass(frozen=True)
class Scoring:
    """Holes and policy under which ``evaluate`` scores a finished run on a split.

    Args:
        law: Which modalities are hidden.
        seed: Of the masks.
        policy: Another policy than the run's; None for the run's own.
        own_masks: Whether the holes are the run's own.
        own_seed: Seed of the run.
    """

    law: Law
    seed: int
    policy: str | None
    own_masks: bool
    own_seed: int

    @classmethod
    def of(
        cls,
        record: Mapping[str, Any],
        split: str,
        law: str | None = None,
        seed: int | None = None,
        policy: str | None = None,
    ) -> Scoring:
        """What was typed, completed by the settings of the run.

        Args:
            record: Of the run.
            split: To score.
            law, seed, policy: ``missing.eval``, ``missing.seed`` and ``missing.policy``; None for the run's own.

        Raises:
            ConfigError: The law is unknown, or does not fit the modalities of the run.
        """
        own = recorded_missing(record)
        own_law = split_law(own, split)
        chosen = own_law if law is None else parse(law, "missing.eval")
        chosen.check(modalities_of(record), "missing.eval")
        seed = own.seed if seed is None else seed
        policy = None if policy == own.policy else policy
        own_masks = str(chosen) == str(own_law) and (seed == own.seed or chosen.hides_nothing)
        return cls(chosen, seed, policy, own_masks, own.seed)

    @property
    def same(self) -> bool:
        """Whether the split is scored as in the run itself."""
        return self.own_masks and self.policy is None

    def store(self, store: ConversationStore, split: str) -> ConversationStore:
        """A complete split with the holes."""
        return store if self.law.hides_nothing else store.hidden(self.law, self.seed, split)

    def recognizer(self, recognizer: Recognizer) -> Recognizer:
        """The run's recognizer with the policy.

        Raises:
            ConfigError: The policy does not fit the model.
        """
        return recognizer if self.policy is None else recognizer.with_policy(self.policy)

    @property
    def file_parts(self) -> list[str]:
        """Parts of a file name, safe on all systems; none for the run's own holes and policy."""
        if self.same:
            return []
        parts = [re.sub(r"[^\w.+-]", "-", str(self.law))]
        parts += [] if self.seed == self.own_seed else [f"seed{self.seed}"]
        return parts + ([] if self.policy is None else [self.policy])

    @property
    def words(self) -> str:
        """The end of a title; empty for a run on complete data, scored as in the run."""
        law = "" if self.law.hides_nothing and self.own_masks else f", missing {self.law}"
        seed = "" if self.law.hides_nothing or self.seed == self.own_seed else f", seed {self.seed}"
        return law + seed + ("" if self.policy is None else f", policy {self.policy}")

    def report(self, store: ConversationStore) -> dict[str, Any]:
        """The part of a report about them; empty for a run on complete data, scored as in the run.

        Args:
            store: The split with the holes.
        """
        if self.law.hides_nothing and self.same:
            return {}
        unseen = {} if self.law.hides_nothing else unseen_utterances(store)
        policy = {} if self.policy is None else {"policy": self.policy}
        return {
            "missing": {"law": str(self.law), "seed": self.seed, **policy, **({"unseen": unseen} if unseen else {})}
        }


def modalities_of(record: Mapping[str, Any]) -> list[str]:
    """The modalities of a run, in the order of its model."""
    return [one["modality"] for one in record["features"]]


def check_same_holes(records: Sequence[Mapping[str, Any]]) -> None:
    """Check that under any law all runs have the same holes.

    Raises:
        RunError: two runs have other modalities, or another seed of the masks.
    """
    first = records[0]
    for record in records:
        seeds = [_mask_seed(one) for one in (first, record)]
        if seeds[0] != seeds[1]:
            raise RunError(
                f"{named_run(first)} and {named_run(record)} have other masks (seeds {seeds[0]} and {seeds[1]}). Give "
                "runs with one missing.seed."
            )
        sides = [modalities_of(one) for one in (first, record)]
        if set(sides[0]) != set(sides[1]):
            raise RunError(
                f"{named_run(first)} has the modalities {', '.join(sides[0])}, and {named_run(record)} has "
                f"{', '.join(sides[1])}: their masks differ. Give runs with the same modalities."
            )


def _mask_seed(record: Mapping[str, Any]) -> int:
    scored = record.get("robustness")
    return recorded_missing(record).seed if scored is None else int(scored["seed"])


def unseen_lines(report: Mapping[str, Any]) -> list[str]:
    """The sentence about utterances without any modality in a report with :meth:`Scoring.report`, if there are some."""
    unseen = report.get("missing", {}).get("unseen")
    return [] if unseen is None else [f"  note: {unseen_text(unseen)}"]


def missing_record(missing: Missing, stores: Mapping[str, ConversationStore]) -> dict[str, Any]:
    """The record's part about missing modalities; empty for a run without a law.

    Laws by use in their canonical text; the seed of the masks of dev and test; and per split the number of utterances
    without any modality, if there are some. ``store.hidden(parse(law), seed, split)`` draws the same masks again.

    Args:
        missing: Settings of the run.
        stores: Dev and test, from :func:`hidden_store`.
    """
    laws = used_laws(missing, list(stores))
    if not laws:
        return {}
    # Without holes an utterance may lack all modalities too, but then the corpus does.
    unseen = {split: unseen_utterances(store) for split, store in stores.items() if store.holes is not None}
    unseen = {split: part for split, part in unseen.items() if part}
    return {"laws": laws, "seed": missing.seed, **({"unseen": unseen} if unseen else {})}


def unseen_utterances(store: ConversationStore) -> dict[str, int]:
    """Utterances without any modality; empty if there are none.

    Returns:
        ``utterances``: their number; ``whole``: of these, in conversations without any modality; ``of``: all
        utterances of the split.
    """
    blind = (~store.present.any(dim=1)).split(store.lengths)
    unseen = sum(int(each.sum()) for each in blind)
    whole = sum(len(each) for each in blind if bool(each.all()))
    return {"utterances": unseen, "whole": whole, "of": store.num_utterances} if unseen else {}


def unseen_text(unseen: Mapping[str, int]) -> str:
    """A sentence about the result of :func:`unseen_utterances`."""
    prior = "a prior, which depends on no input"
    answer = prior + (", or follows from the rest of the conversation" * (unseen["whole"] < unseen["utterances"]))
    return (
        f"the model saw no modality in {unseen['utterances']:,} of {unseen['of']:,} utterances; its answer there is "
        f"{answer}"
    )


def scored_holes(record: Mapping[str, Any]) -> str:
    """The laws of the recorded dev and test scores, and the seed of their masks, in words."""
    missing = record.get("missing") or {"laws": {}, "seed": 0}
    laws = {split: missing["laws"].get(split, "none") for split in ("dev", "test")}
    return laws_text(laws, missing["seed"]) if set(laws.values()) != {"none"} else "complete data"


def missing_lines(record: Mapping[str, Any]) -> list[str]:
    """Lines about missing modalities for a run's summary; empty for a run without a law."""
    missing = record.get("missing")
    if missing is None:
        return []
    lines = [f"missing modalities: {laws_text(missing['laws'], missing['seed'])}"]
    return lines + [f"missing on {split}: {unseen_text(part)}" for split, part in missing.get("unseen", {}).items()]
