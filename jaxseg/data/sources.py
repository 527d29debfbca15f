"""Reading: find image/label pairs, decode them, apply the label map. Whatever is wrong is a DataError naming the file.

A source has len, `names` (file stems), `read(i)` -> (image uint8 [H, W, 3] RGB, label uint8 [H, W] of classes and 255)
and `shape(i)` -> (H, W). Images are read with OpenCV; labels with Pillow, since OpenCV turns palette ids into colours.
An image's EXIF orientation is applied: its label is drawn on the picture as people see it.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxseg.cache import cache_dir
from jaxseg.data.datasets import IGNORE, DataError, DatasetSpec, Layout, label_map

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
UNKNOWN = 254  # what ids outside the label map become, until they are reported
EXIF_ORIENTATION = 0x0112
MEND_IMAGE = "it is damaged or of an unknown format: replace it, or remove it and its label"
MEND_LABEL = "it is damaged: replace it, or remove it and its image"
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for damaged files


class Source(Protocol):
    """What the pipeline reads from; see the module's docstring."""

    names: Sequence[str]

    def __len__(self) -> int: ...
    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...
    def shape(self, index: int) -> tuple[int, int]: ...


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file, its label file, and the name of the label file's map."""

    name: str
    image: Path
    label: Path
    ids: str


# --- Finding ----------------------------------------------------------------------------------------------------------


def find_pairs(spec: DatasetSpec, root: str | Path, split: str) -> list[Pair]:
    """Every image of a split with its label, by name. Raises DataError if there is none or a label is missing."""
    if not root:
        hint = "--config.dataset.root=DIR (--config.eval.root for config.eval.dataset)"
        raise DataError(f"The data set '{spec.name}' needs its folder: {hint}.")
    root, layout, pairs = Path(root), spec.layout, []
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set config.dataset.root to where the data set '{spec.name}' lies.")
    for part in layout.parts(split):
        images = _find_images(root, layout, part)
        if not images:
            raise DataError(_nothing_found(root, layout, split, part))
        pairs += [Pair(stem, image, *_find_label(root, layout, part, stem, image)) for stem, image in images.items()]
    return pairs


def _find_images(root: Path, layout: Layout, part: str) -> dict[str, Path]:
    """{stem: image file} in the order of names."""
    prefix, suffix = layout.images.replace("{split}", part).split("{stem}")
    if layout.listing:
        listing = root / layout.listing.replace("{split}", part)
        if not listing.is_file():
            raise DataError(f"{listing}: no such file; it lists the images of split '{part}', one name a line.")
        stems = [line.split()[0] for line in listing.read_text().splitlines() if line.strip()]
        images = {stem: root / f"{prefix}{stem}{suffix}" for stem in stems}
        missing = next((image for image in images.values() if not image.is_file()), None)
        if missing:
            raise DataError(f"{missing}: no such file, but {listing} lists it; restore it or take it off the list.")
        return images
    suffixes = IMAGE_SUFFIXES if suffix == ".*" else (suffix,)
    folder = root / prefix
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("**/*" if layout.nested else "*")):
        ending = next((s for s in suffixes if file.name.lower().endswith(s.lower())), None)
        if ending is None or file.name.startswith(".") or not file.is_file():
            continue
        stem = str(file.relative_to(folder))[: -len(ending)]
        if stem in found:
            raise DataError(
                f"{found[stem]} and {file} have one name, so they would share one label; rename or remove one of them."
            )
        found[stem] = file
    return found


def _nothing_found(root: Path, layout: Layout, split: str, part: str) -> str:
    """Why a split is empty."""
    pattern = layout.images.replace("{split}", part).replace("{stem}", "*")
    folder = (root / pattern).parent
    known = " ".join(IMAGE_SUFFIXES) if pattern.endswith(".*") else pattern.rsplit("/", 1)[-1]
    if not folder.is_dir() and not layout.nested:
        setting = "config.dataset.train_split or val_split"
        return f"{folder}: no such folder; put the images of split '{split}' there, or set {setting}."
    present = sorted(file.name for file in folder.glob("*") if not file.name.startswith("."))[:3]
    there = f"it holds {', '.join(present)}, ... " if present else "it is empty"
    return f"{folder}: no image of split '{split}' there ({there.strip()}); expected files {known}."


