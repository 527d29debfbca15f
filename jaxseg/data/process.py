"""Settings of a process that loads data: of worker processes, and of programs like the scripts.

Nothing here is called by the library in its caller's process: `tune_process` is for scripts
(jaxseg.cli), and `start_worker` runs in the worker processes that the pipeline starts.
"""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import sys
import threading

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes, the most that glibc accepts
TRIM_THRESHOLD = 512 * 2**20  # bytes

NODATA_NOISE = "parsing GDAL_NODATA tag raised"  # tifffile's warning about values that we read


def tune_process() -> None:
    """Make loading fast in this process: one thread per OpenCV call, and freed memory is kept.

    Batches are made in parallel already, so OpenCV's own threads would only compete for the cores.
    Requesting the megabytes of every image from the system again takes a tenth of the loading time.
    """
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")  # read when OpenCV is imported
    # Other C libraries have no mallopt, and Windows has no library of the process itself.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        library.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)


def silence_nodata(record: logging.LogRecord) -> bool:
    """Drop tifffile's warnings about no-data values, which jaxseg reads itself."""
    return NODATA_NOISE not in str(record.msg)


def start_worker(index: int, count: int) -> None:
    """Set up a worker process: tune it, and end it with the training process.

    A training process that is killed cannot stop its workers.

    Args:
        index: Index of the worker process.
        count: Number of worker processes.
    """
    tune_process()
    logging.getLogger("tifffile").addFilter(silence_nodata)
    if parent := multiprocessing.parent_process():

        def exit_with_parent() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=exit_with_parent, daemon=True).start()
