"""Between PyTorch state dicts of MMSegmentation and our variables; reading weight files safely.

Our parameter paths are MMSegmentation's names: ('decode_head', 'convs.0', 'conv', 'kernel') is 'decode_head.convs.0.conv.weight'.
What differs is the leaf: names (kernel, scale, mean, ...) and layout (a convolution's [O, I, h, w] becomes [h, w, I, O]).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

# Our leaf -> PyTorch's; any other leaf has the same name in both.
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var", "factor": "scale"}
COUNTERS = "num_batches_tracked"  # PyTorch's batch counters, which nothing reads


@dataclasses.dataclass(frozen=True)
class Report:
    """What loading did, by PyTorch name: loaded; missing (kept as they were); unused tensors of the file; mismatched {name: (its shape, the model's)}."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def complain(self) -> None:
        """Raise a ValueError that lists both sides, unless every parameter was filled and every tensor used."""
        lines = [f"  {name}: the file has {theirs}, the model {ours}" for name, (theirs, ours) in self.mismatched.items()]
        lines += [f"  {name}: not in the file" for name in self.missing] + [f"  {name}: not in the model" for name in self.unused]
        if lines:
            rest = [f"  ... and {len(lines) - 40} more"] if len(lines) > 40 else []
            raise ValueError("\n".join([f"The weights do not fit the model ({len(self.loaded)} tensors do):", *lines[:40], *rest]))


def torch_name(path: tuple[Any, ...]) -> str:
    """The PyTorch name of a leaf of the variables, given its path with the collection first."""
    _, *modules, leaf = [str(getattr(key, "key", key)) for key in path]
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def _layout(path: tuple[Any, ...], value: np.ndarray, to_torch: bool) -> np.ndarray:
    """Kernels are [spatial..., in, out] here and [out, in, spatial...] there; everything else is the same."""
    if str(getattr(path[-1], "key", path[-1])) != "kernel":
        return value
    n = value.ndim
    return value.transpose((n - 1, n - 2, *range(n - 2)) if to_torch else (*range(2, n), 1, 0))


def to_variables(state_dict: Mapping[str, np.ndarray], variables: Any) -> tuple[Any, Report]:
    """Put the tensors of a PyTorch state dict {name: array} into `variables` by name and shape: (new variables, Report).

    Leaves that the state dict lacks, or has in another shape, stay as they are.
    """
    loaded, missing, mismatched = [], [], {}

    def fill(path, leaf):
        name = torch_name(path)
        if name not in state_dict:
            missing.append(name)
            return leaf
        shape = tuple(state_dict[name].shape)
        expected = tuple(_layout(path, np.broadcast_to(np.float32(0), leaf.shape), True).shape)
        if shape != expected:
            mismatched[name] = (shape, expected)
            return leaf
        loaded.append(name)
        return np.ascontiguousarray(_layout(path, np.asarray(state_dict[name], np.float32), False))

    filled = jax.tree_util.tree_map_with_path(fill, variables)
    known = {*loaded, *mismatched}
    unused = [n for n in state_dict if n not in known and not n.endswith(COUNTERS)]
    return filled, Report(tuple(loaded), tuple(missing), tuple(unused), mismatched)


def from_mmseg(state_dict: Mapping[str, np.ndarray], model: Any) -> Any:
    """Variables of `model` from MMSegmentation's state dict {name: array}, float32.

    Every tensor must be used and every variable filled: otherwise ValueError, listing both sides with shapes.
    """
    shapes = jax.eval_shape(lambda: model.init({"params": jax.random.key(0), "points": jax.random.key(0)}, np.zeros((1, 512, 512, 3), np.float32)))
    variables, report = to_variables(state_dict, shapes)
    report.complain()
    return variables


def to_mmseg(variables: Any) -> dict[str, np.ndarray]:
    """MMSegmentation's state dict of our variables: the inverse of from_mmseg, float32, with batch counters of 0."""
    state_dict = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = torch_name(path)
        state_dict[name] = np.ascontiguousarray(_layout(path, np.asarray(leaf, np.float32), True))
        if name.endswith("running_var"):
            state_dict[name.removesuffix("running_var") + COUNTERS] = np.zeros((), np.int64)
    return state_dict
