"""Every method learns: 20 steps on one fixed batch, then save, resume and evaluate.

    python tools/overfit.py                                              published widths: an hour
    python tools/overfit.py --narrow --precision bfloat16 --devices 4    reduced widths, 4 devices
    python tools/overfit.py --methods EMANet CCNet --output ""           some of them, printed only

The table goes into docs/zoo.md. Each method comes with its smallest published backbone, its own
head, losses and batch norm; dropout is off and all train with Adam at a constant rate, because
published rates presume pretrained weights and thousands of steps. Rows already in the table stay
unless they are measured again.
"""

import argparse
import gc
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # pytest has its own way to do both
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    )
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import jax
import numpy as np
from helpers.narrow import narrow

from jaxseg import checkpoint, models, precision, zoo
from jaxseg.config import get_experiment
from jaxseg.config.schema import Experiment
from jaxseg.constants import IGNORE
from jaxseg.data.catalog import get_spec
from jaxseg.data.spec import DatasetSpec
from jaxseg.evaluation import evaluate
from jaxseg.experiments import load_experiment
from jaxseg.inference import load_model
from jaxseg.inference.settings import make_settings
from jaxseg.training import state as train_state
from jaxseg.training.build import Components, build_components
from jaxseg.training.state import TrainState
from jaxseg.training.step import Batch
from jaxseg.workdir import write_experiment

STEPS, BATCH, FALL = 20, 4, 0.7  # the last loss is to be less than FALL times the first
SIZE, SIZES = 64, {"lraspp": 385}  # LR-ASPP pools windows of 49 pixels at stride 8
RATES = {False: 1e-3, True: 1e-2}  # of Adam: narrow layers move by less in a step
CLASSES, BLOCK = 6, 16
HEAD = (
    "Method",
    "Model",
    "Pixels",
    "Parameters (M)",
    "First loss",
    "Last loss",
    "Compile (s)",
    "Step (s)",
    "Resumes",
    "mIoU of the batch",
    "Passes",
)


class Samples(list):
    """The samples of a batch, as data.pipeline.eval_samples gives them."""

    def __init__(self, batch: Batch, spec: DatasetSpec):
        """Take the samples of a batch of a data set."""
        super().__init__(
            {"image": i, "label": k, "name": str(n)}
            for n, (i, k) in enumerate(zip(batch["image"], batch["label"]))
        )
        self.spec = spec


def smallest(method: str) -> str:
    """Return the published experiment of a method on Cityscapes with the fewest parameters."""
    rows = [row for row in zoo.rows_of(method) if row["name"].endswith("_cityscapes")]
    return min(rows, key=lambda row: int(row["parameters"]))["name"]


def prepare(name: str, *, precision_name: str = "float32", reduced: bool = False) -> Experiment:
    """Return a published experiment, changed so that it overfits one batch.

    Args:
        name: As `config.get_experiment` takes it.
        precision_name: `precision` of the experiment.
        reduced: Reduce the widths (`helpers.narrow`).
    """
    config = get_experiment(name)
    if reduced:
        config = narrow(config)
    size = SIZES.get(config.model.heads.decode.name, SIZE)
    config.update({"precision": precision_name, "batch_size": BATCH, "steps": STEPS})
    config.model.dropout_rate = 0.0
    config.optimizer.update(
        {"name": "adam", "learning_rate": RATES[reduced], "weight_decay": 0.0, "clip_norm": 0.0}
    )
    config.schedule.update({"name": "constant", "warmup_steps": 0})
    config.dataset.crop_size = (size, size)
    config.eval.update({"mode": "whole", "dataset": "", "resize": (0, 0)})
    return load_experiment(config)


