"""Work spread over threads, in order."""

import collections
import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
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
) -> Generator[Result]:
    """Yield function(item) of every item, in order, computed in threads.

    Few results are computed ahead of the one that is yielded, so they may be large. The first error
    of the function ends it.

    Args:
        function: Called in up to `THREADS` threads at once.
        items: Its arguments.
        title: Of the progress bar.
        progress: Show a progress bar if standard error is a terminal.
    """
    items = list(items)
    with contextlib.closing(_compute(function, items)) as results:
        shown: Iterable[Result] = results
        if progress and sys.stderr.isatty():
            console = Console(stderr=True)
            shown = track(results, title, total=len(items), console=console, transient=True)
        yield from shown


def _compute(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """Yield function(item) of every item, in order, computed in threads."""
    waiting: collections.deque[Future[Result]] = collections.deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
