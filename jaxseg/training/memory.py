"""Peak memory of a run."""

import sys

import jax

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def peak_memory() -> tuple[int | None, str]:
    """Return the peak memory of a local device, or of this process if devices do not report it.

    Returns:
        Bytes, None if unknown, and a description.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    if peaks:
        return max(peaks), "peak device memory"
    if resource is None:
        return None, "peak memory unknown"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "peak process memory (RSS)"
