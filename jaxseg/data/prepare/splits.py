"""The images to write: pairs of files, an unpacked download, or Cityscapes' zips."""

import dataclasses
import functools
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxseg.data import catalog, sources
from jaxseg.data.decode import decode_label, make_table, map_label
from jaxseg.data.prepare import raw_datasets
from jaxseg.data.prepare.raw_datasets import ConversionTask, Item
from jaxseg.data.sources import records
from jaxseg.data.sources.base import hash_facts
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError

EVALUATION_SETS = ("dark_zurich", "night_driving")  # without a training split
ZIPS = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")


@dataclasses.dataclass(frozen=True)
class SourceSplit:
    """A split to write.

    Attributes:
        name: Its name in the prepared data set.
        tasks: Its images.
        state: Text that changes with the files that the tasks read.
        channels: Channels that the images are read with.
    """

    name: str
    tasks: Sequence[ConversionTask]
    state: str
    channels: int = 3


def list_splits(
    name: str, root: str | Path, splits: Sequence[str], channels: int
) -> list[SourceSplit]:
    """List the images of a data set.

    Args:
        name: The data set, one of `catalog.list_datasets()`.
        root: Its folder: pairs of files, an unpacked download, or the two zips of Cityscapes.
        splits: Names of the splits; () for all that are used for training and evaluation.
        channels: Channels of the images; 0 to choose by the first one (`sources.guess_channels`).

    Raises:
        DataError: Files are missing, or a split does not exist.
    """
    if is_zipped(name, root):
        found = [_zipped_split(Path(root), split) for split in splits or ("train", "val", "test")]
        return [split for split in found if split.tasks or split.name != "test"]
    if not splits:
        splits = ("val",) if name in EVALUATION_SETS else ("train", "val")
    return [_split(name, root, split, channels) for split in splits]


def is_zipped(name: str, root: str | Path) -> bool:
    """Return whether `root` has the zips of Cityscapes, which become TFDS's own `cityscapes`."""
    return name == "cityscapes" and all((Path(root) / file).is_file() for file in ZIPS)


def _split(name: str, root: str | Path, split: str, channels: int) -> SourceSplit:
    """List a split of an unpacked download, or else of pairs of files."""
    if not re.fullmatch(r"\w+", split):
        raise DataError(
            f"'{split}' is not the name of a split",
            field="splits",
            hint="whole splits are prepared; slices and sums are given when they are read",
        )
    spec = catalog.get_spec(name, root)
    not_a_download = None
    if name in raw_datasets.NAMES:
        try:
            tasks = raw_datasets.list_tasks(name, root, split)
            state = hash_facts(str(root), [(task.name, *_stats(task.files)) for task in tasks])
            return SourceSplit(split, tasks, state)
        except DataError as error:
            not_a_download = error
            if spec.layout is None or not spec.layout.exists_in(Path(root)):
                raise
    try:
        source = sources.open_source(spec, root, split, channels=channels or 3)
    except DataError as error:
        if not_a_download is None:
            raise
        raise DataError(f"{not_a_download}. Nor can it be read in place: {error}") from None
    if not channels and (guess := sources.guess_channels(source)) != 3:
        return _split(name, root, split, guess)
    tasks = [
        ConversionTask(stem, functools.partial(_load_pair, source, index))
        for index, stem in enumerate(source.names)
    ]
    files = (file for file in source.files if os.path.isfile(file))
    state = hash_facts(source.fingerprint(), _stats(files))
    return SourceSplit(split, tasks, state, channels or 3)


def _stats(files: Iterable[str | Path]) -> list[tuple[str, int, int]]:
    """Return path, size and modification time of files."""
    stats = ((file, os.stat(file)) for file in files)
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def _load_pair(source: sources.Source, index: int) -> Iterator[Item]:
    """Yield the only item of a pair of files."""
    file = Path(source.files[index])
    image = file if file.is_file() else source.read(index)[0]
    yield source.names[index], image, source.read_label(index)


# --- Cityscapes' zips -----------------------------------------------------------------------------


def _zipped_split(root: Path, split: str) -> SourceSplit:
    """List a split of Cityscapes' zips; its labels keep their raw ids, which are checked."""
    images, labels = (_open_zip(root / file) for file in ZIPS)
    spec, members, tasks = records.stock_spec("cityscapes"), set(labels.namelist()), []
    for image in sorted(images.namelist()):
        found = re.fullmatch(rf"leftImg8bit/{split}/([^/]+/([^/]+))_leftImg8bit\.png", image)
        if not found:
            continue
        label, stem = f"gtFine/{split}/{found[1]}_gtFine_labelIds.png", found[2]
        if label not in members:
            raise DataError(
                f"does not contain {label}, the label of {image}",
                file=root / ZIPS[1],
                hint="download it again",
            )
        load = functools.partial(_load_zipped_pair, spec, stem, images, image, labels, label)
        tasks.append(ConversionTask(stem, load))
    if not tasks and split != "test":
        raise DataError(
            f"contains no image leftImg8bit/{split}/...",
            file=root / ZIPS[0],
            field="splits",
            hint="download it again, or choose other splits",
        )
    state = str([(file, (root / file).stat().st_size) for file in ZIPS])
    return SourceSplit(records.SYNONYMS.get(split, split), tasks, state)


def _load_zipped_pair(
    spec: DatasetSpec,
    stem: str,
    images: zipfile.ZipFile,
    image: str,
    labels: zipfile.ZipFile,
    label: str,
) -> Iterator[Item]:
    """Yield the only item of a pair in the zips."""
    file = f"{labels.filename}: {label}"
    raw = decode_label(_unzip(labels, label), file, spec)
    map_label(raw, make_table(spec.label_map, spec.label_ranges), spec, file)  # checks the ids
    yield stem, _unzip(images, image), raw


def _open_zip(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise DataError(
            f"is not a complete zip ({error})", file=file, hint="download it again"
        ) from None


def _unzip(archive: zipfile.ZipFile, member: str) -> bytes:
    try:
        return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{member} is damaged ({error})", file=archive.filename, hint="download it again"
        ) from None
