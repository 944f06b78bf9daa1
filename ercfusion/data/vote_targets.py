"""Tasks, targets and reports of a corpus with annotators' votes, by the rules of :mod:`ercfusion.batch.votes`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.task import TaskSpec
from ercfusion.batch.votes import RULES, Votes
from ercfusion.data.conversation import Conversation, Target
from ercfusion.data.corpus import Finding


def vote_task(name: str, rule: str, schema: LabelSchema) -> TaskSpec:
    """The task of a rule.

    Args:
        name: Of the task.
        rule: A key of :data:`ercfusion.batch.votes.RULES`.
        schema: The labels that could be chosen.
    """
    return TaskSpec(name, RULES[rule].kind, schema, metric=RULES[rule].metric)


def vote_targets(
    votes: Votes, rules: Mapping[str, str], labels: Sequence[str], raters: int | None = None
) -> dict[str, Target]:
    """Targets of an utterance by task name, each with the votes; not labelled without votes.

    Args:
        votes: Counts by label.
        rules: Task name to rule.
        labels: The C labels.
        raters: Number of annotators, if one may choose several labels.

    Raises:
        ValueError: See :func:`ercfusion.batch.votes.check_votes`.
    """
    if not votes or not any(votes.values()):
        return {name: Target(None, votes) for name in rules}
    return {name: Target(RULES[rule].target(votes, labels, raters), votes) for name, rule in rules.items()}


def vote_findings(split: str, conversations: Iterable[Conversation], rules: Mapping[str, str]) -> list[Finding]:
    """How many utterances of a split each rule labels, for ``doctor``; nothing without votes.

    Args:
        split: Its name.
        conversations: Its conversations.
        rules: Task name to rule.
    """
    kept: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    total = 0
    for conversation in conversations:
        for turn in conversation.turns:
            targets = {name: turn.targets[name] for name in rules if name in turn.targets}
            total += any(target.votes and any(target.votes.values()) for target in targets.values())
            for name, target in targets.items():
                kept[name] += target.valid
                empty[name] += target.value == frozenset()
    if not total:
        return []
    parts = [
        f"{rules[name]} {kept[name]}" + (f" ({empty[name]} of them the empty set)" if empty[name] else "")
        for name in rules
    ]
    text = f"{split}: utterances with votes: {total}; labelled by the rule: {', '.join(parts)}"
    return [Finding("note", "votes", text)]
