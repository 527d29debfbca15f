"""Between PyTorch state dicts of MMSegmentation and our variables; reading weight files safely.

Our parameter paths are MMSegmentation's names: ('decode_head', 'convs.0', 'conv', 'kernel') is 'decode_head.convs.0.conv.weight'.
What differs is the leaf: names (kernel, scale, mean, ...) and layout (a convolution's [O, I, h, w] becomes [h, w, I, O]).
"""

import collections
import dataclasses
import logging
import re
from collections.abc import Mapping, Set
from typing import Any

import jax
import numpy as np

from jaxseg.errors import WeightsError
from jaxseg.models import variable_shapes
from jaxseg.weights.finite import check_finite

log = logging.getLogger(__name__)


# Our leaf -> PyTorch's; any other leaf has the same name in both.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "factor": "scale",
}
COUNTERS = "num_batches_tracked"  # PyTorch's batch counters, which nothing reads
LISTED = 20  # names that an error lists of each kind
# ANN's second block has one projection for keys and queries, which PyTorch lists under both names: (as queries, as keys).
SHARED = (
    re.compile(r"((?:^|\.)context\.stages\.\d+\.)query_project\."),
    re.compile(r"((?:^|\.)context\.stages\.\d+\.)key_project\."),
)

# Spellings of other times and programs -> MMSegmentation 1.x's. The published 0.x files of these 25 methods need none of
# them: 1.x loads those files under the same names.
WRAPPERS = re.compile(r"^(module\.)+")  # PyTorch's data parallel wrappers
STEM = re.compile(
    r"^(backbone\.)?conv1\.(\d+)\."
)  # the stem of three convolutions, once one Sequential and its own norm
CLASSIFIER = re.compile(r"(conv_seg|se_layer|fc_seg)\.(weight|bias)$")
# Parts of ImageNet classifiers that no backbone here has: ResNet's and MobileNet's heads, HRNet's, MobileNetV2's last layer.
CLASSIFIERS = (
    "fc.",
    "head.",
    "classifier.",
    "neck.",
    "incre_modules.",
    "downsamp_modules.",
    "final_layer.",
    "conv2.",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What loading did, by PyTorch name: loaded; missing (kept as they were); unused tensors of the file; mismatched {name: (its shape, the model's)}.

    shapes: PyTorch's, of the missing (the model's) and of the unused (the file's).
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def complain(self) -> None:
        """Raise a WeightsError that lists both sides with shapes, unless every parameter was filled and every tensor used."""
        groups = {
            "of another shape": [
                f"{name}: the file has {theirs}, the model {ours}"
                for name, (theirs, ours) in sorted(self.mismatched.items())
            ],
            "in the model, not in the file": [
                f"{name} {self.shapes.get(name, '')}" for name in sorted(self.missing)
            ],
            "in the file, not in the model": [
                f"{name} {self.shapes.get(name, '')}" for name in self.unused
            ],
        }
        if any(groups.values()):
            text = [f"The weights do not fit the model ({len(self.loaded)} tensors do):"]
            for what, lines in groups.items():
                if lines:
                    more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
                    text += [
                        f"  {what} ({len(lines)}):",
                        *(f"    {line}".rstrip() for line in [*lines[:LISTED], *more]),
                    ]
            raise WeightsError("\n".join(text), hint=self._advice())

    def _advice(self) -> str:
        """What to do where the file and the model differ in their number of classes alone."""
        pairs = (pair for name, pair in self.mismatched.items() if CLASSIFIER.search(name))
        classes = {theirs[0] for theirs, ours in pairs if theirs[1:] == ours[1:]}
        if (
            self.missing
            or self.unused
            or len(classes) != 1
            or not all(map(CLASSIFIER.search, self.mismatched))
        ):
            return ""
        return (
            f"the file is of a model of {classes.pop()} classes: give the config of the data set that it was trained on, or start "
            "training from it with --config.init_from, which takes all but the classifiers"
        )


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

    Raises:
        WeightsError: a tensor that is taken holds a NaN or an infinity.
    """
    loaded, missing, mismatched, shapes = [], [], {}, {}
    state_dict = {
        SHARED[0].sub(r"\1key_project.", name): value for name, value in state_dict.items()
    }

    def fill(path, leaf):
        name = torch_name(path)
        expected = tuple(_layout(path, np.broadcast_to(np.float32(0), leaf.shape), True).shape)
        if name not in state_dict:
            missing.append(name)
            shapes[name] = expected
            return leaf
        shape = tuple(state_dict[name].shape)
        if shape != expected:
            mismatched[name] = (shape, expected)
            return leaf
        loaded.append(name)
        return np.asarray(_layout(path, np.asarray(state_dict[name], np.float32), False), order="C")

    filled = jax.tree_util.tree_map_with_path(fill, variables)
    check_finite({name: state_dict[name] for name in loaded}, "")
    known = {*loaded, *mismatched}
    unused = [n for n in state_dict if n not in known and not n.endswith(COUNTERS)]
    shapes |= {n: tuple(state_dict[n].shape) for n in unused}
    return filled, Report(tuple(loaded), tuple(missing), tuple(unused), mismatched, shapes)


def strip_prefix(state_dict: Mapping[str, np.ndarray], variables: Any) -> dict[str, np.ndarray]:
    """The state dict without a prefix that a wrapper put before its names ('model.' of Lightning), if names then fit the variables.

    Names of a backbone's own weights have no 'backbone.' in them.

    Raises:
        WeightsError: the names of several models in the file fit ('student.' and 'teacher.').
    """
    known = {torch_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
    for expected in (
        known,
        {name.removeprefix("backbone.") for name in known if name.startswith("backbone.")},
    ):
        if not expected.isdisjoint(state_dict):
            break
        found = collections.Counter(
            prefix for name in state_dict if (prefix := _prefix(name, expected))
        )
        (best, count), *others = found.most_common(2) or [("", 0)]
        if others and 2 * others[0][1] > count:
            problem = f"names fit the model after '{best}' and after '{others[0][0]}'"
            raise WeightsError(problem, hint="save one of these models by itself")
        if best:
            if others := [
                name for name in state_dict if not name.startswith(best)
            ]:  # of a loss or a metric, for instance
                log.warning(
                    "%d tensors without the '%s' of the model's are not used (%s)",
                    len(others),
                    best,
                    ", ".join(others[:3]),
                )
            return {
                name.removeprefix(best): value
                for name, value in state_dict.items()
                if name.startswith(best)
            }
    return dict(state_dict)


def _prefix(name: str, expected: Set[str]) -> str:
    """What stands before the longest end of a dotted name that is expected, '' if no end is."""
    ends = (dot.end() for dot in re.finditer(r"\.", name))
    return next((name[:end] for end in ends if name[end:] in expected), "")


def current_names(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict under the names of MMSegmentation 1.x."""
    named = {WRAPPERS.sub("", name): value for name, value in state_dict.items()}
    for prefix in ("", "backbone."):
        if (
            f"{prefix}conv1.0.weight" in named
        ):  # conv1.0, conv1.1, conv1.3, ... and bn1 are stem.0, stem.1, stem.3, ... and stem.7
            named = {
                re.sub(rf"^{re.escape(prefix)}bn1\.", f"{prefix}stem.7.", name): value
                for name, value in named.items()
            }
    return {STEM.sub(r"\1stem.\2.", name): value for name, value in named.items()}


def load_backbone(
    state_dict: Mapping[str, np.ndarray], variables: Mapping[str, Any]
) -> tuple[dict[str, Any], Report]:
    """Fill the backbone of `variables` from a backbone's own weights, such as ImageNet's: (new variables, Report).

    Names may begin with 'backbone.' or not. Classification layers, and the heads of a whole model, are listed as unused;
    everything else of the variables stays as it is.

    Raises:
        WeightsError: a variable of the backbone is not filled or a tensor of it not used, with both sides listed, or a
            tensor holds a NaN or an infinity.
    """
    named = current_names(strip_prefix(state_dict, variables))
    if not any(name.startswith("backbone.") for name in named):
        named = {f"backbone.{name}": value for name, value in named.items()}
    own = {
        collection: {"backbone": tree["backbone"]}
        for collection, tree in variables.items()
        if "backbone" in tree
    }
    filled, report = to_variables(named, own)
    strange = [
        n
        for n in report.unused
        if n.startswith("backbone.") and not n.removeprefix("backbone.").startswith(CLASSIFIERS)
    ]
    dataclasses.replace(report, unused=tuple(strange)).complain()
    return {
        collection: {**tree, **filled.get(collection, {})} for collection, tree in variables.items()
    }, report


def from_mmseg(state_dict: Mapping[str, np.ndarray], model: Any, image_channels: int = 3) -> Any:
    """Variables of `model` (of images with so many channels) from MMSegmentation's state dict {name: array}, float32.

    Raises:
        WeightsError: a tensor is not used or a variable not filled, with both sides and their shapes listed, or a tensor
            holds a NaN or an infinity.
    """
    shapes = variable_shapes(model, (1, 512, 512, image_channels))
    variables, report = to_variables(current_names(strip_prefix(state_dict, shapes)), shapes)
    report.complain()
    return variables


def to_mmseg(variables: Any) -> dict[str, np.ndarray]:
    """MMSegmentation's state dict of our variables: the inverse of from_mmseg, float32, with batch counters of 0."""
    state_dict = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = torch_name(path)
        state_dict[name] = np.asarray(_layout(path, np.asarray(leaf, np.float32), True), order="C")
        if name.endswith("running_var"):
            state_dict[name.removesuffix("running_var") + COUNTERS] = np.zeros((), np.int64)
    twins = {
        SHARED[1].sub(r"\1query_project.", name): value
        for name, value in state_dict.items()
        if SHARED[1].search(name)
    }
    return state_dict | twins
