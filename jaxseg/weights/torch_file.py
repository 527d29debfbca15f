"""Safe reading of files of torch.save, and of pickles of NumPy arrays, without PyTorch.

Such a file is a pickle in which tensors are references to raw storages (see `weights.unpickle`).
"""

import contextlib
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxseg.weights.unpickle import Array, StandIn, Storage, Tensor, TorchFileError, Unpickler

__all__ = ["AGAIN", "DAMAGED", "Array", "StandIn", "Tensor", "TorchFileError", "open_torch_file"]

DAMAGED = "it is damaged or cut short"
AGAIN = "fetch or copy the file again"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


@contextlib.contextmanager
def open_torch_file(path: str | Path) -> Iterator[Any]:
    """Open a file of torch.save; tensors can be read while the context is open.

    Yields:
        The saved object, with `Tensor` for tensors, `Array` for NumPy arrays, and `StandIn` for
        everything else but plain containers, numbers and text.

    Raises:
        TorchFileError: The file is damaged, unknown or malicious. The error does not name it yet.
    """
    with contextlib.ExitStack() as stack:
        try:
            if zipfile.is_zipfile(path):
                content = _read_zip(stack, path)
            else:
                content = _read_legacy(stack.enter_context(open(path, "rb")))
        except TorchFileError:
            raise
        except Exception as error:  # zipfile and pickle raise many kinds of errors for bad input
            raise TorchFileError(DAMAGED, hint=AGAIN) from error
        yield content


def _read_zip(stack: contextlib.ExitStack, path: str | Path) -> Any:
    """Read the format since PyTorch 1.6: uncompressed NAME/data.pkl and NAME/data/KEY."""
    archive = stack.enter_context(zipfile.ZipFile(path))
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise TorchFileError("it is a zip file, but not one of torch.save (no data.pkl)")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in entries:
        raise TorchFileError(
            "it is a TorchScript program",
            hint="load it with torch.jit.load and save its state_dict() with torch.save",
        )
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise TorchFileError("it is compressed, which torch.save never does")
    if f"{prefix}byteorder" in entries and archive.read(f"{prefix}byteorder") != b"little":
        raise TorchFileError("it was written on a big-endian machine")

    def storage(dtype: type, key: str, length: int, _view: Any) -> Storage:
        entry = entries.get(f"{prefix}data/{key}")
        needed = length * np.dtype(dtype).itemsize
        found = entry.file_size if entry else 0
        if entry is None or found < needed:
            raise TorchFileError(f"storage {key!r} should have {needed} bytes and has {found}")
        return Storage(dtype, length, lambda: archive.read(entry)[:needed])

    with archive.open(pickles[0]) as file:
        return Unpickler(file, storage).load()


def _read_legacy(file: BinaryIO) -> Any:
    """Read the format before PyTorch 1.6, in which most of the model zoo is published.

    It is a sequence of pickles, followed by all storages.
    """
    header: list[Any] = []
    for _ in range(3):  # magic number, protocol, properties of the machine
        header.append(Unpickler(file, _no_storage).load())
        if header[0] != LEGACY_MAGIC:  # a pickle of NumPy arrays, perhaps
            return header[0]
    if header[1] != LEGACY_PROTOCOL or not header[2].get("little_endian", True):
        raise TorchFileError(
            f"it has protocol {header[1]!r} or was written on a big-endian machine"
        )
    places: dict[str, tuple[int, int]] = {}  # key -> (first byte, number of elements)
    used: dict[str, type] = {}

    def storage(dtype: type, key: str, length: int, view: Any) -> Storage:
        used[key] = dtype
        first = 0
        if view is not None:
            _, first, length = view
            if any(type(n) is not int or n < 0 for n in (first, length)):
                raise TorchFileError(f"a view of storage {key!r} has no place or no length")
        itemsize = np.dtype(dtype).itemsize
        return Storage(
            dtype, length, lambda: _read_place(file, places, key, itemsize, first, length)
        )

    content = Unpickler(file, storage).load()
    end = Path(file.name).stat().st_size
    for key in Unpickler(file, _no_storage).load():
        if key not in used:
            raise TorchFileError(f"storage {key!r} is in the file, but no tensor gives its type")
        (length,) = struct.unpack("<q", file.read(8))
        places[key] = (file.tell(), length)
        after = file.tell() + length * np.dtype(used[key]).itemsize
        if length < 0 or after > end:
            raise TorchFileError(
                f"it is cut short: storage {key!r} has {length} elements and would end at byte "
                f"{after} of {end}",
                hint=AGAIN,
            )
        file.seek(after)
    return content


def _no_storage(dtype: type, key: str, length: int, view: Any) -> Storage:
    del dtype, key, length, view
    raise TorchFileError("its header refers to a storage")


def _read_place(
    file: BinaryIO,
    places: dict[str, tuple[int, int]],
    key: str,
    itemsize: int,
    first: int,
    length: int,
) -> bytes:
    if key not in places or first + length > places[key][1]:
        raise TorchFileError(
            f"storage {key!r} is absent, or shorter than {first + length} elements"
        )
    file.seek(places[key][0] + first * itemsize)
    return file.read(length * itemsize)
