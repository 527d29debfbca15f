"""Train an experiment in a workdir (`train`); the loop around its step is `run_steps`."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp

from jaxseg import checkpoint, files, metrics, precision
from jaxseg.config.resolve import Config
from jaxseg.config.schema import Experiment
from jaxseg.data import pipeline
from jaxseg.data.catalog import load_spec
from jaxseg.data.measure import measure
from jaxseg.data.spec import DatasetSpec
from jaxseg.data.validate import checks
from jaxseg.experiments import open_experiment
from jaxseg.training import hints
from jaxseg.training import state as train_state
from jaxseg.training.build import Components, build_components, check_batch_size
from jaxseg.training.divergence import check_finite_and_average
from jaxseg.training.initial import initial_variables
from jaxseg.training.logging import TrainLogger, format_summary
from jaxseg.training.state import TrainState
from jaxseg.training.step import Batch, Metrics, Step
from jaxseg.training.validation import Validator
from jaxseg.workdir import (
    check_experiment,
    read_training,
    restore_classes,
    restore_measured_fields,
    write_experiment,
)

IN_FLIGHT = 2  # steps that the host may run ahead of the devices


class Batches(Protocol):
    """Training batches, as `data.pipeline.train_batches` returns them."""

    position: int  # batches taken so far

    def __next__(self) -> Batch:
        """Return the next batch, {'image', 'label', 'size'} [D, B, ...]."""

    def names(self, index: int) -> Sequence[object]:
        """Return the names of the samples of a batch."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The context of a run, which does not change from its first step to its last.

    Attributes:
        experiment: The experiment.
        manager: Manager of the workdir's checkpoints.
        step: The training step over all devices.
        policy: Precision of the step.
        logger: Logger of the progress.
        evaluate: Called as evaluate(step, variables on the host); returns a summary with 'mIoU'.
        target_miou: Stop early once validation mIoU reaches this value.
    """

    experiment: Experiment
    manager: ocp.CheckpointManager
    step: Step
    policy: precision.Policy
    logger: TrainLogger
    evaluate: Callable[[int, Any], dict[str, Any]]
    target_miou: float = math.inf

    def evaluates_at(self, done: int) -> bool:
        """Return whether an evaluation follows after `done` steps."""
        return done == self.experiment.steps or _divides(self.experiment.eval_every, done)

    def saves_at(self, done: int) -> bool:
        """Return whether a checkpoint is saved after `done` steps."""
        return self.evaluates_at(done) or _divides(self.experiment.checkpoint_every, done)

    def logs_at(self, done: int) -> bool:
        """Return whether metrics are logged after `done` steps."""
        return self.saves_at(done) or _divides(self.experiment.log_every, done)


def _divides(every: int, done: int) -> bool:
    return bool(every) and done % every == 0


# --- The loop -------------------------------------------------------------------------------------


def run_steps(run: Run, state: TrainState, batches: Batches) -> TrainState:
    """Train from `state.step` to the experiment's last step; log, evaluate and save checkpoints.

    Metrics are fetched to the host only every `log_every` steps and before an evaluation or a
    checkpoint.

    Args:
        run: The run.
        state: State replicated over the devices of the step; it is donated.
        batches: Training batches, at the position of the next one.

    Returns:
        The last state.

    Raises:
        NonFiniteError: The loss or the gradient is not finite; earlier checkpoints are unaffected.
    """
    logger, steps = run.logger, run.experiment.steps
    pending: list[Metrics] = []
    logger.start_interval()
    for done in range(int(state.step) + 1, steps + 1):
        batch = logger.next_batch(lambda: next(batches), lambda: _is_idle(pending))
        state, step_metrics = run.step(state, batch)
        pending.append(step_metrics)
        _wait_for_devices(pending)
        logger.update(done)
        if run.logs_at(done):
            rows = train_state.to_host(pending)
            first = done - len(pending)
            averages = check_finite_and_average(
                rows, first, batches.names, run.policy, last=done == steps
            )
            logger.log(done, averages)
            pending.clear()
        if run.saves_at(done) and _evaluate_and_save(run, done, state, batches.position):
            break
    return state


def _is_idle(pending: Sequence[Metrics]) -> bool:
    """Whether the devices have finished all steps."""
    return not pending or pending[-1]["loss"].is_ready()  # type: ignore[attr-defined]


def _wait_for_devices(pending: Sequence[Metrics]) -> None:
    """Keep the host at most IN_FLIGHT steps ahead."""
    if len(pending) > IN_FLIGHT:
        jax.block_until_ready(pending[-1 - IN_FLIGHT]["loss"])


def _evaluate_and_save(run: Run, done: int, state: TrainState, batches: int) -> bool:
    """Evaluate if it is due, save, and return whether the target mIoU is reached."""
    summary: dict[str, Any] = {}
    with run.logger.paused():
        position = {"batches": int(batches), **run.logger.state_dict()}
        host = train_state.to_host(state)
        try:
            if run.evaluates_at(done):
                summary = run.evaluate(done, host.variables)
        finally:  # a failed evaluation must not lose the training so far
            checkpoint.save(
                run.manager,
                done,
                host.variables,
                host.optimizer_items,
                position,
                summary.get("mIoU"),
            )
    return (summary.get("mIoU") or 0) >= run.target_miou


def log_first_compile(step: Step, logger: TrainLogger) -> Step:
    """Wrap a step so that its first call, which compiles, logs the time that it takes.

    Args:
        step: The step.
        logger: Logger of the message.

    Returns:
        The wrapped step.
    """
    is_compiled = False

    def call(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        nonlocal is_compiled
        if is_compiled:
            return step(state, batch)
        is_compiled = True
        folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        kept = f" (cached in {folder} for the next start)" if folder else ""
        logger.message(f"compiling the training step{kept}")
        before = logger.seconds
        with logger.paused():
            result = step(state, batch)
        logger.message(f"compiled in {logger.seconds - before:.1f} s")
        return result

    return call


# --- A whole run ----------------------------------------------------------------------------------


def train(
    experiment: Experiment | Config,
    workdir: str | Path,
    *,
    target_miou: float = math.inf,
    spec: DatasetSpec | None = None,
) -> dict[str, Any]:
    """Train an experiment in a workdir; continue the run if the workdir already has checkpoints.

    The data is checked and all components are built before anything is written. At the end, the
    table of the best checkpoint is printed, and its pictures and metrics.json are written. With
    several processes (`jax.distributed` initialised by the caller), all of them call this function.

    Args:
        experiment: An Experiment, or a config that is still to be resolved.
        workdir: Folder of the run: config, checkpoints, logs, pictures, metrics.json.
        target_miou: Stop early once validation mIoU reaches this value.
        spec: The experiment's data set, if it is loaded already.

    Returns:
        The summary that metrics.json holds.

    Raises:
        ConfigError: The experiment contradicts itself, its data or the number of devices.
        CheckpointError: The workdir holds a run of another experiment.
        DataError: The data cannot be trained on.
        WeightsError: `init_from` cannot be loaded.
        NonFiniteError: Training diverged.
    """
    workdir = files.expand(workdir)
    files.check_output(workdir, "workdir")
    experiment, spec = complete_experiment(experiment, workdir, spec)
    components = build_components(experiment)
    checks.check(experiment, spec)
    with checkpoint.open_manager(workdir, keep=experiment.keep_checkpoints) as manager:
        start = create_or_load_state(components, manager)
        write_description(workdir, experiment, spec)
        with _open_logger(workdir, experiment, start) as logger:
            _log_start(logger, experiment, workdir, start)
            pictures = workdir / "pictures"
            validator = Validator(experiment, spec, components.policy, logger, pictures)
            step = log_first_compile(components.make_step(), logger)
            run = Run(experiment, manager, step, components.policy, logger, validator, target_miou)
            summary = _train_to_the_end(run, spec, start, workdir)
            return _finish(run, validator, summary, workdir)


def complete_experiment(
    experiment: Experiment | Config, workdir: Path, spec: DatasetSpec | None = None
) -> tuple[Experiment, DatasetSpec]:
    """Fill in classes and measured fields: from the workdir of a continued run, else from the data.

    Args:
        experiment: An Experiment, or a config that is still to be resolved.
        workdir: Folder of the run.
        spec: The experiment's data set, if it is loaded already.

    Returns:
        The experiment to train and its data set.

    Raises:
        ConfigError: The experiment contradicts itself, its data or the number of devices.
        CheckpointError: The workdir holds a run of another experiment.
        DataError: The data cannot be read, or has other classes than the run.
    """
    if not isinstance(experiment, Experiment):
        experiment, spec = open_experiment(experiment, measured=False)
    check_batch_size(experiment.batch_size, jax.device_count())
    experiment = restore_classes(workdir, experiment)
    if spec is None or experiment.dataset.classes not in ((), spec.classes):
        spec = load_spec(experiment.dataset)  # maps labels to the classes of the run
    experiment = restore_measured_fields(workdir, experiment)
    experiment = measure(experiment, spec)
    check_experiment(workdir, experiment)
    return experiment, spec


@dataclasses.dataclass(frozen=True)
class Start:
    """The start of a run, new or continued.

    Attributes:
        state: Training state on the host.
        position: Position of the data and the clock in the checkpoint; {'batches': 0} if new.
        is_new: Whether the workdir had no checkpoint.
        report: Report of the initial weights, '' for none.
    """

    state: TrainState
    position: dict[str, Any]
    is_new: bool
    report: str = ""


def create_or_load_state(components: Components, manager: ocp.CheckpointManager) -> Start:
    """Create the state at step 0, or load the latest checkpoint.

    Args:
        components: Components of the run.
        manager: Manager of the workdir's checkpoints.

    Returns:
        The start of the run.

    Raises:
        CheckpointError: The checkpoint does not hold a state of this experiment.
        WeightsError: `init_from` cannot be loaded; only a new run reads it.
    """
    experiment, model = components.experiment, components.model
    is_new = manager.latest_step() is None
    source = experiment.init_from if is_new else ""
    variables, report = initial_variables(experiment, model, source)
    state = train_state.create(variables, components.optimizer, components.policy, experiment.seed)
    found = checkpoint.restore(manager, state.variables, state.optimizer_items)
    if found is None:
        return Start(state, {"batches": 0}, is_new, report)
    variables, items, position = found
    return Start(TrainState.from_items(variables, items), position, is_new, report)


def write_description(workdir: Path, experiment: Experiment, spec: DatasetSpec) -> None:
    """Write config.json and dataset.json, in process 0 only."""
    if jax.process_index() == 0:
        dataset = experiment.dataset
        measured = spec.with_statistics(dataset.image_mean, dataset.image_std)
        write_experiment(workdir, experiment, measured.to_json())


@contextlib.contextmanager
def _open_logger(workdir: Path, experiment: Experiment, start: Start) -> Iterator[TrainLogger]:
    """Open the run's logger, which continues the counts of the last process."""
    counted = ("seconds", "busy", "images")
    logger = TrainLogger(
        workdir,
        steps=experiment.steps,
        batch_size=experiment.batch_size,
        start=int(start.state.step),
        enabled=jax.process_index() == 0,
        **{key: start.position[key] for key in counted if key in start.position},
    )
    with contextlib.closing(logger):
        yield logger


