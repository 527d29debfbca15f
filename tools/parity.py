"""Compare models with reference outputs of MMSegmentation (float64, seeded weights).

    python tools/parity.py DIR [name ...]        every case under DIR/cases whose name starts with one of the given ones

A case is <name>.json and <name>.npz. Run as a script it prints one line a case, worst deviations over their bounds (1 is
the limit), and exits with 1 if any exceeds it.
"""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import convert, losses
from jaxseg.config.builders import get_experiment
from jaxseg.models import create_model
from jaxseg.zoo import published


def _seeded(folder: Path):
    spec = importlib.util.spec_from_file_location("seeded_weights", folder / "seeded_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def experiment_of(source: str):
    """Our config of an MMSegmentation 1.x config name."""
    row = next(row for row in published() if row["source"] == source)
    return get_experiment(row["name"])


def _nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def _relative(ours, reference) -> float:
    scale = max(float(np.abs(reference).max()), 1e-12)
    return float(np.abs(np.asarray(ours, np.float64) - reference).max()) / scale


def _eval_deviations(case, arrays, model, variables, images) -> dict[str, float]:
    logits, out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    logits = np.asarray(logits).transpose(0, 3, 1, 2)
    step = [-(-n // m) for n, m in zip(logits.shape[2:], arrays["logits"].shape[2:])]
    step = step[0] if case["config"].find("lraspp") < 0 else 8
    bound = 1e-3
    found = {"logits": _relative(logits[:, :, ::step, ::step], arrays["logits"]) / bound}
    for i in range(8):
        if f"aux_logits_{i}" in arrays:
            found[f"aux_{i}"] = (
                _relative(
                    np.asarray(out[f"aux_{i}"]).transpose(0, 3, 1, 2), arrays[f"aux_logits_{i}"]
                )
                / bound
            )
    return found


def _train_deviations(case, config, model, variables, seeded) -> dict[str, float]:
    n, _, height, width = case["input_shape"]
    reference, seed = case["train"], case["seed"]
    n = reference.get("batch", n)
    images = _nhwc(seeded.seeded_images((n, 3, height, width), seed + 1))
    labels = jnp.asarray(
        seeded.seeded_labels((n, height, width), case["num_classes"], seed + 1), jnp.int32
    )
    loss_of = losses.make_loss(config)
    state = {k: v for k, v in variables.items() if k != "params"}

    def loss_fn(params):
        (logits, out), changed = model.apply(
            {"params": params, **state}, images, train=True, mutable=list(state)
        )
        total, parts = loss_of(logits, out, labels)
        return total, (parts, changed)

    (total, (_, changed)), gradients = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
        variables["params"]
    )
    found = {"loss": abs(float(total) / reference["total_loss"] - 1) / 1e-3}
    norms = {
        convert.torch_name(("params", *p)): float(jnp.linalg.norm(g.reshape(-1)))
        for p, g in jax.tree_util.tree_leaves_with_path(gradients)
    }
    theirs = {k: v for k, v in reference["grad_norms"].items() if k in norms}
    floor = 2e-4 * max(theirs.values())
    found["gradients"] = max(abs(norms[k] - v) / (2e-2 * v + floor) for k, v in theirs.items())
    root = [
        float(np.sqrt(sum(v**2 for v in values)))
        for values in (norms.values(), reference["grad_norms"].values())
    ]
    found["gradient_total"] = abs(root[0] / root[1] - 1) / 1e-2
    missing = set(reference["grad_norms"]) ^ set(norms)
    if any(reference["grad_norms"].get(k, norms.get(k, 0)) for k in missing):
        found["missing_gradients"] = float("inf")
    after = {
        name: np.asarray(value, np.float64) for name, value in convert.to_mmseg(changed).items()
    }
    worst = 0.0
    for name, (mean, std) in (
        (k, v if isinstance(v, list) else (v["mean"], v["std"]))
        for k, v in reference["running_after"].items()
    ):
        value = after[name]
        scale = max(abs(mean), abs(std))
        worst = max(worst, abs(value.mean() - mean) / scale, abs(value.std() - std) / scale)
    found["statistics"] = worst / 1e-3
    return found


def deviations(folder: Path, name: str, train: bool = True) -> dict[str, float]:
    """What a case's outputs, losses, gradients and statistics differ by, over their bounds: {what: ratio}, at most 1 where right."""
    seeded = _seeded(folder)
    case = json.loads((folder / "cases" / f"{name}.json").read_text())
    arrays = np.load(folder / "cases" / f"{name}.npz")
    config = experiment_of(case["config"])
    model = create_model(config.model, dropout_rate=0.0, num_classes=case["num_classes"])
    state_dict = {
        n: seeded.seeded_array(n, tuple(shape), case["seed"]) for n, shape in case["state_dict"]
    }
    variables = convert.from_mmseg(state_dict, model)
    images = _nhwc(seeded.seeded_images(tuple(case["input_shape"]), case["seed"]))
    found = _eval_deviations(case, arrays, model, variables, images)
    if train and "train" in case:
        found |= _train_deviations(case, config, model, variables, seeded)
    return found


def main(folder: str, *prefixes: str) -> int:
    """Print a line a case; the number of cases outside the bounds."""
    failed = 0
    for path in sorted(Path(folder, "cases").glob("*.json")):
        if prefixes and not path.stem.startswith(prefixes):
            continue
        found = deviations(Path(folder), path.stem)
        worst = max(found.values())
        failed += not worst <= 1
        print(
            "ok  " if worst <= 1 else "FAIL",
            path.stem,
            " ".join(f"{k}={v:.3g}" for k, v in found.items()),
            flush=True,
        )
    print(f"{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
