"""Ordered thread maps: results in order, not far ahead, ended by the first error."""

import io
import sys
import threading
import time

import pytest

from jaxseg import parallel


def test_results_come_in_order():
    assert list(parallel.ordered_map(lambda n: n * n, range(100), "squares")) == [
        n * n for n in range(100)
    ]
    assert list(parallel.ordered_map(lambda n: n, [], "nothing")) == []


def test_few_results_are_computed_ahead():
    started, lock = [], threading.Lock()

    def work(n):
        with lock:
            started.append(n)
        return n

    for result in parallel.ordered_map(work, range(20 * parallel.THREADS), "work"):
        assert len(started) <= result + 1 + 2 * parallel.THREADS


def test_number_of_threads_and_of_results_ahead():
    running, most, lock = set(), [], threading.Lock()

    def work(n):
        with lock:
            running.add(n)
            most.append(len(running))
        time.sleep(0.001)
        with lock:
            running.remove(n)
        return n

    for result in parallel.ordered_map(work, range(40), threads=2, ahead=5):
        assert len(most) <= result + 1 + 5
    assert 1 <= max(most) <= 2 and len(most) == 40


def test_the_first_error_ends_it():
    calls = []

    def work(n):
        calls.append(n)
        if n == 3:
            raise ValueError("three")
        return n

    results = parallel.ordered_map(work, range(1000), "work")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(calls) < 1000


def test_closing_ends_it():
    calls = []
    results = parallel.ordered_map(calls.append, range(1000), "work")
    next(results)
    results.close()
    count = len(calls)
    assert count <= 1 + 2 * parallel.THREADS + 1
    with pytest.raises(StopIteration):
        next(results)
    assert len(calls) == count


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(monkeypatch, terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    shown = parallel.show_progress(["ab", "c"], "counting", 3, size=len)
    assert list(shown) == ["ab", "c"]
    assert ("counting" in stream.getvalue() and "3/3" in stream.getvalue()) == terminal


@pytest.mark.parametrize("count, samples, expected", [(3, 5, [0, 1, 2]), (9, 3, [0, 4, 8])])
def test_evenly_spaced(count, samples, expected):
    assert parallel.evenly_spaced(count, samples) == expected
