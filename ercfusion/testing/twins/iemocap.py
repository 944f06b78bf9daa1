"""A twin of IEMOCAP's release: evaluations, transcriptions, recordings of the turns and, optionally, videos."""

from __future__ import annotations

import random
from pathlib import Path

from ercfusion._core.files import atomic_write
from ercfusion.batch.labels import get_schema
from ercfusion.data.corpora._iemocap_files import NO_AGREEMENT, RATED
from ercfusion.data.corpora.iemocap import PUBLISHED_HAPPY, SESSIONS
from ercfusion.testing.media import tone, write_video, write_wav

NAMES = ("F_impro01", "M_impro03", "F_script01_1", "F_impro07")
"""The dialogues of every session, without the session's number."""
_RATE = 16000
_CUES = {
    "neu": ("The kettle is on the left", "We meet at the second gate"),
    "hap": ("The garden won a ribbon", "Grandfather danced again"),
    "sad": ("The old dog is gone", "Nobody lit the lamps tonight"),
    "ang": ("Give me back the ladder", "You painted over my map"),
    "exc": ("We sail tomorrow at dawn", "They chose our song"),
    "fru": ("The form was the wrong one again", "I have waited since breakfast"),
    "fea": ("Something knocked below the deck", "The rope is tearing"),
    "sur": ("There is a goat in the lift", "The clock ran backwards"),
    "dis": ("The cheese has grown a beard", "That towel is alive"),
}
_OPENINGS = ("", "Listen, ", "Well, ", "I tell you, ", "You see, ")
_ENDINGS = ("", ", said the captain", ", if you ask me", ", as on Monday", " and that is all", ", my friend")
_WORDS = {get_schema("iemocap9").canonical(code): code for code in _CUES}
_ANSWERS = {_WORDS[label]: word.capitalize() for word, label in RATED.items() if label in _WORDS and " " not in word}
_VALENCE = {"hap": 4.5, "exc": 4.0, "neu": 3.0, "sur": 3.0, "fea": 2.0, "fru": 2.0, "sad": 1.5, "ang": 1.5, "dis": 1.5}


def write_iemocap(folder: str | Path, seed: int = 0, audio: bool = True, videos: bool = False) -> Path:
    """A twin of the release's tree: four dialogues of a dozen and more turns in each of the five sessions.

    Raters disagree or name two emotions or another one, so some turns have no label. Two utterances relabelled by the
    published feature files are in sessions 1 and 5. Turns overlap; transcriptions have lines without a name and pieces
    with ``XX``.

    Args:
        folder, seed: As for :func:`ercfusion.testing.twins.text.write_meld`.
        audio: Write WAV files of the turns (16 kHz, under a second; pitch by speaker and emotion).
        videos: Write a short video of every dialogue; needs PyAV.

    Raises:
        MissingExtraError: ``videos`` without PyAV.
    """
    folder = Path(folder)
    chance = random.Random(f"iemocap {seed}")
    for session in SESSIONS:
        for name in NAMES:
            _dialogue(folder / f"Session{session}", f"Ses0{session}{name}", chance, audio, videos)
    return folder


def _dialogue(session: Path, name: str, chance: random.Random, audio: bool, videos: bool) -> None:
    evaluation = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    # The release lists turns by speaker; the transcription is in order of speech.
    rated: dict[str, list[str]] = {"F": [], "M": []}
    spoken = []
    clock = 5.0 + chance.random()
    for position in range(chance.randrange(22, 27)):
        sex = "FM"[position % 2]
        turn = f"{name}_{sex}{position // 2:03d}"
        emotion = chance.choice(list(_CUES)[:6] if chance.random() < 0.9 else list(_CUES)[6:])
        seconds = round(chance.uniform(0.25, 0.45), 4)
        start, end = clock, clock + seconds
        # Some turns start before the previous one ends.
        clock = end + chance.choice((0.2, 0.5, -0.1))
        rated[sex] += _rating(turn, emotion, start, end, chance)
        words = chance.choice(_OPENINGS) + chance.choice(_CUES[emotion]) + chance.choice(_ENDINGS)
        spoken.append(f"{turn} [{start:08.4f}-{end:08.4f}]: {words}.")
        if audio:
            pitch = (190 if sex == "F" else 110) * (1 + 0.08 * list(_CUES).index(emotion))
            sound = tone(seconds, _RATE, pitch, chance.randrange(10**6))
            write_wav(session / "sentences" / "wav" / name / f"{turn}.wav", sound, _RATE)
    spoken.insert(2, "M: Mhm.")
    spoken.insert(5, f"{name}_FXX0 [{spoken[5].partition('[')[2].partition(']')[0]}]: [LAUGHTER]")
    for lines, kind in ((evaluation + rated["F"] + rated["M"], "EmoEvaluation"), (spoken, "transcriptions")):
        with atomic_write(session / "dialog" / kind / f"{name}.txt") as stream:
            stream.write("\n".join(lines) + "\n")
    if videos:
        path = session / "dialog" / "avi" / "DivX" / f"{name}.avi"
        write_video(path, clock, fps=5, sound=tone(clock, _RATE), rate=_RATE, seed=chance.randrange(10**6))


def _rating(turn: str, emotion: str, start: float, end: float, chance: random.Random) -> list[str]:
    answers = []
    for rater in ("E1", "E2", "E4"):
        named = emotion if chance.random() < 0.75 else chance.choice(list(_CUES))
        second = chance.choice(list(_CUES)) if chance.random() < 0.15 else named
        answers.append((rater, list(dict.fromkeys((named, second)))))
    if turn in PUBLISHED_HAPPY:
        answers = [("E1", ["hap"]), ("E2", ["exc"]), ("E4", ["neu"])]
    elif chance.random() < 0.03:
        answers[0] = ("E1", [])
    named_by = {code: sum(code in codes for _, codes in answers) for code in _CUES}
    most = [code for code, count in named_by.items() if 2 * count > len(answers)]
    code = most[0] if len(most) == 1 else NO_AGREEMENT
    valence = [min(5.0, max(1.0, _VALENCE[emotion] + chance.choice((-0.5, 0.0, 0.5)))) for _ in range(3)]
    lines = [f"[{start:.4f} - {end:.4f}]\t{turn}\t{code}\t[{', '.join(f'{value:.4f}' for value in valence)}]"]
    for rater, codes in answers:
        text = "; ".join(_ANSWERS[name] for name in codes) or "Other"
        lines.append(f"C-{rater}:\t{text};\t({'' if codes else 'a remark; with marks: here'})")
    # The actor's own answer, which readers must ignore.
    lines.append(f"C-{turn[-4]}1:\t{_ANSWERS[chance.choice(list(_CUES))]};\t()")
    # From their own stream: the rest of the twin does not depend on these ratings.
    noise = random.Random(f"ratings of {turn} {emotion}")
    for rater, spread in (("E3", 0.3), ("E4", 0.6), ("E6", 1.2)):
        val, act, dom = (min(5, max(1, round(value + noise.gauss(0, spread)))) for value in valence)
        lines.append(f"A-{rater}:\tval {val}; act {act}; dom  {dom if noise.random() < 0.95 else ''};\t()")
    lines.append(f"A-{turn[-4]}1:\tval 3; act 2; dom  ;\t()")
    return [*lines, ""]
