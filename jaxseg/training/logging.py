"""What a run tells while it trains: a live line, log.jsonl, TensorBoard, and the account at the end.

Only process 0 shows and writes; with `enabled=False` a Progress still keeps time and stays silent.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text


class Progress:
    """The clock and the mouth of one run.

    Time inside `paused()` (compiling, evaluating, saving) counts for the total but neither for images/s nor for the
    share of waiting. seconds, busy, images: what earlier processes of this run have `spent`.
    """

    def __init__(
        self, workdir: str | Path, *, steps: int, batch_size: int, start: int = 0,
        seconds: float = 0.0, busy: float = 0.0, images: int = 0, enabled: bool = True,
    ):  # fmt: skip
        self.steps, self.batch_size, self.enabled = steps, batch_size, enabled
        self._console = Console(highlight=False, soft_wrap=True)
        self._began = time.perf_counter() - seconds
        self._busy, self._images = busy, images
        self._step = self._logged = start
        self._line, self._live, self._writer, self._file = "", None, None, None
        self.open_interval()
        if enabled:
            self._file = _open_log(Path(workdir) / "log.jsonl", start)
            from tensorboardX import SummaryWriter  # slow to import, and other processes need none

            self._writer = SummaryWriter(
                logdir=str(Path(workdir) / "tensorboard"), purge_step=start or None
            )

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the run began, earlier processes included."""
        return time.perf_counter() - self._began

    def message(self, text: str) -> None:
        """One line (or more) that stays on the screen."""
        if self.enabled:
            self._console.print(Text(text))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keep what happens inside out of images/s and of the share of waiting, and the live line off the screen."""
        begin = time.perf_counter()
        self._stop_live()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    def fetch(self, next_batch: Callable[[], Any], idle: Callable[[], bool]) -> Any:
        """`next_batch()`, timed. It is waiting only if the devices had run out of work (`idle()`) when it returned."""
        begin = time.perf_counter()
        batch = next_batch()
        if idle():
            self._waited += time.perf_counter() - begin
        return batch

    def tick(self, step: int) -> None:
        """Move the live line to `step`; costs nothing where there is no terminal."""
        self._step = step
        if not (self.enabled and self._console.is_terminal):
            return
        if self._live is None:
            self._live = Live(
                console=self._console,
                refresh_per_second=4,
                transient=True,
                get_renderable=self._render,
            )
            self._live.start()

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> Text:
        return Text(
            f"step {self._step}/{self.steps}{self._line}", no_wrap=True, overflow="ellipsis"
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Report the steps since the last call; returns the row written to log.jsonl."""
        elapsed = max(time.perf_counter() - self._interval - self._paused, 1e-9)
        self._busy += elapsed
        self._images += (step - self._logged) * self.batch_size
        row = {
            "step": step,
            **metrics,
            "images_per_second": (step - self._logged) * self.batch_size / elapsed,
            "data_wait": min(self._waited / elapsed, 1.0),
            "seconds": self.seconds,
        }
        eta = (self.steps - step) * elapsed / max(step - self._logged, 1)
        self._line = (
            f"  loss {row.get('loss', float('nan')):.4f}  lr {row.get('lr', 0.0):.2e}  {row['images_per_second']:.1f} images/s"
            f"  data wait {row['data_wait']:.0%}  ETA {format_seconds(eta)}"
        )
        self._step, self._logged = step, step
        if not self._console.is_terminal:
            self.message(f"step {step}/{self.steps}{self._line}")
        self.record("train", row)
        self.open_interval()
        return row

    def open_interval(self) -> None:
        """Begin to count images/s and waiting anew."""
        self._interval, self._paused, self._waited = time.perf_counter(), 0.0, 0.0

    def record(self, event: str, row: Mapping[str, Any]) -> None:
        """Append {'event', **row} to log.jsonl and its numbers to TensorBoard (`event/key`, at row['step'])."""
        if not self.enabled:
            return
        row = {key: _number(value) for key, value in row.items()}
        self._file.write(json.dumps({"event": event, **row}) + "\n")
        self._file.flush()
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{event}/{key}", value, row["step"])

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Put an RGB uint8 picture [H, W, 3] into TensorBoard, as prediction/<name>."""
        if self.enabled:
            self._writer.add_image(f"prediction/{name}", image, step, dataformats="HWC")

    def spent(self) -> dict[str, float]:
        """What a later process needs to go on counting: total seconds, those of training alone, images trained on."""
        return {"seconds": self.seconds, "busy": self._busy, "images": self._images}

    def account(self) -> dict[str, Any]:
        """Total seconds, images/s, devices and peak memory of the run so far."""
        memory, kind = peak_memory()
        return {
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self._images / self._busy, 3) if self._busy else 0.0,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "peak_memory_bytes": memory,
            "peak_memory_kind": kind,
        }

    def close(self) -> None:
        """Stop the live line and close the files."""
        self._stop_live()
        if self._writer is not None:
            self._writer.close()
        if self._file is not None:
            self._file.close()
        self._writer = self._file = None
        self.enabled = False


def format_account(account: Mapping[str, Any]) -> str:
    """`Progress.account` as one line."""
    return (
        f"time to train {account['seconds']:.1f} s ({format_seconds(account['seconds'])}), {account['images_per_second']:.1f} images/s, "
        f"{account['devices']}, {account['peak_memory_kind']} {account['peak_memory_bytes'] / 2**20:.0f} MiB"
    )


def format_seconds(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def peak_memory() -> tuple[int, str]:
    """(bytes, what they are): the largest peak of a local device, or of this process where devices do not say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    if peaks:
        return max(peaks), "peak device memory"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "peak process memory (RSS)"


def _open_log(path: Path, start: int) -> Any:
    """log.jsonl open for appending, without what a killed process wrote beyond the step that this one starts from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        kept = []
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a kill may leave half a line
                if json.loads(line).get("step", 0) <= start:
                    kept.append(line + "\n")
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
    return path.open("a")


def _number(value: Any) -> Any:
    """A JSON value: NumPy scalars as Python's, non-finite numbers as null (JSON has none)."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
