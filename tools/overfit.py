"""Every method learns: 20 steps on one fixed batch, then save, resume and evaluate; the table goes into docs/zoo.md.

    python tools/overfit.py                                              float32, 1 device, published widths: an hour on two cores
    python tools/overfit.py --narrow --precision bfloat16 --devices 4    reduced widths on 4 virtual devices
    python tools/overfit.py --methods EMANet CCNet --output ""           some of them, printed only

Each method comes with its smallest published backbone, its own head, losses and batch norm; dropout is off and every one trains
with Adam at a constant rate, because published rates presume pretrained weights and thousands of steps. Rows already in the
table stay unless they are measured again.
"""

import argparse
import gc
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # under pytest, conftest does it
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    )

import jax
import numpy as np
from helpers.narrow import narrow
from ml_collections import ConfigDict

from jaxseg import checkpoint, losses, models, optim, precision, zoo
from jaxseg.config.builders import get_experiment
from jaxseg.config.resolve import resolve
from jaxseg.data.catalog import get_spec
from jaxseg.evaluation import evaluate
from jaxseg.inference import predictor as inference
from jaxseg.training import state as train_state
from jaxseg.training.step import AXIS, make_step

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
    """What data.pipeline.eval_samples gives, from a batch."""

    def __init__(self, batch: dict[str, np.ndarray], spec: Any):
        super().__init__(
            {"image": i, "label": k, "name": str(n)}
            for n, (i, k) in enumerate(zip(batch["image"], batch["label"]))
        )
        self.spec = spec


def smallest(method: str) -> str:
    """The published experiment of one of zoo.METHODS, on Cityscapes, with the fewest parameters."""
    rows = [row for row in zoo.rows_of(method) if row["name"].endswith("_cityscapes")]
    return min(rows, key=lambda row: int(row["parameters"]))["name"]


def prepare(name: str, *, precision_name: str = "float32", reduced: bool = False) -> ConfigDict:
    """A published experiment's resolved config, changed for memorising a batch."""
    config = narrow(get_experiment(name)) if reduced else get_experiment(name)
    size = next(
        (size for head, size in SIZES.items() if config.model.heads.decode.name == head), SIZE
    )
    config.update(
        {
            "precision": precision_name,
            "batch_size": BATCH,
            "steps": STEPS,
            "model": {"dropout_rate": 0.0},
        }
    )
    config.optimizer.update(
        {"name": "adam", "learning_rate": RATES[reduced], "weight_decay": 0.0, "clip_norm": 0.0}
    )
    config.schedule.update({"name": "constant", "warmup_steps": 0})
    config.dataset.crop_size = (size, size)
    config.eval.update({"mode": "whole", "dataset": "", "resize": (0, 0)})
    return resolve(config)


def make_batch(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """image [B, H, W, 3] uint8, label [B, H, W] int32, size [B, 2]: noisy blocks whose colour is their class; an edge is ignored."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 200, (CLASSES, 3))
    count = -(-size // BLOCK)
    blocks = rng.integers(0, CLASSES, (BATCH, count, count))
    label = blocks.repeat(BLOCK, 1).repeat(BLOCK, 2)[:, :size, :size].astype(np.int32)
    image = (colors[label] + rng.integers(0, 56, (*label.shape, 3))).astype(np.uint8)
    label[:, -2:] = 255
    return {"image": image, "label": label, "size": np.full((BATCH, 2), size, np.int32)}


def overfit(config: ConfigDict, devices: int, workdir: str | Path) -> dict[str, Any]:
    """Train STEPS steps on one batch, save, restore, go on from both, evaluate what was saved; figures and verdicts."""
    batch, used = make_batch(config.dataset.crop_size[0]), jax.devices()[:devices]
    spec = get_spec(config.dataset.name)
    policy, (optimizer, schedule) = precision.make_policy(config), optim.make_optimizer(config)
    model = models.create_model(config.model, dtype=policy.dtype, axis_name=AXIS)
    step = make_step(
        used, model=model, loss=losses.make_loss(config, axis_name=AXIS), optimizer=optimizer, schedule=schedule,
        policy=policy, mean=tuple(config.dataset.image_mean), std=tuple(config.dataset.image_std),
    )  # fmt: skip
    sharded = {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in batch.items()}

    def fresh(seed: int) -> train_state.TrainState:
        variables = models.init_variables(model, seed, (1, *config.dataset.crop_size, 3))
        return train_state.create(variables, optimizer, policy, seed)

    state = train_state.replicate(fresh(config.seed), used)
    start = time.perf_counter()
    step = step.lower(state, sharded).compile()
    compiled, seen = time.perf_counter(), []
    for _ in range(STEPS):
        state, metrics = step(state, sharded)
        seen.append(float(np.asarray(metrics["loss"])[0]))
    trained = time.perf_counter()
    same = resumes(
        config,
        state,
        fresh(config.seed + 1),
        lambda s: step(train_state.replicate(s, used), sharded),
        spec,
        workdir,
    )
    summary = assess(workdir, Samples(batch, spec), used)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(fresh(0).params))
    row = dict(
        parameters=parameters,
        first=seen[0],
        last=seen[-1],
        compile_seconds=compiled - start,
        step_seconds=(trained - compiled) / STEPS,
    )
    row |= dict(resumes=same, counted=summary.pop("counted"), mIoU=summary["mIoU"])
    return row | dict(
        passes=bool(
            seen[-1] < FALL * seen[0] and same and row["counted"] and np.isfinite(row["mIoU"])
        )
    )


def resumes(
    config: ConfigDict,
    state: train_state.TrainState,
    template: train_state.TrainState,
    step: Any,
    spec: Any,
    workdir: str | Path,
) -> bool:
    """Save `state` as training does and read it into another run's `template`: whether nothing differs, nor after one more step."""
    checkpoint.write_config(workdir, config, spec.to_json())
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, state, {"batches": STEPS})
        manager.wait_until_finished()
        restored, position = checkpoint.restore(manager, template)
    pairs = [(train_state.to_host(state), restored)]
    (a, _), (b, _) = step(state), step(restored)
    pairs.append((train_state.to_host(a), train_state.to_host(b)))
    equal = [
        np.array_equal(x, y)
        for left, right in pairs
        for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    ]
    return all(equal) and position == {"batches": STEPS} and int(restored.step) == STEPS


