"""Reading prepared TFDS data sets without TensorFlow.

A record holds an encoded image and an encoded label. Any TFDS data set in the ArrayRecord format
will do: one that scripts/prepare_data.py wrote (its dataset.json describes the classes), TFDS's own
`cityscapes`, or any other with a classes.txt beside it.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.builtin import builtin_spec, named_label_map
from jaxseg.data.decode import (
    Decoded,
    Header,
    ImageOptions,
    decode,
    decode_label,
    inspect_image,
    join_pair,
    make_table,
    map_label,
)
from jaxseg.data.decode.images import RGB
from jaxseg.data.folder_spec import read_folder_spec
from jaxseg.data.sources.base import hash_facts
from jaxseg.data.spec import DatasetSpec
from jaxseg.errors import DataError, first_line
from jaxseg.files import expand, read_json

# Our name -> (TFDS's name, name of the label map of its records). TFDS's scene_parse150 is not
# here: it holds instances, not the 150 classes of ADE20K.
STOCK = {"cityscapes": ("cityscapes/semantic_segmentation", "cityscapes_ids")}
IMAGES = ("image", "image_left")  # names of features
LABELS = ("label", "segmentation_label", "segmentation_mask", "annotation", "mask")
SYNONYMS = {"val": "validation", "validation": "val"}
INFO, SPEC, NAMES = "dataset_info.json", "dataset.json", "names.json"
VARINT_BYTES = 10  # the longest number in protobuf's encoding


# --- Finding ---


def find_prepared(name: str, root: str | Path) -> Path:
    """Return the folder of the newest version of a TFDS data set.

    Args:
        name: Our name of the data set.
        root: That folder itself, or one above: the data set is TFDS's own of this name, one of our
            name, or the only one there.

    Raises:
        DataError: There is no such data set, or there are several; it lists them.
    """
    if not root:
        raise DataError(
            f"the TFDS data set '{name}' needs its folder: config.dataset.root=DIR, the output of "
            "scripts/prepare_data.py",
            field="dataset.root",
        )
    root = expand(root)
    if (root / INFO).is_file():
        return root
    found = [
        file.parent for depth in ("*", "*/*", "*/*/*") for file in root.glob(f"{depth}/{INFO}")
    ]
    # Folders of unfinished data sets are not named like a version.
    found = [folder for folder in found if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]
    for prefix in (*STOCK.get(name, ())[:1], name, ""):
        inside = [folder for folder in found if _is_below(folder.relative_to(root).parent, prefix)]
        if len({folder.parent for folder in inside}) == 1:
            return max(inside, key=_version)
    if found:
        there = ", ".join(sorted(str(folder.relative_to(root)) for folder in found))
        raise DataError(
            f"holds several data sets, {there}",
            file=root,
            field="dataset.root",
            hint="set config.dataset.root to one of these folders",
        )
    there = "no such folder"
    if root.is_dir():
        there = ", ".join(sorted(file.name for file in root.glob("*"))[:5]) or "nothing"
    raise DataError(
        f"no TFDS data set there ({there})",
        file=root,
        field="dataset.root",
        hint=f"prepare '{name}' there with scripts/prepare_data.py, or read the files themselves "
        "with config.dataset.source=files",
    )


def _is_below(path: Path, prefix: str) -> bool:
    return not prefix or f"{path.as_posix()}/".startswith(f"{prefix}/")


def _version(folder: Path) -> list[int]:
    return [int(number) for number in folder.name.split(".")]


def get_spec(name: str, root: str | Path) -> DatasetSpec:
    """Return the spec of the TFDS data set `name` below `root`, with the label map of its records.

    A dataset.json beside the records describes it. Without one the classes are those of the
    built-in data set, or, of a `folder`, those of the classes.txt (and label_map.txt) in `root`.

    Args:
        name: Our name of the data set.
        root: Its folder, or one above; see `find_prepared`.

    Raises:
        DataError: There is no such data set, or its description is unusable.
    """
    file = find_prepared(name, root) / SPEC
    if file.is_file():
        return _read_spec(file, name)
    if name in STOCK:
        return stock_spec(name)
    spec = read_folder_spec(root) if name == "folder" else builtin_spec(name, root)
    return dataclasses.replace(spec, layout=None)


def stock_spec(name: str) -> DatasetSpec:
    """Return the spec of TFDS's own data set `name`, one of STOCK."""
    spec = builtin_spec(name)
    return dataclasses.replace(spec, label_map=named_label_map(STOCK[name][1], spec.num_classes))


