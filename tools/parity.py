"""Compare models with reference outputs of MMSegmentation (float64, seeded weights).

    python tools/parity.py DIR [NAME ...]     the cases under DIR/cases whose name starts with NAME

A case is <name>.json and <name>.npz. As a script it prints one line per case, the largest
deviations divided by their bounds (1 is the limit), and exits with 1 if any exceeds it.
"""

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import convert
from jaxseg.config import get_experiment
from jaxseg.losses import make_loss
from jaxseg.models import create_model
from jaxseg.zoo import published

LOGITS_BOUND = 1e-3  # of the largest logit
LOSS_BOUND = 1e-3
GRADIENT_BOUND = 2e-2  # of a gradient's norm, beside a floor
GRADIENT_FLOOR = 2e-4  # of the largest norm
TOTAL_GRADIENT_BOUND = 1e-2
STATISTICS_BOUND = 1e-3
MAX_AUXILIARY_HEADS = 8

Arrays = Mapping[str, np.ndarray]


def seeded(folder: Path) -> Any:
    """Import seeded_weights.py of a folder of cases."""
    spec = importlib.util.spec_from_file_location("seeded_weights", folder / "seeded_weights.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder}/seeded_weights.py cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def experiment_of(source: str) -> Any:
    """Return our config of an MMSegmentation 1.x config name."""
    row = next(row for row in published() if row["source"] == source)
    return get_experiment(row["name"])


def nhwc(x: np.ndarray) -> jax.Array:
    """Move the channels of [B, C, H, W] last."""
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def _nchw(x: Any) -> np.ndarray:
    return np.asarray(x).transpose(0, 3, 1, 2)


def _relative(ours: Any, reference: np.ndarray) -> float:
    scale = max(float(np.abs(reference).max()), 1e-12)
    return float(np.abs(np.asarray(ours, np.float64) - reference).max()) / scale


def eval_deviations(
    case: Mapping[str, Any], arrays: Arrays, model: Any, variables: Any, images: jax.Array
) -> dict[str, float]:
    """Compare the logits of all heads in evaluation mode.

    Args:
        case: The content of the case's JSON file.
        arrays: Its arrays; logits are stored at every n-th pixel.
        model: The model.
        variables: Its seeded variables.
        images: Normalised images [B, H, W, 3].

    Returns:
        {output: deviation divided by its bound}.
    """
    logits, out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    logits = _nchw(logits)
    step = -(-logits.shape[2] // arrays["logits"].shape[2])
    if "lraspp" in case["config"]:
        step = 8
    found = {"logits": _relative(logits[:, :, ::step, ::step], arrays["logits"]) / LOGITS_BOUND}
    for i in range(MAX_AUXILIARY_HEADS):
        if f"aux_logits_{i}" in arrays:
            deviation = _relative(_nchw(out[f"aux_{i}"]), arrays[f"aux_logits_{i}"])
            found[f"aux_{i}"] = deviation / LOGITS_BOUND
    return found


def train_deviations(
    case: Mapping[str, Any], config: Any, model: Any, variables: Mapping[str, Any], weights: Any
) -> dict[str, float]:
    """Compare loss, gradients and running statistics of one training step.

    Args:
        case: The content of the case's JSON file.
        config: Gives the losses.
        model: The model, without dropout.
        variables: Its seeded variables.
        weights: The module `seeded_weights`.

    Returns:
        {quantity: deviation divided by its bound}.
    """
    n, _, height, width = case["input_shape"]
    reference, seed = case["train"], case["seed"]
    n = reference.get("batch", n)
    images = nhwc(weights.seeded_images((n, 3, height, width), seed + 1))
    labels = weights.seeded_labels((n, height, width), case["num_classes"], seed + 1)
    labels = jnp.asarray(labels, jnp.int32)
    compute_loss = make_loss(config)
    state = {key: value for key, value in variables.items() if key != "params"}

    def loss_of(params: Any) -> tuple[jax.Array, Any]:
        (logits, out), changed = model.apply(
            {"params": params, **state}, images, train=True, mutable=list(state)
        )
        total, _ = compute_loss(logits, out, labels)
        return total, changed

    step = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (total, changed), gradients = step(variables["params"])
    found = {"loss": abs(float(total) / reference["total_loss"] - 1) / LOSS_BOUND}
    found |= _gradient_deviations(gradients, reference["grad_norms"])
    found["statistics"] = _statistics_deviation(changed, reference["running_after"])
    return found


def _gradient_deviations(gradients: Any, reference: Mapping[str, float]) -> dict[str, float]:
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    norms = {
        convert.torch_name(("params", *path)): float(jnp.linalg.norm(leaf.reshape(-1)))
        for path, leaf in leaves
    }
    theirs = {name: norm for name, norm in reference.items() if name in norms}
    floor = GRADIENT_FLOOR * max(theirs.values())
    found = {
        "gradients": max(
            abs(norms[name] - norm) / (GRADIENT_BOUND * norm + floor)
            for name, norm in theirs.items()
        )
    }
    ours, total = _root_sum_squares(norms), _root_sum_squares(reference)
    found["gradient_total"] = abs(ours / total - 1) / TOTAL_GRADIENT_BOUND
    missing = set(reference) ^ set(norms)
    if any(reference.get(name, norms.get(name, 0)) for name in missing):
        found["missing_gradients"] = float("inf")
    return found


def _root_sum_squares(norms: Mapping[str, float]) -> float:
    return float(np.sqrt(sum(norm**2 for norm in norms.values())))


def _statistics_deviation(changed: Any, reference: Mapping[str, Any]) -> float:
    after = {name: np.asarray(v, np.float64) for name, v in convert.to_mmseg(changed).items()}
    worst = 0.0
    for name, stored in reference.items():
        mean, std = stored if isinstance(stored, list) else (stored["mean"], stored["std"])
        value, scale = after[name], max(abs(mean), abs(std))
        worst = max(worst, abs(value.mean() - mean) / scale, abs(value.std() - std) / scale)
    return worst / STATISTICS_BOUND


def deviations(folder: Path, name: str, train: bool = True) -> dict[str, float]:
    """Compare a case's outputs and, where it has them, its loss, gradients and statistics.

    Args:
        folder: The folder of cases/ and seeded_weights.py.
        name: Name of the case.
        train: Compare a training step as well.

    Returns:
        {quantity: deviation divided by its bound}, at most 1 where they agree.
    """
    weights = seeded(folder)
    case = json.loads((folder / "cases" / f"{name}.json").read_text())
    config = experiment_of(case["config"])
    model = create_model(config.model, dropout_rate=0.0, num_classes=case["num_classes"])
    state_dict = {
        key: weights.seeded_array(key, tuple(shape), case["seed"])
        for key, shape in case["state_dict"]
    }
    variables = convert.from_mmseg(state_dict, model)
    images = nhwc(weights.seeded_images(tuple(case["input_shape"]), case["seed"]))
    with np.load(folder / "cases" / f"{name}.npz") as arrays:
        found = eval_deviations(case, dict(arrays), model, variables, images)
    if train and "train" in case:
        found |= train_deviations(case, config, model, variables, weights)
    return found


def main(folder: str, *prefixes: str) -> int:
    """Print a line for each case; return the exit status."""
    failed = 0
    for path in sorted(Path(folder, "cases").glob("*.json")):
        if prefixes and not path.stem.startswith(prefixes):
            continue
        found = deviations(Path(folder), path.stem)
        agrees = all(value <= 1 for value in found.values())
        failed += not agrees
        figures = " ".join(f"{key}={value:.3g}" for key, value in found.items())
        print("ok  " if agrees else "FAIL", path.stem, figures, flush=True)
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
