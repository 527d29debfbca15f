"""Training: the step that every device runs, the loop around it, and `train(config, workdir)`, which does it all."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxseg import cache, checkpoint, losses, metrics, models, optim, precision, train_state
from jaxseg.models.layers import normalize
from jaxseg.precision import NonFiniteError
from jaxseg.progress import Progress, format_account
from jaxseg.train_state import TrainState

AXIS = "batch"
IN_FLIGHT = 2  # steps the host may run ahead of the devices
PICTURES = 8  # how many predictions an evaluation draws
PATIENCE = 50  # overflowing float16 steps in a row that are no longer bad luck


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: Any,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    policy: precision.Policy,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on one device's part of the batch, under pmap with the axis 'batch'; pure.

    batch: image [B, H, W, C] uint8, label [B, H, W] int32, size [B, 2] int32. The new state is equal on every device,
    so are the metrics (float32 scalars). With float16 an overflow leaves all but `step` and `loss_scale` as it was.
    """
    images = normalize(batch["image"], mean, std, batch["size"])
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)  # layers fold the sample's number in
    scale = state.loss_scale.scale

    def scaled_loss(params: Any) -> tuple[jax.Array, Any]:
        (logits, out), mutated = model.apply(
            {"params": params, **state.model_state}, images, train=True,
            mutable=list(state.model_state), rngs={"dropout": key, "points": key},
        )  # fmt: skip
        value, parts = loss(logits, out, batch["label"])
        return value * scale, (value, parts, mutated)

    # The loss is already that of the global batch, and the transpose of its psum sums the devices' equal cotangents: what
    # each device gets is D times its share of the gradient, so the mean over devices, not the sum, is the gradient.
    gradients, (value, parts, model_state) = jax.grad(scaled_loss, has_aux=True)(state.params)
    # Statistics and loss are equal on all devices but for what selects per device (OHEM); out_axes=None needs them equal.
    gradients, value, parts, model_state = jax.lax.pmean((gradients, value, parts, model_state), AXIS)
    gradients = jax.tree.map(lambda g: g / scale, gradients) if policy.scaled else gradients
    norm = optax.tree.norm(gradients)
    rate = schedule(state.step - state.loss_scale.total_skipped)  # the optimiser's own count stands still on overflow
    finite = jnp.isfinite(value) & jnp.isfinite(norm) & jnp.isfinite(rate)
    if policy.scaled:
        finite &= precision.all_finite(model_state) if jax.tree.leaves(model_state) else True
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    new = (optax.apply_updates(state.params, updates), model_state, opt_state)
    if policy.scaled:
        old = (state.params, state.model_state, state.opt_state)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    loss_scale = precision.adjust(state.loss_scale, finite, policy)
    metrics = {"loss": value, "lr": rate, "grad_norm": norm, "scale": scale, "finite": finite, "skipped": loss_scale.skipped}
    metrics |= {f"loss_{name}": part for name, part in parts.items()}
    params, model_state, opt_state = new
    state = state.replace(
        step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state, loss_scale=loss_scale
    )
    return state, jax.tree.map(jnp.float32, metrics)


