"""Names and layout of MMSegmentation's PyTorch state dicts, and conversion in both directions.

Our parameter paths mirror MMSegmentation's names: ('decode_head', 'convs.0', 'conv', 'kernel') is
'decode_head.convs.0.conv.weight'. Only the leaves differ, in name (kernel, scale, mean, ...) and
layout (a convolution's [O, I, h, w] becomes [h, w, I, O]).
"""

import collections
import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxseg.errors import WeightsError
from jaxseg.models import variable_shapes
from jaxseg.weights.merge import Layout, MergeReport, Path, Shape, merge

log = logging.getLogger(__name__)

StateDict = Mapping[str, np.ndarray]  # {PyTorch name: array}

# Our leaf -> PyTorch's; other leaves have the same name in both.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "factor": "scale",
}
BATCH_COUNTER = "num_batches_tracked"  # of PyTorch's batch norm, which is not used
DATA_PARALLEL = re.compile(r"^(module\.)+")  # prefix of PyTorch's data parallel wrappers


@dataclasses.dataclass(frozen=True)
class Rename:
    """A rule that turns an earlier spelling of names into MMSegmentation 1.x's.

    Attributes:
        old: Matches the beginning of an earlier name; its first group is 'backbone.' or ''.
        new: Replacement.
        beside: Apply the rule only if the state dict also has a tensor of this name (after the same
            first group).
    """

    old: re.Pattern[str]
    new: str
    beside: str = ""


@dataclasses.dataclass(frozen=True)
class SharedTensor:
    """One tensor that PyTorch lists under two names.

    Attributes:
        within: Pattern of the common beginning of the names.
        own: Module in our parameter paths.
        alias: Module that our parameter paths lack.
    """

    within: str
    own: str
    alias: str

    def own_name(self, name: str) -> str:
        """Return a name with our module in place of the alias."""
        return re.sub(rf"({self.within}){self.alias}\.", rf"\1{self.own}.", name)

    def alias_name(self, name: str) -> str:
        """Return a name with the alias in place of our module."""
        return re.sub(rf"({self.within}){self.own}\.", rf"\1{self.alias}.", name)


@dataclasses.dataclass(frozen=True)
class ModuleNames:
    """Differences between a module's names in PyTorch files and our parameter paths.

    Attributes:
        renames: Earlier spellings, which the published 0.x files of these methods do not have.
        classifier: Prefixes of tensors of ImageNet classifiers that the backbone lacks.
        shared: Tensors that are listed under two names.
    """

    renames: tuple[Rename, ...] = ()
    classifier: tuple[str, ...] = ()
    shared: tuple[SharedTensor, ...] = ()


_FULLY_CONNECTED = ("fc.", "head.", "classifier.", "neck.")
# The stem of three convolutions used to be one Sequential `conv1` (0, 1, 3, ...) and a norm `bn1`.
_DEEP_STEM = (
    Rename(re.compile(r"^((?:backbone\.)?)bn1\."), r"\1stem.7.", beside="conv1.0.weight"),
    Rename(re.compile(r"^((?:backbone\.)?)conv1\.(\d+)\."), r"\1stem.\2."),
)
# By the module's name in jaxseg.models. Other modules have no differences.
MODULES: dict[str, ModuleNames] = {
    "resnet": ModuleNames(renames=_DEEP_STEM, classifier=_FULLY_CONNECTED),
    "resnest": ModuleNames(renames=_DEEP_STEM, classifier=_FULLY_CONNECTED),
    "hrnet": ModuleNames(
        classifier=(*_FULLY_CONNECTED, "incre_modules.", "downsamp_modules.", "final_layer.")
    ),
    "mobilenet_v2": ModuleNames(classifier=(*_FULLY_CONNECTED, "conv2.")),
    "mobilenet_v3": ModuleNames(classifier=_FULLY_CONNECTED),
    # Keys and queries of ANN's second block share a projection.
    "ann": ModuleNames(
        shared=(SharedTensor(r"(?:^|\.)context\.stages\.\d+\.", "key_project", "query_project"),)
    ),
}
# A state dict does not state which modules it holds, and no two rules match the same names, so all
# rules are applied to every file.
_RENAMES = tuple(dict.fromkeys(rule for names in MODULES.values() for rule in names.renames))
_CLASSIFIERS = tuple(dict.fromkeys(part for names in MODULES.values() for part in names.classifier))
_SHARED = tuple(rule for names in MODULES.values() for rule in names.shared)


