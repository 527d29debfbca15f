"""Files that torch.save wrote, and pickles of NumPy arrays, read without PyTorch and without executing anything in them.

Such a file is a pickle in which tensors are references to raw storages. A pickle is a program; the unpickler here knows
OrderedDict and what rebuilds a tensor or a NumPy array, and nothing else. Every other thing that a file names (training
histories, NumPy scalars, configs, os.system) becomes an inert stand-in: it can be made, called and filled, and does nothing.
"""

import contextlib
import dataclasses
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxseg.errors import WeightsError

STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
DTYPES = re.compile(r"f[248]|[iu][1248]|b1")  # of NumPy arrays in a pickle
DAMAGED = "it is damaged or cut short"
AGAIN = "fetch or copy the file again"
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class TorchFileError(WeightsError):
    """A file that is not what torch.save writes, is damaged, or was made to harm."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat array in the file: `read` gives its bytes."""

    dtype: type
    length: int
    read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, not read yet: offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """The tensor, C-contiguous; TorchFileError if it reaches outside its storage."""
        if (
            len(self.shape) != len(self.strides)
            or min(self.offset, *self.shape, *self.strides, 0) < 0
        ):
            raise TorchFileError(
                f"a tensor has offset {self.offset}, shape {self.shape} and strides {self.strides}"
            )
        size = math.prod(self.shape)
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides))
        # The size is bounded too: with strides of 0, one element would do for a tensor of any size.
        if size > self.storage.length or (size and last >= self.storage.length):
            raise TorchFileError(
                f"a tensor of shape {self.shape}, offset {self.offset} and strides {self.strides} reaches outside its storage "
                f"of {self.storage.length} elements"
            )
        if not size:
            return np.zeros(self.shape, self.storage.dtype)
        flat = np.frombuffer(
            self.storage.read(), np.uint8 if self.storage.dtype is np.bool_ else self.storage.dtype
        )
        if flat.size != self.storage.length:
            raise TorchFileError(
                f"a storage of {self.storage.length} elements has only {flat.size} in the file"
            )
        strides = tuple(stride * flat.itemsize for stride in self.strides)
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, strides, writeable=False
        )
        return (
            np.not_equal(view, 0, order="C")
            if self.storage.dtype is np.bool_
            else np.array(view, order="C")
        )


class Dtype:
    """A NumPy dtype in a pickle, whose byte order comes after it (BUILD)."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "<"

    def build(self, state: Any) -> None:
        """Take the byte order of (version, order, ...)."""
        self.order = state[1]

    def numpy(self) -> np.dtype:
        """The dtype; TorchFileError unless it is of plain numbers."""
        if (
            not isinstance(self.code, str)
            or not DTYPES.fullmatch(self.code)
            or self.order not in ("<", ">", "|", "=")
        ):
            raise TorchFileError(
                f"an array of the NumPy dtype {self.code!r}, which is none of weights"
            )
        return np.dtype(self.order + self.code)


class Array:
    """A NumPy array in a pickle, not made yet."""

    def __init__(self, *_: Any) -> None:
        self.shape, self.dtype, self.fortran, self.data = None, None, False, b""

    @classmethod
    def from_buffer(cls, data: Any, dtype: Any, shape: Any, order: Any) -> "Array":
        """As pickles of protocol 5 have it."""
        array = cls()
        array.build((1, shape, dtype, order == "F", data))
        return array

    def build(self, state: Any) -> None:
        """Take (version, shape, dtype, whether in Fortran's order, bytes)."""
        _, self.shape, self.dtype, self.fortran, self.data = state

    def numpy(self) -> np.ndarray:
        """The array, C-contiguous and of the machine's byte order; TorchFileError if its parts do not fit together."""
        data = (
            self.data.encode("latin1") if isinstance(self.data, str) else self.data
        )  # text in pickles of Python 2
        shape = (self.shape,) if type(self.shape) is int else self.shape
        if (
            not isinstance(self.dtype, Dtype)
            or not isinstance(data, bytes | bytearray)
            or not isinstance(shape, tuple)
        ):
            raise TorchFileError("a NumPy array of an unknown kind")
        dtype = self.dtype.numpy()
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(
            shape
        ) * dtype.itemsize != len(data):
            raise TorchFileError(
                f"a NumPy array of shape {shape} and {dtype} has {len(data)} bytes"
            )
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if self.fortran else "C")
        return np.array(array, dtype.newbyteorder("="), order="C")


class StandIn:
    """Whatever else a pickle may contain: takes any arguments, state and items, and forgets them. `origin`: what it stands for."""

    origin = "the result of a call"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "StandIn":
        return StandIn()

    def append(self, item: Any) -> None:
        """Forget the item; so do extend and add."""

    extend = add = append

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"<{self.origin}>"


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise TorchFileError("a tensor refers to something that is no storage")
    if not (
        isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and all(type(n) is int for n in (offset, *shape, *strides))
    ):
        raise TorchFileError("a tensor's offset, shape or strides are not integers")
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    """A tensor of a subclass, or with attributes: the plain tensor in it."""
    return function(*arguments) if function in (_tensor, _parameter) else StandIn()


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes, which pickles of old protocols hold as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise TorchFileError(f"bytes as text in {encoding!r}")
    return text.encode("latin1")


