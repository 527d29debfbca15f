"""All that one training step changes, as one pytree, and the ways to begin: at random, or from other weights."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.errors import WeightsError
from jaxseg.files import expand
from jaxseg.precision import LossScale, Policy, initial_scale
from jaxseg.weights import class_rows
from jaxseg.weights.class_rows import Classes


class TrainState(struct.PyTreeNode):
    """`step` counts batches, applied or skipped; `model_state` holds every collection but the parameters."""

    step: jax.Array  # int32
    params: Any
    model_state: Any  # {'batch_stats': ..., 'bases': ...}, whichever the model has
    opt_state: Any
    loss_scale: LossScale
    rng: (
        jax.Array
    )  # uint32 [2]: key data; a step's key is this folded with `step`, equal on every device

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, **self.model_state}


def create(
    variables: Mapping, optimizer: optax.GradientTransformation, policy: Policy, seed: int
) -> TrainState:
    """The state at step 0, from a model's variables {'params', 'batch_stats', ...}; `replicate` puts it on devices."""
    # In NumPy and one jit: leaf by leaf, JAX would compile a small program for every shape.
    variables = jax.tree.map(np.asarray, flax.core.unfreeze(dict(variables)))
    params = variables.pop("params")
    return TrainState(
        step=np.zeros((), np.int32),
        params=params,
        model_state=variables,
        opt_state=jax.jit(optimizer.init)(params),
        loss_scale=initial_scale(policy),
        rng=jax.random.key_data(jax.random.key(seed)),
    )


def replicate(state: TrainState, devices: list[jax.Device] | None = None) -> TrainState:
    """`state` laid out as the pmap'd step returns it (axis 'batch', all devices), so that the step compiles once."""
    mesh = Mesh(np.asarray(devices or jax.devices()), ("batch",))
    return jax.device_put(to_host(state), NamedSharding(mesh, PartitionSpec()))


def to_host(tree: Any) -> Any:
    """NumPy copies of a replicated tree's leaves; no communication, also with several processes."""
    return jax.device_get(
        jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)
    )


class InitReport(NamedTuple):
    """Which variables came from where: 'collection/a/b/c' paths, or PyTorch names if the source is a PyTorch file.

    classes: how many rows of the classifiers came over by name, in words; '' where both have the same classes or one has no names.
    """

    loaded: list[str]
    missing: list[str]
    mismatched: list[str]
    unused: list[str]
    classes: str = ""


def merge(variables: Mapping, source: Mapping) -> tuple[dict, InitReport]:
    """`variables` with every leaf that `source` has under the same path and shape replaced by the source's."""
    mine, theirs = (
        flax.traverse_util.flatten_dict(dict(tree), sep="/") for tree in (variables, source)
    )
    same = {
        path for path in mine if path in theirs and np.shape(theirs[path]) == np.shape(mine[path])
    }
    merged = {
        path: np.asarray(theirs[path], np.asarray(leaf).dtype) if path in same else leaf
        for path, leaf in mine.items()
    }
    report = InitReport(
        loaded=sorted(same),
        missing=sorted(path for path in mine if path not in theirs),
        mismatched=sorted(path for path in mine if path in theirs and path not in same),
        unused=sorted(path for path in theirs if path not in mine),
    )
    return flax.traverse_util.unflatten_dict(merged, sep="/"), report


def adapt_channels(loaded: Mapping, fresh: Mapping) -> dict:
    """Variables of a model of RGB images, for one of C channels: its first kernel [h, w, 3, out] becomes [h, w, C, out].

    Channels take red, green and blue in turn, divided so that a grey image, equal in all channels, keeps its response.

    Raises:
        WeightsError: more than one variable depends on the channels.
    """
    old, new = (flax.traverse_util.flatten_dict(dict(tree), sep="/") for tree in (loaded, fresh))
    differ = [path for path in new if np.shape(old[path]) != np.shape(new[path])]
    if len(differ) != 1 or np.ndim(new[differ[0]]) != 4:
        raise WeightsError(
            f"{len(differ)} variables depend on the number of channels ({', '.join(differ[:3])}, ...): RGB weights cannot start this backbone",
            field="dataset.channels",
        )
    kernel, channels = np.asarray(old[differ[0]]), np.shape(new[differ[0]])[2]
    share = np.zeros((channels, 3), kernel.dtype)  # of each colour in each channel
    for color in range(3):
        takers = [c for c in range(channels) if c % 3 == color] or range(channels)
        share[takers, color] = 1 / len(takers)
    return flax.traverse_util.unflatten_dict(
        old | {differ[0]: np.einsum("hwio,ci->hwco", kernel, share)}, sep="/"
    )


