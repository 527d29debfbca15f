"""Convert MMSegmentation's checkpoint files to workdirs and back."""

from pathlib import Path

from jaxseg import checkpoint
from jaxseg.config.resolve import Config
from jaxseg.errors import CheckpointError, WeightsError
from jaxseg.experiments import open_experiment
from jaxseg.files import expand
from jaxseg.models import create_model
from jaxseg.weights.merge import MergeReport
from jaxseg.weights.mmseg import load_model, to_mmseg
from jaxseg.weights.state_dict import read_state_dict, write_state_dict


def convert_checkpoint(
    config: Config, weights: str | Path, workdir: str | Path, *, ema: bool = False
) -> MergeReport:
    """Write a workdir with the weights of an MMSegmentation file as step 0.

    Args:
        config: The experiment of the weights, whose data set determines classes and palette.
        weights: The file (see `read_state_dict`).
        workdir: Folder to write, for evaluation, prediction and config.init_from.
        ema: Whether to read the moving average of the weights (see `read_state_dict`).

    Returns:
        The report of the merge, which lists all variables as loaded.

    Raises:
        WeightsError: The file cannot be read, does not fit, or holds a NaN or an infinity.
        CheckpointError: The workdir has checkpoints already.
    """
    workdir = expand(workdir)
    if any((workdir / "checkpoints").glob("*")):
        raise CheckpointError(
            "it has checkpoints already",
            file=workdir,
            field="workdir",
            hint="choose another folder",
        )
    experiment, spec = open_experiment(config)
    dataset = experiment.dataset
    state_dict = read_state_dict(weights, ema=ema)
    try:
        variables, report = load_model(state_dict, create_model(experiment.model), dataset.channels)
    except WeightsError as error:
        raise WeightsError(
            f"for {experiment.name}: {error.problem}", file=weights, hint=error.hint
        ) from error
    described = spec.with_statistics(dataset.image_mean, dataset.image_std).to_json()
    checkpoint.save_variables(workdir, experiment, variables, described)
    return report


def export_checkpoint(path: str | Path, output: str | Path) -> int:
    """Write the weights of a checkpoint as a file that MMSegmentation reads.

    Args:
        path: A workdir (its best step) or WORKDIR/checkpoints/STEP.
        output: The file: a .pth (which needs PyTorch), .safetensors or .npz.

    Returns:
        The number of tensors.

    Raises:
        CheckpointError: There is no checkpoint, or no dataset.json.
        WeightsError: The file cannot be written.
    """
    path = expand(path)
    _, variables = checkpoint.load_variables(path)
    metadata = checkpoint.load_dataset_metadata(path)
    classes, palette = metadata["classes"], metadata["palette"]
    # MMSegmentation 1.x reads dataset_meta, 0.x CLASSES and PALETTE.
    meta = {
        "dataset_meta": {"classes": classes, "palette": palette},
        "CLASSES": classes,
        "PALETTE": palette,
    }
    state_dict = to_mmseg(variables)
    write_state_dict(output, state_dict, meta)
    return len(state_dict)
