"""Safe unpickling of tensors and NumPy arrays, without PyTorch.

A pickle is a program. The unpickler here knows only OrderedDict and the functions that rebuild
tensors and NumPy arrays. Everything else that a pickle names (training histories, NumPy scalars,
configs, os.system) becomes an inert stand-in, which can be created, called and filled, but does
nothing.
"""

import dataclasses
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, ClassVar

import ml_dtypes
import numpy as np

from jaxseg.errors import WeightsError

STORAGES: dict[str, type] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
DTYPES = re.compile(r"f[248]|[iu][1248]|b1")  # of NumPy arrays in a pickle


class TorchFileError(WeightsError):
    """A file is damaged, malicious, or was not written by torch.save."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A flat array in the file.

    Attributes:
        dtype: NumPy type of its elements.
        length: Number of elements.
        read: Returns its bytes.
    """

    dtype: type
    length: int
    read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, not read yet.

    Attributes:
        storage: The storage.
        offset: Its first element.
        shape: Size along each axis.
        strides: Elements from one index to the next along each axis.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """Read the tensor as a C-contiguous array.

        Raises:
            TorchFileError: It reaches outside its storage.
        """
        self._check_bounds()
        dtype = self.storage.dtype
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        stored: type = np.uint8 if dtype is np.bool_ else dtype
        flat: np.ndarray = np.frombuffer(self.storage.read(), stored)
        if flat.size != self.storage.length:
            raise TorchFileError(
                f"a storage of {self.storage.length} elements has only {flat.size} in the file"
            )
        strides = tuple(stride * flat.itemsize for stride in self.strides)
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, strides, writeable=False
        )
        if dtype is np.bool_:
            return np.not_equal(view, 0, order="C")
        return np.array(view, order="C")

    def _check_bounds(self) -> None:
        lowest = min(self.offset, *self.shape, *self.strides, 0)
        if len(self.shape) != len(self.strides) or lowest < 0:
            raise TorchFileError(
                f"a tensor has offset {self.offset}, shape {self.shape} and strides {self.strides}"
            )
        size = math.prod(self.shape)
        steps = ((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        last = self.offset + sum(steps)
        # The size is limited too, since strides of 0 turn one element into a tensor of any size.
        if size > self.storage.length or (size and last >= self.storage.length):
            raise TorchFileError(
                f"a tensor of shape {self.shape}, offset {self.offset} and strides {self.strides} "
                f"reaches outside its storage of {self.storage.length} elements"
            )


class Dtype:
    """A NumPy dtype in a pickle, which sets its byte order later (BUILD)."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code
        self.order = "<"

    def build(self, state: Any) -> None:
        """Take the byte order from (version, order, ...)."""
        self.order = state[1]

    def numpy(self) -> np.dtype:
        """Return the dtype.

        Raises:
            TorchFileError: It is not a type of plain numbers.
        """
        known = isinstance(self.code, str) and DTYPES.fullmatch(self.code)
        if not known or self.order not in ("<", ">", "|", "="):
            raise TorchFileError(f"an array has the NumPy dtype {self.code!r}, unlike any weights")
        return np.dtype(self.order + self.code)


class Array:
    """A NumPy array in a pickle, not created yet."""

    def __init__(self, *_: Any) -> None:
        self.shape: Any = None
        self.dtype: Any = None
        self.fortran: Any = False
        self.data: Any = b""

    @classmethod
    def from_buffer(cls, data: Any, dtype: Any, shape: Any, order: Any) -> "Array":
        """Make an array from the arguments in pickles of protocol 5."""
        array = cls()
        array.build((1, shape, dtype, order == "F", data))
        return array

    def build(self, state: Any) -> None:
        """Take (version, shape, dtype, whether in Fortran's order, bytes)."""
        _, self.shape, self.dtype, self.fortran, self.data = state

    def numpy(self) -> np.ndarray:
        """Return the array, C-contiguous and in the machine's byte order.

        Raises:
            TorchFileError: Its parts do not fit together.
        """
        data = self.data
        if isinstance(data, str):  # in pickles of Python 2
            data = data.encode("latin1")
        shape = (self.shape,) if type(self.shape) is int else self.shape
        if (
            not isinstance(self.dtype, Dtype)
            or not isinstance(data, bytes | bytearray)
            or not isinstance(shape, tuple)
        ):
            raise TorchFileError("a NumPy array has an unknown form")
        dtype = self.dtype.numpy()
        sized = all(type(n) is int and n >= 0 for n in shape)
        if not sized or math.prod(shape) * dtype.itemsize != len(data):
            raise TorchFileError(
                f"a NumPy array of shape {shape} and {dtype} has {len(data)} bytes"
            )
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if self.fortran else "C")
        return np.array(array, dtype.newbyteorder("="), order="C")


class StandIn:
    """Replaces everything else in a pickle; ignores all arguments, state and items.

    Attributes:
        origin: Name of the replaced object.
    """

    origin = "the result of a call"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "StandIn":
        """Return another stand-in."""
        return StandIn()

    def append(self, item: Any) -> None:
        """Ignore the item; so do `extend` and `add`."""

    extend = add = append

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"<{self.origin}>"


# --- Functions that pickles call ------------------------------------------------------------------


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise TorchFileError("a tensor refers to something other than a storage")
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
    """Return the plain tensor in a tensor of a subclass or with attributes."""
    return function(*arguments) if function in (_tensor, _parameter) else StandIn()


def _encode(text: Any, encoding: Any) -> bytes:
    """Return bytes, which old pickle protocols store as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise TorchFileError(f"it stores bytes as text in {encoding!r}")
    return text.encode("latin1")


def _load_from_bytes(*_: Any) -> Any:
    raise TorchFileError(
        "its tensors were written by pickle.dump", hint="save them with torch.save"
    )


KNOWN: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): Dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Array.from_buffer for core in ("core", "_core")},
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch.storage", "_load_from_bytes"): _load_from_bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}

OpenStorage = Callable[[type, str, int, Any], Storage]  # (dtype, key, length, view) -> storage


class Unpickler(pickle._Unpickler):
    """Unpickles tensors, NumPy arrays and plain containers, and stand-ins for everything else.

    It extends Python's unpickler rather than the C implementation, because its operations can be
    replaced and its memo is a dict, in which a file cannot allocate memory with a large index.

    Args:
        file: The pickle.
        storage: Returns the storage of a key in the file.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, file: IO[bytes], storage: OpenStorage) -> None:
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Return the object for a global name of the pickle; nothing is imported."""
        if module in ("torch", "torch.cuda") and name in STORAGES:
            return name
        stand_in = type("StandIn", (StandIn,), {"origin": f"{module}.{name}"})
        return KNOWN.get((module, name), stand_in)

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage of a persistent id.

        Raises:
            TorchFileError: The id is not a valid storage.
        """
        if isinstance(pid, tuple) and pid[:1] == ("module",):
            return pid[1]  # very old files store the source code of a module with it
        if not isinstance(pid, tuple) or pid[:1] != ("storage",) or len(pid) < 5:
            raise TorchFileError("it refers to something other than a storage")
        _, kind, key, _, length, *view = pid
        if not isinstance(kind, str) or kind not in STORAGES:
            name = getattr(kind, "origin", type(kind).__name__)
            raise TorchFileError(f"a storage has an unknown type, {name}")
        if type(length) is not int or length < 0 or not isinstance(key, str):
            raise TorchFileError("a storage has no name or no length")
        return self._storage(STORAGES[kind], key, length, view[0] if view else None)

    def get_extension(self, code: int) -> None:
        """Refuse extension codes, which would bypass `find_class`.

        Raises:
            TorchFileError: Always.
        """
        raise TorchFileError(f"it has the extension code {code}, which torch.save never writes")

    def load_build(self) -> None:
        """Set the state of the object on the stack; only NumPy's objects have any."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Dtype | Array):
            self.stack[-1].build(state)

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment] # of a subclass