def load_initial(
    variables: Mapping, source: str, classes: Classes | None = None
) -> tuple[dict, InitReport]:
    """Start `variables` from `source`: a workdir, one of its steps, or a weight file (see read_state_dict).

    What is absent there or differs in shape keeps its fresh value, but the backbone must match entirely.

    Args:
        variables: fresh ones.
        source: config.init_from.
        classes: of the model; where a workdir has others, or in another order, rows of its classifiers are taken by name.

    Raises:
        WeightsError: there is nothing at `source`, it cannot be read, its backbone is another, or it holds a NaN or an infinity.
        CheckpointError: a folder that is no workdir, or without a checkpoint.
    """
    path = expand(source)
    if not path.exists():
        raise WeightsError(
            "does not exist",
            file=source,
            field="init_from",
            hint="give a workdir, a checkpoint or a weight file",
        )
    if path.is_file():
        return _load_weights(variables, str(path), classes)
    from jaxseg import checkpoint

    config, loaded = checkpoint.load_variables(path)
    theirs, told = tuple(config.get("dataset", {}).get("classes", ())), ""
    if classes and classes.names and theirs and theirs != classes.names:
        loaded = class_rows.carry_rows(loaded, variables, classes.axes(), theirs, classes.names)
        told = class_rows.summary(theirs, classes.names)
    merged, report = merge(variables, loaded)
    _require_backbone(report, source)
    return merged, report._replace(classes=told)


def _load_weights(
    variables: Mapping, source: str, classes: Classes | None
) -> tuple[dict, InitReport]:
    """`load_initial` of a PyTorch file: a whole model's, or a bare backbone's as ImageNet weights come."""
    from jaxseg import convert

    weights = convert.current_names(
        convert.strip_prefix(convert.read_state_dict(source), variables)
    )
    if any(name.startswith("decode_head.") for name in weights):
        theirs, told, template, axes = (
            convert.read_classes(source) if classes else (),
            "",
            variables,
            {},
        )
        if theirs and classes.names and theirs != classes.names:
            axes, told = classes.axes(), class_rows.summary(theirs, classes.names)
            template = class_rows.resized(variables, axes, len(theirs) - len(classes.names))
        merged, found = _naming(source, convert.to_variables, weights, template)
        report = InitReport(
            *map(sorted, (found.loaded, found.missing, found.mismatched, found.unused)), told
        )
        if told:
            leaves = flax.traverse_util.flatten_dict(merged)
            loaded = {
                path: leaf
                for path, leaf in leaves.items()
                if convert.torch_name(path) in found.loaded
            }
            loaded = flax.traverse_util.unflatten_dict(loaded)
            merged, _ = merge(
                variables, class_rows.carry_rows(loaded, variables, axes, theirs, classes.names)
            )
        _require_backbone(report, source)
        return merged, report
    merged, found = _naming(source, convert.load_backbone, weights, variables)
    names = [convert.torch_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    return merged, InitReport(
        sorted(found.loaded), sorted(set(names) - set(found.loaded)), [], sorted(found.unused)
    )


def _naming(source: str, load: Callable, *arguments: Any) -> Any:
    """`load(*arguments)`, its WeightsError naming the file and the field."""
    try:
        return load(*arguments)
    except WeightsError as error:
        raise WeightsError(
            error.problem, file=source, field="init_from", hint=error.hint
        ) from error


def _require_backbone(report: InitReport, source: str) -> None:
    # Paths are 'params/backbone/...' for our own checkpoints and 'backbone.conv1.weight' for PyTorch's.
    # Unused ones count too: a ResNet-18 would find all it has in a ResNet-34.
    suspects = (*report.missing, *report.mismatched, *report.unused)
    wrong = [
        path for path in suspects if path.startswith("backbone.") or "backbone" in path.split("/")
    ]
    if wrong or not report.loaded:
        listing = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        unused = (
            f"; {len(report.unused)} entries of the file are unused ({', '.join(report.unused[:3])})"
            if report.unused
            else ""
        )
        problem = (
            f"{len(wrong)} variables of the backbone are on one side only or of another shape ({listing})"
            if wrong
            else "nothing in it fits this model"
        )
        raise WeightsError(
            f"it does not match config.model.backbone: {problem}{unused}", file=source, field="init_from",
            hint="give weights of this backbone, or the config of theirs",
        )  # fmt: skip


def format_report(report: InitReport, source: str) -> str:
    """The short table that training prints: counts, and which heads or layers each line is about."""

    def where(paths: list[str]) -> str:
        names = sorted(
            {
                "/".join(path.split("/")[1:3]) if "/" in path else ".".join(path.split(".")[:2])
                for path in paths
            }
        )
        return ", ".join(names[:4]) + (f", ... ({len(names)} places)" if len(names) > 4 else "")

    rows = [
        ("loaded", report.loaded),
        ("re-initialised (absent)", report.missing),
        ("re-initialised (other shape)", report.mismatched),
        ("unused", report.unused),
    ]
    lines = [f"  {label:<29}{len(paths):>5}  {where(paths)}".rstrip() for label, paths in rows]
    lines += [f"  classifiers by class name: {report.classes}"] if report.classes else []
    return "\n".join([f"initial weights from {source}:", *lines])
