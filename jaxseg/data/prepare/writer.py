"""Writing: any data set as a TFDS data set of ArrayRecord shards, for speed and for storage that dislikes small files.

A record holds the encoded image, its label as PNG of class ids and 255, and its name. Shards are written one after the other, each
appears under its name when it is whole, and the data set when all are: a run that was stopped goes on where it was.
"""

import collections
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from jaxseg.data import catalog, sources, statistics
from jaxseg.data.decode import (
    Decoded,
    ImageOptions,
    decode,
    decode_label,
    join_pair,
    make_table,
    map_label,
)
from jaxseg.data.prepare import raw_datasets as official
from jaxseg.data.prepare.raw_datasets import Job
from jaxseg.data.sources import records
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError
from jaxseg.files import expand

log = logging.getLogger(__name__)

THREADS = min(os.cpu_count() or 1, 8)  # each may hold all tiles of a large image
VERSION, PLAN = "1.0.0", "prepared.json"
PER_SHARD, MOST_SHARDS = 100, 64  # images; a reader keeps every shard open
# zstd at its fastest compresses what is not compressed yet, `zstd` images above all, and costs the others nothing.
WRITER_OPTIONS = {"raw": "group_size:1,uncompressed"}
DEFAULT_OPTIONS = "group_size:1,zstd:1"
EVALUATION_SETS = ("dark_zurich", "night_driving")
ZIPS = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")
PNG = {"png": (), "zstd": (cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
       "raw": (cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
       "label": (cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)}  # fmt: skip
# Reading a pair of 2048x1024 on one core (docs/benchmarks.md): keep 28 ms of PNG, zstd 14, raw 9, jpeg 8.
CODECS = {
    "keep": "the files' own bytes (tiles and the like become png)",
    "png": "without loss, small",
    "zstd": "without loss, about as small, read twice as fast: PNG that ArrayRecord compresses instead",
    "raw": "without loss, twice as large, read three times as fast: PNG that nobody compresses",
    "jpeg": "with loss, a sixth of the size, read fastest",
}


# --- What is to be written --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Split:
    """A split under the name it gets; `state` changes with the files that its jobs read; `channels` is how images are read."""

    name: str
    jobs: Sequence[Job]
    state: str
    channels: int = 3


def list_splits(name: str, root: str | Path, splits: Sequence[str], channels: int) -> list[Split]:
    """The images of a data set, wherever it is read from: Cityscapes' zips, an official download, or pairs of files. Raises DataError."""
    if is_zipped(name, root):
        found = [_zipped(Path(root), split) for split in splits or ("train", "val", "test")]
        return [split for split in found if split.jobs or split.name != "test"]
    return [
        _split(name, root, split, channels)
        for split in splits or (("val",) if name in EVALUATION_SETS else ("train", "val"))
    ]


def is_zipped(name: str, root: str | Path) -> bool:
    """Whether `root` holds the zips of Cityscapes, which become TFDS's own `cityscapes`."""
    return name == "cityscapes" and all((Path(root) / file).is_file() for file in ZIPS)


def _split(name: str, root: str | Path, split: str, channels: int) -> Split:
    if not re.fullmatch(r"\w+", split):
        raise DataError(
            f"--splits: '{split}' is no name of a split; whole ones are prepared, parts and sums of them are read."
        )
    spec = catalog.get_spec(name, root)
    download = None
    if name in official.NAMES:
        try:
            jobs = official.jobs(name, root, split)
            return Split(
                split, jobs, _hash(str(root), [(job.name, *_stats(job.files)) for job in jobs])
            )
        except DataError as error:
            download = error
            if not spec.layout.lies_in(Path(root)):
                raise
    try:
        source = sources.open_source(spec, root, split, channels=channels or 3)
    except DataError as error:
        if download is None:
            raise
        raise DataError(f"{download} Nor can it be read in place: {error}") from None
    if not channels and (guess := sources.guess_channels(source)) != 3:
        return _split(name, root, split, guess)
    jobs = [
        Job(stem, functools.partial(_pair, source, index))
        for index, stem in enumerate(source.names)
    ]
    return Split(
        split,
        jobs,
        _hash(source.fingerprint(), _stats(file for file in source.files if os.path.isfile(file))),
        channels or 3,
    )


def _stats(files: Iterable[str | Path]) -> list[tuple[str, int, int]]:
    """What changes when one of these files does."""
    return [
        (str(file), stat.st_size, stat.st_mtime_ns)
        for file, stat in ((file, os.stat(file)) for file in files)
    ]


def _hash(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _pair(source: sources.Source, index: int) -> Iterator[tuple]:
    file = Path(source.files[index])
    yield (
        source.names[index],
        file if file.is_file() else source.read(index)[0],
        source.read_label(index),
    )


def _zipped(root: Path, split: str) -> Split:
    """A split of Cityscapes' zips; its labels keep their raw ids, once these are known to be right."""
    images, labels = (_open_zip(root / file) for file in ZIPS)
    spec, there, jobs = records.stock_spec("cityscapes"), set(labels.namelist()), []
    for image in sorted(images.namelist()):
        found = re.fullmatch(rf"leftImg8bit/{split}/([^/]+/([^/]+))_leftImg8bit\.png", image)
        label = found and f"gtFine/{split}/{found[1]}_gtFine_labelIds.png"
        if found and label not in there:
            raise DataError(
                f"{root / ZIPS[1]}: holds no {label}, the label of {image}; download it again."
            )
        if found:
            jobs.append(
                Job(
                    found[2],
                    functools.partial(_unzip_pair, spec, found[2], images, image, labels, label),
                )
            )
    if not jobs and split != "test":
        raise DataError(
            f"{root / ZIPS[0]}: holds no image leftImg8bit/{split}/...; download it again, or set --splits."
        )
    return Split(
        records.SYNONYMS.get(split, split),
        jobs,
        str([(file, (root / file).stat().st_size) for file in ZIPS]),
    )


def _unzip_pair(
    spec: DatasetSpec,
    stem: str,
    images: zipfile.ZipFile,
    image: str,
    labels: zipfile.ZipFile,
    label: str,
) -> Iterator[tuple]:
    file = f"{labels.filename}: {label}"
    raw = decode_label(_unzip(labels, label), file, spec)
    map_label(raw, make_table(spec.label_map, spec.label_ranges), spec, file)
    yield stem, _unzip(images, image), raw


def _open_zip(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise DataError(f"{file}: is no whole zip ({error}); download it again.") from None


def _unzip(archive: zipfile.ZipFile, member: str) -> bytes:
    try:
        return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{archive.filename}: {member} is damaged ({error}); download it again."
        ) from None


# --- Encoding ---------------------------------------------------------------------------------------------------------


def encode_image(image: np.ndarray, codec: str = "png", quality: int = 95) -> bytes:
    """Bytes of an image [H, W, C], see CODECS; what PNG cannot hold without loss becomes NPY. Raises DataError.

    quality: 1 to 100, of 'jpeg', which holds grey and RGB of 8 bits only.
    """
    channels = image.shape[2]
    ordered = (
        image
        if channels == 1
        else image[..., [2, 1, 0, 3][:channels]]
        if channels in (3, 4)
        else None
    )
    if codec == "jpeg":
        if image.dtype != np.uint8 or channels not in (1, 3):
            raise DataError(
                f"--codec=jpeg holds 8 bits of 1 or 3 channels, not {image.dtype} of {channels}; use --codec=zstd."
            )
        return cv2.imencode(".jpg", ordered, (cv2.IMWRITE_JPEG_QUALITY, quality))[1].tobytes()
    if ordered is None or image.dtype not in (np.uint8, np.uint16):
        np.save(data := io.BytesIO(), image)
        return data.getvalue()
    return cv2.imencode(".png", ordered, PNG[codec])[1].tobytes()


def encode_label(label: np.ndarray) -> bytes:
    """PNG of a label [H, W], made to be decoded quickly: 1 ms for 2048x1024, where a common one takes 5."""
    return cv2.imencode(".png", label, PNG["label"])[1].tobytes()


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Job -> (names, dtypes of the images, serialised tf.train.Examples). keys: the features' names, of image, label and name."""

    codec: str
    quality: int
    channels: int
    keys: tuple[str, str, str]

    def __call__(self, job: Job) -> tuple[list[str], set[str], list[bytes]]:
        names, dtypes, examples = [], set(), []
        for name, image, label in job.load():
            data, label, dtype = self._encode(name, image, label)
            names.append(name)
            dtypes.add(dtype)
            examples.append(
                _serialize(dict(zip(self.keys, (data, encode_label(label), name.encode()))))
            )
        return names, dtypes, examples

    def _encode(self, name: str, image: Any, label: np.ndarray) -> tuple[bytes, np.ndarray, str]:
        """The image's bytes, once it is known that they can be decoded and have the label's size; the label, 255 where they hold no data."""
        file = image if isinstance(image, Path) else name
        data = image.read_bytes() if isinstance(image, Path) else image
        decoded = (
            Decoded(image)
            if isinstance(image, np.ndarray)
            else decode(data, file, ImageOptions(self.channels))
        )
        pixels, label = join_pair(decoded, label, (), file, f"of '{name}'")
        if self.codec != "keep" or data is pixels:
            data = encode_image(pixels, "png" if self.codec == "keep" else self.codec, self.quality)
        return data, label, pixels.dtype.name


def _serialize(fields: dict[str, bytes]) -> bytes:
    feature = {
        key: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))
        for key, value in fields.items()
    }
    return tf_example_pb2.Example(
        features=tf_feature_pb2.Features(feature=feature)
    ).SerializeToString(deterministic=True)


# --- Writing ----------------------------------------------------------------------------------------------------------


def prepare(
    name: str, root: str | Path, output: str | Path, *, splits: Sequence[str] = (), codec: str = "keep", quality: int = 95,
    shards: int = 0, channels: int = 0,
) -> Path:  # fmt: skip
    """Write the data set `name` that lies in `root` below `output`; returns the folder of its records.

    splits: by default train and val. codec, quality: see CODECS. shards: of each split, by default one for 100 images, 64 at most.
    channels: of the images, by default 3, or more if the first one has more than 4. Raises DataError if the data set is not as it
    should be, before anything appears, or if another one is there already.
    """
    if codec not in CODECS:
        raise DataError(f"--codec={codec}: no such codec; there are {', '.join(CODECS)}.")
    root, output = expand(root), expand(output)
    found, spec, zipped = (
        list_splits(name, root, splits, channels),
        catalog.get_spec(name, root),
        is_zipped(name, root),
    )
    counts = {
        split.name: min(
            len(split.jobs), shards or min(math.ceil(len(split.jobs) / PER_SHARD), MOST_SHARDS)
        )
        for split in found
    }
    keys = (
        ("image_left", "segmentation_label", "image_id") if zipped else ("image", "label", "name")
    )
    encoder = Encoder(codec, quality, found[0].channels, keys)
    plan = json.dumps(
        dict(name=name, shards=counts, state={s.name: s.state for s in found}) | vars(encoder),
        indent=1,
    )
    final = output / (records.STOCK[name][0] if zipped else name) / VERSION
    if final.exists():
        if (final / PLAN).is_file() and (final / PLAN).read_text() == plan:
            log.info("%s is there already", final)
            return final
        raise DataError(
            f"{final}: is there already, made of other files or with other flags; remove it, or choose another --output."
        )
    scratch = final.with_name(f"{VERSION}.unfinished")
    with _claim(scratch, plan):
        with (
            _progress(sum(len(split.jobs) for split in found)) as advance,
            ThreadPoolExecutor(THREADS) as pool,
        ):
            for split in found:
                _write_split(scratch, name, split, counts[split.name], encoder, pool, advance)
        _describe(scratch, spec, counts, encoder.channels, output if zipped else None)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(root / statistics.NAME, scratch / statistics.NAME)
        os.rename(scratch, final)
    return final


@contextlib.contextmanager
def _claim(scratch: Path, plan: str) -> Iterator[None]:
    """Make `scratch`, or keep what a run with this very plan has left there. DataError if one is still running."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        opened = open(scratch / PLAN, "a+")
    except OSError as error:
        raise DataError(
            f"{scratch}: cannot be written ({error.strerror}); choose another --output."
        ) from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{scratch}: another process is writing there; wait for it.") from None
        except OSError as error:  # some network storage knows no locks
            log.warning(
                "%s cannot be locked (%s): see that no other process writes there",
                scratch,
                error.strerror,
            )
        file.seek(0)
        if file.read() != plan:
            for left in scratch.iterdir():
                if left.name != PLAN:
                    left.unlink()
            file.truncate(0)
            file.write(plan)
            file.flush()
        elif done := len(list(scratch.glob("*.array_record-*-of-?????"))):
            log.info("%s: going on after %d shards", scratch, done)
        yield


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A live line on a terminal; gives the function that moves it on by so many images."""
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        bars.TextColumn("preparing"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _write_split(
    folder: Path,
    name: str,
    split: Split,
    count: int,
    encoder: Encoder,
    pool: ThreadPoolExecutor,
    advance: Any,
) -> None:
    """Write the shards of a split that are not there yet."""
    for number in range(count):
        jobs = split.jobs[
            number * len(split.jobs) // count : (number + 1) * len(split.jobs) // count
        ]
        shard = folder / _shard_name(name, split.name, number, count)
        if shard.is_file() and _notes(shard).is_file():
            advance(len(jobs))
        else:
            _write_shard(shard, jobs, encoder, pool, advance)


def _shard_name(name: str, split: str, number: int, count: int) -> str:
    return f"{name}-{split}.array_record-{number:05d}-of-{count:05d}"  # as TFDS expects


def _notes(shard: Path) -> Path:
    """Where a whole shard's names and dtypes are kept until the data set is whole."""
    return shard.with_name(f"{shard.name}.json")


def _write_shard(
    shard: Path, jobs: Sequence[Job], encoder: Encoder, pool: ThreadPoolExecutor, advance: Any
) -> None:
    """Write one shard, its records in the order of the jobs, and its notes; the shard appears last."""
    from array_record.python.array_record_module import ArrayRecordWriter

    part, names, dtypes = shard.with_name(f"{shard.name}.part"), [], set()
    try:
        with contextlib.closing(
            ArrayRecordWriter(str(part), WRITER_OPTIONS.get(encoder.codec, DEFAULT_OPTIONS))
        ) as writer:
            for stems, kinds, examples in _in_order(pool, encoder, jobs):
                for example in examples:
                    writer.write(example)
                names += stems
                dtypes |= kinds
                advance(1)
    except RuntimeError as error:  # the writer's
        raise DataError(
            f"{part}: cannot be written ({str(error).split(';')[0]}); make room and run again, it goes on."
        ) from None
    _notes(shard).write_text(json.dumps({"names": names, "dtypes": sorted(dtypes)}))
    os.replace(part, shard)


def _in_order(pool: ThreadPoolExecutor, work: Any, items: Iterable[Any]) -> Iterator[Any]:
    """work(item) of every item, from threads, a few ahead."""
    waiting: collections.deque = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _describe(
    folder: Path, spec: DatasetSpec, counts: dict[str, int], channels: int, stock: Path | None
) -> None:
    """Write what tells readers of the shards: TFDS's dataset_info.json and features.json, names.json, and our dataset.json.

    stock: data_dir of TFDS's own builder, whose description is taken; its labels hold raw ids, which dataset.json would deny.
    """
    import tensorflow_datasets as tfds

    shards = {
        split: [folder / _shard_name(spec.name, split, number, count) for number in range(count)]
        for split, count in counts.items()
    }
    notes = {
        shard: json.loads(_notes(shard).read_text()) for files in shards.values() for shard in files
    }
    names = {
        split: [name for shard in files for name in notes[shard]["names"]]
        for split, files in shards.items()
    }
    (folder / records.NAMES).write_text(json.dumps(names))
    if stock:
        info = tfds.builder(
            records.STOCK[spec.name][0], data_dir=stock, file_format="array_record"
        ).info
    else:
        ids = catalog.label_map("identity", spec.num_classes)
        held = dataclasses.replace(
            spec, label_map=ids, colors=(), ignored_colors=(), label_ranges=(), explicit_map=False
        )
        (folder / records.SPEC).write_text(held.to_json())
        info = _make_info(
            spec, channels, {dtype for note in notes.values() for dtype in note["dtypes"]}
        )
    info.set_file_format("array_record")
    splits = [
        tfds.core.SplitInfo(
            name=split, shard_lengths=[len(notes[shard]["names"]) for shard in files], num_bytes=sum(shard.stat().st_size for shard in files)
        )
        for split, files in shards.items()
    ]  # fmt: skip
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
    for shard in notes:
        _notes(shard).unlink()


def _make_info(spec: DatasetSpec, channels: int, dtypes: set[str]) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    image = tfds.features.Text()  # bytes, where TFDS has no feature for what they hold
    if dtypes in ({"uint8"}, {"uint16"}):
        image = tfds.features.Image(shape=(None, None, channels), dtype=np.dtype(*dtypes))
    label = tfds.features.Image(shape=(None, None, 1), encoding_format="png", use_colormap=True)
    return tfds.core.DatasetInfo(
        builder=DatasetIdentity(
            name=spec.name, version=tfds.core.Version(VERSION), data_dir="", module_name=__name__
        ),
        description=f"'{spec.name}' as jaxseg's scripts/prepare_data.py wrote it: labels hold class ids, 255 is ignored.",
        features=tfds.features.FeaturesDict(
            {"image": image, "label": label, "name": tfds.features.Text()}
        ),
        disable_shuffling=True,
    )
