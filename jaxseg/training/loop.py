"""Training: the loop around `train_step`, and `train(config, workdir)`, which does it all."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxseg import checkpoint, files, losses, metrics, models, optim, precision, zoo
from jaxseg.config import fields
from jaxseg.config.defaults import DEFAULTS
from jaxseg.errors import ConfigError, NonFiniteError, WeightsError
from jaxseg.training import state as train_state
from jaxseg.training.logging import Progress, format_account
from jaxseg.training.state import TrainState
from jaxseg.training.step import AXIS, make_step
from jaxseg.training.step import (
    train_step as train_step,  # part of this room, though not called here
)
from jaxseg.weights import class_rows
from jaxseg.weights.class_rows import Classes

IN_FLIGHT = 2  # steps the host may run ahead of the devices
PICTURES = 8  # how many predictions an evaluation draws
PATIENCE = 50  # overflowing float16 steps in a row that are no longer bad luck
PATIENCE_LOSS = (
    5  # and those whose loss itself is not finite, which only a smaller dynamic scale could mend
)


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls besides the step; `evaluate(step, state)` gives a summary with mIoU."""

    progress: Progress
    manager: ocp.CheckpointManager
    evaluate: Callable[[int, TrainState], dict[str, Any]]
    enough: float = math.inf  # the mIoU that ends training before the last step


def run_steps(state: TrainState, step: Callable, batches: Any, hooks: Hooks, *, steps: int, log_every: int,
              eval_every: int, checkpoint_every: int, policy: precision.Policy) -> TrainState:  # fmt: skip
    """Train from `state.step` to `steps`; log, evaluate and save on the way, and at the last step.

    The devices are looked at only every `log_every` steps and before an evaluation or a save; `eval_every` and
    `checkpoint_every` may be 0, never before the last step. Raises NonFiniteError; what was saved by then is sound.
    """
    progress, pending = hooks.progress, []
    progress.open_interval()
    for index in range(int(state.step), steps):
        batch = progress.fetch(
            lambda: next(batches), lambda: not pending or pending[-1]["loss"].is_ready()
        )
        state, metrics = step(state, batch)
        pending.append(metrics)
        if len(pending) > IN_FLIGHT:
            jax.block_until_ready(pending[-1 - IN_FLIGHT]["loss"])
        done = index + 1
        progress.tick(done)
        evaluating = done == steps or (eval_every and done % eval_every == 0)
        saving = evaluating or (checkpoint_every and done % checkpoint_every == 0)
        if saving or done % log_every == 0:
            progress.log(
                done,
                examine(pending, done - len(pending), batches.names, policy, last=done == steps),
            )
            pending.clear()
        if saving:
            with progress.paused():
                position, summary = {"batches": int(batches.position), **progress.spent()}, {}
                try:
                    summary = hooks.evaluate(done, state) if evaluating else {}
                finally:  # whatever goes wrong there, the training until here is kept
                    checkpoint.save(hooks.manager, state, position, summary.get("mIoU"))
            if (summary.get("mIoU") or 0) >= hooks.enough:
                break
    return state


def examine(
    pending: list[dict[str, jax.Array]],
    first: int,
    names: Callable[[int], Sequence[str]],
    policy: precision.Policy,
    *,
    last: bool = False,
) -> dict[str, float]:
    """Fetch the metrics of the batches `first`, `first` + 1, ...; their mean loss and last other values.

    Raises NonFiniteError at the first that is not finite. With float16 overflowing gradients are expected, and only `PATIENCE`
    of them in a row count; a loss that is not finite counts too, unless a dynamic scale may still mend it (`PATIENCE_LOSS`) in
    steps to come. last: the run ends with these batches.
    """
    rows = [
        {key: float(np.asarray(value).ravel()[0]) for key, value in row.items()}
        for row in train_state.to_host(pending)
    ]
    for offset, row in enumerate(rows):
        wrong_loss = not math.isfinite(row["loss"])
        mendable = (
            not policy.static_scale
            and row["scale"] > 1
            and row["skipped"] <= PATIENCE_LOSS
            and not (last and row is rows[-1])
        )
        hopeless = row["skipped"] > PATIENCE or (wrong_loss and not mendable)
        if not row["finite"] and (hopeless or not policy.scaled):
            batch = first + offset
            skipped = f" ({row['skipped']:.0f} overflowing steps in a row)" if policy.scaled else ""
            more = "" if policy.name == "float32" else ", or set --config.precision=float32"
            raise NonFiniteError(
                f"step {batch + 1}: loss {row['loss']}, gradient norm {row['grad_norm']}, learning rate {row['lr']:.3g}{skipped}. "
                f"Files of this batch: {', '.join(map(str, names(batch)))}. The last checkpoint is from before",
                field="optimizer.learning_rate",
                hint="look at these files, lower config.optimizer.learning_rate, set or lower "
                f"config.optimizer.clip_norm{more}",
            )
    good = [row for row in rows if row["finite"]] or rows[-1:]
    means = {
        key: sum(row[key] for row in good) / len(good) for key in good[0] if key.startswith("loss")
    }
    overflowed = (
        {"overflowed": len(rows) - sum(bool(row["finite"]) for row in rows)}
        if policy.scaled
        else {}
    )
    rest = {key: good[-1][key] for key in ("lr", "grad_norm", "scale")}
    return {**means, **rest, **overflowed}


