from ercfusion.batch.labels import LabelSchema
from ercfusion.batch.votes import RULES
from ercfusion.data.conversation import Conversation, Target, Turn
from ercfusion.data.vote_targets import vote_findings, vote_targets, vote_task

SCHEMA = LabelSchema("three", ("a", "b", "c"))
TASKS = {f"task_{rule}": rule for rule in RULES}


def conversation(*votes):
    turns = [
        Turn(str(number), "A", targets=vote_targets(one, TASKS, SCHEMA.labels)) for number, one in enumerate(votes)
    ]
    return Conversation("x", tuple(turns))


def test_targets_fit_their_tasks():
    for votes in ({"a": 1}, {"a": 2, "b": 1}, {"a": 1, "b": 1, "c": 1}):
        for name, target in vote_targets(votes, TASKS, SCHEMA.labels).items():
            task = vote_task(name, TASKS[name], SCHEMA)
            assert target.votes == votes
            if target.value is not None:
                task.rules.encode(target.value, task)


def test_without_votes_nothing_is_labelled():
    for votes in ({}, {"a": 0}):
        assert vote_targets(votes, TASKS, SCHEMA.labels) == {name: Target(None, votes) for name in TASKS}


def test_report_counts_what_each_rule_keeps():
    whole = [conversation({"a": 3}, {"a": 2, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}, {})]
    (finding,) = vote_findings("dev", whole, TASKS)
    assert finding.text == (
        "dev: utterances with votes: 3; labelled by the rule: majority 1, plurality 2, distribution 3, smoothed 3, "
        "all_inclusive 3 (1 of them the empty set), at_least_two 3"
    )
    assert vote_findings("dev", [conversation({})], TASKS) == []
