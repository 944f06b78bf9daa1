"""The canvas of every figure: size, colours, fonts and files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ercfusion._core.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120
# Palette of Okabe and Ito without yellow (too faint on white) and black (text and reference lines).
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
GREY = "#777777"
MARKERS = "osD^vP"
_SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "ercfusion",
    "font.family": "DejaVu Sans",  # comes with matplotlib: equal on every machine
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextmanager
def canvas(
    path: str | Path | None, size: tuple[float, float], title: str, synthetic: bool, note: str = ""
) -> Iterator[Figure]:
    """A figure to draw into, written at the end of the block."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    ending = "png" if path is None else Path(path).suffix.lower().lstrip(".")
    # Fields that would differ between two files of one figure.
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    if ending not in metadata:
        raise ValueError(f"{str(path)!r} is not a plot file. Choose an ending of {', '.join(metadata)}.")
    with matplotlib.rc_context():
        settings: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
        matplotlib.rcParams.update(settings | _SETTINGS)
        figure = Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        FigureCanvasAgg(figure)
        heading = f"{title} (synthetic corpus)" if synthetic else title
        figure.suptitle(f"{heading}\n{note}" if note else heading, fontsize=12)
        yield figure
        _write_all_signs(figure)
        if path is None:
            figure.draw_without_rendering()  # lays it out with these settings
            return
        with atomic_write(path, "wb") as stream:
            figure.savefig(stream, format=ending, metadata=metadata[ending])


# Fonts with Chinese, Japanese and Korean characters, in order of preference. None comes with matplotlib.
_OTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Source Han Sans SC"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "SimHei"),
    *("Malgun Gothic", "Arial Unicode MS", "Unifont"),
)


def _write_all_signs(figure: Figure) -> None:
    """Use other fonts for characters missing in ours; a character in no font is written as its code (U+9AD8).

    Otherwise matplotlib draws the same box for all of them, with a warning each.
    """
    from matplotlib.font_manager import fontManager, get_font
    from matplotlib.text import Text

    own = str(_SETTINGS["font.family"])
    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    if not texts:
        return
    files = {font.name: font.fname for font in fontManager.ttflist if font.name in (own, *_OTHER_FONTS)}
    names = [own, *(name for name in _OTHER_FONTS if name in files)]
    known = {code for name in names for code in get_font(files[name]).get_charmap()}
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        labels = [text.get_text() for text in axis.get_ticklabels()]
        if not all(label.isascii() for label in labels):  # drawing rewrites the ticks
            axis.set_ticks(axis.get_ticklocs(), [_known_signs(label, known) for label in labels], fontfamily=names)
    for text in texts:
        text.set_text(_known_signs(text.get_text(), known))
        text.set_fontfamily(names)


def _known_signs(text: str, known: set[int]) -> str:
    return "".join(sign if ord(sign) in known or sign.isspace() else f"U+{ord(sign):04X} " for sign in text).rstrip()
