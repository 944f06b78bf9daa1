"""Every message of an error that a user can cause says what to do."""

from __future__ import annotations

import pytest

from docs.computed.messages import SUBJECTS, Message, message_tables, messages, without_advice


def test_every_message_says_what_to_do() -> None:
    every = messages()
    assert len(every) > 500
    assert {one.subject for one in every} == set(SUBJECTS)
    assert not without_advice()
    table = "\n".join(message_tables())
    assert "Did you mean *name*?" in table
    assert "no pack.json" in table  # texts of other modules are resolved
    assert "MANIFEST" not in table
    assert "**" not in table
    assert "|  |" not in table


@pytest.mark.parametrize(
    ("text", "problem", "advice"),
    [
        ("{path} is missing. Copy the folder again.", "{path} is missing.", ["Copy the folder again."]),
        ("model={name} is unknown. Did you mean {name}?", "model={name} is unknown.", ["Did you mean {name}?"]),
        ("{path} is damaged: get it again.", "{path} is damaged:", ["get it again."]),
        ("{path} has no column 'turn'.", "{path} has no column 'turn'.", []),
        ("Names differ. The settings too.", "Names differ. The settings too.", []),
    ],
)
def test_advice_is_told_from_the_problem(text: str, problem: str, advice: list[str]) -> None:
    message = Message("ConfigError", "config.compose", 1, text)
    assert message.problem == problem
    assert message.advice == advice
