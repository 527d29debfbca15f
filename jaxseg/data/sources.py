"""Reading: find image/label pairs, decode them, apply the label map. Whatever is wrong is a DataError naming the file.

A source has len, `names` (file stems), `files` (image files, or names again), `read(i)` -> (image uint8 [H, W, 3] RGB,
label uint8 [H, W] of classes and 255) and `shape(i)` -> (H, W).
Images are read with OpenCV; labels with Pillow, since OpenCV turns palette ids into colours. An image's
EXIF orientation is applied: its label is drawn on the picture as people see it.
"""

import dataclasses
import io
import itertools
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
    files: Sequence[str]

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
        if present := _in_any_case(file):
            return present, ids
    wanted = " or ".join(str(file) for file, _ in candidates)
    similar = sorted(file.name for file in candidates[-1][0].parent.glob(f"{Path(stem).name}.*"))
    lossy = ", not compressed with loss" if similar and similar[0].lower().endswith((".jpg", ".jpeg")) else ""
    hint = f" There is {similar[0]}: labels must be PNG{lossy}." if similar else ""
    raise DataError(f"{image}: its label {wanted} is missing; add it, or take the image out.{hint}")


def _in_any_case(file: Path) -> Path | None:
    """The file of this name, its suffix in lower or upper case or mixed."""
    endings = itertools.product(*zip(file.suffix.lower(), file.suffix.upper(), strict=True))
    candidates = (file, *(file.with_suffix("".join(ending)) for ending in endings))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def unused_labels(spec: DatasetSpec, root: str | Path, split: str) -> list[Path]:
    """Label files of a `folder` that no image has: harmless for training, but often a sign of misnamed images."""
    if spec.layout is None or not spec.layout.images.endswith(".*"):
        return []
    used = {pair.label.with_suffix(".png") for pair in find_pairs(spec, root, split)}
    files = (file for folder in {label.parent for label in used} for file in folder.iterdir())
    labels = (file for file in files if file.suffix.lower() == ".png" and not file.name.startswith("."))
    return sorted(file for file in labels if file.with_suffix(".png") not in used)


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
            if image.format in ("PNG", "TIFF") and ";16" in str(image.tile):  # Pillow would make 8 bits of these
                mode += ";16"
            # Of TIFF, Pillow has turned the size itself.
            turned = image.format in ("JPEG", "PNG", "WEBP") and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
            size = image.size if turned else image.size[::-1]
            if load:
                image.load()
    except UNREADABLE as error:
        raise DataError(f"{file}: cannot be read as an image ({_reason(error)}); {MEND_IMAGE}.") from None
    if mode in ("I", "F") or ";" in mode:
        raise DataError(f"{file}: an image of mode {mode}, more than 8 bits a channel; save it with 8 bits.")
    return size


def _reason(error: Exception) -> str:
    return "no known format" if isinstance(error, UnidentifiedImageError) else str(error)


def decode_label(data: bytes, file: str | Path, spec: DatasetSpec) -> np.ndarray:
    """Raw ids [H, W], uint8 or int32, of an encoded single-channel or palette label; RGB uint8 [H, W, 3] of a colour
    label if the spec has colours. Raises DataError.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode, ids = image.mode, np.asarray(image)
    except UNREADABLE as error:
        raise DataError(f"{file}: cannot be read as a label ({_reason(error)}); {MEND_LABEL}.") from None
    if mode in ("RGB", "RGBA") and spec.colors:
        return ids[..., :3]
    if mode in ("RGB", "RGBA") and spec.name == "folder":
        raise DataError(
            f"{file}: a label of mode {mode}, not one class number a pixel; declare colours in classes.txt, one "
            "line a class: `road 128 64 128`, or save class numbers (single-channel or palette PNG)."
        )
    if ids.ndim != 2 or mode == "F":
        raise DataError(
            f"{file}: a label of mode {mode}, not one class id a pixel; save it as a single-channel or palette "
            "PNG whose values are class numbers, from 0 in the order of the classes (255: ignore)."
        )
    return ids if ids.dtype == np.uint8 else ids.astype(np.uint8 if ids.dtype == bool else np.int32)


def map_label(ids: np.ndarray, table: np.ndarray, spec: DatasetSpec, file: str | Path) -> np.ndarray:
    """Class ids uint8 [H, W] of what `decode_label` gave; `table` is from `make_table`.

    DataError tells where an id or a colour is unknown.
    """
    if ids.ndim == 3:
        return _map_colors(ids, spec, file)
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


def _map_colors(rgb: np.ndarray, spec: DatasetSpec, file: str | Path) -> np.ndarray:
    """Class ids uint8 [H, W] of a colour label uint8 [H, W, 3]."""
    colors = np.array(spec.colors + spec.ignored_colors, np.int32)
    ids = np.array([*range(spec.num_classes), *[IGNORE] * len(spec.ignored_colors)], np.uint8)
    known, codes = _pack(colors), _pack(rgb.astype(np.int32))
    order = np.argsort(known)
    found = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
    wrong = known[found] != codes
    if not wrong.any():
        return ids[found]
    row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    color, count = rgb[row, column].astype(np.int32), int((codes == codes[row, column]).sum())
    nearest = int(((colors - color) ** 2).sum(-1).argmin())
    owner = f"'{spec.classes[nearest]}'" if nearest < spec.num_classes else "ignore"
    raise DataError(
        f"{file}: label colour {tuple(color.tolist())}, {count} pixels, first at row {row}, column {column}, is not "
        f"declared in classes.txt; the nearest is {tuple(colors[nearest].tolist())}, {owner}. Correct the label or the "
        "table; `ignore` and a colour on a line of its own leaves that colour out."
    )


def _pack(rgb: np.ndarray) -> np.ndarray:
    """int32 [...] of int32 [..., 3]: one number a colour."""
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


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
        self.files = [str(pair.image) for pair in pairs]
        self._tables = {ids: make_table(_ids_of(spec, ids)) for ids in {pair.ids for pair in pairs}}

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
        ids = decode_label(_read_bytes(pair.label), pair.label, self.spec)
        return map_label(ids, self._tables[pair.ids], self.spec, pair.label)

    def shape(self, index: int) -> tuple[int, int]:
        return inspect_image(self.pairs[index].image, self.pairs[index].image)


class Records:
    """A TFDS data source of encoded images and labels (PNG bytes under 'image' and 'label')."""

    def __init__(self, spec: DatasetSpec, records: Any, split: str):
        self.spec, self._records = spec, records
        self.names = self.files = [f"{spec.name}-{split}-{index:05d}" for index in range(len(records))]
        self._table = make_table(spec.label_map)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(image, label); DataError if one is damaged or an id is unknown."""
        record, name = self._records[index], self.names[index]
        label = map_label(decode_label(record["label"], name, self.spec), self._table, self.spec, name)
        return decode_image(record["image"], name), label

    def shape(self, index: int) -> tuple[int, int]:
        return inspect_image(self._records[index]["image"], self.names[index])


def _ids_of(spec: DatasetSpec, name: str) -> Mapping[int, int]:
    """The label map of this name; that of the official labels, the layout's last, is the spec's own."""
    return spec.label_map if name == spec.layout.labels[-1][1] else label_map(name, spec.num_classes)


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