class MMSegLayout(Layout):
    """Names and layout of a PyTorch state dict. All arrays are read as float32."""

    def name(self, path: Path) -> str:
        """Return the PyTorch name of the variable at `path`."""
        return torch_name(path)

    def shape(self, path: Path, shape: Shape) -> Shape:
        """Return PyTorch's shape of the variable at `path`."""
        if path[-1] != "kernel":
            return shape
        return (shape[-1], shape[-2], *shape[:-2])

    def read(self, path: Path, value: np.ndarray) -> np.ndarray:
        """Return PyTorch's tensor as we store it: kernels [O, I, ...] become [..., I, O]."""
        value = np.asarray(value, np.float32)
        if path[-1] != "kernel":
            return value
        return value.transpose(*range(2, value.ndim), 1, 0)

    def write(self, path: Path, value: np.ndarray) -> np.ndarray:
        """Return a variable as PyTorch stores it: the inverse of `read`."""
        value = np.asarray(value, np.float32)
        if path[-1] != "kernel":
            return np.asarray(value, order="C")
        last = value.ndim - 1
        return np.asarray(value.transpose(last, last - 1, *range(last - 1)), order="C")


MMSEG = MMSegLayout()


def torch_name(path: Sequence[Any]) -> str:
    """Return the PyTorch name of a variable.

    Args:
        path: Path of the variable, beginning with the collection: strings, or keys of
            `jax.tree_util.tree_leaves_with_path`.
    """
    _, *modules, leaf = [str(getattr(key, "key", key)) for key in path]
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def to_variables(
    state_dict: StateDict, variables: Mapping[str, Any]
) -> tuple[dict[str, Any], MergeReport]:
    """Merge a state dict into `variables` (see `jaxseg.weights.merge.merge`).

    Args:
        state_dict: {name: array} with the names of MMSegmentation 1.x.
        variables: Arrays or `jax.ShapeDtypeStruct`s. They are kept where the state dict has no
            tensor, or one of another shape.

    Returns:
        The new variables, and the report.

    Raises:
        WeightsError: A matching tensor holds a NaN or an infinity.
    """
    source = {}
    for name, value in state_dict.items():
        if name.endswith(BATCH_COUNTER):
            continue
        for rule in _SHARED:
            name = rule.own_name(name)
        source[name] = value
    return merge(variables, source, MMSEG)


