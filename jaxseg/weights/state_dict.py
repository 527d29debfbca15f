"""Weight files as {name: NumPy array}: PyTorch's .pth, .safetensors, .npz and pickles of arrays, from anywhere, safely."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (makes bfloat16 known to NumPy, which safetensors.numpy needs)
import numpy as np

from jaxseg.errors import WeightsError
from jaxseg.files import atomic_path, expand
from jaxseg.weights import file_kinds, torch_file

SUFFIXES = (
    ".pth",
    ".pt",
    ".safetensors",
    ".npz",
)  # of files to write; what is read is told by its bytes
KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
)  # where programs keep weights
EMA_KEYS = ("state_dict_ema", "model_ema")
# What is not a plain tensor, by the function that rebuilds it: (what it is, what to save instead).
FOREIGN = {
    "_rebuild_meta_tensor_no_storage": (
        "has no values, being on the device 'meta'",
        "save the model once its weights are loaded",
    ),
    "_rebuild_sparse_tensor": ("is a sparse tensor", "save its to_dense()"),
    "_rebuild_sparse_csr_tensor": ("is a sparse tensor", "save its to_dense()"),
    "_rebuild_qtensor": ("is a quantised tensor", "save the weights from before quantisation"),
}
PLAIN = "save model.state_dict(), plain tensors by name, with torch.save"
BOMB = (2**30, 200)  # bytes an archive may hold, or else times its size in the file


StateDictError = WeightsError  # its earlier name


def read_state_dict(path: str | Path, *, ema: bool = False) -> dict[str, np.ndarray]:
    """{name: array} of a weight file: floats of any width as float32, integers and booleans as they are.

    Files of torch.save, .safetensors, .npz and pickles of NumPy arrays are told by their bytes, whatever they are called. A
    file of torch.save holds the state dict itself, or in a dict under one of KEYS or as the only dict of tensors. The prefix
    'module.' of PyTorch's data parallel wrappers is taken off. Nothing in the file is executed and PyTorch is not needed.

    ema: the exponential moving average of the weights, where training kept one: `state_dict_ema` or `model_ema`, or
    MMSegmentation 0.x's copies named 'ema_...' (statistics of batch norm have none: theirs are the model's). MMSegmentation
    1.x writes the average into `state_dict` itself, which is then read either way. Without ema such copies are left out.

    Raises:
        WeightsError: a missing, damaged, unknown or hostile file, or one without the copy; it names the file, what it is
            and what to do.
    """
    path = expand(path)
    try:
        kind, averaged = file_kinds.sniff(path), False
        if kind == file_kinds.NPZ:
            tensors = _read_npz(path)
        elif kind == file_kinds.SAFETENSORS:
            tensors = _read_safetensors(path)
        else:
            tensors, averaged = _read_torch(path, ema)
        return _tidy(tensors, ema and not averaged)
    except WeightsError as error:
        raise WeightsError(error.problem, file=path, hint=error.hint) from error


def read_classes(path: str | Path) -> tuple[str, ...]:
    """The class names that MMSegmentation wrote beside the weights of a .pth, in their order; () where there are none."""
    if file_kinds.sniff(path) not in (file_kinds.TORCH_ZIP, file_kinds.TORCH_PICKLE):
        return ()
    with torch_file.read(path) as content:
        meta = content.get("meta") if isinstance(content, Mapping) else None
        meta = meta if isinstance(meta, Mapping) else {}
        described = meta.get("dataset_meta")
        names = (described if isinstance(described, Mapping) else {}).get("classes") or meta.get(
            "CLASSES"
        )
    known = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if known and len(set(names)) == len(names) else ()


def write_state_dict(
    path: str | Path, state_dict: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None
) -> None:
    """Write {name: array} as .npz, .safetensors or .pth, by the suffix; the file appears when it is complete.

    .pth: {'state_dict', 'meta'} as MMSegmentation reads it (`meta`: {'classes', 'palette', ...}); needs PyTorch.
    """
    path = expand(path)
    if path.suffix not in SUFFIXES:
        problem = f"weights are written as {', '.join(SUFFIXES)}, not as '{path.suffix}'"
        raise WeightsError(problem, file=path, hint="choose one of these suffixes")
    torch = _import_torch(path) if path.suffix in (".pth", ".pt") else None
    arrays = {
        name: np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        for name, value in state_dict.items()
    }
    with atomic_path(path) as part:
        if path.suffix == ".npz":
            np.savez(part, **arrays)
        elif path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file(arrays, part)
        else:
            tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
            torch.save({"meta": dict(meta or {}), "state_dict": tensors}, part)


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise WeightsError(
            "PyTorch is needed to write it",
            file=path,
            hint="pip install jaxseg[convert], or choose .safetensors",
        ) from None
    return torch


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        held = sum(info.file_size for info in archive.infolist())
    largest, ratio = BOMB
    if held > max(largest, ratio * path.stat().st_size):
        raise WeightsError(
            f"its {path.stat().st_size} bytes would unpack to {held}, which weights never do",
            hint="do not trust it",
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile and NumPy meet damaged files with errors of every kind
        raise WeightsError(
            "it is an .npz of other than plain arrays, or damaged", hint=torch_file.AGAIN
        ) from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        problem = f"it is a .safetensors file that is damaged, cut short, or of a number type that NumPy lacks ({error})"
        raise WeightsError(problem, hint=torch_file.AGAIN) from error


def _read_torch(path: Path, ema: bool) -> tuple[dict[str, np.ndarray], bool]:
    """(tensors, whether they are the moving average already)."""
    with torch_file.read(path) as content:
        entries, averaged = _find(content, ema)
        for name, value in entries.items():
            function = (
                getattr(value, "origin", "").rpartition(".")[2]
                if isinstance(value, torch_file.StandIn)
                else ""
            )
            if function in FOREIGN or (function and entries is not content):
                what, advice = FOREIGN.get(
                    function, (f"is a {value.origin}, not a plain tensor", PLAIN)
                )
                raise WeightsError(f"{name} {what}", hint=advice)
        arrays = {}
        for name, tensor in _tensors(entries).items():
            try:
                arrays[name] = tensor.numpy()
            except WeightsError as error:
                raise WeightsError(
                    f"{name} cannot be read: {error.problem}", hint=error.hint
                ) from error
            except Exception as error:  # as in torch_file.read
                raise WeightsError(
                    f"{name} cannot be read: {torch_file.DAMAGED}", hint=torch_file.AGAIN
                ) from error
        return arrays, averaged


def _tensors(value: Any) -> dict[str, Any]:
    """The tensors of a dict by name, {} of anything else."""
    entries = value.items() if isinstance(value, Mapping) else ()
    return {
        name: one
        for name, one in entries
        if isinstance(name, str) and isinstance(one, torch_file.Tensor | torch_file.Array)
    }


def _find(content: Any, ema: bool, depth: int = 0) -> tuple[Mapping[Any, Any], bool]:
    """(the dict of tensors inside what a file holds, whether it is the moving average)."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"it holds {_describe(content)}, not weights by name", hint=PLAIN)
    for key in (*(EMA_KEYS if ema else ()), *KEYS):
        if isinstance(content.get(key), Mapping) and depth < 2:  # a hostile dict may hold itself
            # MMEngine swaps them on saving: beside `ema_state_dict`, `state_dict` is the average.
            inner, averaged = (
                _find(content[key], False, depth + 1)
                if not _tensors(content[key])
                else (content[key], False)
            )
            return inner, averaged or key in EMA_KEYS or "ema_state_dict" in content
    if _tensors(content):
        return content, False
    holders = [key for key, value in content.items() if _tensors(value) and key not in EMA_KEYS]
    if len(holders) == 1:
        return content[holders[0]], False
    if len(holders) > 1:
        listed = ", ".join(map(str, holders[:10]))
        raise WeightsError(
            f"it holds several dicts of tensors: {listed}",
            hint="save the one of the model by itself",
        )
    foreign = [key for key, value in content.items() if isinstance(value, torch_file.StandIn)]
    if any(content[key].origin.rpartition(".")[2] in FOREIGN for key in foreign):
        return content, False  # the caller says what they are
    for key in foreign:
        if key in KEYS:
            raise WeightsError(
                f"its '{key}' is {_describe(content[key])}, not weights by name", hint=PLAIN
            )
    held = ", ".join([str(key) for key in content][:10]) or "nothing"
    raise WeightsError(
        f"it holds no tensors where weights are looked for (top level, {', '.join(KEYS)}); it holds {held}",
        hint=PLAIN,
    )


def _describe(value: Any) -> str:
    """What a file holds in place of weights by name."""
    if isinstance(value, torch_file.StandIn):
        return f"a whole model or another object ({value.origin})"
    if isinstance(value, torch_file.Tensor | torch_file.Array):
        return "a single tensor"
    return f"a {type(value).__name__}{f' of {len(value)} things without names' if isinstance(value, list | tuple) else ''}"


def _tidy(tensors: Mapping[str, np.ndarray], ema: bool) -> dict[str, np.ndarray]:
    """Names without wrappers' prefixes, float32, and of two copies the one asked for."""
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
            "it has no moving average of the weights (state_dict_ema, model_ema, or tensors named ema_...)"
        )
    return {name: named.get(copies[name], value) for name, value in plain.items()}
