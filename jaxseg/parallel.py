"""Work spread over threads, in order."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

THREADS = min(os.cpu_count() or 1, 16)


def evenly_spaced(count: int, samples: int) -> list[int]:
    """At most `samples` of `count` indices, evenly spread."""
    return (
        list(range(count))
        if count <= samples
        else np.linspace(0, count - 1, samples).round().astype(int).tolist()
    )


def ordered_map(
    function: Callable[[Any], Any], items: Iterable[Any], what: str, progress: bool = False
) -> Iterator[Any]:
    """function(item) of every item, in order, from threads; `what` names the live line that progress shows on a terminal.

    The first error of the function ends it.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        shown = futures = [pool.submit(function, item) for item in items]
        if progress and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import track

            shown = track(futures, what, console=Console(stderr=True), transient=True)
        try:
            for future in shown:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
