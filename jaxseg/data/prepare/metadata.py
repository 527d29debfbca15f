"""The files beside the shards of a prepared data set that readers need."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxseg.data.builtin import named_label_map
from jaxseg.data.sources import records
from jaxseg.data.spec import DatasetSpec
from jaxseg.files import read_json

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

VERSION = "1.0.0"


def shard_name(name: str, split: str, number: int, count: int) -> str:
    """Return the file name of a shard, as TFDS expects it.

    Args:
        name: Name of the data set.
        split: Name of the split.
        number: Number of the shard, from 0.
        count: Number of shards of the split.
    """
    return f"{name}-{split}.array_record-{number:05d}-of-{count:05d}"


def notes_file(shard: Path) -> Path:
    """Return the file that holds the names and dtypes of a shard until the data set is complete."""
    return shard.with_name(f"{shard.name}.json")


def write_metadata(
    folder: Path,
    spec: DatasetSpec,
    counts: Mapping[str, int],
    channels: int,
    stock_root: Path | None,
) -> None:
    """Write the metadata of a prepared data set, and remove the shards' notes.

    These are TFDS's dataset_info.json and features.json, and our names.json and dataset.json.

    Args:
        folder: The folder of the shards, which are complete.
        spec: The data set.
        counts: Number of shards of each split.
        channels: Channels of the images.
        stock_root: For a data set that TFDS has a builder of, the builder's data_dir: its own
            description is written. Its labels hold raw ids, which our dataset.json would
            contradict.
    """
    import tensorflow_datasets as tfds  # noqa: PLC0415 - slow to import

    shards = {
        split: [folder / shard_name(spec.name, split, number, count) for number in range(count)]
        for split, count in counts.items()
    }
    notes = {shard: read_json(notes_file(shard)) for files in shards.values() for shard in files}
    names = {
        split: [name for shard in files for name in notes[shard]["names"]]
        for split, files in shards.items()
    }
    (folder / records.NAMES).write_text(json.dumps(names))
    if stock_root:
        stock = records.STOCK[spec.name][0]
        info = tfds.builder(stock, data_dir=stock_root, file_format="array_record").info
    else:
        identity = named_label_map("identity", spec.num_classes)
        written = dataclasses.replace(
            spec,
            label_map=identity,
            colors=(),
            ignored_colors=(),
            label_ranges=(),
            explicit_map=False,
        )
        (folder / records.SPEC).write_text(written.to_json())
        dtypes = {dtype for note in notes.values() for dtype in note["dtypes"]}
        info = _make_info(spec, channels, dtypes)
    info.set_file_format("array_record")
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[len(notes[shard]["names"]) for shard in files],
            num_bytes=sum(shard.stat().st_size for shard in files),
        )
        for split, files in shards.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
    for shard in notes:
        notes_file(shard).unlink()


def _make_info(spec: DatasetSpec, channels: int, dtypes: set[str]) -> "tfds.core.DatasetInfo":
    """Return TFDS's description of a data set that it has no builder for."""
    import tensorflow_datasets as tfds  # noqa: PLC0415 - slow to import
    from tensorflow_datasets.core.dataset_info import DatasetIdentity  # noqa: PLC0415 - as above

    image = tfds.features.Text()  # bytes, where TFDS has no feature for the images
    if dtypes in ({"uint8"}, {"uint16"}):
        (dtype,) = dtypes
        image = tfds.features.Image(shape=(None, None, channels), dtype=np.dtype(dtype))
    label = tfds.features.Image(shape=(None, None, 1), encoding_format="png", use_colormap=True)
    return tfds.core.DatasetInfo(
        builder=DatasetIdentity(
            name=spec.name,
            version=tfds.core.Version(VERSION),
            data_dir="",
            module_name="jaxseg.data.prepare",
        ),
        description=(
            f"'{spec.name}', written by jaxseg's prepare_data.py: labels hold class ids, 255 is "
            "ignored."
        ),
        features=tfds.features.FeaturesDict(
            {"image": image, "label": label, "name": tfds.features.Text()}
        ),
        disable_shuffling=True,
    )
