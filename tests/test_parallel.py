"""Work spread over threads: in order, not far ahead, and ended by the first error."""

import threading

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


@pytest.mark.parametrize("count, samples, expected", [(3, 5, [0, 1, 2]), (9, 3, [0, 4, 8])])
def test_evenly_spaced(count, samples, expected):
    assert parallel.evenly_spaced(count, samples) == expected
