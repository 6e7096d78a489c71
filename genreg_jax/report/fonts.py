"""Fonts for names in pictures, where no reader's browser finds one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from genreg_jax.report.svg import short

_MOST_LETTERS = 16
# From Hebrew to Tibetan, Myanmar and Khmer letters change or move beside others.
_SHAPED = ((0x0590, 0x109F), (0x1780, 0x17FF), (0xFB1D, 0xFEFC))


def font_for(text: str, size: int) -> Any:
    """A font with all letters of a text.

    Args:
      text: in any script.
      size: in pixels.

    Returns:
      A `PIL.ImageFont.FreeTypeFont`: Pillow's own for ASCII, else the first that has them of
      matplotlib's own and this machine's; None where there is none.

    Example:
      >>> font_for("cat", 13) is not None, font_for("\\U0010fffd", 13)
      (True, None)
    """
    from PIL import ImageFont

    if text.isascii():
        return ImageFont.load_default(size)
    path = _path_for(frozenset(text))
    return None if path is None else ImageFont.truetype(path, size)


def picture_names(names: Sequence[str]) -> tuple[list[str], str]:
    """Class names for the margin of a picture, and what its caption must say of them.

    Args:
      names: of the classes, from the first on.

    Returns:
      The names, shortened, `class 3` in place of one that no font has; and the full names of those
      that are not shown as they are, as a sentence with a space before it, or nothing.

    Example:
      >>> picture_names(["cat", "a long-haired dachshund on a sofa"])
      (['cat', 'a long-haired d…'], ' Class 1 is a long-haired dachshund on a sofa.')
    """
    shown = [short(name, _MOST_LETTERS) for name in names]
    shown = [name if font_for(name, 13) else f"class {i}" for i, name in enumerate(shown)]
    left = [f"class {i} is {name}" for i, name in enumerate(names) if shown[i] != name]
    sentence = ", ".join(left)
    return shown, f" {sentence[0].upper()}{sentence[1:]}." if left else ""


@functools.lru_cache(maxsize=1024)
def _path_for(letters: frozenset[str]) -> str | None:
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont, features

    codes = [ord(letter) for letter in letters]
    shaped = any(low <= code <= high for code in codes for low, high in _SHAPED)
    if shaped and not features.check("raqm"):
        return None
    for path in _candidates():
        try:
            font = FT2Font(path)
            if all(font.get_char_index(code) for code in codes):
                ImageFont.truetype(path, 13)  # not one of bitmaps, as of emoji
                return path
        except (OSError, RuntimeError):
            continue
    return None


def _candidates() -> list[str]:
    """Font files: the one that comes with matplotlib, then all upright ones of this machine."""
    from matplotlib import font_manager

    found = [
        font.fname
        for font in font_manager.fontManager.ttflist
        # The last resort has a box for every letter there is.
        if font.style == "normal" and not font.name.startswith("Last Resort")
    ]
    return list(dict.fromkeys([font_manager.findfont("DejaVu Sans"), *sorted(found)]))