def _find_label(root: Path, layout: Layout, part: str, stem: str, image: Path) -> tuple[Path, str]:
    candidates = [
        (root / pattern.replace("{split}", part).replace("{stem}", stem), ids) for pattern, ids in layout.labels
    ]
    for file, ids in candidates:
        if file.is_file():
            return file, ids
    wanted = " or ".join(str(file) for file, _ in candidates)
    similar = sorted(file.name for file in candidates[-1][0].parent.glob(f"{Path(stem).name}.*"))
    hint = f" There is {similar[0]}: labels must be PNG, not compressed with loss." if similar else ""
    raise DataError(f"{image}: its label {wanted} is missing; add it, or take the image out.{hint}")


def unused_labels(spec: DatasetSpec, root: str | Path, split: str) -> list[Path]:
    """Label files of a `folder` that no image has: harmless for training, but often a sign of misnamed images."""
    if spec.layout is None or not spec.layout.images.endswith(".*"):
        return []
    used = {pair.label for pair in find_pairs(spec, root, split)}
    folders = {label.parent for label in used}
    return sorted(
        file
        for folder in folders
        for file in folder.glob("*.png")
        if file not in used and not file.name.startswith(".")
    )


# --- Decoding ---------------------------------------------------------------------------------------------------------


def decode_image(data: bytes, file: str | Path) -> np.ndarray:
    """RGB uint8 [H, W, 3] of an encoded image of 8 bits a channel; grey is repeated, transparency dropped.

    `file` is for the message of DataError only.
    """
    # libjpeg fills what is missing with grey and OpenCV does not tell; a whole file ends with this marker.
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-256:]:
        inspect_image(data, file, load=True)
    try:
        image = (
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH) if data else None
        )
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"{file}: cannot be read as an image ({len(data)} bytes); {MEND_IMAGE}.")
    if image.dtype != np.uint8:
        raise DataError(f"{file}: an image of {image.dtype}, more than 8 bits a channel; save it with 8 bits.")
    return image


def inspect_image(data: bytes | Path, file: str | Path, *, load: bool = False) -> tuple[int, int]:
    """(H, W) from an image's header, EXIF orientation applied; `load` also decodes every pixel.

    Raises DataError if it cannot be read or has not 8 bits a channel.
    """
    try:
        with Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as image:
            mode = image.mode
            # Of TIFF, Pillow has turned the size itself.
            turned = image.format in ("JPEG", "PNG", "WEBP") and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
            size = image.size if turned else image.size[::-1]
            if load:
                image.load()
    except UNREADABLE as error:
        raise DataError(f"{file}: cannot be read as an image ({_reason(error)}); {MEND_IMAGE}.") from None
    if mode in ("I", "F") or mode.startswith("I;"):
        raise DataError(f"{file}: an image of mode {mode}, more than 8 bits a channel; save it with 8 bits.")
    return size


def _reason(error: Exception) -> str:
    return "no known format" if isinstance(error, UnidentifiedImageError) else str(error)


