"""What the charts of the report share: colours, text in any script, SVG that a page can hold."""

from __future__ import annotations

import html
import io
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

# Of curves and of classes. Six of Okabe and Ito's, slightly shifted, which are told apart by people
# with any colour vision; then, each time, the colour that is farthest in CIE Lab from all before it
# among those with a contrast of 2.5 to a white and to a dark page.
COLOURS = (
    "#0f7fc2 #e07b00 #0a9f73 #cc6fa5 #b59a00 #888888 #6800f8 #f80048 #00b800 #f810d8 "
    "#9070f8 #984030 #506018 #f00088 #20b0c0 #982098 #80b040 #c89868 #f84000 #685098"
).split()
# With more classes than colours, these tell apart those of one colour: matplotlib's and Unicode's.
MARKERS = dict(zip("osD^v<>*Xp", "●■◆▲▼◀▶★✖⬟"))

# matplotlib wants a real colour; this one is replaced by the text colour of the page.
TEXT_COLOUR = "#010203"

_MEASURED = 0x530  # Latin, Greek and Cyrillic letters, which matplotlib's own font has


def colour(index: int) -> str:
    """The colour of the curve or class of that number."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The marker of the class of that number, of matplotlib."""
    return list(MARKERS)[index // len(COLOURS) % len(MARKERS)]


def short(name: Any, most: int = 18) -> str:
    """A name on one line, with an ellipsis where it is long.

    Example:
      >>> short("a  very\\nlong name of a class")
      'a very long name…'
    """
    line = " ".join(str(name).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


class Texts:
    """Texts of a chart in any script.

    matplotlib lays the chart out with stand-ins of about the width, since its font may lack the
    letters; the page, whose reader has fonts of his own, gets the texts themselves.
    """

    def __init__(self):
        self._texts: dict[str, str] = {}

    def set(self, artist: Any, text: str) -> None:
        """Gives a `matplotlib.text.Text` its text."""
        artist.set_text(_stand_in(text))
        self._keep(artist, text)

    def ticks(self, axis: Any, places: Sequence[int], texts: Sequence[str], **style: Any) -> None:
        """Labels places of an axis."""
        axis.set_ticks(places, [_stand_in(text) for text in texts], **style)
        for artist, text in zip(axis.get_ticklabels(), texts, strict=True):
            self._keep(artist, text)

    def _keep(self, artist: Any, text: str) -> None:
        gid = f"name-{len(self._texts)}"
        artist.set_gid(gid)
        self._texts[gid] = text

    def put_into(self, svg: str) -> str:
        """The SVG with the texts in place of their stand-ins."""
        pattern = r'<g id="(name-\d+)">(.*?<text[^>]*>)[^<]*(</text>)'

        def put(match: re.Match[str]) -> str:
            return f"<g>{match[2]}{html.escape(self._texts[match[1]])}{match[3]}"

        return re.sub(pattern, put, svg, flags=re.DOTALL)


def _stand_in(text: str) -> str:
    def measured(letter: str) -> str:
        if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Cf"):
            return ""
        if ord(letter) < _MEASURED:
            return letter
        return "M" if unicodedata.east_asian_width(letter) in "WF" else "n"

    return "".join(map(measured, text)) or "n"


def rc(salt: str) -> dict[Any, Any]:
    """Settings of matplotlib for a chart; `salt` tells it from the other charts of the page."""
    return {
        "svg.fonttype": "none",  # text stays text, in the page's own font
        "svg.hashsalt": salt,  # ids that differ between pictures and not between calls
        "text.parse_math": False,  # a "$" in a metric's name is a dollar sign
        "text.color": TEXT_COLOUR,
        "axes.labelcolor": TEXT_COLOUR,
        "axes.edgecolor": TEXT_COLOUR,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": TEXT_COLOUR,
        "ytick.color": TEXT_COLOUR,
        "grid.color": TEXT_COLOUR,
        "font.size": 9.5,
    }


def svg(canvas: Any, texts: Texts | None = None) -> str:
    """A figure of matplotlib as SVG that can stand inside HTML."""
    out = io.StringIO()
    unwanted = {"Creator": None, "Date": None, "Format": None, "Type": None}
    canvas.savefig(out, format="svg", transparent=True, metadata=unwanted)
    found = out.getvalue()
    # Inside HTML the XML prologue has no place, and it names an address.
    found = found[found.index("<svg") :].replace(TEXT_COLOUR, "currentColor")
    return found if texts is None else texts.put_into(found)
