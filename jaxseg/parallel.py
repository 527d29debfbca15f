"""Work spread over threads, in order."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

THREADS = min(os.cpu_count() or 1, 16)

Item = TypeVar("Item")
Result = TypeVar("Result")


def evenly_spaced(count: int, samples: int) -> list[int]:
    """Return at most `samples` of the indices 0 to count - 1, evenly spaced."""
    if count <= samples:
        return list(range(count))
    return np.linspace(0, count - 1, samples).round().astype(int).tolist()


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], title: str, progress: bool = False
) -> Iterator[Result]:
    """Yield function(item) of every item, in order, computed in threads.

    The first error of the function ends it.

    Args:
        function: Called in up to `THREADS` threads at once.
        items: Its arguments.
        title: Of the progress bar.
        progress: Show a progress bar if standard error is a terminal.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(function, item) for item in items]
        shown: Iterable = futures
        if progress and sys.stderr.isatty():
            shown = track(futures, title, console=Console(stderr=True), transient=True)
        try:
            for future in shown:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
