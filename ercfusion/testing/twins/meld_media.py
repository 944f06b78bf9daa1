"""A twin of MELD with clips: the CSV files and a short video with sound per utterance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ercfusion._core.errors import require_extra
from ercfusion._core.files import atomic_write
from ercfusion.data.corpora.meld import CLIP_FOLDERS, CUT_AGAIN, EMOTION, FILES, clip_name
from ercfusion.data.tabular import read_table
from ercfusion.testing.media import tone, write_video
from ercfusion.testing.twins.text import write_meld

SMALL: Mapping[str, int] = {"train": 4, "dev": 2, "test": 2}
"""Conversations by split; few, because every utterance becomes a video."""
SECONDS = 0.4
"""Duration of every clip; the times in the CSV file are those of the episode."""
_RATE = 16000


def write_meld_media(
    folder: str | Path, seed: int = 0, sizes: Mapping[str, int] = SMALL, within: str | Path = ""
) -> Path:
    """The files of :func:`~ercfusion.testing.twins.text.write_meld` with clips, as the archives unpack.

    As in the release, the last clip of dev is missing and the second of train is cut off in the middle. The first two
    of test exist in two cuts, the first of them silent.

    Args:
        folder, seed: As there.
        sizes: Conversations by split, at least two.
        within: Folder of the clips below ``folder``; ``{split}`` is the split's name (``"MELD.Raw/{split}"``).

    Raises:
        MissingExtraError: PyAV is not installed.
    """
    require_extra("av", "audio", "Writing a video")
    folder = write_meld(folder, seed, sizes)
    for split, file in FILES.items():
        place = folder / str(within).format(split=split) / CLIP_FOLDERS[split]
        rows = read_table(folder / file, ("Dialogue_ID", "Utterance_ID", "Emotion"))
        names = [clip_name(row.text("Dialogue_ID"), row.text("Utterance_ID")) for row in rows]
        for number, (name, row) in enumerate(zip(names, rows, strict=True)):
            if split == "dev" and number == len(rows) - 1:
                continue
            number += seed * 1000
            pitch = 110.0 + 20.0 * EMOTION.index(row.text("Emotion"))
            sound = tone(SECONDS, _RATE, pitch, seed=number)
            if split == "test" and name in names[:2]:
                write_video(place / name, SECONDS, seed=number)
                name = f"{CUT_AGAIN}{name}"
            write_video(place / name, SECONDS, sound=sound, rate=_RATE, seed=number)
        if split == "train":
            content = (place / names[1]).read_bytes()
            with atomic_write(place / names[1], "wb") as stream:
                stream.write(content[: len(content) // 2])
    return folder