def strip_prefix(state_dict: StateDict, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Remove a wrapper's prefix (Lightning's 'model.') from all names if they then fit the model.

    Args:
        state_dict: {name: array}; the names of a bare backbone lack 'backbone.'.
        variables: The model's variables.

    Returns:
        The state dict with its new names.

    Raises:
        WeightsError: Several prefixes fit ('student.' and 'teacher.').
    """
    known = {torch_name(path) for path in flatten_dict(dict(variables))}
    own = {name.removeprefix("backbone.") for name in known if name.startswith("backbone.")}
    for expected in (known, own):
        if not expected.isdisjoint(state_dict):
            break
        found = collections.Counter(filter(None, _prefixes(state_dict, expected)))
        (best, count), *others = found.most_common(2) or [("", 0)]
        if others and 2 * others[0][1] > count:
            raise WeightsError(
                f"names fit the model after '{best}' and after '{others[0][0]}'",
                hint="save only one of these models",
            )
        if best:
            return _without_prefix(state_dict, best)
    return dict(state_dict)


def _prefixes(names: Iterable[str], expected: Set[str]) -> Iterator[str]:
    """Yield the prefix before the longest expected end of each name, '' if no end is expected."""
    for name in names:
        ends = (dot.end() for dot in re.finditer(r"\.", name))
        yield next((name[:end] for end in ends if name[end:] in expected), "")


def _without_prefix(state_dict: StateDict, prefix: str) -> dict[str, np.ndarray]:
    others = [name for name in state_dict if not name.startswith(prefix)]
    if others:  # of a loss or a metric, for instance
        log.warning(
            "%d tensors without the model's prefix '%s' are not used (%s)",
            len(others),
            prefix,
            ", ".join(others[:3]),
        )
    return {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }


def current_names(state_dict: StateDict) -> dict[str, np.ndarray]:
    """Return the state dict under the names of MMSegmentation 1.x."""
    named = {DATA_PARALLEL.sub("", name): value for name, value in state_dict.items()}
    return {_renamed(name, named): value for name, value in named.items()}


def _renamed(name: str, names: StateDict) -> str:
    for rename in _RENAMES:
        match = rename.old.match(name)
        if match and (not rename.beside or match[1] + rename.beside in names):
            return rename.old.sub(rename.new, name)
    return name


def load_backbone(
    state_dict: StateDict, variables: Mapping[str, Any]
) -> tuple[dict[str, Any], MergeReport]:
    """Merge a backbone's own weights, such as ImageNet's, into the backbone of `variables`.

    Args:
        state_dict: {name: array}; names may begin with 'backbone.'. The report lists classification
            layers, and the heads of a whole model, as unused.
        variables: Variables of the whole model.

    Returns:
        New variables of the whole model, and the report on the backbone.

    Raises:
        WeightsError: The backbone does not fit entirely (the error lists both sides), or a tensor
            holds a NaN or an infinity.
    """
    named = current_names(strip_prefix(state_dict, variables))
    if not any(name.startswith("backbone.") for name in named):
        named = {f"backbone.{name}": value for name, value in named.items()}
    backbone = {
        collection: {"backbone": tree["backbone"]}
        for collection, tree in variables.items()
        if "backbone" in tree
    }
    filled, report = to_variables(named, backbone)
    strange = {name: shape for name, shape in report.unused.items() if _is_of_backbone(name)}
    dataclasses.replace(report, unused=strange).raise_if_incomplete()
    merged = {name: {**tree, **filled.get(name, {})} for name, tree in variables.items()}
    return merged, report


def _is_of_backbone(name: str) -> bool:
    inner = name.removeprefix("backbone.")
    return inner != name and not inner.startswith(_CLASSIFIERS)


def load_model(
    state_dict: StateDict, model: nn.Module, image_channels: int = 3
) -> tuple[dict[str, Any], MergeReport]:
    """Convert a state dict of MMSegmentation to variables of `model`; see `from_mmseg`.

    Args:
        state_dict: {PyTorch name: array}, as in a .pth.
        model: The architecture, from `create_model`.
        image_channels: Number of channels of the model's images.

    Returns:
        The variables, float32, and the report of the merge.

    Raises:
        WeightsError: See `from_mmseg`.
    """
    shapes = variable_shapes(model, (1, 512, 512, image_channels))
    variables, report = to_variables(current_names(strip_prefix(state_dict, shapes)), shapes)
    report.raise_if_incomplete()
    return variables, report


def from_mmseg(state_dict: StateDict, model: nn.Module, image_channels: int = 3) -> dict[str, Any]:
    """Convert a state dict of MMSegmentation to variables of `model`.

    Args:
        state_dict: {PyTorch name: array}, as in a .pth.
        model: The architecture, from `create_model`.
        image_channels: Number of channels of the model's images.

    Returns:
        The model's variables, float32.

    Raises:
        WeightsError: The names or shapes do not fit entirely (the error lists both sides), or a
            tensor holds a NaN or an infinity.
    """
    return load_model(state_dict, model, image_channels)[0]


def to_mmseg(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables to a state dict of MMSegmentation: the inverse of `from_mmseg`.

    Args:
        variables: A model's variables, on the host or on devices.

    Returns:
        {PyTorch name: float32 array}, with int64 batch counters of 0.
    """
    state_dict = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
        path = tuple(str(getattr(key, "key", key)) for key in keys)
        name = torch_name(path)
        state_dict[name] = MMSEG.write(path, leaf)
        if name.endswith("running_var"):
            counter = name.removesuffix("running_var") + BATCH_COUNTER
            state_dict[counter] = np.zeros((), np.int64)
    for rule in _SHARED:
        state_dict |= {rule.alias_name(name): value for name, value in state_dict.items()}
    return state_dict
