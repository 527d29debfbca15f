"""Merge weights into a model's variables by name and shape, with a report."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg.errors import WeightsError
from jaxseg.weights.finite import check_finite

Path = tuple[str, ...]  # of a variable, its collection first: ('params', 'backbone', ..., 'kernel')
Shape = tuple[int, ...]

MAX_LISTED = 20  # names of each kind that an error lists
CLASSIFIER = re.compile(r"(conv_seg|se_layer|fc_seg)\.(weight|bias)$")  # PyTorch names


class Layout:
    """How a source names and stores variables; this base class is the layout of our checkpoints."""

    def name(self, path: Path) -> str:
        """Return the source's name of the variable at `path`."""
        return "/".join(path)

    def shape(self, path: Path, shape: Shape) -> Shape:
        """Return the source's shape of the variable at `path`; `shape` is the model's."""
        del path
        return shape

    def read(self, path: Path, value: np.ndarray) -> np.ndarray:
        """Return the source's `value` of the variable at `path` in the model's layout."""
        del path
        return value


NATIVE = Layout()


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """The result of a merge. Variables have their names in the source's layout.

    Attributes:
        loaded: Variables that were replaced.
        missing: Variables that the source lacks, with their shapes; they keep their values.
        mismatched: Variables with different shapes (source, model); they keep their values.
        unused: Entries of the source that the model lacks, with their shapes.
        classes: Description of the classifier rows that were matched by class name; '' if classes
            were not compared.
    """

    loaded: tuple[str, ...]
    missing: Mapping[str, Shape] = dataclasses.field(default_factory=dict)
    mismatched: Mapping[str, tuple[Shape, Shape]] = dataclasses.field(default_factory=dict)
    unused: Mapping[str, Shape] = dataclasses.field(default_factory=dict)
    classes: str = ""

    def raise_if_incomplete(self) -> None:
        """Check that every variable was replaced and every entry of the source used.

        Raises:
            WeightsError: Something does not fit; the error lists names and shapes of both sides.
        """
        groups = {
            "with different shapes": [
                f"{name}: the file has {theirs}, the model {ours}"
                for name, (theirs, ours) in sorted(self.mismatched.items())
            ],
            "in the model, not in the file": _with_shapes(sorted(self.missing.items())),
            "in the file, not in the model": _with_shapes(self.unused.items()),
        }
        if not any(groups.values()):
            return
        text = [f"The weights do not fit the model ({len(self.loaded)} tensors do):"]
        for title, lines in groups.items():
            if lines:
                text.append(f"  {title} ({len(lines)}):")
                text += [f"    {line}" for line in lines[:MAX_LISTED]]
            if len(lines) > MAX_LISTED:
                text.append(f"    ... and {len(lines) - MAX_LISTED} more")
        raise WeightsError("\n".join(text), hint=self._class_count_hint())

    def _class_count_hint(self) -> str:
        """Return advice if source and model differ only in the number of classes, else ''."""
        if self.missing or self.unused or not all(map(CLASSIFIER.search, self.mismatched)):
            return ""
        pairs = self.mismatched.values()
        counts = {theirs[0] for theirs, ours in pairs if theirs[1:] == ours[1:]}
        if len(counts) != 1:
            return ""
        return (
            f"the file is from a model with {counts.pop()} classes: give the config of the data "
            "set that it was trained on, or start training from it with config.init_from, which "
            "loads everything but the classifiers"
        )

    def require_backbone(self) -> None:
        """Check that the backbone fits entirely; other modules may differ.

        Raises:
            WeightsError: Nothing was loaded, or variables of the backbone are on one side only or
                have different shapes.
        """
        # Unused entries count too: a ResNet-34 contains all variables of a ResNet-18.
        suspects = (*sorted(self.missing), *sorted(self.mismatched), *sorted(self.unused))
        wrong = [name for name in suspects if _module_of(name)[0] == "backbone"]
        if self.loaded and not wrong:
            return
        problem = "nothing in it fits this model"
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            problem = (
                f"{len(wrong)} variables of the backbone are on one side only or differ in shape "
                f"({', '.join(wrong[:3])}{more})"
            )
        if self.unused:
            first = ", ".join(sorted(self.unused)[:3])
            problem += f"; {len(self.unused)} entries of the file are unused ({first})"
        raise WeightsError(
            f"it does not match config.model.backbone: {problem}",
            hint="give weights of this backbone, or a config with the backbone of the weights",
        )

    def format(self, source: str) -> str:
        """Format the counts as a short table with the affected modules, which training logs.

        Args:
            source: The file or workdir of the weights.

        Returns:
            Several lines.
        """
        rows = {
            "loaded": self.loaded,
            "re-initialised (absent)": self.missing,
            "re-initialised (other shape)": self.mismatched,
            "unused": self.unused,
        }
        lines = [f"initial weights from {source}:"]
        for label, names in rows.items():
            lines.append(f"  {label:<29}{len(names):>5}  {_modules(names)}".rstrip())
        if self.classes:
            lines.append(f"  classifiers by class name: {self.classes}")
        return "\n".join(lines)


def merge(
    variables: Mapping[str, Any], source: Mapping[str, np.ndarray], layout: Layout = NATIVE
) -> tuple[dict[str, Any], MergeReport]:
    """Replace every variable for which `source` has an entry with its name and shape.

    Args:
        variables: Arrays or `jax.ShapeDtypeStruct`s in nested dicts, the collection first.
        source: {name: array}; in our own layout {'params/a/b/kernel': array}.
        layout: How the source names and stores variables.

    Returns:
        New variables, in the dtypes of `variables`, and the report.

    Raises:
        WeightsError: A replaced variable would hold a NaN or an infinity.
    """
    merged: dict[Path, Any] = {}
    loaded: list[str] = []
    missing: dict[str, Shape] = {}
    mismatched: dict[str, tuple[Shape, Shape]] = {}
    for path, leaf in flatten_dict(dict(variables)).items():
        name = layout.name(path)
        expected = layout.shape(path, tuple(leaf.shape))
        merged[path] = leaf
        if name not in source:
            missing[name] = expected
        elif (shape := tuple(np.shape(source[name]))) != expected:
            mismatched[name] = (shape, expected)
        else:
            loaded.append(name)
            value = layout.read(path, np.asarray(source[name]))
            merged[path] = np.asarray(value, leaf.dtype, order="C")
    check_finite({name: source[name] for name in loaded}, "")
    known = {*loaded, *mismatched}
    unused = {name: np.shape(value) for name, value in source.items() if name not in known}
    return unflatten_dict(merged), MergeReport(tuple(loaded), missing, mismatched, unused)


def _with_shapes(entries: Iterable[tuple[str, Shape]]) -> list[str]:
    return [f"{name} {shape}" for name, shape in entries]


def _module_of(name: str) -> list[str]:
    """Return the first two modules in 'params/a/b/c/kernel' or PyTorch's 'a.b.c.weight'."""
    return name.split("/")[1:3] if "/" in name else name.split(".")[:2]


def _modules(names: Iterable[str]) -> str:
    found = sorted({("/" if "/" in name else ".").join(_module_of(name)) for name in names})
    more = f", ... ({len(found)} places)" if len(found) > 4 else ""
    return ", ".join(found[:4]) + more
