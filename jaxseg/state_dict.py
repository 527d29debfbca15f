"""Weight files as {name: NumPy array}: PyTorch's .pth and .pt, .safetensors and .npz, from anywhere, safely."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (makes bfloat16 known to NumPy, which safetensors.numpy needs)
import numpy as np

from jaxseg import torch_file
from jaxseg.errors import WeightsError
from jaxseg.files import expand

SUFFIXES = (".pth", ".pt", ".safetensors", ".npz")
KEYS = ("state_dict", "model")  # where programs keep the weights among other things
EMA_KEYS = ("state_dict_ema", "model_ema")


StateDictError = WeightsError  # its earlier name


def read_state_dict(path: str | Path, *, ema: bool = False) -> dict[str, np.ndarray]:
    """{name: array} of a weight file: floats of any width as float32, integers and booleans as they are.

    A .pth or .pt holds the state dict itself, or as `state_dict` or `model` of a dict. The prefix 'module.' of PyTorch's
    data parallel wrappers is taken off. Nothing in the file is executed and PyTorch is not needed.

    ema: the exponential moving average of the weights, where training kept one: `state_dict_ema` or `model_ema`, or
    MMSegmentation 0.x's copies named 'ema_...' (statistics of batch norm have none: theirs are the model's). MMSegmentation
    1.x writes the average into `state_dict` itself, which is then read either way. Without ema such copies are left out.

    Raises StateDictError, naming the file, for a missing, damaged, unknown or hostile file, or one without the copy.
    """
    path = expand(path)
    if path.suffix not in SUFFIXES:
        raise StateDictError(f"{path}: weights come as {', '.join(SUFFIXES)}, not as '{path.suffix}'")
    if not path.is_file():
        raise StateDictError(f"{path}: there is no such file")
    try:
        averaged = False
        if path.suffix == ".npz":
            tensors = _read_npz(path)
        elif path.suffix == ".safetensors":
            tensors = _read_safetensors(path)
        else:
            tensors, averaged = _read_torch(path, ema)
        return _tidy(tensors, ema and not averaged)
    except ValueError as error:
        raise StateDictError(f"{path}: {error}") from error


def write_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> None:
    """Write {name: array} as .npz, .safetensors or .pth, by the suffix; the file appears when it is complete.

    .pth: {'state_dict', 'meta'} as MMSegmentation reads it (`meta`: {'classes', 'palette', ...}); needs PyTorch.
    """
    path = expand(path)
    if path.suffix not in SUFFIXES:
        raise StateDictError(f"{path}: weights are written as {', '.join(SUFFIXES)}, not as '{path.suffix}'")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{path.name}")  # keeps the suffix, which np.savez would add
    arrays = {name: np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value) for name, value in state_dict.items()}
    if path.suffix == ".npz":
        np.savez(part, **arrays)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(arrays, part)
    else:
        torch = _import_torch(path)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        torch.save({"meta": dict(meta or {}), "state_dict": tensors}, part)
    os.replace(part, path)


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise StateDictError(f"{path}: to write it, install PyTorch (pip install jaxseg[convert]), or choose .safetensors") from None
    return torch


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile and NumPy meet damaged files with errors of every kind
        raise WeightsError(f"it is no .npz of plain arrays, or damaged ({error})") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"it is no .safetensors, damaged, or of a number type that NumPy lacks ({error})") from error


def _read_torch(path: Path, ema: bool) -> tuple[dict[str, np.ndarray], bool]:
    """(tensors, whether they are the moving average already)."""
    with torch_file.read(path) as content:
        entries, averaged = _find(content, ema)
        foreign = [f"{n} is {value!r}" for n, value in entries.items() if isinstance(n, str) and isinstance(value, torch_file.StandIn)]
        tensors = {n: value for n, value in entries.items() if isinstance(n, str) and isinstance(value, torch_file.Tensor)}
        if not tensors:
            held = ", ".join([n for n in entries if isinstance(n, str)][:10]) or "nothing"
            raise WeightsError(f"it holds no tensors where weights are looked for (top level, {', '.join(KEYS)}); it holds {held}")
        if entries is not content and foreign:
            raise WeightsError(f"its state dict holds what is not a plain tensor: {'; '.join(foreign[:5])}")
        arrays = {}
        for name, tensor in tensors.items():
            try:
                arrays[name] = tensor.numpy()
            except Exception as error:  # as in torch_file.read
                raise WeightsError(f"{name} cannot be read: {error}") from error
        return arrays, averaged


def _find(content: Any, ema: bool) -> tuple[Mapping[Any, Any], bool]:
    """(the dict of tensors inside what a file holds, whether it is the moving average)."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"it holds a {getattr(content, 'origin', type(content).__name__)}, not a dict of tensors; save model.state_dict()")
    for key in (*(EMA_KEYS if ema else ()), *KEYS):
        if isinstance(content.get(key), Mapping):
            # MMEngine swaps them on saving: beside `ema_state_dict`, `state_dict` is the average.
            return content[key], key in EMA_KEYS or "ema_state_dict" in content
    return content, False


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
        raise WeightsError("it has no moving average of the weights (state_dict_ema, model_ema, or tensors named ema_...)")
    return {name: named.get(copies[name], value) for name, value in plain.items()}