def _pickled(*_: Any) -> Any:
    raise TorchFileError(
        "its tensors were written by pickle.dump", hint="save them with torch.save"
    )


KNOWN = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): Dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Array.from_buffer for core in ("core", "_core")},
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch.storage", "_load_from_bytes"): _pickled,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}


# The unpickler in Python rather than the one in C: its memo is a dict, so that a file cannot make it allocate by index,
# and its operations can be replaced.
class _Unpickler(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, storage: Callable[..., Storage]) -> None:
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.cuda") and name in STORAGES:
            return name
        return KNOWN.get((module, name)) or type(
            "StandIn", (StandIn,), {"origin": f"{module}.{name}"}
        )

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and pid[:1] == (
            "module",
        ):  # very old files keep a module's source beside it
            return pid[1]
        if not isinstance(pid, tuple) or pid[:1] != ("storage",) or len(pid) < 5:
            raise TorchFileError("a reference that is not to a storage")
        _, kind, key, _, length, *view = pid
        if not isinstance(kind, str) or kind not in STORAGES:
            raise TorchFileError(
                f"a storage of an unknown kind, {getattr(kind, 'origin', type(kind).__name__)}"
            )
        if type(length) is not int or length < 0 or not isinstance(key, str):
            raise TorchFileError("a storage without a name or a length")
        return self._storage(STORAGES[kind], key, length, view[0] if view else None)

    def get_extension(self, code: int) -> None:
        """Codes for classes that programs register would go past find_class."""
        raise TorchFileError(f"extension code {code}, which torch.save never writes")

    def load_build(self) -> None:
        """BUILD sets attributes of the object below it; of those here only NumPy's need any."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Dtype | Array):
            self.stack[-1].build(state)

    dispatch[pickle.BUILD[0]] = load_build


@contextlib.contextmanager
def read(path: str | Path) -> Iterator[Any]:
    """What torch.save was given, tensors as `Tensor`; they can be read while the context is open.

    Raises TorchFileError, which does not name the file yet, for anything that is wrong with it.
    """
    with contextlib.ExitStack() as stack:
        try:
            opened = (
                _read_zip(stack, path)
                if zipfile.is_zipfile(path)
                else _read_legacy(stack.enter_context(open(path, "rb")))
            )
        except TorchFileError:
            raise
        except (
            Exception
        ) as error:  # zipfile and pickle meet damaged and hostile input with errors of every kind
            raise TorchFileError(DAMAGED, hint=AGAIN) from error
        yield opened


def _read_zip(stack: contextlib.ExitStack, path: str | Path) -> Any:
    """The format since PyTorch 1.6: NAME/data.pkl and NAME/data/KEY in a zip file, not compressed."""
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
        if entry is None or entry.file_size < needed:
            raise TorchFileError(
                f"storage {key!r} should have {needed} bytes and has {entry.file_size if entry else 0}"
            )
        return Storage(dtype, length, lambda: archive.read(entry)[:needed])

    with archive.open(pickles[0]) as file:
        return _Unpickler(file, storage).load()


def _read_legacy(file: BinaryIO) -> Any:
    """The format before PyTorch 1.6, in which most of the model zoo is published: pickles, then the storages in a row."""
    found = []
    for _ in range(3):  # magic number, protocol, facts about the machine
        found.append(_Unpickler(file, _no_storage).load())
        if found[0] != LEGACY_MAGIC:  # a pickle of NumPy arrays, perhaps
            return found[0]
    if found[1] != LEGACY_PROTOCOL or not found[2].get("little_endian", True):
        raise TorchFileError(f"it has protocol {found[1]!r} or was written on a big-endian machine")
    places: dict[str, tuple[int, int]] = {}  # key -> where its bytes begin, how many elements
    used: dict[str, type] = {}

    def storage(dtype: type, key: str, length: int, view: Any) -> Storage:
        used[key] = dtype
        first = 0
        if view is not None:
            _, first, length = view
            if any(type(n) is not int or n < 0 for n in (first, length)):
                raise TorchFileError(f"a view of storage {key!r} without a place or a length")
        return Storage(
            dtype,
            length,
            lambda: _read_place(file, places, key, np.dtype(dtype).itemsize, first, length),
        )

    content = _Unpickler(file, storage).load()
    end = Path(file.name).stat().st_size
    for key in _Unpickler(file, _no_storage).load():
        if key not in used:
            raise TorchFileError(
                f"storage {key!r} is in the file, but no tensor says of which kind"
            )
        (length,) = struct.unpack("<q", file.read(8))
        places[key] = (file.tell(), length)
        after = file.tell() + length * np.dtype(used[key]).itemsize
        if length < 0 or after > end:
            raise TorchFileError(
                f"it is cut short: storage {key!r} has {length} elements and would end at byte {after} of {end}",
                hint=AGAIN,
            )
        file.seek(after)
    return content


def _no_storage(*_: Any) -> Storage:
    raise TorchFileError("a storage where none belongs")


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