def make_batch(size: int, seed: int = 0) -> Batch:
    """Make noisy blocks whose colour is their class, with an ignored edge.

    Returns:
        image uint8 [B, H, W, 3], label int32 [B, H, W], size int32 [B, 2].
    """
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 200, (CLASSES, 3))
    count = -(-size // BLOCK)
    blocks = rng.integers(0, CLASSES, (BATCH, count, count))
    label = blocks.repeat(BLOCK, 1).repeat(BLOCK, 2)[:, :size, :size].astype(np.int32)
    image = (colors[label] + rng.integers(0, 56, (*label.shape, 3))).astype(np.uint8)
    label[:, -2:] = IGNORE
    return {"image": image, "label": label, "size": np.full((BATCH, 2), size, np.int32)}


def overfit(experiment: Experiment, devices: int, workdir: Path) -> dict[str, Any]:
    """Train STEPS steps on one batch, save, resume and evaluate.

    Args:
        experiment: The experiment, from `prepare`.
        devices: Number of devices.
        workdir: The folder to save to.

    Returns:
        The figures and verdicts of a row of the table.
    """
    batch, used = make_batch(experiment.dataset.crop_size[0]), jax.devices()[:devices]
    sharded = {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in batch.items()}
    spec = get_spec(experiment.dataset.name)
    components = build_components(experiment)
    fresh = draw_state(components, experiment.seed)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(fresh.params))
    state = train_state.replicate(fresh, used)
    start = time.perf_counter()
    step = components.make_step(used).lower(state, sharded).compile()
    compiled = time.perf_counter()
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, sharded)
        losses.append(float(np.asarray(metrics["loss"])[0]))
    trained = time.perf_counter()

    def next_step(state: TrainState) -> TrainState:
        return train_state.to_host(step(train_state.replicate(state, used), sharded)[0])

    template = draw_state(components, experiment.seed + 1)
    is_same = resumes(experiment, state, template, next_step, spec, workdir)
    summary = assess(workdir, Samples(batch, spec), used)
    is_learned = losses[-1] < FALL * losses[0]
    return {
        "parameters": parameters,
        "first": losses[0],
        "last": losses[-1],
        "compile_seconds": compiled - start,
        "step_seconds": (trained - compiled) / STEPS,
        "resumes": is_same,
        "counted": summary["counted"],
        "mIoU": summary["mIoU"],
        "passes": bool(
            is_learned and is_same and summary["counted"] and np.isfinite(summary["mIoU"])
        ),
    }


def draw_state(components: Components, seed: int) -> TrainState:
    """Return a random state at step 0."""
    size = components.experiment.dataset.crop_size
    variables = models.init_variables(components.model, seed, (1, *size, 3))
    return train_state.create(variables, components.optimizer, components.policy, seed)


def resumes(
    experiment: Experiment,
    state: TrainState,
    template: TrainState,
    next_step: Callable[[TrainState], TrainState],
    spec: DatasetSpec,
    workdir: Path,
) -> bool:
    """Save a state as training does and restore it.

    Returns:
        Whether the restored state equals the saved one, and still does after one more step.
    """
    write_experiment(workdir, experiment, spec.to_json())
    saved = train_state.to_host(state)
    with checkpoint.open_manager(workdir) as manager:
        position = {"batches": STEPS}
        checkpoint.save(manager, STEPS, saved.variables, saved.optimizer_items, position)
        manager.wait_until_finished()
        found = checkpoint.restore(manager, template.variables, template.optimizer_items)
    assert found is not None
    restored = TrainState.from_items(*found[:2])
    pairs = [(saved, restored), (next_step(saved), next_step(restored))]
    equal = [
        np.array_equal(x, y)
        for left, right in pairs
        for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    ]
    return all(equal) and found[2] == position and int(restored.step) == STEPS


