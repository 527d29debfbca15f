"""Weight files as {name: NumPy array}: PyTorch's, .safetensors, .npz and pickles of arrays.

Files from any source can be read: nothing in them is executed, and PyTorch is not needed.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # also makes bfloat16 known to NumPy, which safetensors.numpy needs
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxseg.errors import WeightsError, about
from jaxseg.files import atomic_path, expand
from jaxseg.weights import file_kinds, torch_file

SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")  # of files to write; reading ignores them
# Keys under which programs store weights in a file.
KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
)
EMA_KEYS = ("state_dict_ema", "model_ema")
# Special tensors, by the function that rebuilds them: (description, advice).
FOREIGN = {
    "_rebuild_meta_tensor_no_storage": (
        "has no values, since it is on the device 'meta'",
        "save the model after loading its weights",
    ),
    "_rebuild_sparse_tensor": ("is a sparse tensor", "save its to_dense()"),
    "_rebuild_sparse_csr_tensor": ("is a sparse tensor", "save its to_dense()"),
    "_rebuild_qtensor": ("is a quantised tensor", "save the weights from before quantisation"),
}
PLAIN = "save model.state_dict(), plain tensors by name, with torch.save"
# An .npz may unpack to MAX_UNPACKED bytes, or to MAX_RATIO times its own size if that is more.
MAX_UNPACKED = 2**30
MAX_RATIO = 200

StateDictError = WeightsError  # the name in the first edition


def read_state_dict(path: str | Path, *, ema: bool = False) -> dict[str, np.ndarray]:
    """Read a weight file of any supported kind; floats become float32.

    The kind is recognised by the file's first bytes. A file of torch.save holds the state dict
    itself, or a dict with the state dict under one of KEYS or as the only dict of tensors. The
    prefix 'module.' of PyTorch's data parallel wrappers is removed.

    Args:
        path: A file of torch.save, .safetensors, .npz, or a pickle of NumPy arrays.
        ema: Whether to read the exponential moving average of the weights: `state_dict_ema`,
            `model_ema`, or MMSegmentation 0.x's copies 'ema_...' (without copies of batch norm
            statistics, for which the model's are used). MMSegmentation 1.x writes the average into
            `state_dict` itself, which is then read in any case.

    Returns:
        {name: array}; integers and booleans keep their types.

    Raises:
        WeightsError: The file is missing, damaged, unknown or malicious, or has no moving average.
    """
    path = expand(path)
    with about(file=path):
        kind = file_kinds.sniff(path)
        averaged = False
        if kind == file_kinds.NPZ:
            tensors = _read_npz(path)
        elif kind == file_kinds.SAFETENSORS:
            tensors = _read_safetensors(path)
        else:
            tensors, averaged = _read_torch(path, ema)
        return _tidy(tensors, ema and not averaged)


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Return the class names that MMSegmentation stored in a .pth with the weights; () if none.

    Raises:
        WeightsError: The file is missing, damaged, unknown or malicious.
    """
    path = expand(path)
    with about(file=path):
        if file_kinds.sniff(path) not in (file_kinds.TORCH_ZIP, file_kinds.TORCH_PICKLE):
            return ()
        with torch_file.open_torch_file(path) as content:
            meta = _mapping(_mapping(content).get("meta"))
            names = _mapping(meta.get("dataset_meta")).get("classes") or meta.get("CLASSES")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names) if len(set(names)) == len(names) else ()


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def write_state_dict(
    path: str | Path, state_dict: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None
) -> None:
    """Write a state dict; the file appears only when it is complete.

    Args:
        path: The file, ending in .npz, .safetensors, .pth or .pt; the last two need PyTorch.
        state_dict: {name: array}.
        meta: {'classes', 'palette', ...}, which a .pth stores next to 'state_dict', as
            MMSegmentation reads it.

    Raises:
        WeightsError: The suffix is not supported, or PyTorch is not installed.
        JaxsegError: The file cannot be written.
    """
    path = expand(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            f"weights are written as {', '.join(SUFFIXES)}, not as '{path.suffix}'",
            file=path,
            hint="choose one of these suffixes",
        )
    torch = _import_torch(path) if path.suffix in (".pth", ".pt") else None
    arrays = {
        name: np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        for name, value in state_dict.items()
    }
    with atomic_path(path) as part:
        if torch:
            tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
            torch.save({"meta": dict(meta or {}), "state_dict": tensors}, part)
        elif path.suffix == ".npz":
            np.savez(part, **arrays)  # type: ignore[arg-type] # its stub takes them for options
        else:
            save_file(arrays, part)


def _import_torch(path: Path) -> Any:
    try:
        import torch  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        raise WeightsError(
            "writing it needs PyTorch",
            file=path,
            hint="pip install jaxseg[convert], or choose .safetensors",
        ) from None
    return torch


