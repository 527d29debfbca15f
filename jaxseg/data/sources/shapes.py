"""The embedded data set `shapes`: textured shapes over clutter.

The class is the form. Colours and textures have the same distributions for every class and for the
clutter of class 0, so they reveal nothing. A scene is a function of (split, index); all are written
once into the user's cache.
"""

import contextlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxseg.files import locked

log = logging.getLogger(__name__)

CLASSES = ("background", "disk", "square", "triangle", "star", "ring", "cross")
PALETTE = (
    (70, 70, 70),
    (230, 85, 80),
    (75, 145, 230),
    (245, 195, 60),
    (170, 95, 205),
    (60, 185, 135),
    (245, 145, 60),
)
SPLITS = {"train": 1000, "val": 100}
VERSION = "1.3.0"
SIZE = 96
SHIFT = 4  # fractional bits of OpenCV's polygon coordinates
SMOOTH = 4  # supersampling of the outlines
RADIUS = (17.0, 27.0)

_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32)


# --- Outlines: polygons [N, 2] around 0 whose farthest point is about 1 away ---


def _regular(corners: int) -> np.ndarray:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def _star(rng: np.random.Generator) -> np.ndarray:
    radius = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1.2)
    return _regular(10) * radius[:, None]


def _cross(rng: np.random.Generator) -> np.ndarray:
    a = rng.uniform(0.28, 0.36)
    corner = [(1, -a), (1, a), (a, a)]
    return np.array(
        [
            (c * x - s * y, s * x + c * y)
            for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))
            for x, y in corner
        ]
    )


def _triangle(rng: np.random.Generator) -> np.ndarray:
    return _regular(3) * 1.15 * rng.uniform(0.9, 1.1, (3, 1))


def _outline(name: str, rng: np.random.Generator) -> np.ndarray:
    """Return the outline of a shape of this class."""
    match name:
        case "disk":
            return _regular(48) * 0.92
        case "square":
            return _regular(4) * 1.1
        case "triangle":
            return _triangle(rng)
        case "star":
            return _star(rng)
        case "ring":
            return _regular(48)
        case "cross":
            return _cross(rng)
        case _:
            raise ValueError(name)


def _blob(rng: np.random.Generator) -> np.ndarray:
    """Return the outline of clutter: a closed curve with deep lobes, unlike any of the shapes."""
    angles = np.arange(48) * (2 * np.pi / 48)
    waves = np.zeros(48)
    for k in (2, 3, 5):
        waves += rng.uniform(0.15, 0.3) * np.cos(k * angles + rng.uniform(0, 2 * np.pi))
    return _regular(48) * (0.6 + waves)[:, None] * (1.0, rng.uniform(0.5, 0.9))