def make_step(devices: Sequence[jax.Device] | None = None, **pieces: Any) -> Callable:
    """`train_step` with its `pieces` over `devices` (default: all): (state, batch [D, B, ...]) -> (state, metrics [D])."""
    step = jax.pmap(
        functools.partial(train_step, **pieces), axis_name=AXIS, in_axes=(None, 0), out_axes=(None, 0),
        donate_argnums=0, devices=devices,
    )  # fmt: skip

    def call(state: TrainState, batch: dict[str, np.ndarray]) -> tuple[TrainState, dict[str, jax.Array]]:
        with pieces["policy"].matmul_precision():
            return step(state, batch)

    return call


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls besides the step; `evaluate(step, state)` gives a summary with mIoU."""

    progress: Progress
    manager: ocp.CheckpointManager
    evaluate: Callable[[int, TrainState], dict[str, Any]]


def run_steps(state: TrainState, step: Callable, batches: Any, hooks: Hooks, *, steps: int, log_every: int,
              eval_every: int, checkpoint_every: int, policy: precision.Policy) -> TrainState:  # fmt: skip
    """Train from `state.step` to `steps`; log, evaluate and save on the way, and at the last step.

    The devices are looked at only every `log_every` steps and before an evaluation or a save. Raises NonFiniteError; what
    was saved by then is sound.
    """
    progress, pending = hooks.progress, []
    progress.open_interval()
    for index in range(int(state.step), steps):
        batch = progress.fetch(lambda: next(batches), lambda: not pending or pending[-1]["loss"].is_ready())
        state, metrics = step(state, batch)
        pending.append(metrics)
        if len(pending) > IN_FLIGHT:
            jax.block_until_ready(pending[-1 - IN_FLIGHT]["loss"])
        done = index + 1
        progress.tick(done)
        evaluating = done == steps or (eval_every and done % eval_every == 0)
        saving = evaluating or (checkpoint_every and done % checkpoint_every == 0)
        if saving or done % log_every == 0:
            progress.log(done, examine(pending, done - len(pending), batches.names, policy))
            pending.clear()
        if saving:
            with progress.paused():
                summary = hooks.evaluate(done, state) if evaluating else {}
                position = {"batches": int(batches.position), "seconds": progress.seconds}
                checkpoint.save(hooks.manager, state, position, summary.get("mIoU"))
    return state


def examine(
    pending: list[dict[str, jax.Array]], first: int, names: Callable[[int], Sequence[str]], policy: precision.Policy
) -> dict[str, float]:
    """Fetch the metrics of the batches `first`, `first` + 1, ...; their mean loss and last other values.

    Raises NonFiniteError at the first that is not finite. With float16 overflow is expected: only `PATIENCE` of them in a
    row, or a loss that is not finite although it is not scaled up any more, count.
    """
    rows = [{key: float(np.asarray(value).ravel()[0]) for key, value in row.items()} for row in train_state.to_host(pending)]
    for offset, row in enumerate(rows):
        hopeless = row["skipped"] > PATIENCE or (row["scale"] <= 1 and not math.isfinite(row["loss"]))
        if not row["finite"] and (hopeless or not policy.scaled):
            batch = first + offset
            skipped = f" ({row['skipped']:.0f} overflowing steps in a row)" if policy.scaled else ""
            raise NonFiniteError(
                f"step {batch + 1}: loss {row['loss']}, gradient norm {row['grad_norm']}, learning rate {row['lr']:.3g}{skipped}. "
                f"Files of this batch: {', '.join(map(str, names(batch)))}. The last checkpoint is from before; look at these "
                "files, lower config.optimizer.learning_rate, set config.optimizer.clip_norm, or use another config.precision"
            )
    good = [row for row in rows if row["finite"]] or rows[-1:]
    means = {key: sum(row[key] for row in good) / len(good) for key in good[0] if key.startswith("loss")}
    overflowed = {"overflowed": len(rows) - sum(bool(row["finite"]) for row in rows)} if policy.scaled else {}
    rest = {key: good[-1][key] for key in ("lr", "grad_norm", "scale")}
    return {**means, **rest, **overflowed}


def _announced(step: Callable, progress: Progress, folder: str) -> Callable:
    """`step`, whose first call (which compiles) says so and how long it took."""
    told = False

    def call(state: TrainState, batch: Any) -> Any:
        nonlocal told
        if told:
            return step(state, batch)
        told = True
        progress.message(f"compiling the training step (kept in {folder}: the next start is quick)")
        before = progress.seconds
        with progress.paused():
            result = step(state, batch)
        progress.message(f"compiled in {progress.seconds - before:.1f} s")
        return result

    return call


def check_batch_size(batch_size: int, devices: int) -> None:
    """ValueError unless the global batch divides among all devices."""
    if batch_size < 1 or batch_size % devices:
        near = max(batch_size // devices, 1) * devices
        raise ValueError(f"config.batch_size={batch_size} is global and must divide among {devices} devices; {near} would")


def initial_state(config: ConfigDict, model: Any, optimizer: Any, policy: precision.Policy, init_from: str) -> tuple[TrainState, str]:
    """The state at step 0, weights from `config.seed` or the source `init_from`, and what to tell about it ('' for nothing)."""
    shape = (1, *config.dataset.crop_size, config.dataset.get("channels", 3))
    variables, told = models.init_variables(model, seed=config.seed, image_shape=shape), ""
    if init_from:
        variables, report = train_state.load_initial(variables, init_from)
        told = train_state.format_report(report, init_from)
    return train_state.create(variables, optimizer, policy, config.seed), told


def evaluation(config: ConfigDict, policy: precision.Policy, progress: Progress) -> Callable[..., dict[str, Any]]:
    """(step, variables, folder=None) -> the summary of metrics.json on the evaluation split, logged.

    A few pictures go to TensorBoard, or, with a `folder`, there as well.
    """
    from jaxseg import visualize
    from jaxseg.data import pipeline
    from jaxseg.evaluate import evaluate

    model, samples = models.create_model(config.model, dtype=policy.dtype), pipeline.eval_samples(config)

    def call(step: int, variables: Any, folder: Path | None = None) -> dict[str, Any]:
        def keep(name: str, picture: np.ndarray) -> None:
            progress.picture(step, name, picture)
            if folder is not None:
                visualize.save_picture(folder, name, picture)

        with policy.matmul_precision():
            summary = evaluate(model, variables, config, samples, pictures=PICTURES, save_picture=keep)
        overall = {key: value for key, value in summary.items() if not isinstance(value, dict | list)}
        progress.record("eval", {"step": step, **overall})
        shown = ", ".join(f"{key} {overall[key]:.4f}" for key in ("mIoU", "aAcc", "mAcc") if overall[key] is not None)
        progress.message(f"step {step}: {shown} ({overall['images']} images in {overall['seconds']:.1f} s)")
        return summary

    return call


def train(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Train `config` in `workdir`, going on where an earlier call stopped; returns the summary that metrics.json holds.

    The data is checked before anything is built. At the end the best checkpoint is evaluated, its table printed, its
    pictures and metrics.json written. With several processes (jax.distributed initialised by the caller) each calls this.
    """
    from jaxseg.config import resolve
    from jaxseg.data import datasets, pipeline

    config, workdir = resolve(config), Path(workdir)
    check_batch_size(config.batch_size, jax.device_count())
    checkpoint.check_config(workdir, config)
    datasets.check(config)
    compiled = cache.enable_compilation_cache()
    policy, (optimizer, schedule) = precision.make_policy(config), optim.make_optimizer(config)
    model = models.create_model(config.model, dtype=policy.dtype, axis_name=AXIS)
    first = jax.process_index() == 0
    if first:
        checkpoint.write_config(workdir, config, datasets.get_spec(config.dataset.name, config.dataset.root).to_json())
    with checkpoint.open_manager(workdir, keep=config.keep_checkpoints) as manager:
        fresh = manager.latest_step() is None
        state, told = initial_state(config, model, optimizer, policy, config.init_from if fresh else "")
        state, position = (state, {"batches": 0, "seconds": 0.0}) if fresh else checkpoint.restore(manager, state)
        start = int(state.step)
        batches = pipeline.train_batches(
            config, devices=jax.local_device_count(), start=position["batches"],
            process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip
        progress = Progress(
            workdir, steps=config.steps, batch_size=config.batch_size, start=start, seconds=position["seconds"], enabled=first
        )
        with contextlib.closing(progress), contextlib.closing(batches):
            for line in filter(None, (told, "" if fresh else f"continuing {workdir} after step {start}", _advice(config, fresh))):
                progress.message(line)
            step = make_step(
                model=model, loss=losses.make_loss(config, axis_name=AXIS), optimizer=optimizer, schedule=schedule,
                policy=policy, mean=tuple(config.dataset.image_mean), std=tuple(config.dataset.image_std),
            )  # fmt: skip
            assess = evaluation(config, policy, progress)
            hooks = Hooks(progress, manager, lambda done, state: assess(done, train_state.to_host(state.variables)))
            run_steps(
                train_state.replicate(state), _announced(step, progress, compiled), batches, hooks, policy=policy,
                steps=config.steps, log_every=config.log_every, eval_every=config.eval_every,
                checkpoint_every=config.checkpoint_every,
            )  # fmt: skip
            checkpoint.write_best(manager)
            best = checkpoint.best(manager) or {"step": int(manager.latest_step())}
            return _finish(workdir, assess, progress, best["step"])


def _advice(config: ConfigDict, fresh: bool) -> str:
    if not fresh or config.init_from or not config.get("pretrained", ""):
        return ""
    return f"starting from random weights; the published run began with {config.pretrained} (give such a file as --config.init_from)"


def _finish(workdir: Path, assess: Callable, progress: Progress, best: int) -> dict[str, Any]:
    """Evaluate the best checkpoint; leave its table on the screen, its pictures and metrics.json in the workdir."""
    account = progress.account()
    progress.message(format_account(account))
    variables = checkpoint.load_variables(workdir / "checkpoints" / str(best))[1]
    summary = {**assess(best, variables, workdir / "pictures"), "step": best, "training": account}
    progress.message(f"best checkpoint: step {best}\n{metrics.format_table(summary)}")
    if progress.enabled:
        checkpoint.write_json(workdir / "metrics.json", summary)
        progress.message(f"wrote {workdir / 'metrics.json'} and {workdir / 'pictures'}")
    return summary
