"""Write any data set as a TFDS data set of ArrayRecord shards.

They are fast to read: a few large files instead of many small ones. A record holds the encoded
image, its label as a PNG of class ids and 255, and its name. Shards are written one after the
other. Each gets its name when it is complete, and so does the data set, so that a run that was
interrupted can continue.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from jaxseg.data import catalog, statistics
from jaxseg.data.decode import Decoded, ImageOptions, decode, join_pair
from jaxseg.data.prepare.codecs import CODECS, encode_image, encode_label
from jaxseg.data.prepare.metadata import VERSION, notes_file, shard_name, write_metadata
from jaxseg.data.prepare.raw_datasets import ConversionTask
from jaxseg.data.prepare.splits import SourceSplit, is_zipped, list_splits
from jaxseg.data.sources import records
from jaxseg.errors import DataError, JaxsegError
from jaxseg.files import expand, locked
from jaxseg.parallel import ordered_map

log = logging.getLogger(__name__)

PLAN = "prepared.json"
THREADS = min(os.cpu_count() or 1, 8)  # each may hold all tiles of a large image
IMAGES_PER_SHARD, MAX_SHARDS = 100, 64  # a reader keeps every shard open
# zstd at its fastest level compresses what is not compressed yet, above all images of codec `zstd`,
# and costs the others nothing.
WRITER_OPTIONS = {"raw": "group_size:1,uncompressed"}
DEFAULT_OPTIONS = "group_size:1,zstd:1"

# Names and dtypes of the images of a task, and its serialised tf.train.Examples.
Encoded = tuple[list[str], set[str], list[bytes]]


def prepare(
    name: str,
    root: str | Path,
    output: str | Path,
    *,
    splits: Sequence[str] = (),
    codec: str = "keep",
    quality: int = 95,
    shards: int = 0,
    channels: int = 0,
) -> Path:
    """Write a data set as records.

    Args:
        name: The data set, one of `catalog.list_datasets()`.
        root: Its folder: pairs of files, an unpacked download, or the two zips of Cityscapes.
        output: Folder to write below; made if it is missing.
        splits: Names of the splits; () for train and val.
        codec: How images are encoded, one of CODECS. Labels are always lossless.
        quality: 1 to 100, for codec "jpeg".
        shards: Number of files of each split; 0 for one per 100 images, at most 64.
        channels: Channels of the images; 0 to choose by the first one (`sources.guess_channels`).

    Returns:
        The folder of the records.

    Raises:
        DataError: Images or labels are missing or wrong, or the folder already holds other records.
            The data set appears only when it is complete.
    """
    if codec not in CODECS:
        raise DataError(
            f"there is no codec '{codec}'", field="codec", hint=f"choose {', '.join(CODECS)}"
        )
    root, output = expand(root), expand(output)
    found = list_splits(name, root, splits, channels)
    zipped = is_zipped(name, root)
    counts = {split.name: _shard_count(len(split.tasks), shards) for split in found}
    keys = ("image", "label", "name")
    folder_name = name
    if zipped:
        keys = ("image_left", "segmentation_label", "image_id")
        folder_name = records.STOCK[name][0]
    encoder = Encoder(codec, quality, found[0].channels, keys)
    plan = _describe_plan(name, found, counts, encoder)
    final = output / folder_name / VERSION
    if _is_written(final, plan):
        return final
    with _locked(final):
        if _is_written(final, plan):
            return final
        scratch = _make_scratch(final, plan)
        _write_shards(scratch, name, found, counts, encoder)
        spec = catalog.get_spec(name, root)
        write_metadata(scratch, spec, counts, encoder.channels, output if zipped else None)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(root / statistics.NAME, scratch / statistics.NAME)
        os.rename(scratch, final)
    return final


def _describe_plan(
    name: str, splits: Sequence[SourceSplit], counts: Mapping[str, int], encoder: "Encoder"
) -> str:
    """Return text that changes with the files to read and the options to write them with."""
    states = {split.name: split.state for split in splits}
    plan = {"name": name, "shards": counts, "state": states} | dataclasses.asdict(encoder)
    return json.dumps(plan, indent=1)


def _shard_count(images: int, shards: int) -> int:
    """Return the number of shards of a split; `shards` is the requested number, or 0."""
    return min(images, shards or min(math.ceil(images / IMAGES_PER_SHARD), MAX_SHARDS))


@contextlib.contextmanager
def _locked(final: Path) -> Iterator[None]:
    """Hold the lock of a data set, or raise DataError if another process writes it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(final, wait=False))
        except JaxsegError as error:
            hint = "wait for it, or choose another output"
            raise DataError(error.problem, file=final, field="output", hint=hint) from None
        yield


def _is_written(final: Path, plan: str) -> bool:
    """Return whether the data set exists; raise DataError if it was written by another plan."""
    if not final.exists():
        return False
    file = final / PLAN
    if not file.is_file() or file.read_text() != plan:
        raise DataError(
            "already exists, written from other files or with other options",
            file=final,
            field="output",
            hint="remove it, or choose another output",
        )
    log.info("%s is already there", final)
    return True


