"""The initial variables of a run: drawn at random, or loaded from a workdir or weight file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxseg import checkpoint, models
from jaxseg.config.schema import Experiment
from jaxseg.errors import WeightsError, about
from jaxseg.files import expand
from jaxseg.weights import class_rows, mmseg
from jaxseg.weights.channels import adapt_channels
from jaxseg.weights.class_rows import Classes
from jaxseg.weights.merge import MergeReport, merge
from jaxseg.weights.state_dict import read_classes, read_state_dict


def initial_variables(
    experiment: Experiment, model: nn.Module, source: str = ""
) -> tuple[dict[str, Any], str]:
    """Draw the initial variables of a run, and load those that `source` contains.

    Weights for RGB images are adapted if the images have other channels (see `adapt_channels`).

    Args:
        experiment: Provides the seed, the size of images and the classes.
        model: The model of `experiment.model`.
        source: See `load_initial`; '' draws all variables.

    Returns:
        The variables, and a report to log ('' without a source).

    Raises:
        WeightsError, CheckpointError: See `load_initial`.
    """
    dataset = experiment.dataset

    def image_shape(channels: int) -> tuple[int, int, int, int]:
        return (1, *dataset.crop_size, channels)

    def draw(channels: int) -> dict[str, Any]:
        return models.init_variables(model, experiment.seed, image_shape(channels))

    fresh = draw(dataset.channels)
    if not source:
        return fresh, ""
    classes = Classes(
        tuple(dataset.classes),
        lambda: class_rows.find_axes(experiment.model, image_shape(dataset.channels)),
    )
    try:
        variables, report = load_initial(fresh, source, classes)
        return variables, report.format(source)
    except WeightsError:
        if dataset.channels == 3:
            raise
    loaded, report = load_initial(draw(3), source, classes)  # published weights are of RGB
    text = (
        f"{report.format(source)}; its first convolution was adapted from RGB to "
        f"{dataset.channels} channels"
    )
    return adapt_channels(loaded, fresh), text


def load_initial(
    variables: Mapping[str, Any], source: str, classes: Classes | None = None
) -> tuple[dict[str, Any], MergeReport]:
    """Merge the weights at `source` into initial variables; the backbone must match entirely.

    Variables that are absent from `source` or differ in shape keep their initial values.

    Args:
        variables: The initial variables.
        source: config.init_from: a workdir, one of its steps, or a weight file (see
            `read_state_dict`).
        classes: The classes of the model; if those of `source` differ in names or order, rows of
            the classifiers are matched by name.

    Returns:
        The variables, and the report of the merge.

    Raises:
        WeightsError: There is nothing at `source`, it cannot be read, it has another backbone, or
            it holds a NaN or an infinity.
        CheckpointError: A folder is not a workdir, or has no checkpoint.
    """
    path = expand(source)
    if not path.exists():
        raise WeightsError(
            "does not exist",
            file=source,
            field="init_from",
            hint="give a workdir, a checkpoint or a weight file",
        )
    load = _load_file if path.is_file() else _load_workdir
    return load(variables, source, classes)


def _load_workdir(
    variables: Mapping[str, Any], source: str, classes: Classes | None
) -> tuple[dict[str, Any], MergeReport]:
    experiment, loaded = checkpoint.load_variables(expand(source))
    theirs = tuple(experiment.dataset.classes)
    rows = ""
    if classes and _differ(theirs, classes.names):
        loaded = class_rows.carry_rows(loaded, variables, classes.axes(), theirs, classes.names)
        rows = class_rows.describe(theirs, classes.names)
    merged, report = merge(variables, flatten_dict(loaded, sep="/"))
    with about(file=source, field="init_from"):
        report.require_backbone()
    return merged, dataclasses.replace(report, classes=rows)


def _load_file(
    variables: Mapping[str, Any], source: str, classes: Classes | None
) -> tuple[dict[str, Any], MergeReport]:
    """Load a PyTorch file of a whole model, or of a backbone alone such as ImageNet weights."""
    weights = read_state_dict(source)
    with about(file=source, field="init_from"):
        weights = mmseg.current_names(mmseg.strip_prefix(weights, variables))
        if any(name.startswith("decode_head.") for name in weights):
            theirs = read_classes(source) if classes else ()
            merged, report = _load_model(variables, weights, theirs, classes)
            report.require_backbone()
            return merged, report
        merged, report = mmseg.load_backbone(weights, variables)
    loaded = set(report.loaded)
    names = mmseg.to_variables({}, variables)[1].missing
    missing = {name: shape for name, shape in names.items() if name not in loaded}
    return merged, dataclasses.replace(report, missing=missing)


def _load_model(
    variables: Mapping[str, Any],
    weights: mmseg.StateDict,
    theirs: tuple[str, ...],
    classes: Classes | None,
) -> tuple[dict[str, Any], MergeReport]:
    """Merge the state dict of a whole model; `theirs` are the names of its classes."""
    if not (classes and _differ(theirs, classes.names)):
        return mmseg.to_variables(weights, variables)
    axes = classes.axes()
    template = class_rows.resize_classes(variables, axes, len(theirs) - len(classes.names))
    filled, report = mmseg.to_variables(weights, template)
    names = set(report.loaded)
    loaded = {
        path: leaf for path, leaf in flatten_dict(filled).items() if mmseg.torch_name(path) in names
    }
    rows = class_rows.carry_rows(unflatten_dict(loaded), variables, axes, theirs, classes.names)
    merged, _ = merge(variables, flatten_dict(rows, sep="/"))
    return merged, dataclasses.replace(report, classes=class_rows.describe(theirs, classes.names))


def _differ(theirs: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    """Whether both sides name their classes, and differently."""
    return bool(theirs and ours) and theirs != ours