def decode_label(data: bytes, file: str | Path) -> np.ndarray:
    """Raw ids [H, W], uint8 or int32, of an encoded single-channel or palette label. Raises DataError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode, ids = image.mode, np.asarray(image)
    except UNREADABLE as error:
        raise DataError(f"{file}: cannot be read as a label ({_reason(error)}); {MEND_LABEL}.") from None
    if ids.ndim != 2 or mode == "F":
        raise DataError(
            f"{file}: a label of mode {mode}, not one class id a pixel; save it as a single-channel or palette "
            "PNG whose values are class numbers, from 0 in the order of the classes (255: ignore)."
        )
    return ids if ids.dtype == np.uint8 else ids.astype(np.uint8 if ids.dtype == bool else np.int32)


def map_label(ids: np.ndarray, table: np.ndarray, spec: DatasetSpec, file: str | Path) -> np.ndarray:
    """Class ids uint8 [H, W] of raw ids; `table` is from `make_table`. DataError tells where an id is unknown."""
    if ids.dtype == np.uint8:
        label = cv2.LUT(ids, table)
    else:
        inside = (ids >= 0) & (ids < len(table))
        label = np.where(inside, table[np.where(inside, ids, 0)], np.uint8(UNKNOWN))
    wrong = label == UNKNOWN
    if not wrong.any():
        return label
    row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    value = int(ids[row, column])
    count, others = int((ids == value).sum()), sorted({int(v) for v in np.unique(ids[wrong])} - {value})
    more = f" (and other such values: {', '.join(map(str, others[:8]))})" if others else ""
    raise DataError(
        f"{file}: label value {value}, {count} pixels, first at row {row}, column {column}{more}, is neither one of "
        f"the {spec.num_classes} classes nor {IGNORE} (ignore). Classes of '{spec.name}' are {min(spec.label_map)} to "
        f"{max(spec.label_map)}: '{spec.classes[0]}' ... '{spec.classes[-1]}'; change the value, to 255 if it is to be "
        "ignored, or list its class."
    )


def make_table(ids: Mapping[int, int]) -> np.ndarray:
    """A label map as an array: class id of each raw id 0..255, `UNKNOWN` where there is none."""
    table = np.full(256, UNKNOWN, np.uint8)
    table[list(ids)] = list(ids.values())
    table[IGNORE] = IGNORE
    return table


def check_sizes(image: tuple[int, int], label: tuple[int, int], image_file: str | Path, label_file: str | Path) -> None:
    """DataError unless image and label are equally large."""
    if tuple(image) != tuple(label):
        raise DataError(
            f"{image_file} is {image[1]}x{image[0]} (width x height) but its label {label_file} is "
            f"{label[1]}x{label[0]}; make them equally large (resize labels with nearest neighbour only), and mind "
            "EXIF orientation, which is applied."
        )


# --- Sources ----------------------------------------------------------------------------------------------------------


class Files:
    """Pairs of files, read in place."""

    def __init__(self, spec: DatasetSpec, pairs: Sequence[Pair]):
        self.spec, self.pairs = spec, pairs
        self.names = [pair.name for pair in pairs]
        self._tables = {ids: make_table(label_map(ids, spec.num_classes)) for ids in {pair.ids for pair in pairs}}

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(image, label); DataError if one is damaged, they differ in size, or an id is unknown."""
        pair = self.pairs[index]
        image, label = self.read_image(index), self.read_label(index)
        check_sizes(image.shape[:2], label.shape, pair.image, pair.label)
        return image, label

    def read_image(self, index: int) -> np.ndarray:
        return decode_image(_read_bytes(self.pairs[index].image), self.pairs[index].image)

    def read_label(self, index: int) -> np.ndarray:
        pair = self.pairs[index]
        return map_label(
            decode_label(_read_bytes(pair.label), pair.label), self._tables[pair.ids], self.spec, pair.label
        )

    def shape(self, index: int) -> tuple[int, int]:
        return inspect_image(self.pairs[index].image, self.pairs[index].image)


class Records:
    """A TFDS data source of encoded images and labels (PNG bytes under 'image' and 'label')."""

    def __init__(self, spec: DatasetSpec, records: Any, split: str):
        self.spec, self._records = spec, records
        self.names = [f"{spec.name}-{split}-{index:05d}" for index in range(len(records))]
        self._table = make_table(spec.label_map)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(image, label); DataError if one is damaged or an id is unknown."""
        record, name = self._records[index], self.names[index]
        label = map_label(decode_label(record["label"], name), self._table, self.spec, name)
        return decode_image(record["image"], name), label

    def shape(self, index: int) -> tuple[int, int]:
        return inspect_image(self._records[index]["image"], self.names[index])


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); restore it, or remove image and label.") from None


def open_source(spec: DatasetSpec, root: str | Path, split: str) -> Source:
    """The pairs of a split; `shapes` is written into the user's cache first. Raises DataError."""
    if spec.name == "shapes":
        from jaxseg.data import shapes

        if split not in shapes.SPLITS:
            raise DataError(f"The data set 'shapes' has no split '{split}'; it has {' and '.join(shapes.SPLITS)}.")
        return Records(spec, shapes.open_split(cache_dir() / "data", split), split)
    return Files(spec, find_pairs(spec, root, split))
