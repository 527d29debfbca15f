"""Time the data pipelines of MMSegmentation and jaxseg in turn, on the same files and one core.

    python tools/compare_data.py --root=FOLDER [--files=DIR] [--prepared=DIR] [--json=FILE]

Prints CPU ms per 2048x1024 PNG pair, and the ratio. Needs torch, mmengine, mmsegmentation==1.2.2
and mmcv-lite==2.1.0 (the last two installed with --no-deps).

FOLDER is a `folder` data set of photos. A dozen pairs in Cityscapes' layout are made of them under
DIR (a temporary folder by default): enlarged, with noise until a PNG takes about 2.3 MB, labels as
labelTrainIds. Both sides do Cityscapes' published training pipeline at 512x1024. --prepared names
the same pairs as scripts/prepare_data.py wrote them (from --files, kept of an earlier run), to be
timed as well.
"""

import argparse
import collections
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from compare_mmseg import import_mmseg

from jaxseg.data.augment.transforms import Augment
from jaxseg.data.catalog import get_spec
from jaxseg.data.sources import open_source

PAIRS, SIZE, BYTES = 12, (2048, 1024), 2.3e6
CROP, RESIZE, RATIOS = (512, 1024), (2048, 1024), (0.5, 2.0)
THEIRS = (
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=RESIZE, ratio_range=RATIOS, keep_ratio=True),
    dict(type="RandomCrop", crop_size=CROP, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
)
IMAGE = "leftImg8bit/train/made/{}_leftImg8bit.png"
LABEL = "gtFine/train/made/{}_gtFine_labelTrainIds.png"
Times = dict[str, list[float]]


# --- Files ----------------------------------------------------------------------------------------