def assess(workdir: Path, samples: Samples, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Evaluate the checkpoint on the batch.

    Returns:
        The summary of `evaluate`, and `counted`: whether every pixel with a class was counted once.
    """
    model, variables, experiment = load_model(workdir)
    settings = make_settings(experiment)
    with precision.make_policy(experiment.precision).matmul_precision():
        summary = evaluate(model, variables, settings, samples, devices=devices, progress=False)
    counted = sum(entry["pixels"] for entry in summary["per_class"].values())
    expected = sum(int((sample["label"] != IGNORE).sum()) for sample in samples)
    return summary | {"counted": counted == expected}


# --- The table ------------------------------------------------------------------------------------


def format_row(method: str, name: str, size: int, row: dict[str, Any]) -> str:
    """Format a line of the table, with the error in place of figures where the check failed."""
    start = [method, f"`{name}`", str(size)]
    if "error" in row:
        cells = [*start, *[""] * (len(HEAD) - 4), f"no: {row['error']}"]
    else:
        cells = [
            *start,
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['first']:.3f}",
            f"{row['last']:.3f}",
            f"{row['compile_seconds']:.0f}",
            f"{row['step_seconds']:.2f}",
            "yes" if row["resumes"] else "no",
            f"{row['mIoU']:.3f}",
            "yes" if row["passes"] else "no",
        ]
    return f"| {' | '.join(cells)} |"


def update(text: str, title: str, conditions: str, lines: Sequence[str]) -> str:
    """Return a page with a section renewed; other sections and rows of other methods stay.

    Args:
        text: The page, "" for a new one.
        title: Title of the section.
        conditions: The conditions of the measurement.
        lines: Rows of the table.
    """
    text = text or f"# Every method learns\n\n{introduction()}\n"
    found = re.search(rf"\n## {re.escape(title)}\n(.*?)(?=\n## |\Z)", text, re.DOTALL)
    old = re.findall(r"^\| .*\|$", found[1], re.MULTILINE)[1:] if found else []
    rows = {line.split(" | ")[0]: line for line in [*old, *lines]}
    order = [f"| {method}" for method in zoo.METHODS]
    table = [
        f"| {' | '.join(HEAD)} |",
        "|---|---|" + "---:|" * (len(HEAD) - 2),
        *(rows[key] for key in order if key in rows),
    ]
    passed = sum(line.endswith("| yes |") for line in table)
    verdict = f"{passed} of {len(table) - 2} pass."
    section = "\n".join([f"\n## {title}\n", conditions, "", *table, "", verdict, ""])
    if found is None:
        return text.rstrip("\n") + "\n" + section
    return text[: found.start()] + section + text[found.end() :]


def introduction() -> str:
    """Return the first paragraph of the page."""
    return (
        "Written by `python tools/overfit.py`. Every method of the zoo, with its smallest "
        f"published backbone, overfits one fixed batch of {BATCH} images for {STEPS} steps "
        f"from random weights: dropout off, Adam at a constant {RATES[False]} ({RATES[True]} "
        f"where widths are reduced). A row passes if the last loss is below {FALL} of the "
        "first, the saved state is restored without any difference and continues to the same "
        "next state, and the checkpoint evaluates with every pixel counted. The mIoU is on "
        "the batch itself, with running statistics of only 20 steps: it shows that evaluation "
        "works, and says nothing about a method's quality. Compile and step times are of this "
        "machine under its load at the time."
    )


def conditions() -> str:
    """Describe date, versions and machine."""
    device = jax.devices()[0]
    words = [time.strftime("%Y-%m-%d"), f"JAX {jax.__version__}", device.device_kind]
    # macOS has no affinity, Windows no load average either.
    if device.platform == "cpu":
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
        words.append(f"{cores} cores")
    if hasattr(os, "getloadavg"):
        words.append(f"load {os.getloadavg()[0]:.1f} at the end")
    return f"{', '.join(words)}."


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(zoo.METHODS),
        choices=list(zoo.METHODS),
        metavar="METHOD",
        help=" ".join(zoo.METHODS),
    )
    parser.add_argument("--precision", default="float32", choices=list(precision.PRECISIONS))
    parser.add_argument("--devices", type=int, default=1, choices=(1, 2, 4))
    parser.add_argument("--narrow", action="store_true", help="reduce the widths")
    parser.add_argument(
        "--output",
        default=str(Path(__file__).parent.parent / "docs" / "zoo.md"),
        help="the page to update; '' for none",
    )
    return parser.parse_args()


def main() -> int:
    """Check one method after the other and update the page; return 1 if any fails, else 0."""
    args = parse()
    has_failed = False
    plural = "s" if args.devices > 1 else ""
    widths = "reduced" if args.narrow else "published"
    title = f"{args.precision}, {args.devices} device{plural}, {widths} widths"
    for method in args.methods:
        name = smallest(method)
        experiment = prepare(name, precision_name=args.precision, reduced=args.narrow)
        try:
            with tempfile.TemporaryDirectory() as workdir:
                row = overfit(experiment, args.devices, Path(workdir))
        except Exception as error:  # one method must not hide the others
            text = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            row = {"error": text, "passes": False}
        has_failed |= not row["passes"]
        short, size = re.sub(r"_\d+x\d+_.*", "", name), experiment.dataset.crop_size[0]
        line = format_row(method, short, size, row)
        print(line, flush=True)
        if args.output:
            page = Path(args.output)
            page.parent.mkdir(exist_ok=True)
            old = page.read_text(encoding="utf-8") if page.exists() else ""
            page.write_text(update(old, title, conditions(), [line]), encoding="utf-8")
        jax.clear_caches()
        gc.collect()
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
