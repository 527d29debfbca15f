"""Pictures of label maps: overlays with a legend, panels for logs, palette PNGs.

Pictures are RGB uint8 [H, W, 3]. Masks are integers [H, W], 255 for pixels without a class.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxseg.constants import IGNORE
from jaxseg.errors import DataError
from jaxseg.files import atomic_path
from jaxseg.fonts import Font, choose_font

BACKGROUND, INK, FAINT = (255, 255, 255), (32, 33, 36), (128, 134, 139)
# Smaller pictures are enlarged to at least this side, so that legend and borders are legible.
SMALLEST_SIDE = 320
LARGEST_SIDE = 768  # of a panel's columns
BORDER_OPACITY = 0.35  # added to the opacity at the borders of classes

Palette = Sequence[Sequence[int]]


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Convert an image of any dtype and number of channels to RGB.

    The first three channels are shown, or only the first if there are fewer. 8-bit images are not
    changed. Other dtypes are stretched between the 2nd and the 98th percentile of all channels
    together, or of each channel if there are more than three.

    Args:
        image: [H, W, C].

    Returns:
        RGB uint8 [H, W, 3].
    """
    channels = image.shape[-1]
    image = image[..., :3] if channels >= 3 else np.repeat(image[..., :1], 3, -1)
    if image.dtype == np.uint8:
        return image
    image = image.astype(np.float32)
    axis = (0, 1) if channels > 3 else None
    low, high = np.percentile(image, (2, 98), axis=axis, keepdims=True).astype(np.float32)
    return np.clip((image - low) * (255 / np.maximum(high - low, 1e-6)), 0, 255).astype(np.uint8)


