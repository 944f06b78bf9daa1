"""A twin of M3ED: its annotation, its lists of series and, optionally, recordings."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ercfusion.data.corpora.m3ed import ANNOTATION, FRAMES, LISTS, SCHEMA, SPEECH
from ercfusion.testing.media import tone, write_wav
from ercfusion.testing.twins.text import SIZES

_SERIES = {
    "train": ("wenquan", "chunlei", "yuanfang"),
    "dev": ("xiaoqiao",),
    "test": ("heliu", "shanfeng"),
}
_NAMES = ("林一", "陈二", "周三", "吴四", "郑五", "王六")
_WORDS = {
    "happy": ("太好了", "真高兴"),
    "neutral": ("知道了", "在桌上"),
    "sad": ("好难过", "真可惜"),
    "disgust": ("真恶心", "受不了"),
    "anger": ("气死我了", "你走开"),
    "fear": ("我害怕", "别过去"),
    "surprise": ("不会吧", "怎么可能"),
}
_TAILS = ("茶壶在唱歌", "风筝飞走了", "门口有只羊", "灯又亮了", "他种了三棵树")


def write_m3ed(folder: str | Path, seed: int = 0, sizes: Mapping[str, int] = SIZES, recordings: bool = False) -> Path:
    """A twin of M3ED's ``annotation.json`` and ``splitInfo``.

    The first dialogue of every series has one utterance, utterances are not in order, and some annotators name
    ``Other``.

    Args:
        folder, seed, sizes: As for :func:`ercfusion.testing.twins.text.write_meld`.
        recordings: Whether to write tones as ``modality_speech/SPEAKER_UTTERANCE.wav``, with pitch by emotion; the last
            utterance has none.
    """
    folder = Path(folder)
    chance = random.Random(f"m3ed {seed}")
    content: dict[str, dict[str, Any]] = {}
    spoken: list[tuple[str, str]] = []
    for split, size in sizes.items():
        for number in range(size):
            series = _SERIES[split][number % len(_SERIES[split])]
            dialogues = content.setdefault(series, {})
            name = f"{series}_{len(dialogues) + 1}"
            length = 1 if not dialogues else chance.randrange(4, 12)
            dialogues[name] = _dialogue(chance, name, length)
            for key, utterance in dialogues[name]["Dialog"].items():
                spoken.append((f"{utterance['Speaker']}_{key}", utterance["EmoAnnotation"]["final_main_emo"].lower()))
        path = folder / LISTS[split]
        path.parent.mkdir(parents=True, exist_ok=True)
        # No newline at the end, as in the release.
        path.write_text("\n".join(name for name in _SERIES[split] if name in content), encoding="utf-8")
    (folder / ANNOTATION).write_text(json.dumps(content, ensure_ascii=False, indent=4), encoding="utf-8")
    if recordings:
        for file, emotion in spoken[:-1]:
            write_wav(folder / SPEECH / f"{file}.wav", tone(0.3, pitch=120.0 + 40.0 * SCHEMA.index(emotion)))
    return folder


def _dialogue(chance: random.Random, name: str, length: int) -> dict[str, Any]:
    people = dict(zip("AB", chance.sample(_NAMES, 2), strict=True))
    clock = 1
    utterances: list[tuple[str, dict[str, Any]]] = []
    for number in range(1, length + 1):
        end = clock + chance.randrange(15, 100)
        main = chance.choice(SCHEMA.labels)
        final = [main]
        if chance.random() < 0.2:
            final += chance.sample([label for label in SCHEMA.labels if label != main], 1)
        annotators = [[emotion.capitalize() for emotion in final] for _ in range(2)]
        annotators.append([chance.choice((*final, chance.choice(SCHEMA.labels), "other")).capitalize()])
        chance.shuffle(annotators)
        utterances.append(
            (
                f"{name}_{number}",
                {
                    "StartTime": _time(clock),
                    "EndTime": _time(end),
                    "Text": f"{chance.choice(_WORDS[main])}，{chance.choice(_TAILS)}",
                    "Speaker": "A" if number == 1 else chance.choice("AB"),
                    "EmoAnnotation": {
                        **{f"EmoAnnotator{place}": ",".join(names) for place, names in enumerate(annotators, start=1)},
                        "final_mul_emo": ",".join(label.capitalize() for label in final),
                        "final_main_emo": main.capitalize(),
                    },
                },
            )
        )
        clock = end + chance.randrange(0, 20)
    chance.shuffle(utterances)
    info = {letter: {"Name": who, "Age": "mid", "Gender": "female", "OtherName": []} for letter, who in people.items()}
    return {"SpeakerInfo": info, "Dialog": dict(utterances)}


def _time(frames: int) -> str:
    seconds, rest = divmod(frames, FRAMES)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{rest:02d}"