def _read_spec(file: Path, name: str) -> DatasetSpec:
    """Read the dataset.json of records."""
    try:
        fields = read_json(file)
        fields["label_map"] = {int(raw): index for raw, index in fields["label_map"].items()}
        fields.setdefault("label_ranges", ())  # which early files lack
        if "official_ids" in fields:  # the name in files of the first edition
            fields["submission_ids"] = fields.pop("official_ids")
        for key in ("palette", "colors", "ignored_colors", "label_ranges"):
            fields[key] = tuple(tuple(values) for values in fields[key])
        for key in ("classes", "image_mean", "image_std", "submission_ids"):
            fields[key] = tuple(fields[key])
        spec = DatasetSpec(**fields)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"cannot be read as a data set's spec ({error!r})",
            file=file,
            hint="prepare the data set again",
        ) from None
    if name not in (spec.name, "folder"):
        raise DataError(
            f"these are records of '{spec.name}', not of '{name}'",
            file=file,
            field="dataset.name",
            hint=f"set config.dataset.name={spec.name} or another root",
        )
    return dataclasses.replace(spec, name=name)


# --- Reading ---


class ArrayRecordSource:
    """A `Source` of the records of a split; `files` and `label_files` are the records' names.

    It can be pickled: shards are opened when they are first read.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        data: Any,
        *,
        keys: tuple[str, str],
        names: list[str],
        shards: Sequence[tuple[str, int]],
        folder: Path,
        options: ImageOptions,
    ):
        """Create a source of serialised examples.

        Args:
            spec: The data set.
            data: TFDS's data source of raw bytes: random access to serialised examples.
            keys: Features that hold the encoded image and the encoded label.
            names: Name of each record.
            shards: (file, number of records) in order, for the fingerprint and for messages.
            folder: Of the data set, for messages.
            options: How images are read.
        """
        self.spec, self.options, self.names = spec, options, names
        self.files = self.label_files = names
        self._data, self._keys, self._shards, self._folder = data, keys, shards, folder
        self._table = make_table(spec.label_map, spec.label_ranges)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Source.read`."""
        (image, label), where = self._record(index), self._where(index)
        return join_pair(
            decode(image, where, self.options),
            self._decode_label(label, where),
            self.options.fill,
            where,
            f"in {where},",
        )

    def read_decoded(self, index: int) -> Decoded:
        """See `Source.read_decoded`."""
        return decode(self._record(index)[0], self._where(index), self.options)

    def read_image(self, index: int) -> np.ndarray:
        """See `Source.read_image`."""
        return self.read_decoded(index).filled(self.options.fill)

    def read_label(self, index: int) -> np.ndarray:
        """See `Source.read_label`."""
        return self._decode_label(self._record(index)[1], self._where(index))

    def header(self, index: int) -> Header:
        """See `Source.header`."""
        return inspect_image(
            self._record(index)[0],
            self._where(index),
            self.options.channels,
            max_pixels=self.options.max_pixels,
        )

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        stats = [
            (path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns)
            for path, _ in self._shards
        ]
        return hash_facts(stats, self.spec)

    def _where(self, index: int) -> str:
        return f"{self._folder}: record {self.names[index]}"

    def _decode_label(self, data: bytes, where: str) -> np.ndarray:
        return map_label(
            decode_label(data, where, self.spec, max_pixels=self.options.max_pixels),
            self._table,
            self.spec,
            where,
        )

    def _record(self, index: int) -> tuple[memoryview, bytes]:
        """Return the encoded image and the encoded label of a record."""
        try:
            fields = parse_example(self._data[index])
            image, label = (fields[key] for key in self._keys)
            return image, bytes(label)  # images are large, so only labels are copied
        except (RuntimeError, ValueError, LookupError, OSError) as error:
            ends = itertools.accumulate(count for _, count in self._shards)
            shard = next(file for (file, _), end in zip(self._shards, ends) if index < end)
            reason = first_line(error)[:200]
            raise DataError(
                f"record {self.names[index]} cannot be read ({reason})",
                file=self._folder,
                hint=f"{shard} is damaged: copy or prepare it again",
            ) from None


def parse_example(record: bytes) -> dict[str, memoryview]:
    """Return {name: first bytes value} of a serialised tf.train.Example, as views of the record.

    Protobuf's own parser copies an image twice. Features of other kinds are left out.

    Raises:
        ValueError or LookupError: The record is not an Example.
    """
    found = {}
    for features in _submessages(memoryview(record)).get(1, []):
        for entry in _submessages(features).get(1, []):
            parts = _submessages(entry)
            for values in _submessages(parts[2][0]).get(1, []):
                if data := _submessages(values).get(1):
                    found[bytes(parts[1][0]).decode()] = data[0]
    return found