# --- Reading --------------------------------------------------------------------------------------


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    size = path.stat().st_size
    if unpacked > max(MAX_UNPACKED, MAX_RATIO * size):
        raise WeightsError(
            f"its {size} bytes would unpack to {unpacked}, far more than weights do",
            hint="do not trust it",
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile and NumPy raise many kinds of errors for damaged files
        raise WeightsError(
            "it is an .npz with something other than plain arrays, or damaged",
            hint=torch_file.AGAIN,
        ) from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(
            "it is a .safetensors file that is damaged, cut short, or has a number type that NumPy "
            f"lacks ({error})",
            hint=torch_file.AGAIN,
        ) from error


def _read_torch(path: Path, ema: bool) -> tuple[dict[str, np.ndarray], bool]:
    """Return the tensors, and whether they are the moving average already."""
    with torch_file.open_torch_file(path) as content:
        entries, averaged = _find_weights(content, ema)
        _refuse_foreign(entries, at_top=entries is content)
        arrays = {name: _read_tensor(name, tensor) for name, tensor in _tensors(entries).items()}
        return arrays, averaged


def _refuse_foreign(entries: Mapping[Any, Any], *, at_top: bool) -> None:
    """Raise if something other than plain tensors is among the weights.

    Args:
        entries: The dict of weights.
        at_top: Whether it is the content of the whole file, which may hold other things too.
    """
    for name, value in entries.items():
        if not isinstance(value, torch_file.StandIn):
            continue
        function = value.origin.rpartition(".")[2]
        if function in FOREIGN or not at_top:
            default = (f"is a {value.origin}, not a plain tensor", PLAIN)
            what, advice = FOREIGN.get(function, default)
            raise WeightsError(f"{name} {what}", hint=advice)


def _read_tensor(name: str, tensor: torch_file.Tensor | torch_file.Array) -> np.ndarray:
    try:
        return tensor.numpy()
    except WeightsError as error:
        raise WeightsError(f"{name} cannot be read: {error.problem}", hint=error.hint) from error
    except Exception as error:  # as in open_torch_file
        raise WeightsError(
            f"{name} cannot be read: {torch_file.DAMAGED}", hint=torch_file.AGAIN
        ) from error


def _tensors(value: Any) -> dict[str, torch_file.Tensor | torch_file.Array]:
    """Return the tensors of a dict by name, {} for anything else."""
    return {
        name: entry
        for name, entry in _mapping(value).items()
        if isinstance(name, str) and isinstance(entry, torch_file.Tensor | torch_file.Array)
    }


def _find_weights(content: Any, ema: bool, depth: int = 0) -> tuple[Mapping[Any, Any], bool]:
    """Return the dict of tensors in a file's content, and whether it is the moving average."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"it holds {_describe(content)}, not weights by name", hint=PLAIN)
    for key in (*(EMA_KEYS if ema else ()), *KEYS):
        if isinstance(content.get(key), Mapping) and depth < 2:  # a malicious dict may hold itself
            # MMEngine swaps the two: if there is an `ema_state_dict`, `state_dict` is the average.
            average = key in EMA_KEYS or "ema_state_dict" in content
            if _tensors(content[key]):
                return content[key], average
            weights, inner_average = _find_weights(content[key], False, depth + 1)
            return weights, inner_average or average
    if _tensors(content):
        return content, False
    holders = [key for key, value in content.items() if _tensors(value) and key not in EMA_KEYS]
    if len(holders) == 1:
        return content[holders[0]], False
    if len(holders) > 1:
        raise WeightsError(
            f"it holds several dicts of tensors: {', '.join(map(str, holders[:10]))}",
            hint="save only the model's",
        )
    foreign = {k: v for k, v in content.items() if isinstance(v, torch_file.StandIn)}
    if any(value.origin.rpartition(".")[2] in FOREIGN for value in foreign.values()):
        return content, False  # refused by the caller, with advice
    for key, value in foreign.items():
        if key in KEYS:
            problem = f"its '{key}' is {_describe(value)}, not weights by name"
            raise WeightsError(problem, hint=PLAIN)
    held = ", ".join([str(key) for key in content][:10]) or "nothing"
    raise WeightsError(
        f"it has no tensors at the top level or under {', '.join(KEYS)}; it holds {held}",
        hint=PLAIN,
    )


def _describe(value: Any) -> str:
    """Describe the content of a file that is not a dict of weights."""
    if isinstance(value, torch_file.StandIn):
        return f"a whole model or another object ({value.origin})"
    if isinstance(value, torch_file.Tensor | torch_file.Array):
        return "a single tensor"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)} items without names"
    return f"a {type(value).__name__}"


def _tidy(tensors: Mapping[str, np.ndarray], ema: bool) -> dict[str, np.ndarray]:
    """Remove wrappers' prefixes, make floats float32, and select the average or the weights."""
    named: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        short = name
        while short.startswith("module."):
            short = short.removeprefix("module.")
        if short in named:
            raise WeightsError(f"two tensors are named {short}, with and without 'module.'")
        floating = np.issubdtype(value.dtype, np.floating) or value.dtype == ml_dtypes.bfloat16
        named[short] = np.asarray(value, np.float32) if floating else value
    plain = {name: value for name, value in named.items() if not name.startswith("ema_")}
    if not ema:
        return plain
    copies = {name: f"ema_{name.replace('.', '_')}" for name in plain}
    if not any(copy in named for copy in copies.values()):
        raise WeightsError(
            "it has no moving average of the weights (state_dict_ema, model_ema, or tensors named "
            "ema_...)"
        )
    return {name: named.get(copies[name], value) for name, value in plain.items()}