def make_pairs(root: Path, folder: Path) -> None:
    """Write photos and labels of `root`, enlarged, as Cityscapes' files; existing ones stay."""
    source = open_source(get_spec("folder", str(root)), root, "train")
    for number in range(PAIRS):
        image, label = (
            folder / pattern.format(f"made_{number:06d}_000019") for pattern in (IMAGE, LABEL)
        )
        if image.exists() and label.exists():
            continue
        photo, ids = source.read(number * len(source) // PAIRS)
        image.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(
            encode_noisy(cv2.resize(photo, SIZE, interpolation=cv2.INTER_CUBIC), number)
        )
        assert cv2.imwrite(str(label), cv2.resize(ids, SIZE, interpolation=cv2.INTER_NEAREST))


def encode_noisy(image: np.ndarray, seed: int) -> bytes:
    """Encode an image uint8 [H, W, 3] as PNG, with noise that makes it take about BYTES."""
    noise = np.random.default_rng(seed).standard_normal(image.shape, np.float32)
    low, high, data = 0.0, 4.0, b""
    for _ in range(7):
        noisy = np.clip(image + noise * (low + high) / 2 + 0.5, 0, 255).astype(np.uint8)
        data = cv2.imencode(".png", noisy[..., ::-1])[1].tobytes()
        low, high = (low, (low + high) / 2) if len(data) > BYTES else ((low + high) / 2, high)
    return data


# --- The two sides --------------------------------------------------------------------------------


def make_theirs(folder: Path) -> Callable[[int, Times], Any]:
    """Make a reader of their samples, (index, times); it adds each stage's CPU s to `times`."""
    import_mmseg()
    import mmseg.datasets.transforms  # noqa: F401, PLC0415 - registers them; after import_mmseg
    import torch  # noqa: PLC0415 - not needed for --help
    from mmseg.registry import TRANSFORMS  # noqa: PLC0415 - after import_mmseg

    torch.set_num_threads(1)
    np.random.seed(0)  # which their transforms draw from
    stages = [(stage["type"], TRANSFORMS.build(dict(stage))) for stage in THEIRS]
    images = sorted(folder.glob(IMAGE.format("*")))
    labels = sorted(folder.glob(LABEL.format("*")))

    def read(index: int, times: Times) -> Any:
        sample = dict(
            img_path=str(images[index]),
            seg_map_path=str(labels[index]),
            seg_fields=[],
            reduce_zero_label=False,
        )
        for name, stage in stages:
            start = time.process_time()
            sample = stage(sample)
            times[name].append(time.process_time() - start)
        return sample

    return read


def make_ours(root: Path, source: str, seed: int = 0) -> Callable[[int, Times], Any]:
    """Make a reader of our samples, (index, times), from 'files' or 'tfds'."""
    opened = open_source(
        get_spec("cityscapes", str(root), source=source), root, "train", source=source
    )
    augment = Augment(CROP, RESIZE, RATIOS, cat_max_ratio=0.75, flip=0.5, photometric=True)
    rng = np.random.default_rng(seed)

    def read(index: int, times: Times) -> Any:
        begin = time.process_time()
        image, label = opened.read(index)
        middle = time.process_time()
        sample = augment(rng, image, label)
        times["read"].append(middle - begin)
        times["augment"].append(time.process_time() - middle)
        return sample

    return read


def label_share(folder: Path, times: Times) -> None:
    """Time reading our labels alone, which is a part of `read`."""
    source = open_source(get_spec("cityscapes", str(folder)), folder, "train")
    for index in range(len(source)):
        start = time.process_time()
        source.read_label(index)
        times["of read: label"].append(time.process_time() - start)


def main(argv: list[str]) -> None:
    """Make the files, and time both sides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="a `folder` data set of photos")
    parser.add_argument("--files", type=Path, help="where the pairs are made, and kept")
    parser.add_argument(
        "--prepared", type=Path, help="the pairs of --files as scripts/prepare_data.py wrote them"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.files or Path(temporary)
        make_pairs(args.root, folder)
        sides = {
            "MMSegmentation 1.2.2": make_theirs(folder),
            "jaxseg, PNG": make_ours(folder, "files"),
        }
        if args.prepared:
            sides["jaxseg, prepared"] = make_ours(args.prepared, "tfds")
        cv2.setNumThreads(1)  # after the imports, which set it too
        times: dict[str, Times] = {side: collections.defaultdict(list) for side in sides}
        for number in range(-1, args.rounds):
            for index in range(PAIRS):
                for side, read in sides.items():
                    warm_up: Times = collections.defaultdict(list)  # the first round
                    read(index, times[side] if number >= 0 else warm_up)
        extra: Times = collections.defaultdict(list)
        label_share(folder, extra)
        size = statistics.mean(file.stat().st_size for file in folder.glob(IMAGE.format("*")))
    report(times, extra, size, args.json)


def report(times: dict[str, Times], extra: Times, size: float, file: Path | None) -> None:
    """Print mean and median CPU ms of every stage, and each side's ratio to the first.

    Args:
        times: CPU seconds of each stage of each side.
        extra: Further stages of our PNG side.
        size: Mean bytes of a PNG.
        file: Where to write the rows as JSON, if anywhere.
    """
    print(f"CPU ms per pair, one core, OpenCV {cv2.__version__}; a PNG takes {size / 1e6:.2f} MB")
    print(f"{'':34}  mean  median")
    rows: list[dict[str, Any]] = []
    for side, stages in times.items():
        whole = [sum(parts) for parts in zip(*stages.values())]
        first = rows[0]["mean"] / 1e3 if rows else statistics.mean(whole)
        ratio = statistics.mean(whole) / first
        rows.append(dict(side=side, stage="all", **_figures(whole), ratio=ratio))
        parts = dict(stages) | (extra if side == "jaxseg, PNG" else {})
        rows += [dict(side=side, stage=stage, **_figures(parts[stage])) for stage in parts]
    for row in rows:
        name = row["side"] if row["stage"] == "all" else f"  {row['stage']}"
        ratio_text = f"   ratio {row['ratio']:.3f}" if "ratio" in row else ""
        print(f"{name:34}{row['mean']:6.1f}{row['median']:8.1f}{ratio_text}")
    if file:
        file.write_text(json.dumps(rows, indent=1))


def _figures(seconds: list[float]) -> dict[str, float]:
    return dict(mean=statistics.mean(seconds) * 1e3, median=statistics.median(seconds) * 1e3)


if __name__ == "__main__":
    main(sys.argv[1:])
