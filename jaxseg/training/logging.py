"""Progress of a run: timing, console, log.jsonl and TensorBoard behind one object."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxseg.training.live_line import LiveLine
from jaxseg.training.memory import peak_memory
from jaxseg.training.timer import Batch, Interval, Timer, format_seconds
from jaxseg.training.writers import JsonLinesWriter, TensorBoardWriter, Writer, as_json


class TrainLogger:
    """Tracks timing and reports training progress on the console, in log.jsonl and in TensorBoard.

    Attributes:
        enabled: Whether to print and write. If False, as in all processes but the first, the logger
            only measures time.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        steps: int,
        batch_size: int,
        start: int = 0,
        seconds: float = 0.0,
        busy: float = 0.0,
        images: int = 0,
        enabled: bool = True,
    ):
        """Open the files of `workdir` and start the clock.

        Args:
            workdir: Folder of log.jsonl and tensorboard/.
            steps: Training steps of the run.
            batch_size: Images of a step, over all devices.
            start: Current step of the run; later rows, written by a killed process, are removed.
            seconds: See `Timer`.
            busy: See `Timer`.
            images: See `Timer`.
            enabled: See the attribute.
        """
        self.enabled = enabled
        self._steps = steps
        self._timer = Timer(
            steps=steps,
            batch_size=batch_size,
            start=start,
            seconds=seconds,
            busy=busy,
            images=images,
        )
        self._line = LiveLine(steps, start)
        self._writers: list[Writer] = []
        if enabled:
            folder = Path(workdir)
            self._writers = [
                JsonLinesWriter(folder / "log.jsonl", start),
                TensorBoardWriter(folder / "tensorboard", start),
            ]

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the run began, earlier processes included."""
        return self._timer.seconds

    def message(self, text: str) -> None:
        """Print one or more lines that stay on the screen."""
        if self.enabled:
            self._line.print(text)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude a block from throughput and waiting, and hide the status line."""
        with self._timer.paused():
            self._line.stop()
            yield

    def start_interval(self) -> None:
        """Start measuring throughput and waiting."""
        self._timer.start_interval()

    def next_batch(self, load: Callable[[], Batch], is_idle: Callable[[], bool]) -> Batch:
        """Load a batch and time it, see `Timer.next_batch`."""
        return self._timer.next_batch(load, is_idle)

    def update(self, step: int) -> None:
        """Show the number of finished steps in the status line."""
        if self.enabled:
            self._line.update(step)

    def log(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Report the steps since the last call.

        Args:
            step: Number of finished steps.
            metrics: Metrics of these steps by name.

        Returns:
            The row of log.jsonl: step, metrics, images_per_second, data_wait (a share) and seconds.
        """
        interval = self._timer.finish_interval(step)
        row = {
            "step": step,
            **metrics,
            "images_per_second": interval.images_per_second,
            "data_wait": interval.data_wait,
            "seconds": self.seconds,
        }
        if self.enabled:
            self._line.set_status(step, _status(row, interval))
        self.record("train", row)
        self._timer.start_interval()  # excludes the time of writing
        return row

    def record(self, event: str, row: Mapping[str, Any]) -> None:
        """Write a row that has a 'step' to log.jsonl and its numbers to TensorBoard."""
        values = {key: as_json(value) for key, value in row.items()}
        for writer in self._writers:
            writer.scalars(event, values)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Write an RGB picture, uint8 [H, W, 3], to TensorBoard."""
        for writer in self._writers:
            writer.picture(step, name, image)

    def state_dict(self) -> dict[str, Any]:
        """Return the arguments `seconds`, `busy` and `images` for the process that continues."""
        return self._timer.state_dict()

    def summary(self) -> dict[str, Any]:
        """Return total seconds, images per second, devices and peak memory of the run so far."""
        memory, kind = peak_memory()
        return {
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self._timer.images_per_second, 3),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "peak_memory_bytes": memory,
            "peak_memory_kind": kind,
        }

    def close(self) -> None:
        """Stop the status line and close the files."""
        self._line.stop()
        for writer in self._writers:
            writer.close()
        self._writers = []
        self.enabled = False


def _status(row: Mapping[str, float], interval: Interval) -> str:
    return (
        f"  loss {row.get('loss', float('nan')):.4f}  lr {row.get('lr', 0.0):.2e}"
        f"  {interval.images_per_second:.1f} images/s  data wait {interval.data_wait:.0%}"
        f"  ETA {format_seconds(interval.seconds_left)}"
    )


def format_summary(summary: Mapping[str, Any]) -> str:
    """Format `TrainLogger.summary` as one line."""
    kind = summary["peak_memory_kind"]
    peak = summary["peak_memory_bytes"]
    memory = kind if peak is None else f"{kind} {peak / 2**20:.0f} MiB"
    return (
        f"time to train {summary['seconds']:.1f} s ({format_seconds(summary['seconds'])}), "
        f"{summary['images_per_second']:.1f} images/s, {summary['devices']}, {memory}"
    )
