"""Ordered thread maps and progress bars."""

import collections
import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from rich import progress as bars
from rich.console import Console

THREADS = min(os.cpu_count() or 1, 16)

Item = TypeVar("Item")
Result = TypeVar("Result")


def evenly_spaced(count: int, samples: int) -> list[int]:
    """Return some of the indices 0 to count - 1, evenly spaced.

    Args:
        count: Number of items.
        samples: Largest number of indices to return.
    """
    if count <= samples:
        return list(range(count))
    return np.linspace(0, count - 1, samples).round().astype(int).tolist()


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    title: str = "",
    progress: bool = False,
    *,
    threads: int = THREADS,
    ahead: int | None = None,
) -> Generator[Result]:
    """Yield function(item) for every item, in order, computed in threads.

    Only a few results are computed ahead, so that large results do not fill the memory. The first
    error of the function is raised and ends the iteration.

    Args:
        function: Called in several threads at once.
        items: Its arguments.
        title: Title of the progress bar.
        progress: Show a progress bar if standard error is a terminal.
        threads: Number of threads.
        ahead: Largest number of results computed or being computed ahead; None for twice the
            number of threads.

    Yields:
        The results.
    """
    items = list(items)
    ahead = 2 * threads if ahead is None else ahead
    with contextlib.closing(_compute(function, items, threads, ahead)) as results:
        yield from show_progress(results, title, len(items)) if progress else results


def _compute(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result]:
    """Yield function(item) for every item, in order, computed in threads."""
    waiting: collections.deque[Future[Result]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def show_progress(
    results: Iterable[Result],
    title: str,
    total: int,
    *,
    size: Callable[[Result], int] = lambda result: 1,
) -> Generator[Result]:
    """Yield results while a progress bar shows their number, rate and remaining time.

    The bar is a single line that vanishes at the end. It is shown only if standard error is a
    terminal.

    Args:
        results: The results.
        title: Title of the bar.
        total: Sum of all sizes.
        size: How much a result advances the bar.

    Yields:
        The results.
    """
    console = Console(stderr=True)
    columns = [
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]:.1f}/s"),
        bars.TimeRemainingColumn(),
    ]
    hidden = not console.is_terminal
    with bars.Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(title, total=total, rate=0.0)
        start = time.perf_counter()
        done = 0
        for result in results:
            done += size(result)
            bar.update(task, completed=done, rate=done / (time.perf_counter() - start))
            yield result
