from __future__ import annotations

import pytest

from ercfusion._core.errors import CorpusFormatError
from ercfusion.batch.maps import map_between
from ercfusion.data.conversation import Conversation, Target, Turn, count_label_shifts


def conversation(*turns: tuple[str, str | None]) -> Conversation:
    """Turns given as (speaker, label)."""
    return Conversation(
        "c", tuple(Turn(str(t), who, targets={"emotion": Target(label)}) for t, (who, label) in enumerate(turns))
    )


TALK = conversation(("Bob", "joy"), ("Ann", "joy"), ("Bob", "anger"), ("Ann", None), ("Cy", "anger"), ("Ann", "fear"))


def test_speakers_are_numbered_by_first_appearance() -> None:
    assert len(TALK) == 6
    assert TALK.speakers == ("Bob", "Ann", "Cy")
    assert TALK.speaker_numbers() == [0, 1, 0, 1, 2, 1]
    assert TALK.keys() == [("c", str(t)) for t in range(6)]


def test_label_shifts() -> None:
    # Same speaker: Bob joy -> anger, Ann joy -> fear (her unlabelled turn is passed over).
    assert count_label_shifts([TALK], "emotion", same_speaker=True) == 2
    # Neighbours: joy, joy, anger, anger, fear.
    assert count_label_shifts([TALK], "emotion", same_speaker=False) == 2
    # Nothing carries over from one conversation to the next.
    again = conversation(("Bob", "disgust"), ("Bob", "disgust"))
    assert count_label_shifts([TALK, again], "emotion", same_speaker=True) == 2
    assert count_label_shifts([TALK], "sentiment", same_speaker=True) == 0
    assert count_label_shifts([conversation(("A", "joy"), ("B", "fear"))], "emotion", same_speaker=True) == 0
    assert count_label_shifts([conversation(("A", "joy"), ("B", "fear"))], "emotion", same_speaker=False) == 1


def test_targets() -> None:
    assert Target("joy").valid
    assert Target(0.0).valid
    assert Target(frozenset()).valid
    assert not Target(None).valid
    label_map = map_between("meld7", "emorynlp7")
    assert Target("anger").mapped(label_map) == Target("mad")
    assert not Target("surprise").mapped(label_map).valid
    with pytest.raises(TypeError, match="only single-label targets"):
        Target(1.5).mapped(label_map)


def test_conversations_are_checked() -> None:
    with pytest.raises(CorpusFormatError, match="conversation 'c' has no turns"):
        Conversation("c", ())
    with pytest.raises(CorpusFormatError, match="conversation 'c' has two turns with the id 'u'"):
        Conversation("c", (Turn("u", "A"), Turn("v", "A"), Turn("u", "B")))
