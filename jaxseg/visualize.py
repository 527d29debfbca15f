"""Pictures of label maps: colours over the photo with a legend, panels for logs, palette PNGs.

Everything is RGB uint8 [H, W, 3]; masks are integer [H, W] with 255 for pixels that have no class.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxseg.constants import IGNORE
from jaxseg.errors import DataError
from jaxseg.files import atomic_path
from jaxseg.fonts import choose_font

BACKGROUND, INK, FAINT = (255, 255, 255), (32, 33, 36), (128, 134, 139)
SMALLEST_SIDE = (
    320  # smaller pictures are enlarged to at least this, so that legend and borders are legible
)
LARGEST_SIDE = 768  # a panel's columns are no longer than this


def to_rgb(image: np.ndarray) -> np.ndarray:
    """An image [H, W, C] of any dtype and number of channels as RGB uint8 [H, W, 3]: its first three channels, or the first alone.

    8 bits stay as they are; others are stretched between their 2nd and 98th percentile, RGB as a whole, of more channels each.
    """
    bands = image.shape[-1]
    image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, -1)
    if image.dtype == np.uint8:
        return image
    image = image.astype(np.float32)
    low, high = np.percentile(
        image, (2, 98), axis=(0, 1) if bands > 3 else None, keepdims=True
    ).astype(np.float32)
    return np.clip((image - low) * (255 / np.maximum(high - low, 1e-6)), 0, 255).astype(np.uint8)


def colorize(mask: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Mask [H, W] in the palette's colours, [H, W, 3] uint8; 255 is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8)
    return table[_ids(mask, len(palette))]


def _ids(mask: np.ndarray, num_classes: int) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        raise DataError(
            f"a mask is an integer array [H, W], not {mask.dtype} of shape {mask.shape}",
            field="mask",
        )
    wrong = mask[(mask != IGNORE) & ((mask < 0) | (mask >= num_classes))]
    if wrong.size:
        raise DataError(
            f"the mask holds {int(wrong[0])}, which is neither one of {num_classes} classes nor {IGNORE}",
            field="mask",
        )
    return mask.astype(np.uint8)


def _borders(mask: np.ndarray) -> np.ndarray:
    """Pixels whose class differs from the pixel below or to the right, and that pixel too: [H, W] bool."""
    edge = np.zeros(mask.shape, bool)
    down, right = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def _enlarged(size: tuple[int, int], smallest: int) -> tuple[int, int]:
    """Height and width times the whole number that brings the shorter side to `smallest` or more."""
    factor = max(1, -(-smallest // min(size)))
    return size[0] * factor, size[1] * factor


def _resized(array: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    return (
        array
        if array.shape[:2] == size
        else np.asarray(Image.fromarray(array).resize(size[::-1], how))
    )


def blend(
    image: np.ndarray, mask: np.ndarray, palette: Sequence[Sequence[int]], opacity: float = 0.5
) -> np.ndarray:
    """Image and mask of one size mixed, [H, W, 3]: class borders in full colour, pixels without class dimmed."""
    color = colorize(mask, palette).astype(np.float32)
    weight = np.where(_borders(np.asarray(mask)), min(1.0, opacity + 0.35), opacity)[..., None]
    return (image * (1 - weight) + color * weight + 0.5).astype(np.uint8)


def overlay(
    image: np.ndarray,
    mask: np.ndarray,
    palette: Sequence[Sequence[int]],
    classes: Sequence[str],
    opacity: float = 0.5,
) -> np.ndarray:
    """The mask in colour over its image with a legend of the classes present, RGB uint8 [H', W', 3].

    image: uint8 [h, w, 3]; mask: [H, W] (an image of another size is resized to it). Small pictures are enlarged by a
    whole factor; the legend, largest class first with its share of the picture, stands below.
    """
    size = _enlarged(np.asarray(mask).shape, SMALLEST_SIDE)
    picture = _blended(image, mask, palette, size, opacity)
    strip = legend(
        [mask], palette, classes, picture.shape[1], _font_size(picture.shape[1]), shares=True
    )
    return np.concatenate([picture, strip])


def _blended(image, mask, palette, size, opacity) -> np.ndarray:
    ids = _resized(_ids(mask, len(palette)), size, Image.Resampling.NEAREST)
    return blend(
        _resized(np.asarray(image, np.uint8), size, Image.Resampling.BICUBIC), ids, palette, opacity
    )


def panel(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    palette: Sequence[Sequence[int]],
    classes: Sequence[str],
    opacity: float = 0.65,
) -> np.ndarray:
    """[image | truth | prediction] side by side with titles and one legend, RGB uint8.

    image: uint8 [h, w, 3]; truth and prediction: [H, W] of the label's size.
    """
    height, width = _enlarged(np.asarray(truth).shape, SMALLEST_SIDE)
    shrink = min(1.0, LARGEST_SIDE / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    photo = _resized(np.asarray(image, np.uint8), size, Image.Resampling.BICUBIC)
    masks = [_blended(image, mask, palette, size, opacity) for mask in (truth, prediction)]
    gap = max(4, size[1] // 80)
    text = _font_size(2 * size[1])
    columns = [
        _titled(picture, title, text)
        for picture, title in zip([photo, *masks], ("image", "truth", "prediction"))
    ]
    space = np.full((columns[0].shape[0], gap, 3), BACKGROUND, np.uint8)
    row = np.concatenate([columns[0], space, columns[1], space, columns[2]], axis=1)
    return np.concatenate([row, legend([truth, prediction], palette, classes, row.shape[1], text)])


def _font_size(width: int) -> int:
    return int(np.clip(width / 52, 13, 36))


def _titled(picture: np.ndarray, title: str, size: int) -> np.ndarray:
    bar = Image.new("RGB", (picture.shape[1], size * 2), BACKGROUND)
    ImageDraw.Draw(bar).text((2, size), title, INK, ImageFont.load_default(size), anchor="lm")
    return np.concatenate([np.asarray(bar), picture])


def legend(
    masks: Sequence[np.ndarray],
    palette: Sequence[Sequence[int]],
    classes: Sequence[str],
    width: int,
    size: int = 14,
    shares: bool = False,
) -> np.ndarray:
    """Colour and name of every class in the masks, most frequent first, in as many columns as fit: [h, width, 3].

    A name for which no font is at hand is "class" and its number. size: of the letters, in pixels; shares: write how
    much of the masks each class takes.
    """
    counts = sum(np.bincount(_ids(mask, len(palette)).ravel(), minlength=256) for mask in masks)
    present = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
    plain = ImageFont.load_default(size)
    entries = []
    for k in present:
        name, color = (
            ("no class", (0, 0, 0))
            if k == IGNORE
            else (str(classes[k]), tuple(map(int, palette[k])))
        )
        font = choose_font(name, size)
        name, font = (f"class {k}", plain) if font is None else (name, font)
        entries.append(
            (name, font, f"{100 * counts[k] / counts.sum():.1f}%" if shares else "", color)
        )
    box, pad = size, size // 2
    cell = max(
        (font.getlength(name) + pad + plain.getlength(share) for name, font, share, _ in entries),
        default=0,
    )
    cell = int(box + pad + cell + 2 * pad)
    columns = max(1, min((width - pad) // cell, len(entries)))
    line = int(size * 1.6)
    rows = -(-len(entries) // columns)
    strip = Image.new("RGB", (width, rows * line + 2 * pad), BACKGROUND)
    pen = ImageDraw.Draw(strip)
    for i, (name, font, share, color) in enumerate(entries):
        x, y = pad + (i % columns) * cell, pad + (i // columns) * line + line // 2
        pen.rounded_rectangle(
            (x, y - box // 2, x + box, y + box // 2), size // 5, color, outline=FAINT
        )
        x += box + pad
        pen.text((x, y), name, INK, font, anchor="lm")
        pen.text((x + font.getlength(name) + pad, y), share, FAINT, plain, anchor="lm")
    return np.asarray(strip)


def save_label_png(path: str | Path, mask: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write class ids [H, W] as a palette PNG: pixel values are the ids, viewers show the colours."""
    picture = Image.fromarray(_ids(mask, len(palette)), mode=None)
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = np.asarray(palette, np.uint8)
    picture.putpalette(colors.tobytes())
    with atomic_path(path) as part:
        picture.save(part, optimize=True)


def save_picture(folder: str | Path, name: str, picture: np.ndarray) -> Path:
    """Write a picture as folder/name.png (the folder is made, slashes in the name become dashes); returns the path."""
    path = Path(folder) / f"{name.replace('/', '-')}.png"
    with atomic_path(path) as part:
        Image.fromarray(picture).save(part)
    return path
