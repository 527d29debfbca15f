"""How fast it is: training, inference and the data pipeline, measured on synthetic data (the pipeline on its own).

`measure` gives one row: the median and spread of the time after warm-up, images per second, the time to compile, the
FLOPs that XLA counts, and memory, with the conditions they hold under. Fields that MMSegmentation's timing has as well
are named alike in both. Training and inference need jax, flax, optax and ml_collections and nothing else.
"""

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxseg import losses, optim, precision
from jaxseg.errors import ConfigError
from jaxseg.files import expand
from jaxseg.inference import predictor as inference
from jaxseg.inference import sliding
from jaxseg.models import create_model, init_variables
from jaxseg.registry import lookup
from jaxseg.training import state as train_state
from jaxseg.training.step import AXIS, make_step

WINDOW, STRIDE = (769, 769), (513, 513)  # of `slide` where the config evaluates whole images
PRECISIONS = (*precision.PRECISIONS, "tf32")
IGNORED = 0.05  # share of synthetic pixels that have no class


@dataclasses.dataclass(frozen=True)
class Timing:
    """How often to run: `repeats` timings of `steps` runs each, after `warmup` runs that do not count."""

    warmup: int = 10
    repeats: int = 30
    steps: int = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to time: `run()` does it once and returns arrays to wait for; `images` of them pass in a run."""

    run: Callable[[], Any]
    images: int
    facts: dict[str, Any]
    compiled: Any = None  # jax.stages.Compiled
    programs: int = 1  # calls of `compiled` in a run
    compile_seconds: float | None = None


# --- The four cases ---------------------------------------------------------------------------------------------------


def train_case(
    config: ConfigDict, batch: int, size: Sequence[int], devices: Sequence[jax.Device]
) -> Case:
    """The training step (forward, losses, backward, optimiser) on crops of `size`, `batch` of them a device."""
    policy, (optimizer, schedule) = precision.make_policy(config), optim.make_optimizer(config)
    model = create_model(config.model, dtype=policy.dtype, axis_name=AXIS)
    variables = init_variables(model, config.seed, (1, *size, config.dataset.channels))
    step = make_step(
        devices, model=model, loss=losses.make_loss(config, axis_name=AXIS), optimizer=optimizer, schedule=schedule,
        policy=policy, mean=tuple(config.dataset.image_mean), std=tuple(config.dataset.image_std),
    )  # fmt: skip
    state = train_state.replicate(
        train_state.create(variables, optimizer, policy, config.seed), list(devices)
    )
    rng, shape = np.random.default_rng(config.seed), (len(devices), batch, *size)
    label = rng.integers(0, config.model.num_classes, shape, np.int32)
    label[rng.random(shape) < IGNORED] = 255
    arrays = {"image": _photos(rng, (*shape, config.dataset.channels)), "label": label}
    arrays["size"] = np.broadcast_to(np.int32(size), (*shape[:2], 2))
    arrays = jax.device_put(
        arrays, NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec(AXIS))
    )
    start = time.perf_counter()
    compiled = step.lower(state, arrays).compile()
    seconds = time.perf_counter() - start

    def run() -> Any:
        nonlocal state
        state, metrics = compiled(state, arrays)
        return metrics

    facts = {
        "batch": batch * len(devices),
        "size": list(size),
        "devices": len(devices),
        "optimizer": config.optimizer.name,
    }
    return Case(run, batch * len(devices), facts, compiled, compile_seconds=seconds)


def infer_case(config: ConfigDict, batch: int, size: Sequence[int]) -> Case:
    """Class ids of whole images of `size`, on one device: normalisation, network, logits resized to the image, argmax."""
    settings = inference.make_settings(config)._replace(mode="whole", scales=(1.0,), flip=False)
    model, variables = _trained(config, size)
    images = jax.device_put(
        _photos(np.random.default_rng(config.seed), (batch, *size, config.dataset.channels))
    )

    @jax.jit
    def classes(variables: Any, images: jax.Array) -> jax.Array:
        return jnp.argmax(inference.predict(model, settings, variables, (images,), tuple(size)), -1)

    compiled, seconds = _compile(config, classes, variables, images)
    return Case(
        lambda: compiled(variables, images),
        batch,
        {"batch": batch, "size": list(size)},
        compiled,
        compile_seconds=seconds,
    )


def slide_case(config: ConfigDict, batch: int, size: Sequence[int]) -> Case:
    """Class ids of images of `size` by sliding windows, on one device, from the host's pixels on: the config's windows, else 769 at 513.

    `batch` images follow each other; config.eval.batch_size windows share a pass.
    """
    settings = inference.make_settings(config)
    if settings.mode != "slide":
        settings = settings._replace(mode="slide", crop_size=WINDOW, stride=STRIDE)
    settings = settings._replace(scales=(1.0,), flip=False)
    model, variables = _trained(config, settings.crop_size)
    images = _photos(np.random.default_rng(config.seed), (batch, *size, config.dataset.channels))
    window = [min(pair) for pair in zip(size, settings.crop_size)]
    windows = jax.ShapeDtypeStruct((settings.batch_size, *window, images.shape[-1]), np.uint8)
    network = jax.jit(functools.partial(inference.network, model, settings))
    compiled, seconds = _compile(config, network, variables, windows)
    argmax = jax.jit(lambda scores: jnp.argmax(scores, -1))
    call = functools.partial(compiled, variables)

    def run() -> list[jax.Array]:
        return [
            argmax(scores)
            for scores in inference.predict_slide(
                call, settings, [((image,), tuple(size)) for image in images]
            )
        ]

    count = batch * np.prod(
        [len(sliding.window_starts(*x)) for x in zip(size, settings.crop_size, settings.stride)]
    )
    facts = {
        "batch": batch,
        "size": list(size),
        "window": window,
        "stride": list(settings.stride),
        "windows_at_once": settings.batch_size,
    }
    return Case(
        run,
        batch,
        facts,
        compiled,
        programs=-(-int(count) // settings.batch_size),
        compile_seconds=seconds,
    )


@contextlib.contextmanager
def data_case(config: ConfigDict, batch: int) -> Any:
    """Batches of `batch` augmented crops from the config's data set, as training reads them."""
    from jaxseg.data import pipeline

    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.batch_size = batch
    with contextlib.closing(pipeline.train_batches(config, devices=1)) as batches:
        yield Case(
            lambda: next(batches),
            batch,
            {
                "batch": batch,
                "size": list(config.dataset.crop_size),
                "dataset": config.dataset.name,
                "workers": config.dataset.num_workers,
            },
        )