def _log_start(logger: TrainLogger, experiment: Experiment, workdir: Path, start: Start) -> None:
    """Log the start of the run, with advice."""
    messages = [start.report]
    if start.is_new:
        messages.append(hints.pretrained_hint(experiment))
    else:
        messages.append(f"continuing {workdir} after step {int(start.state.step)}")
    messages.append(hints.batch_norm_warmup_warning(experiment))
    for message in filter(None, messages):
        logger.message(message)


def _train_to_the_end(run: Run, spec: DatasetSpec, start: Start, workdir: Path) -> dict[str, Any]:
    """Train the remaining steps; best.json is up to date afterwards, even after an error.

    Returns:
        The summary of training (`TrainLogger.summary`).
    """
    experiment = run.experiment
    try:
        if int(start.state.step) == experiment.steps:
            return _stored_summary(workdir, run.logger, start.position)
        batches = pipeline.train_batches(
            experiment.dataset,
            spec,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            devices=jax.local_device_count(),
            start=start.position["batches"],
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with contextlib.closing(batches):
            run_steps(run, train_state.replicate(start.state), batches)
        return run.logger.summary()
    finally:
        checkpoint.write_best(run.manager)


def _stored_summary(workdir: Path, logger: TrainLogger, position: dict[str, Any]) -> dict[str, Any]:
    """Return the training summary of a run that an earlier process finished.

    It is read from metrics.json or, if that process was killed before it wrote the file, from the
    last checkpoint.
    """
    seconds = round(position.get("seconds", 0.0), 3)
    stored = read_training(workdir)
    if stored and stored["seconds"] >= seconds:
        return stored
    return {**logger.summary(), "seconds": seconds}


def _finish(
    run: Run, validator: Validator, training: dict[str, Any], workdir: Path
) -> dict[str, Any]:
    """Report the best checkpoint: a table on the console, metrics.json and pictures."""
    logger = run.logger
    logger.message(format_summary(training))
    best = checkpoint.best(run.manager)
    step = int(run.manager.latest_step()) if best is None else best["step"]
    if step not in validator.summaries:
        _, variables = checkpoint.load_variables(workdir / "checkpoints" / str(step))
        validator(step, variables, record=best is None)
    summary = {**validator.summaries[step], "step": step, "training": training}
    logger.message(f"best checkpoint: step {step}\n{metrics.format_table(summary)}")
    if logger.enabled:
        files.write_json(workdir / "metrics.json", summary)
        logger.message(f"wrote {workdir / 'metrics.json'} and {workdir / 'pictures'}")
    return summary