def _submessages(message: memoryview) -> dict[int, list[memoryview]]:
    """Return {field number: payloads} of the length-delimited fields of a protobuf message.

    An Example has no others, down to its lists of numbers.
    """
    fields: dict[int, list[memoryview]] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        size, at = _varint(message, at)
        if tag & 7 != 2 or at + size > len(message):
            raise ValueError("not a tf.train.Example")
        fields.setdefault(tag >> 3, []).append(message[at : at + size])
        at += size
    return fields


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a number in protobuf's encoding, seven bits a byte, and where it ends."""
    value = 0
    for place in range(VARINT_BYTES):
        byte = message[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError("not a tf.train.Example")


def open_records(
    spec: DatasetSpec, root: str | Path, split: str, options: ImageOptions = RGB
) -> ArrayRecordSource:
    """Open a split of a prepared TFDS data set.

    Args:
        spec: The data set.
        root: Its folder, or one above; see `find_prepared`.
        split: A plain name; "val" and "validation" stand for each other.
        options: How images are read.

    Raises:
        DataError: There is no such data set or split, or it lacks features or files.
    """
    import tensorflow_datasets as tfds  # noqa: PLC0415 - takes seconds; files never need it

    folder = find_prepared(spec.name, root)
    try:
        builder = tfds.builder_from_directory(folder)
        formats = sorted(each.value for each in builder.info.available_file_formats())
    except Exception as error:  # TFDS raises errors of any kind
        raise DataError(
            f"cannot be read by TFDS ({first_line(error)})",
            file=folder / INFO,
            hint="prepare the data set again",
        ) from None
    if "array_record" not in formats:
        raise DataError(
            f"is stored as {', '.join(formats)}, which needs TensorFlow",
            file=folder,
            hint="prepare it as ArrayRecord, `tfds.builder(..., file_format='array_record')`",
        )
    features = builder.info.features
    keys = (_find_feature(features, IMAGES, folder), _find_feature(features, LABELS, folder))
    shape = features[keys[1]].shape
    if shape and shape[-1] not in (None, 1) and not spec.colors:
        raise DataError(
            f"the feature '{keys[1]}' {shape} does not hold one class id a pixel, so it is not a "
            "label for segmentation",
            file=folder,
        )
    split = _find_split(builder.info.splits, split, spec, folder)
    shards = [
        (str(each.filename), each.examples_in_shard)
        for each in builder.info.splits[split].file_instructions
    ]
    for file, _ in shards:
        if not Path(file).is_file():
            raise DataError(
                f"no such file, but {folder / INFO} lists it",
                file=file,
                hint="copy it there, or prepare the data set again",
            )
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    data = builder.as_data_source(
        split, deserialize_method=raw, file_format="array_record"
    ).data_source
    if not len(data):
        raise DataError(
            f"its split '{split}' is empty",
            file=folder,
            hint="prepare the data set again, or set config.dataset.train_split or val_split",
        )
    return ArrayRecordSource(
        spec,
        data,
        keys=keys,
        names=_names(folder, spec, split, len(data)),
        shards=shards,
        folder=folder,
        options=options,
    )


def _find_split(splits: Mapping[str, Any], split: str, spec: DatasetSpec, folder: Path) -> str:
    """Return the data set's own name for a split."""
    for name in (split, SYNONYMS.get(split, split)):
        if name in splits:
            return name
    raise DataError(
        f"the data set '{spec.name}' has no split '{split}'",
        file=folder,
        hint=f"it has {' and '.join(splits)}",
    )


def _find_feature(features: Any, wanted: Sequence[str], folder: Path) -> str:
    """Return the first of the `wanted` features that is an encoded image, or plain bytes."""
    import tensorflow_datasets as tfds  # noqa: PLC0415 - takes seconds; files never need it

    for name in filter(features.__contains__, wanted):
        feature = features[name]
        # Images of float32 are PNGs whose bytes TFDS reinterprets.
        if isinstance(feature, tfds.features.Image) and feature.np_dtype != np.float32:
            return name
        if isinstance(feature, tfds.features.Text):
            return name
    there = ", ".join(
        f"{name} {type(feature).__name__}{feature.shape}" for name, feature in features.items()
    )
    raise DataError(
        f"none of its features is an image named {' or '.join(wanted)}",
        file=folder,
        hint=f"it has {there}",
    )


def _names(folder: Path, spec: DatasetSpec, split: str, count: int) -> list[str]:
    """Return the names of the records: those that scripts/prepare_data.py stored, else numbers."""
    stored = read_json(folder / NAMES) if (folder / NAMES).is_file() else {}
    if not isinstance(stored, dict):
        raise DataError(
            "holds no names of splits",
            file=folder / NAMES,
            hint="prepare the data set again, or remove the file",
        )
    return stored.get(split) or [f"{spec.name}-{split}-{index:05d}" for index in range(count)]
