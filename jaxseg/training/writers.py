"""Files that a run writes while it trains: log.jsonl and TensorBoard events."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorboardX import SummaryWriter

from jaxseg.files import atomic_path


class Writer(Protocol):
    """Receives metrics and pictures of a run."""

    def scalars(self, event: str, row: Mapping[str, Any]) -> None:
        """Write a row of JSON values that has a 'step'; `event` is 'train' or 'eval'."""

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Write an RGB picture, uint8 [H, W, 3]."""

    def close(self) -> None:
        """Finish the file."""


class JsonLinesWriter:
    """Appends {'event': ..., 'step': ..., ...} to a file, one JSON object per line."""

    def __init__(self, path: Path, start: int = 0):
        """Open the file and remove rows that a killed process wrote after step `start`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _keep_rows(path, start)
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, event: str, row: Mapping[str, Any]) -> None:
        """Append a row."""
        self._file.write(json.dumps({"event": event, **row}) + "\n")
        self._file.flush()

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Do nothing: the workdir has its pictures as separate files."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter:
    """Writes scalars as `event/key` and pictures as `prediction/name`."""

    def __init__(self, folder: Path, start: int = 0):
        """Open the folder's events, and hide those after step `start` unless it is 0."""
        self._writer = SummaryWriter(logdir=str(folder), purge_step=start or None)

    def scalars(self, event: str, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row."""
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{event}/{key}", value, row["step"])

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Write a picture."""
        self._writer.add_image(f"prediction/{name}", image, step, dataformats="HWC")

    def close(self) -> None:
        """Write the last events."""
        self._writer.close()


def as_json(value: Any) -> Any:
    """Convert a scalar to a JSON value; a number that is not finite becomes null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _keep_rows(path: Path, last: int) -> None:
    """Rewrite a log without the rows after step `last`."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a kill may leave half a line
            if json.loads(line).get("step", 0) <= last:
                kept.append(line + "\n")
    with atomic_path(path) as part:
        part.write_text("".join(kept), encoding="utf-8")
