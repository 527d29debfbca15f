"""Fonts for class names in any script: Pillow's own, else one of the system that has every letter of the text."""

import io
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ImageFont

# Fonts whose every letter is a box or nothing.
PLACEHOLDERS = ("lastresort", "adobeblank")
STYLED = (
    "bold",
    "italic",
    "oblique",
    "light",
    "thin",
    "black",
    "mono",
    "condensed",
    "serif",
)  # taken last


def choose_font(text: str, size: int) -> ImageFont.FreeTypeFont | None:
    """A font that shows every letter of a text, None if there is none here.

    Pillow's own font has the English letters alone. Beyond them Matplotlib's, which comes with jaxseg, has those of
    European languages, Greek, Cyrillic and Arabic; for others a font of the system is looked for, once a script.

    Args:
        text: what is to be shown.
        size: of the letters, in pixels.
    """
    default, letters = ImageFont.load_default(size), _letters(text)
    if letters <= _default_letters():
        return default
    file = _find_font(letters)
    return None if file is None else ImageFont.truetype(file, size)


def _letters(text: str) -> frozenset[str]:
    """The characters of a text that need a picture: not spaces, controls, joiners and variation selectors."""
    return frozenset(
        c
        for c in text
        if unicodedata.category(c) not in ("Zs", "Cc", "Cf") and not "\ufe00" <= c <= "\ufe0f"
    )


@cache
def _default_letters() -> frozenset[str]:
    return frozenset(map(chr, _code_points(io.BytesIO(ImageFont.load_default(16).font_bytes))))


def _code_points(file: str | io.BytesIO) -> np.ndarray:
    """The characters that a font has a picture of, sorted."""
    from matplotlib.ft2font import FT2Font  # wanted for unusual names only

    return np.array(sorted(FT2Font(file).get_charmap()), np.uint32)


@cache
def _coverage(file: str) -> np.ndarray:
    """`_code_points` of a font file; of one that cannot be read, none."""
    try:
        return _code_points(file)
    except (OSError, RuntimeError, ValueError):  # FreeType's errors are RuntimeErrors
        return np.array([], np.uint32)


@cache
def _find_font(letters: frozenset[str]) -> str | None:
    """The first font file that has all these letters and can draw them at any size."""
    wanted = np.array(list(map(ord, letters)), np.uint32)
    return next(
        (
            file
            for file in _candidates()
            if np.isin(wanted, _coverage(file)).all() and _draws(file, letters)
        ),
        None,
    )


def _draws(file: str, letters: frozenset[str]) -> bool:
    """Whether Pillow can use a font: those of coloured pictures have one size only."""
    try:
        return ImageFont.truetype(file, 16).getmask("".join(letters)).getbbox() is not None
    except (OSError, ValueError):
        return False


def _candidates() -> Iterator[str]:
    """Font files, the plainest first."""
    import matplotlib

    yield str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    yield from _system_fonts()


@cache
def _system_fonts() -> tuple[str, ...]:
    from matplotlib import font_manager  # slow to import

    def styled(file: str) -> int:
        return sum(word in Path(file).name.lower() for word in STYLED)

    files = (
        file
        for file in font_manager.findSystemFonts()
        if not any(name in Path(file).name.lower() for name in PLACEHOLDERS)
    )
    return tuple(sorted(files, key=lambda file: (styled(file), file)))
