"""Time, FLOPs and memory of training and inference."""

import contextlib
import dataclasses
from typing import Any

import jax

from jaxseg import precision
from jaxseg.benchmark.cases import infer_case, slide_case, train_case
from jaxseg.benchmark.rows import conditions
from jaxseg.benchmark.timing import Case, Timing, summarize, time_runs
from jaxseg.config.schema import Experiment
from jaxseg.errors import ConfigError
from jaxseg.registry import check_name

TF32 = "tf32"  # float32, but matrix products may use TF32 on GPU
PRECISIONS = (*precision.PRECISIONS, TF32)
INFERENCE = {"infer": infer_case, "slide": slide_case}
WHATS = ("train", *INFERENCE)
TRAIN_BATCH, INFERENCE_BATCH = 2, 1  # default number of images per device
INFERENCE_SIZE = (1024, 2048)  # default (height, width)
DEFAULT_TIMING = Timing()


def measure(
    experiment: Experiment,
    what: str,
    *,
    precision_name: str = "",
    batch: int = 0,
    size: tuple[int, int] | None = None,
    devices: int = 1,
    timing: Timing = DEFAULT_TIMING,
) -> dict[str, Any]:
    """Time an experiment's training step or inference on synthetic images.

    Args:
        experiment: The experiment.
        what: 'train', 'infer' (whole images) or 'slide' (sliding windows).
        precision_name: One of PRECISIONS, '' for the experiment's; 'tf32' is float32 with matrix
            products that may use TF32 on GPU.
        batch: Images per device; 0 for 2 (train) or 1 (infer, slide).
        size: (height, width) in pixels; None for the experiment's crop (train) or 1024 x 2048
            (infer, slide).
        devices: Number of devices to train on.
        timing: Number of runs.

    Returns:
        Measurements and conditions, JSON values by name.

    Raises:
        ConfigError: A name is unknown, or there are fewer devices.
    """
    check_name(WHATS, what, "benchmark", field="what")
    name = precision_name or experiment.precision
    check_name(PRECISIONS, name, "precision", field="precision_name")
    if devices > len(jax.devices()):
        raise ConfigError(
            f"devices is {devices}, but JAX sees {len(jax.devices())}", field="devices"
        )
    experiment = dataclasses.replace(experiment, precision="float32" if name == TF32 else name)
    peak_before = _allocator_peak()
    with _matmul_precision(name):
        if what == "train":
            crop = size or experiment.dataset.crop_size
            used = jax.devices()[:devices]
            case = train_case(experiment, batch or TRAIN_BATCH, crop, used)
        else:
            image = size or INFERENCE_SIZE
            case = INFERENCE[what](experiment, batch or INFERENCE_BATCH, image)
        figures = summarize(time_runs(case.run, timing))
    return {
        "library": "jaxseg",
        "jax": jax.__version__,
        "config": experiment.name,
        "what": what,
        "precision": name,
        **case.facts,
        **figures,
        **_speed(case, figures["seconds"]),
        "compile_seconds": case.compile_seconds,
        **_memory(case.compiled, peak_before),
        **conditions(timing),
    }


def _matmul_precision(name: str) -> contextlib.AbstractContextManager[Any]:
    if name == TF32:
        return jax.default_matmul_precision("tensorfloat32")
    return contextlib.nullcontext()


def _speed(case: Case, seconds: float) -> dict[str, float | None]:
    flops = _flops(case)
    return {
        "images_per_second": case.images / seconds,
        "flops": flops,
        "tflops_per_second": None if flops is None else flops / seconds / 1e12,
    }


def _flops(case: Case) -> float | None:
    """Return the floating-point operations of a run on one device, None if XLA reports none.

    XLA counts the body of a loop only once.
    """
    analysis: Any = {} if case.compiled is None else case.compiled.cost_analysis() or {}
    return case.programs * float(analysis["flops"]) if analysis.get("flops", 0) > 0 else None


def _allocator_peak() -> int:
    """Return the peak memory of the first device in bytes; 0 if it is not reported (CPU)."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def _memory(compiled: Any, before: int) -> dict[str, Any]:
    """Return the peak memory of a device in GiB.

    This is the allocator's peak if this case raised it, else the plan of the compiled program.
    """
    plan = compiled.memory_analysis()
    parts = ("argument", "output", "temp")
    planned = sum(getattr(plan, f"{part}_size_in_bytes") for part in parts)
    planned -= plan.alias_size_in_bytes
    peak = _allocator_peak()
    is_measured = peak > before
    return {
        "peak_memory_gb": (peak if is_measured else planned) / 2**30,
        "peak_memory_source": "memory_stats" if is_measured else "memory_analysis",
        "planned_memory_gb": planned / 2**30,
    }