def _announced(step: Callable, progress: Progress, folder: str | None) -> Callable:
    """`step`, whose first call (which compiles) says so and how long it took."""
    told = False

    def call(state: TrainState, batch: Any) -> Any:
        nonlocal told
        if told:
            return step(state, batch)
        told = True
        kept = f" (kept in {folder}: the next start is quick)" if folder else ""
        progress.message(f"compiling the training step{kept}")
        before = progress.seconds
        with progress.paused():
            result = step(state, batch)
        progress.message(f"compiled in {progress.seconds - before:.1f} s")
        return result

    return call


def check_batch_size(batch_size: int, devices: int) -> None:
    """ConfigError unless the global batch divides among all devices."""
    if batch_size < 1 or batch_size % devices:
        near = max(batch_size // devices, 1) * devices
        raise ConfigError(
            f"config.batch_size={batch_size} is global and must divide among {devices} devices",
            field="batch_size",
            hint=f"{near} would",
        )


def build_model(config: ConfigDict, policy: precision.Policy) -> Any:
    """The model that trains `config`: norms over all devices, the statistics of what the optimiser freezes frozen too.

    Raises:
        ConfigError: a batch norm would have one value per channel to normalise.
    """
    options = dict(dtype=policy.dtype, axis_name=AXIS)
    model, image = (
        models.create_model(config.model, **options),
        (1, *config.dataset.crop_size, config.dataset.channels),
    )
    if rules := config.optimizer.multipliers.to_dict():
        frozen = optim.frozen_statistics(rules, models.variable_shapes(model, image))
        model = models.create_model(config.model, **options, frozen_statistics=frozen)
    if config.batch_size == 1:  # with more samples there are more values; tracing takes seconds
        check_batch_norm(model, image)
    return model


def check_batch_norm(model: Any, image_shape: tuple[int, int, int, int]) -> None:
    """Trace a training pass over one device's images [B, H, W, C], which raises what the training step would.

    Raises:
        ConfigError: a batch norm would have one value per channel to normalise.
    """

    def forward(variables: Any, images: jax.Array) -> Any:
        key = jax.random.key(0)
        return model.apply(
            variables,
            images,
            train=True,
            mutable=list(variables),
            rngs={"dropout": key, "points": key},
        )

    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    jax.eval_shape(
        jax.vmap(forward, in_axes=(None, 0), axis_name=AXIS),
        models.variable_shapes(model, image_shape),
        images,
    )


def initial_state(
    config: ConfigDict, model: Any, optimizer: Any, policy: precision.Policy, init_from: str
) -> tuple[TrainState, str]:
    """The state at step 0, weights from `config.seed` or the source `init_from`, and what to tell about it ('' for nothing)."""

    def fresh(channels: int) -> Any:
        return models.init_variables(
            model, seed=config.seed, image_shape=(1, *config.dataset.crop_size, channels)
        )

    channels, told = config.dataset.get("channels", 3), ""
    variables = fresh(channels)
    image = (1, *config.dataset.crop_size, channels)
    classes = Classes(
        tuple(config.dataset.classes), lambda: class_rows.find_axes(config.model, image)
    )
    if init_from:
        try:
            variables, report = train_state.load_initial(variables, init_from, classes)
            told = train_state.format_report(report, init_from)
        except WeightsError:
            if channels == 3:
                raise
            loaded, report = train_state.load_initial(
                fresh(3), init_from, classes
            )  # published weights expect RGB
            variables = train_state.adapt_channels(loaded, variables)
            told = f"{train_state.format_report(report, init_from)}; its first convolution, of RGB, now reads {channels} channels"
    return train_state.create(variables, optimizer, policy, config.seed), told


def evaluation(
    config: ConfigDict, policy: precision.Policy, progress: Progress, folder: Path
) -> Callable[..., dict[str, Any]]:
    """(step, variables, again=False) -> the summary of metrics.json on the evaluation split.

    A few pictures go to `folder`, in place of the last evaluation's. They and the summary are logged, once a step: not `again`.
    """
    from jaxseg import visualize
    from jaxseg.data import pipeline
    from jaxseg.evaluation.evaluate import evaluate

    model, samples = (
        models.create_model(config.model, dtype=policy.dtype),
        pipeline.eval_samples(config),
    )

    def call(step: int, variables: Any, again: bool = False) -> dict[str, Any]:
        def keep(name: str, picture: np.ndarray) -> None:
            visualize.save_picture(folder, name, picture)
            if not again:
                progress.picture(step, name, picture)

        with policy.matmul_precision():
            summary = evaluate(
                model, variables, config, samples, pictures=PICTURES, save_picture=keep
            )
        overall = {
            key: value for key, value in summary.items() if not isinstance(value, dict | list)
        }
        if not again:
            progress.record("eval", {"step": step, **overall})
        shown = ", ".join(
            f"{key} {overall[key]:.4f}"
            for key in ("mIoU", "aAcc", "mAcc")
            if overall[key] is not None
        )
        progress.message(
            f"step {step}: {shown} ({overall['images']} images in {overall['seconds']:.1f} s)"
        )
        return summary

    return call


def train(config: ConfigDict, workdir: str | Path, *, enough: float = math.inf) -> dict[str, Any]:
    """Train `config` in `workdir`, going on where an earlier call stopped; returns the summary that metrics.json holds.

    enough: end as soon as an evaluation gives this mIoU.
    The data is checked and everything built before anything is written. At the end the best checkpoint is evaluated, its
    table printed, its pictures and metrics.json written. With several processes (jax.distributed initialised by the caller)
    each calls this.
    """
    from jaxseg.config.resolve import resolve
    from jaxseg.data import catalog

    workdir = files.expand(workdir)
    files.check_output(workdir, "--workdir")
    config = checkpoint.recall_measured(workdir, fields.tidy(fields.complete(config)))
    config = resolve(checkpoint.recall_classes(workdir, config))
    check_batch_size(config.batch_size, jax.device_count())
    checkpoint.check_config(workdir, config)
    policy, (optimizer, schedule) = precision.make_policy(config), optim.make_optimizer(config)
    model, loss = build_model(config, policy), losses.make_loss(config, axis_name=AXIS)
    catalog.check(config)
    compiled = jax.config.jax_compilation_cache_dir
    step = make_step(
        model=model, loss=loss, optimizer=optimizer, schedule=schedule, policy=policy,
        mean=tuple(config.dataset.image_mean), std=tuple(config.dataset.image_std),
    )  # fmt: skip
    with checkpoint.open_manager(workdir, keep=config.keep_checkpoints) as manager:
        fresh = manager.latest_step() is None
        state, told = initial_state(
            config, model, optimizer, policy, config.init_from if fresh else ""
        )
        state, position = (state, {"batches": 0}) if fresh else checkpoint.restore(manager, state)
        enabled = jax.process_index() == 0
        if enabled:
            checkpoint.write_config(workdir, config, catalog.trained_spec(config.dataset).to_json())
        spent = {key: position[key] for key in ("seconds", "busy", "images") if key in position}
        progress = Progress(
            workdir,
            steps=config.steps,
            batch_size=config.batch_size,
            start=int(state.step),
            enabled=enabled,
            **spent,
        )
        with contextlib.closing(progress):
            going_on = "" if fresh else f"continuing {workdir} after step {int(state.step)}"
            for line in filter(None, (told, going_on, _advice(config, fresh), _settling(config))):
                progress.message(line)
            return _run(
                config,
                workdir,
                manager,
                state,
                position,
                _announced(step, progress, compiled),
                policy,
                progress,
                enough,
            )


def _run(
    config: ConfigDict, workdir: Path, manager: ocp.CheckpointManager, state: TrainState, position: dict[str, Any],
    step: Callable, policy: precision.Policy, progress: Progress, enough: float,
) -> dict[str, Any]:  # fmt: skip
    """Train from `state` to the end, whatever happens leaving best.json up to date, and finish."""
    from jaxseg.data import pipeline

    assess, evaluated = evaluation(config, policy, progress, workdir / "pictures"), {}

    def evaluate(done: int, state: TrainState) -> dict[str, Any]:
        evaluated.clear()  # the pictures on disk are the last evaluation's
        evaluated[done] = assess(done, train_state.to_host(state.variables))
        return evaluated[done]

    start = int(state.step)
    account = _stored_account(workdir, progress, position) if start == config.steps else None
    try:
        if account is None:
            batches = pipeline.train_batches(
                config, devices=jax.local_device_count(), start=position["batches"],
                process_index=jax.process_index(), process_count=jax.process_count(),
            )  # fmt: skip
            with contextlib.closing(batches):
                run_steps(
                    train_state.replicate(state), step, batches, Hooks(progress, manager, evaluate, enough), policy=policy,
                    steps=config.steps, log_every=config.log_every, eval_every=config.eval_every,
                    checkpoint_every=config.checkpoint_every,
                )  # fmt: skip
            account = progress.account()
    finally:
        checkpoint.write_best(manager)
    best = (checkpoint.best(manager) or {"step": int(manager.latest_step())})["step"]
    progress.message(format_account(account))
    if best not in evaluated:
        variables = checkpoint.load_variables(workdir / "checkpoints" / str(best))[1]
        evaluated[best] = assess(best, variables, again=checkpoint.best(manager) is not None)
    return _finish(workdir, progress, {**evaluated[best], "step": best, "training": account})


def _stored_account(workdir: Path, progress: Progress, position: dict[str, Any]) -> dict[str, Any]:
    """The account of a run that an earlier process trained to its end: metrics.json's, or, if that process did not come to
    write it after the last save, what the save knows."""
    seconds, stored = round(position.get("seconds", 0.0), 3), checkpoint.read_training(workdir)
    return (
        stored
        if stored and stored["seconds"] >= seconds
        else {**progress.account(), "seconds": seconds}
    )


def _advice(config: ConfigDict, fresh: bool) -> str:
    if not fresh or config.init_from or not config.get("pretrained", ""):
        return ""
    name = next(
        (name for name in zoo.IMAGENET if config.pretrained.rpartition("/")[2].startswith(name)), ""
    )
    fetch = f"; python scripts/convert_mmseg.py --download={name} fetches it" if name else ""
    return f"starting from random weights; the published run began with {config.pretrained} (give the file as --config.init_from{fetch})"


def _settling(config: ConfigDict) -> str:
    """A warning if the run is too short for batch norm's running statistics, on which evaluation relies."""
    momentum, settled = config.model.norm.momentum, 1e-3
    left = momentum**config.steps
    if left < settled:
        return ""
    needed = math.ceil(math.log(settled) / math.log(momentum))
    usual = DEFAULTS["model"]["norm"]["momentum"]
    helps = usual < momentum and usual**config.steps < settled
    quicker = f", or set --config.model.norm.momentum={usual}" if helps else ""
    return (
        f"the running statistics of batch norm will still hold {100 * left:.1f}% of their start after {config.steps} "
        f"steps (momentum {momentum}), and evaluation may look far worse than the loss: train for {needed} steps or "
        f"more{quicker}"
    )


def _finish(workdir: Path, progress: Progress, summary: dict[str, Any]) -> dict[str, Any]:
    """Leave the best checkpoint's table on the screen and metrics.json in the workdir."""
    progress.message(f"best checkpoint: step {summary['step']}\n{metrics.format_table(summary)}")
    if progress.enabled:
        files.write_json(workdir / "metrics.json", summary)
        progress.message(f"wrote {workdir / 'metrics.json'} and {workdir / 'pictures'}")
    return summary