def colorize(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """Draw a mask in the colours of its classes; 255 is black.

    Args:
        mask: Integers [H, W].
        palette: RGB of each class, 0..255.

    Returns:
        RGB uint8 [H, W, 3].

    Raises:
        DataError: The mask is not an integer array [H, W], or holds a number that is not a class.
    """
    return _color_table(palette)[_ids(mask, len(palette))]


def _color_table(palette: Palette) -> np.ndarray:
    """The colour of each label 0 to 255, uint8 [256, 3]; black for numbers that are no class."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8)
    return table


def _ids(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Check a mask and return it as uint8; raise DataError."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        raise DataError(
            f"a mask is an integer array [H, W], not {mask.dtype} of shape {mask.shape}",
            field="mask",
        )
    wrong = mask[(mask != IGNORE) & ((mask < 0) | (mask >= num_classes))]
    if wrong.size:
        raise DataError(
            f"the mask holds {int(wrong[0])}, which is neither one of {num_classes} classes nor "
            f"{IGNORE}",
            field="mask",
        )
    return mask.astype(np.uint8)


def _borders(mask: np.ndarray) -> np.ndarray:
    """The pixels on both sides of class borders, bool [H, W]."""
    edge = np.zeros(mask.shape, bool)
    down = mask[1:] != mask[:-1]
    right = mask[:, 1:] != mask[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def _enlarged(size: tuple[int, ...], smallest: int) -> tuple[int, int]:
    """Height and width, times the smallest whole factor that makes both at least `smallest`."""
    factor = max(1, -(-smallest // min(size)))
    return size[0] * factor, size[1] * factor


def _resized(array: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """Resize an image or mask to (height, width)."""
    if array.shape[:2] == size:
        return array
    return np.asarray(Image.fromarray(array).resize(size[::-1], method))


def blend(
    image: np.ndarray, mask: np.ndarray, palette: Palette, opacity: float = 0.5
) -> np.ndarray:
    """Blend an image with its mask, with strong class borders and dimmed pixels without a class.

    Args:
        image: RGB uint8 [H, W, 3].
        mask: Integers [H, W].
        palette: RGB of each class, 0..255.
        opacity: Share of the mask's colour, 0 to 1.

    Returns:
        RGB uint8 [H, W, 3].

    Raises:
        DataError: The mask holds a number that is not a class.
    """
    color = colorize(mask, palette).astype(np.float32)
    at_border = min(1.0, opacity + BORDER_OPACITY)
    weight = np.where(_borders(np.asarray(mask)), at_border, opacity)[..., None]
    return (image * (1 - weight) + color * weight + 0.5).astype(np.uint8)


def overlay(
    image: np.ndarray,
    mask: np.ndarray,
    palette: Palette,
    classes: Sequence[str],
    opacity: float = 0.5,
) -> np.ndarray:
    """Draw a mask over its image, with a legend below.

    The legend lists the classes and their shares of the picture, the largest first. Small pictures
    are enlarged by a whole factor.

    Args:
        image: RGB uint8 [h, w, 3]; it is resized to the mask.
        mask: Integers [H, W].
        palette: RGB of each class, 0..255.
        classes: Name of each class.
        opacity: Share of the mask's colour, 0 to 1.

    Returns:
        RGB uint8 [H', W', 3].

    Raises:
        DataError: The mask holds a number that is not a class.
    """
    size = _enlarged(np.asarray(mask).shape, SMALLEST_SIDE)
    picture = _blended(image, mask, palette, size, opacity)
    width = picture.shape[1]
    strip = legend([mask], palette, classes, width, _font_size(width), shares=True)
    return np.concatenate([picture, strip])


def _blended(
    image: np.ndarray, mask: np.ndarray, palette: Palette, size: tuple[int, int], opacity: float
) -> np.ndarray:
    """Image and mask, resized to (height, width) and blended."""
    ids = _resized(_ids(mask, len(palette)), size, Image.Resampling.NEAREST)
    photo = _resized(np.asarray(image, np.uint8), size, Image.Resampling.BICUBIC)
    return blend(photo, ids, palette, opacity)


def panel(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    palette: Palette,
    classes: Sequence[str],
    opacity: float = 0.65,
) -> np.ndarray:
    """Draw [image | truth | prediction] side by side, with titles and one legend.

    Args:
        image: RGB uint8 [h, w, 3].
        truth: Integers [H, W].
        prediction: Integers [H, W].
        palette: RGB of each class, 0..255.
        classes: Name of each class.
        opacity: Share of the masks' colours, 0 to 1.

    Returns:
        RGB uint8 [H', W', 3].

    Raises:
        DataError: A mask holds a number that is not a class.
    """
    height, width = _enlarged(np.asarray(truth).shape, SMALLEST_SIDE)
    shrink = min(1.0, LARGEST_SIDE / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    photo = _resized(np.asarray(image, np.uint8), size, Image.Resampling.BICUBIC)
    masks = [_blended(image, mask, palette, size, opacity) for mask in (truth, prediction)]
    text = _font_size(2 * size[1])
    pictures = zip([photo, *masks], ("image", "truth", "prediction"))
    columns = [_titled(picture, title, text) for picture, title in pictures]
    gap = max(4, size[1] // 80)
    space = np.full((columns[0].shape[0], gap, 3), BACKGROUND, np.uint8)
    row = np.concatenate([columns[0], space, columns[1], space, columns[2]], axis=1)
    return np.concatenate([row, legend([truth, prediction], palette, classes, row.shape[1], text)])


def _font_size(width: int) -> int:
    """Return the size of letters, in pixels, in a picture of this width."""
    return int(np.clip(width / 52, 13, 36))


def _titled(picture: np.ndarray, title: str, size: int) -> np.ndarray:
    """Draw a title above a picture, its letters `size` pixels high."""
    bar = Image.new("RGB", (picture.shape[1], size * 2), BACKGROUND)
    ImageDraw.Draw(bar).text((2, size), title, INK, ImageFont.load_default(size), anchor="lm")
    return np.concatenate([np.asarray(bar), picture])


class _Entry(NamedTuple):
    """One class in a legend."""

    name: str
    font: Font
    share: str
    color: tuple[int, ...]


def legend(
    masks: Sequence[np.ndarray],
    palette: Palette,
    classes: Sequence[str],
    width: int,
    size: int = 14,
    shares: bool = False,
) -> np.ndarray:
    """Draw the colour and the name of every class in some masks.

    The most frequent class comes first, in as many columns as fit. If no font can show a name, it
    is written as "class" and its number.

    Args:
        masks: Integers [H, W] each.
        palette: RGB of each class, 0..255.
        classes: Name of each class.
        width: Width of the legend in pixels.
        size: Size of the letters in pixels.
        shares: Whether to show each class's share of the masks.

    Returns:
        RGB uint8 [h, width, 3].

    Raises:
        DataError: A mask holds a number that is not a class.
    """
    counts = np.zeros(256, np.int64)
    for mask in masks:
        counts += np.bincount(_ids(mask, len(palette)).ravel(), minlength=256)
    entries = [
        _make_entry(int(k), counts[k] / counts.sum(), palette, classes, size, shares)
        for k in np.argsort(-counts, kind="stable")
        if counts[k]
    ]
    return _draw_legend(entries, width, size)


def _make_entry(
    k: int, share: float, palette: Palette, classes: Sequence[str], size: int, shares: bool
) -> _Entry:
    """The entry of class k, with its share of the pixels."""
    text = f"{100 * share:.1f}%" if shares else ""
    if k == IGNORE:
        return _Entry("no class", ImageFont.load_default(size), text, (0, 0, 0))
    color = tuple(map(int, palette[k]))
    font = choose_font(str(classes[k]), size)
    if font is None:
        return _Entry(f"class {k}", ImageFont.load_default(size), text, color)
    return _Entry(str(classes[k]), font, text, color)


def _draw_legend(entries: Sequence[_Entry], width: int, size: int) -> np.ndarray:
    """Draw the entries in columns, letters `size` pixels high."""
    plain = ImageFont.load_default(size)
    box = size
    pad = size // 2
    line = int(size * 1.6)
    lengths = [
        entry.font.getlength(entry.name) + pad + plain.getlength(entry.share) for entry in entries
    ]
    cell = int(box + pad + max(lengths, default=0) + 2 * pad)
    columns = max(1, min((width - pad) // cell, len(entries)))
    rows = -(-len(entries) // columns)
    strip = Image.new("RGB", (width, rows * line + 2 * pad), BACKGROUND)
    pen = ImageDraw.Draw(strip)
    for number, entry in enumerate(entries):
        row, column = divmod(number, columns)
        x, y = pad + column * cell, pad + row * line + line // 2
        corners = (x, y - box // 2, x + box, y + box // 2)
        pen.rounded_rectangle(corners, size // 5, entry.color, outline=FAINT)
        x += box + pad
        pen.text((x, y), entry.name, INK, entry.font, anchor="lm")
        x_share = x + entry.font.getlength(entry.name) + pad
        pen.text((x_share, y), entry.share, FAINT, plain, anchor="lm")
    return np.asarray(strip)


def save_label_png(path: str | Path, mask: np.ndarray, palette: Palette) -> None:
    """Write a mask as a palette PNG, whose pixel values are class indices shown in colours.

    Args:
        path: The file; its folder is created if it does not exist.
        mask: Integers [H, W].
        palette: RGB of each class, 0..255.

    Raises:
        DataError: The mask holds a number that is not a class.
        JaxsegError: The file cannot be written.
    """
    picture = Image.fromarray(_ids(mask, len(palette)))
    picture.putpalette(_color_table(palette).tobytes())
    with atomic_path(path) as part:
        picture.save(part, optimize=True)


def save_picture(folder: str | Path, name: str, picture: np.ndarray) -> Path:
    """Write a picture as PNG.

    Args:
        folder: The folder; created if it does not exist.
        name: Name of the file without suffix; slashes become dashes.
        picture: RGB uint8 [H, W, 3].

    Returns:
        The file.

    Raises:
        JaxsegError: The file cannot be written.
    """
    path = Path(folder) / f"{name.replace('/', '-')}.png"
    with atomic_path(path) as part:
        Image.fromarray(picture).save(part)
    return path