def assess(workdir: str | Path, samples: Samples, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """The summary of evaluating the checkpoint on the batch; `counted`: every pixel that has a class was, once."""
    model, variables, config = inference.load_model(workdir)
    with precision.make_policy(config).matmul_precision():
        summary = evaluate.evaluate(
            model, variables, config, samples, devices=devices, progress=False
        )
    counted = sum(entry["pixels"] for entry in summary["per_class"].values())
    return summary | {
        "counted": counted == sum(int((sample["label"] != 255).sum()) for sample in samples)
    }


# --- The table --------------------------------------------------------------------------------------------------------


def format_row(method: str, name: str, size: int, row: dict[str, Any]) -> str:
    if "error" in row:
        cells = [method, f"`{name}`", str(size), *[""] * (len(HEAD) - 4), f"no: {row['error']}"]
    else:
        numbers = [
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['first']:.3f}",
            f"{row['last']:.3f}",
            f"{row['compile_seconds']:.0f}",
        ]
        verdicts = ["yes" if row[key] else "no" for key in ("resumes", "passes")]
        cells = [
            method,
            f"`{name}`",
            str(size),
            *numbers,
            f"{row['step_seconds']:.2f}",
            verdicts[0],
            f"{row['mIoU']:.3f}",
            verdicts[1],
        ]
    return f"| {' | '.join(cells)} |"


def update(text: str, title: str, conditions: str, lines: Sequence[str]) -> str:
    """The page `text` with the section `title` made or renewed: other sections and rows of other methods stay."""
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
    section = "\n".join(
        [f"\n## {title}\n", conditions, "", *table, "", f"{passed} of {len(table) - 2} pass.", ""]
    )
    return (
        text[: found.start()] + section + text[found.end() :]
        if found
        else text.rstrip("\n") + "\n" + section
    )


def introduction() -> str:
    return (
        "Written by `python tools/overfit.py`. Every method of the zoo, with its smallest published backbone, memorises one fixed batch of "
        f"{BATCH} images for {STEPS} steps from random weights: dropout off, Adam at a constant "
        f"{RATES[False]} ({RATES[True]} where widths are reduced). A row passes if the last loss is below {FALL} of the first, "
        "the saved state is read back without any difference and goes on to the same next state, and the checkpoint evaluates with every "
        "pixel counted. The mIoU is that of the batch itself, with running statistics of only 20 steps: it shows that evaluation works, "
        "and says nothing of a method's quality. Compile and step times are of this machine under whatever else it did."
    )


def conditions() -> str:
    device = jax.devices()[0]
    cores = f", {len(os.sched_getaffinity(0))} cores" if device.platform == "cpu" else ""
    return f"{time.strftime('%Y-%m-%d')}, JAX {jax.__version__}, {device.device_kind}{cores}, load {os.getloadavg()[0]:.1f} at the end."


def parse() -> argparse.Namespace:
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
    parser.add_argument("--narrow", action="store_true", help="reduce the widths (tests/narrow.py)")
    parser.add_argument(
        "--output",
        default=str(Path(__file__).parent.parent / "docs" / "zoo.md"),
        help="the page to update; '' for none",
    )
    return parser.parse_args()


def main() -> int:
    """Check the methods asked for, one after the other; the page is renewed after each. The number that fail, at most 1."""
    args, failed = parse(), 0
    title = f"{args.precision}, {args.devices} device{'s'[: args.devices > 1]}, {'reduced' if args.narrow else 'published'} widths"
    for method in args.methods:
        name = smallest(method)
        config = prepare(name, precision_name=args.precision, reduced=args.narrow)
        try:
            with tempfile.TemporaryDirectory() as workdir:
                row = overfit(config, args.devices, workdir)
        except Exception as error:  # one method must not hide the others
            row = {
                "error": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}",
                "passes": False,
            }
        failed += not row["passes"]
        line = format_row(
            method, re.sub(r"_\d+x\d+_.*", "", name), config.dataset.crop_size[0], row
        )
        print(line, flush=True)
        if args.output:
            page = Path(args.output)
            page.parent.mkdir(exist_ok=True)
            page.write_text(
                update(page.read_text() if page.exists() else "", title, conditions(), [line])
            )
        jax.clear_caches()
        evaluate._program.cache_clear()
        gc.collect()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
