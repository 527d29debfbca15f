"""Between MMSegmentation's checkpoints and ours: state dicts of names and arrays, whole workdirs, weight files."""

import json
from pathlib import Path
from typing import Any

import jax

from jaxseg import checkpoint
from jaxseg.errors import CheckpointError, WeightsError
from jaxseg.files import expand
from jaxseg.weights.mmseg import (
    Report,
    current_names,
    from_mmseg,
    load_backbone,
    strip_prefix,
    to_mmseg,
    to_variables,
    torch_name,
)
from jaxseg.weights.state_dict import read_classes, read_state_dict, write_state_dict

StateDictError = WeightsError  # its earlier name

__all__ = [
    "Report",
    "StateDictError",
    "convert_checkpoint",
    "current_names",
    "export_checkpoint",
    "from_mmseg",
    "load_backbone",
    "read_classes",
    "read_state_dict",
    "strip_prefix",
    "to_mmseg",
    "to_variables",
    "torch_name",
    "write_state_dict",
]


def convert_checkpoint(
    config: Any, weights: str | Path, workdir: str | Path, *, ema: bool = False
) -> Report:
    """Write a workdir with the weights of one of MMSegmentation's files as step 0, for evaluation, prediction and init_from.

    `config`: the experiment's, resolved or not; it names the data set, whose classes and palette the workdir gets. `ema`: as
    in read_state_dict.

    Raises:
        WeightsError: the file cannot be read, does not fit or holds a NaN or an infinity.
        CheckpointError: the workdir holds checkpoints already.
    """
    from jaxseg.config.resolve import resolve
    from jaxseg.data.catalog import trained_spec
    from jaxseg.models import create_model

    workdir = expand(workdir)
    if any((workdir / "checkpoints").glob("*")):
        raise CheckpointError(
            "it holds checkpoints already",
            file=workdir,
            field="--output",
            hint="choose another folder",
        )
    config = resolve(config)
    state_dict = read_state_dict(weights, ema=ema)
    try:
        variables = from_mmseg(state_dict, create_model(config.model), config.dataset.channels)
    except WeightsError as error:
        raise WeightsError(
            f"for {config.name}: {error.problem}", file=weights, hint=error.hint
        ) from error
    checkpoint.save_variables(workdir, config, variables, trained_spec(config.dataset).to_json())
    names = [torch_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    return Report(tuple(names), (), (), {})


def export_checkpoint(path: str | Path, output: str | Path) -> int:
    """Write the weights of a workdir (its best step) or of one step as MMSegmentation's: .pth (needs PyTorch), .safetensors
    or .npz, by the suffix of `output`. Returns the number of tensors."""

    path = expand(path).absolute()
    _, variables = checkpoint.load_variables(path)
    workdir = path.parent.parent if path.parent.name == "checkpoints" else path
    facts = json.loads((workdir / "dataset.json").read_text())
    classes, palette = facts["classes"], facts["palette"]
    # dataset_meta is where MMSegmentation 1.x looks, CLASSES and PALETTE are 0.x's
    meta = {
        "dataset_meta": {"classes": classes, "palette": palette},
        "CLASSES": classes,
        "PALETTE": palette,
    }
    state_dict = to_mmseg(variables)
    write_state_dict(output, state_dict, meta)
    return len(state_dict)