def _make_scratch(final: Path, plan: str) -> Path:
    """Make the folder of an unfinished data set; shards written there by the same plan stay."""
    scratch = final.with_name(f"{VERSION}.unfinished")
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        file = scratch / PLAN
        if file.is_file() and file.read_text() == plan:
            if done := len(list(scratch.glob("*.array_record-*-of-?????"))):
                log.info("%s: continuing after %d shards", scratch, done)
            return scratch
        for left in scratch.iterdir():
            left.unlink()
        file.write_text(plan)
    except OSError as error:
        hint = "choose another output"
        raise DataError(
            f"cannot be written ({error.strerror})", file=scratch, field="output", hint=hint
        ) from None
    return scratch


# --- Encoding -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encode the images of a task.

    Attributes:
        codec: One of CODECS.
        quality: Quality of codec "jpeg", 1 to 100.
        channels: Channels that the images are read with.
        keys: Names of the features for image, label and name.
    """

    codec: str
    quality: int
    channels: int
    keys: tuple[str, str, str]

    def __call__(self, task: ConversionTask) -> Encoded:
        """Return names, dtypes and serialised examples of a task."""
        names, dtypes, examples = [], set(), []
        for name, image, label in task.load():
            data, label, dtype = self._encode(name, image, label)
            names.append(name)
            dtypes.add(dtype)
            values = (data, encode_label(label), name.encode())
            examples.append(_serialize(dict(zip(self.keys, values))))
        return names, dtypes, examples

    def _encode(
        self, name: str, image: Path | bytes | np.ndarray, label: np.ndarray
    ) -> tuple[bytes, np.ndarray, str]:
        """Check that an image can be decoded and fits its label.

        Returns:
            Its bytes; the label, 255 where the image holds no data; and the dtype of the image.
        """
        file = image if isinstance(image, Path) else name
        data: bytes | np.ndarray = image.read_bytes() if isinstance(image, Path) else image
        if isinstance(data, np.ndarray):
            decoded = Decoded(data)
        else:
            decoded = decode(data, file, ImageOptions(self.channels))
        pixels, label = join_pair(decoded, label, (), file, f"of '{name}'")
        if self.codec == "keep" and isinstance(data, bytes):
            return data, label, pixels.dtype.name
        codec = "png" if self.codec == "keep" else self.codec
        return encode_image(pixels, codec, self.quality), label, pixels.dtype.name


def _serialize(fields: Mapping[str, bytes]) -> bytes:
    """Return a serialised tf.train.Example of bytes."""
    feature = {
        key: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))
        for key, value in fields.items()
    }
    features = tf_feature_pb2.Features(feature=feature)
    return tf_example_pb2.Example(features=features).SerializeToString(deterministic=True)


# --- Shards ---------------------------------------------------------------------------------------


def _write_shards(
    folder: Path,
    name: str,
    splits: Sequence[SourceSplit],
    counts: Mapping[str, int],
    encoder: Encoder,
) -> None:
    """Write the shards that are not there yet."""
    missing = [
        (shard, tasks)
        for split in splits
        for shard, tasks in _divide(folder, name, split, counts[split.name])
        if not (shard.is_file() and notes_file(shard).is_file())
    ]
    work = [task for _, tasks in missing for task in tasks]
    encoded = ordered_map(encoder, work, "preparing", progress=True, threads=THREADS, ahead=THREADS)
    with contextlib.closing(encoded):
        for shard, tasks in missing:
            _write_shard(shard, itertools.islice(encoded, len(tasks)), encoder.codec)


def _divide(
    folder: Path, name: str, split: SourceSplit, count: int
) -> Iterator[tuple[Path, Sequence[ConversionTask]]]:
    """Yield the shards of a split and the tasks of each."""
    total = len(split.tasks)
    for number in range(count):
        tasks = split.tasks[number * total // count : (number + 1) * total // count]
        yield folder / shard_name(name, split.name, number, count), tasks


def _write_shard(shard: Path, encoded: Iterator[Encoded], codec: str) -> None:
    """Write one shard and its notes; the shard gets its name last."""
    # Imported here because it loads a large C++ library.
    from array_record.python import array_record_module as array_record  # noqa: PLC0415

    part = shard.with_name(f"{shard.name}.part")
    names: list[str] = []
    dtypes: set[str] = set()
    options = WRITER_OPTIONS.get(codec, DEFAULT_OPTIONS)
    try:
        with contextlib.closing(array_record.ArrayRecordWriter(str(part), options)) as writer:
            for task_names, task_dtypes, examples in encoded:
                for example in examples:
                    writer.write(example)
                names += task_names
                dtypes |= task_dtypes
    except RuntimeError as error:  # the writer's
        raise DataError(
            f"cannot be written ({str(error).split(';')[0]})",
            file=part,
            hint="free some space and run it again; it continues",
        ) from None
    notes_file(shard).write_text(json.dumps({"names": names, "dtypes": sorted(dtypes)}))
    os.replace(part, shard)
