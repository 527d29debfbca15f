"""Fonts for class names in any script.

English letters need only Pillow's own font. Other letters need Matplotlib, part of the `train`
extra, for its fonts and its list of system fonts.
"""

import io
import logging
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ImageFont

log = logging.getLogger(__name__)

ENGLISH = frozenset(map(chr, range(0x21, 0x7F)))  # characters that Pillow's font always has
# Fonts that draw every letter as a box or not at all.
PLACEHOLDERS = ("lastresort", "adobeblank")
# Fonts with these words in their names are tried last.
STYLED = ("bold", "italic", "oblique", "light", "thin", "black", "mono", "condensed", "serif")


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont  # Pillow without FreeType has the latter only


def choose_font(text: str, size: int) -> Font | None:
    """Choose a font that can show every letter of a text.

    Pillow's own font covers English, Matplotlib's fonts cover European languages, Greek, Cyrillic
    and Arabic. For other scripts the system's fonts are searched, once for each set of letters.

    Args:
        text: The text to show.
        size: Size of the letters in pixels.

    Returns:
        The font, or None if no font has all letters, or if Matplotlib is needed but not installed.
    """
    default = ImageFont.load_default(size)
    letters = _letters(text)
    if letters <= ENGLISH:
        return default
    try:
        if letters <= _default_letters():
            return default
        file = _find_font(letters)
    except ModuleNotFoundError as error:
        _log_missing(str(error))
        return None
    return None if file is None else ImageFont.truetype(file, size)


@cache
def _log_missing(error: str) -> None:
    """Log, once, why names are not shown."""
    log.warning("names with non-English letters are shown as numbers: %s", error)


def _letters(text: str) -> frozenset[str]:
    """Return the characters that need a glyph: no spaces, controls, joiners or variants."""
    return frozenset(
        c
        for c in text
        if unicodedata.category(c) not in ("Zs", "Cc", "Cf") and not "\ufe00" <= c <= "\ufe0f"
    )


@cache
def _default_letters() -> frozenset[str]:
    """Return the characters of Pillow's own font."""
    font = ImageFont.load_default(16)
    if not isinstance(font, ImageFont.FreeTypeFont):
        return ENGLISH
    return frozenset(map(chr, _code_points(io.BytesIO(font.font_bytes))))


def _code_points(file: str | io.BytesIO) -> np.ndarray:
    """Return the characters of a font, sorted: uint32 [N]."""
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415 - optional, for unusual names only

    return np.array(sorted(FT2Font(file).get_charmap()), np.uint32)


@cache
def _coverage(file: str) -> np.ndarray:
    """Return the characters of a font file; none if it cannot be read."""
    try:
        return _code_points(file)
    except (OSError, RuntimeError, ValueError):  # FreeType's errors are RuntimeErrors
        return np.array([], np.uint32)


@cache
def _find_font(letters: frozenset[str]) -> str | None:
    """Return the first font file that has all these letters and can draw them at any size."""
    wanted = np.array(list(map(ord, letters)), np.uint32)
    for file in _candidates():
        if np.isin(wanted, _coverage(file)).all() and _can_draw(file, letters):
            return file
    return None


def _can_draw(file: str, letters: frozenset[str]) -> bool:
    """Whether Pillow can draw a font at any size, which bitmap fonts of emoji do not allow."""
    try:
        return ImageFont.truetype(file, 16).getmask("".join(letters)).getbbox() is not None
    except (OSError, ValueError):
        return False


def _candidates() -> Iterator[str]:
    """Yield font files, the plainest first."""
    import matplotlib  # noqa: PLC0415 - optional, for unusual names only

    yield str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    yield from _system_fonts()


@cache
def _system_fonts() -> tuple[str, ...]:
    """Return the font files of the system, the plainest first."""
    from matplotlib import font_manager  # noqa: PLC0415 - optional, and slow to import

    files = [
        file
        for file in font_manager.findSystemFonts()
        if not any(name in Path(file).name.lower() for name in PLACEHOLDERS)
    ]
    return tuple(sorted(files, key=lambda file: (_count_styles(file), file)))


def _count_styles(file: str) -> int:
    """Return how many words of STYLED a font's name contains."""
    return sum(word in Path(file).name.lower() for word in STYLED)