def _photos(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return rng.integers(0, 256, shape, np.uint8)


def _trained(config: ConfigDict, size: Sequence[int]) -> tuple[Any, Any]:
    """The model for inference and variables for it, on the default device."""
    model = create_model(config.model, dtype=precision.make_policy(config).dtype)
    return model, jax.device_put(
        init_variables(model, config.seed, (1, *size, config.dataset.channels))
    )


def _compile(config: ConfigDict, function: Any, *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    with precision.make_policy(config).matmul_precision():
        compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


# --- Measuring --------------------------------------------------------------------------------------------------------


def seconds_each(run: Callable[[], Any], timing: Timing) -> list[float]:
    """Seconds of a run, `timing.repeats` of them; each is the mean over `timing.steps` runs that follow without waiting."""
    for _ in range(timing.warmup):
        jax.block_until_ready(run())
    found = []
    for _ in range(timing.repeats):
        start = time.perf_counter()
        for _ in range(timing.steps):
            result = run()
        jax.block_until_ready(result)
        found.append((time.perf_counter() - start) / timing.steps)
    return found


def statistics(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile, smallest and largest."""
    low, median, high = np.percentile(seconds, (10, 50, 90))
    spread = {
        "seconds": median,
        "seconds_p10": low,
        "seconds_p90": high,
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
    }
    return {key: float(value) for key, value in spread.items()}


def measure(
    config: ConfigDict,
    what: str,
    *,
    precision_name: str = "",
    batch: int = 0,
    size: Sequence[int] = (),
    devices: int = 1,
    timing: Timing = Timing(),  # noqa: B008 - immutable
) -> dict[str, Any]:
    """Time `what` ('train', 'infer', 'slide' or 'data') for a resolved config; a row of figures, facts and conditions.

    precision_name: one of PRECISIONS, '' for the config's; 'tf32' is float32 whose products a GPU may round to TF32.
    batch: images a device; by default 2 (train), 1 (infer, slide), the config's (data). size: (height, width), by default
    the config's crop (train) or 1024 x 2048 (infer, slide). devices: how many train. ConfigError: an unknown name.
    """
    lookup(dict.fromkeys(WHATS), what, "value of --what", field="--what")
    names = dict(zip(PRECISIONS, PRECISIONS))
    name = lookup(names, precision_name or config.precision, "precision", field="--precision")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.precision = "float32" if name == "tf32" else name
    row = {"library": "jaxseg", "jax": jax.__version__, "config": config.name, "what": what}
    if what == "data":
        return row | _time_data(config, batch or config.batch_size, timing)
    if devices > len(jax.devices()):
        raise ConfigError(
            f"devices is {devices}, but JAX sees {len(jax.devices())}", field="--devices"
        )
    before = _allocator_peak()
    with (
        jax.default_matmul_precision("tensorfloat32")
        if name == "tf32"
        else contextlib.nullcontext()
    ):
        if what == "train":
            case = train_case(
                config, batch or 2, size or tuple(config.dataset.crop_size), jax.devices()[:devices]
            )
        else:
            case = (infer_case if what == "infer" else slide_case)(
                config, batch or 1, size or (1024, 2048)
            )
        figures = statistics(seconds_each(case.run, timing))
    rate = case.images / figures["seconds"]
    flops = _flops(case)
    speed = {
        "images_per_second": rate,
        "flops": flops,
        "tflops_per_second": flops and flops / figures["seconds"] / 1e12,
    }
    row |= {
        "precision": name,
        **case.facts,
        **figures,
        **speed,
        "compile_seconds": case.compile_seconds,
    }
    return row | _memory(case.compiled, before) | conditions(timing)


WHATS = ("train", "infer", "slide", "data")


def _time_data(config: ConfigDict, batch: int, timing: Timing) -> dict[str, Any]:
    """Over all timed batches, not their median: worker processes deliver in bursts.

    resident_mb: of this process after the warm-up, half-way and at the end; it stays flat where nothing leaks.
    """
    with data_case(config, batch) as case:
        for _ in range(timing.warmup):
            case.run()
        resident = [_resident_mb()]

        def run() -> None:
            case.run()
            resident.append(_resident_mb())

        used, seconds = (
            time.process_time(),
            seconds_each(run, dataclasses.replace(timing, warmup=0)),
        )
        used = (time.process_time() - used) / (case.images * timing.repeats * timing.steps)
    mean = float(np.mean(seconds)) / case.images
    # The work of worker processes is not this process's.
    own = None if config.dataset.num_workers else 1000 * used
    speed = {"images_per_second": 1 / mean, "ms_per_image": 1000 * mean, "cpu_ms_per_image": own}
    memory = {"resident_mb": [resident[0], resident[len(resident) // 2], resident[-1]]}
    return {**case.facts, **statistics(seconds), **speed, **memory, **conditions(timing)}


def _resident_mb() -> float:
    """Memory of this process in MB; 0 where /proc does not tell."""
    file = Path("/proc/self/statm")
    return (
        int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
        if file.exists()
        else 0.0
    )


def _flops(case: Case) -> float | None:
    """Floating point operations of a run on one device, as XLA counts them in what it compiled (a loop's body once); None if it does not."""
    analysis = case.compiled.cost_analysis() or {}
    return case.programs * float(analysis["flops"]) if analysis.get("flops", 0) > 0 else None


def _allocator_peak() -> int:
    """Most bytes in use on the first device since the process began; 0 where the device does not count (CPU)."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def _memory(compiled: Any, before: int) -> dict[str, Any]:
    """Peak memory of a device in GiB: the allocator's, if this case set a new peak in this process, else what the program plans."""
    plan = compiled.memory_analysis()
    planned = (
        sum(getattr(plan, f"{part}_size_in_bytes") for part in ("argument", "output", "temp"))
        - plan.alias_size_in_bytes
    )
    peak = _allocator_peak()
    measured = peak > before
    source = "memory_stats" if measured else "memory_analysis"
    return {
        "peak_memory_gb": (peak if measured else planned) / 2**30,
        "peak_memory_source": source,
        "planned_memory_gb": planned / 2**30,
    }


def conditions(timing: Timing) -> dict[str, Any]:
    """What a row was measured with: device, versions, flags, load."""
    device = jax.devices()[0]
    versions = {
        name: importlib.import_module(name).__version__
        for name in ("jax", "jaxlib", "flax", "optax", "numpy")
    }
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "backend": device.client.platform_version.splitlines()[0],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
        "environment": {
            key: os.environ[key]
            for key in ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")
            if os.environ.get(key)
        },
        "compilation_cache": bool(
            jax.config.jax_compilation_cache_dir
        ),  # then compile_seconds may be a look-up's
        "timing": dataclasses.asdict(timing),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def append(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to the JSON list in `path`; ConfigError if it holds something else."""
    path = expand(path)
    try:
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except (OSError, ValueError):
        old = None
    if not isinstance(old, list):
        problem = "does not hold a JSON list of earlier measurements"
        raise ConfigError(problem, file=path, field="--json", hint="choose another --json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*old, *rows], indent=1) + "\n")