def _place(polygon: np.ndarray, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Return an outline rotated, scaled and moved into the scene."""
    c, s = np.cos(angle), np.sin(angle)
    return polygon @ np.array([[c, s], [-s, c]]) * radius + center


def _coverage(*polygons: np.ndarray) -> np.ndarray:
    """Return the share of each pixel inside: float32 [SIZE, SIZE]; a second polygon is a hole."""
    mask = np.zeros((SIZE * SMOOTH, SIZE * SMOOTH), np.uint8)
    points = [np.round((p + 0.5) * SMOOTH * 2**SHIFT).astype(np.int32) for p in polygons]
    cv2.fillPoly(mask, points, 255, shift=SHIFT)
    return cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


# --- Surfaces ---


def _stripes(
    x: np.ndarray, y: np.ndarray, period: np.float32, rng: np.random.Generator
) -> np.ndarray:
    return np.clip(0.5 + 2 * np.sin(x * (2 * np.pi / period)), 0, 1)


def _checks(
    x: np.ndarray, y: np.ndarray, period: np.float32, rng: np.random.Generator
) -> np.ndarray:
    return np.clip(
        0.5 + 3 * np.sin(x * (2 * np.pi / period)) * np.sin(y * (2 * np.pi / period)), 0, 1
    )


def _dots(x: np.ndarray, y: np.ndarray, period: np.float32, rng: np.random.Generator) -> np.ndarray:
    return np.clip(
        1.5 * (np.cos(x * (2 * np.pi / period)) + np.cos(y * (2 * np.pi / period))) - 0.6, 0, 1
    )


def _gradient(
    x: np.ndarray, y: np.ndarray, period: np.float32, rng: np.random.Generator
) -> np.ndarray:
    return np.clip(0.5 + x / 50, 0, 1)


def _noise(
    x: np.ndarray, y: np.ndarray, period: np.float32, rng: np.random.Generator
) -> np.ndarray:
    cells = max(round(SIZE / period * 1.5), 4)
    grain = rng.random((cells, cells), np.float32)
    return np.clip(cv2.resize(grain, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), 0, 1)


TEXTURES = (_stripes, _checks, _dots, _gradient, _noise)


def _color(rng: np.random.Generator) -> np.ndarray:
    """Return a random RGB colour with a wide range of hue, saturation and brightness."""
    hsv = np.array(
        [[[rng.uniform(0, 360), rng.uniform(0.15, 0.9), rng.uniform(0.3, 1.0)]]], np.float32
    )
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _unlike(rng: np.random.Generator, other: np.ndarray, distance: float = 180.0) -> np.ndarray:
    """Return a random colour that differs from `other` by about `distance` (sum over RGB)."""
    return max(
        (_color(rng) for _ in range(5)), key=lambda c: min(float(np.abs(c - other).sum()), distance)
    )


def _surface(rng: np.random.Generator, base: np.ndarray, contrast: float) -> np.ndarray:
    """Return a texture float32 [SIZE, SIZE, 3] between `base` and a lighter or darker colour."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(5.0, 11.0)
    x = (_X - SIZE / 2) * np.float32(np.cos(angle)) + (_Y - SIZE / 2) * np.float32(np.sin(angle))
    y = (_Y - SIZE / 2) * np.float32(np.cos(angle)) - (_X - SIZE / 2) * np.float32(np.sin(angle))
    texture = TEXTURES[rng.integers(len(TEXTURES))](x, y, np.float32(period), rng)
    toward = np.float32(255) if base.mean() < 128 else np.float32(0)
    other = (
        base + (toward - base) * np.float32(contrast) + rng.uniform(-12, 12, 3).astype(np.float32)
    )
    return base + texture[..., None] * (other - base)


# --- Scenes ---


def draw_scene(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Args:
        split: One of SPLITS.
        index: Number of the scene in the split.

    Returns:
        Image uint8 [SIZE, SIZE, 3] and label uint8 [SIZE, SIZE].
    """
    rng = np.random.default_rng((list(SPLITS).index(split), index, 20))
    ground = _color(rng)
    image = _surface(rng, ground, rng.uniform(0.05, 0.2))
    label = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(rng.integers(1, 4)):
        _draw_clutter(image, rng, ground)
    centers: list[np.ndarray] = []
    for _ in range(rng.integers(2, 5)):
        center, radius = _free_place(rng, centers), rng.uniform(*RADIUS)
        kind = int(rng.integers(1, len(CLASSES)))
        placed = rng.uniform(0, 2 * np.pi)
        polygons = [_place(_outline(CLASSES[kind], rng), center, radius, placed)]
        if CLASSES[kind] == "ring":
            polygons.append(_place(_regular(48) * rng.uniform(0.45, 0.58), center, radius, placed))
        inside = _coverage(*polygons)
        _paint(image, inside, rng, ground, 1.0)
        label[inside > 0.5] = kind
    image += rng.normal(0, rng.uniform(1, 4), image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), label


def _free_place(rng: np.random.Generator, centers: list[np.ndarray]) -> np.ndarray:
    """Add the one of a few random centres that is farthest from `centers` to them; return it."""
    candidates = rng.uniform(13, SIZE - 13, (8, 2))
    distance = [
        min((float(np.linalg.norm(c - other)) for other in centers), default=0.0)
        for c in candidates
    ]
    centers.append(candidates[int(np.argmax(distance))])
    return centers[-1]


def _paint(
    image: np.ndarray,
    inside: np.ndarray,
    rng: np.random.Generator,
    ground: np.ndarray,
    opacity: float,
) -> None:
    """Cover `image`, in place, with a new surface where `inside`, with a rim and a shadow."""
    rim = inside - cv2.erode(inside, np.ones((3, 3), np.uint8))
    inside = inside * np.float32(opacity)
    shadow = cv2.GaussianBlur(inside, (0, 0), 1.5)
    shadow = np.roll(shadow, (1, 1), (0, 1)) * (1 - inside)
    image *= 1 - np.float32(0.35) * shadow[..., None]
    surface = _surface(rng, _unlike(rng, ground), rng.uniform(0.1, 0.35))
    image += inside[..., None] * (surface * (1 - np.float32(0.6) * rim[..., None]) - image)


def _draw_clutter(image: np.ndarray, rng: np.random.Generator, ground: np.ndarray) -> None:
    """Paint a blob or a few strokes into `image`, like shapes but partly transparent."""
    opacity = rng.uniform(0.3, 0.7)
    if rng.random() < 0.6:
        polygon = _place(
            _blob(rng), rng.uniform(0, SIZE, 2), rng.uniform(8, 22), rng.uniform(0, 2 * np.pi)
        )
        _paint(image, _coverage(polygon), rng, ground, opacity)
        return
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(rng.integers(1, 4)):
        start, end = (rng.integers(0, SIZE, 2).tolist() for _ in range(2))
        cv2.line(mask, start, end, 255, int(rng.integers(1, 4)), cv2.LINE_AA)
    _paint(image, mask.astype(np.float32) / 255, rng, ground, opacity)


# --- The data set ---


def encode_png(image: np.ndarray) -> bytes:
    """Encode a label uint8 [H, W] or image uint8 [H, W, 3] as a PNG that decodes quickly."""
    image = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", image, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1].tobytes()


def _builder(data_dir: Path) -> Any:
    """Return TFDS's builder of the data set below `data_dir`."""
    import tensorflow_datasets as tfds  # noqa: PLC0415 - takes seconds; only the first use writes

    with tfds.core.registered.skip_registration():

        class Shapes(tfds.core.GeneratorBasedBuilder):
            """Textured shapes over clutter."""

            VERSION = tfds.core.Version(VERSION)
            pkg_dir_path = Path(__file__).parent

            def _info(self) -> Any:
                features = tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                        "label": tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format="png"),
                    }
                )
                return tfds.core.DatasetInfo(
                    builder=self,
                    description=self.__doc__,
                    features=features,
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
                return {split: self._generate_examples(split) for split in SPLITS}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
                for index in range(SPLITS[split]):
                    image, label = draw_scene(split, index)
                    yield (
                        index,
                        {
                            "image": io.BytesIO(encode_png(image)),
                            "label": io.BytesIO(encode_png(label)),
                        },
                    )

    return Shapes(data_dir=data_dir, file_format="array_record")


def prepare(folder: Path) -> Path:
    """Write the data set below `folder` unless it is there; return the folder of its files.

    It appears by one rename, so a killed start leaves no partial data set. Of several processes one
    writes while the others wait.
    """
    final = folder / "shapes" / VERSION
    if final.is_dir():
        return final
    with locked(final, waiting=f"waiting for another process, which writes {final}"):
        if not final.is_dir():
            _write(folder, final)
    return final


def _write(folder: Path, final: Path) -> None:
    """Write the data set into a new folder, then rename it; the caller holds the lock."""
    for left in folder.glob("shapes-unfinished-*"):  # of killed starts
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix="shapes-unfinished-", dir=folder))
    try:
        builder = _builder(scratch)
        log.info("writing the data set 'shapes' into %s (once, some seconds)", final)
        # TFDS prints the scratch folder and shows progress bars.
        silence = io.StringIO()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            builder.download_and_prepare()
        os.rename(builder.data_dir, final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
