"""Time of a run: total, throughput, and the share spent waiting for data."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

Batch = TypeVar("Batch")


class Interval(NamedTuple):
    """Speed of the steps between two log lines.

    Attributes:
        images_per_second: Training throughput over all devices.
        data_wait: Share of the time, 0 to 1, in which the devices waited for data.
        seconds_left: Estimated seconds to the end of the run.
    """

    images_per_second: float
    data_wait: float
    seconds_left: float


class Timer:
    """Measures a run.

    Time inside `paused()` (compiling, evaluating, saving) counts towards the total, but not towards
    throughput and waiting.
    """

    def __init__(
        self,
        *,
        steps: int,
        batch_size: int,
        start: int = 0,
        seconds: float = 0.0,
        busy: float = 0.0,
        images: int = 0,
    ):
        """Start the clock.

        Args:
            steps: Training steps of the run.
            batch_size: Images of a step, over all devices.
            start: Current step of the run.
            seconds: Total seconds of earlier processes of the run (see `state_dict`).
            busy: Seconds of these that were spent on training.
            images: Images that earlier processes trained on.
        """
        self._steps, self._batch_size, self._step = steps, batch_size, start
        self._began = time.perf_counter() - seconds
        self._busy, self._images = busy, images
        self.start_interval()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the run began, earlier processes included."""
        return time.perf_counter() - self._began

    @property
    def images_per_second(self) -> float:
        """Training throughput of the whole run, 0 before the first interval."""
        return self._images / self._busy if self._busy else 0.0

    def start_interval(self) -> None:
        """Start measuring throughput and waiting."""
        self._interval_began = time.perf_counter()
        self._paused = 0.0
        self._waited = 0.0

    def finish_interval(self, step: int) -> Interval:
        """Return the speed since the interval began; call `start_interval` for the next one.

        Args:
            step: Finished steps.
        """
        elapsed = max(time.perf_counter() - self._interval_began - self._paused, 1e-9)
        done = step - self._step
        self._busy += elapsed
        self._images += done * self._batch_size
        interval = Interval(
            images_per_second=done * self._batch_size / elapsed,
            data_wait=min(self._waited / elapsed, 1.0),
            seconds_left=(self._steps - step) * elapsed / max(done, 1),
        )
        self._step = step
        return interval

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of a block from throughput and waiting."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    def next_batch(self, load: Callable[[], Batch], is_idle: Callable[[], bool]) -> Batch:
        """Load a batch and time it.

        Args:
            load: Returns the batch.
            is_idle: Returns whether the devices have run out of work; only then the time counts as
                waiting.

        Returns:
            The batch.
        """
        begin = time.perf_counter()
        batch = load()
        if is_idle():
            self._waited += time.perf_counter() - begin
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the arguments `seconds`, `busy` and `images` for the process that continues."""
        return {"seconds": self.seconds, "busy": self._busy, "images": self._images}


def format_seconds(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds or minutes:seconds."""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
