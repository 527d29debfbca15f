"""Progress of a run: time, log.jsonl, the console and the summary."""

import json

import numpy as np
import pytest

from jaxseg.training import memory, timer, writers
from jaxseg.training.logging import TrainLogger, format_summary
from jaxseg.training.timer import Timer, format_seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(timer, "time", found)
    return found


def test_pauses_count_for_the_total_alone(clock):
    found = Timer(steps=10, batch_size=4)
    clock.now += 8
    with found.paused():
        clock.now += 30
    interval = found.finish_interval(2)
    assert interval.images_per_second == 1.0 and interval.seconds_left == 32.0
    assert found.seconds == 38 and found.images_per_second == 1.0
    assert found.state_dict() == {"seconds": 38.0, "busy": 8.0, "images": 8}


def test_only_idle_devices_wait_for_data(clock):
    found = Timer(steps=10, batch_size=1)

    def load():
        clock.now += 3
        return "batch"

    assert found.next_batch(load, lambda: False) == "batch"
    assert found.next_batch(load, lambda: True) == "batch"
    assert found.finish_interval(2).data_wait == 0.5
    found.start_interval()
    clock.now += 1
    assert found.finish_interval(3).data_wait == 0


def test_a_later_process_continues_the_count(clock):
    first = Timer(steps=10, batch_size=2)
    clock.now += 4
    first.finish_interval(2)
    second = Timer(steps=10, batch_size=2, start=2, **first.state_dict())
    clock.now += 2
    second.finish_interval(6)
    assert second.state_dict() == {"seconds": 6.0, "busy": 6.0, "images": 12}
    assert second.images_per_second == 2.0


def test_durations_are_readable():
    assert format_seconds(3723.9) == "1:02:03" and format_seconds(63) == "1:03"


def test_rows_after_the_checkpoint_and_half_lines_are_removed(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    first = writers.JsonLinesWriter(path)
    for step in (1, 2, 3):
        first.scalars("train", {"step": step})
    first.close()
    with path.open("a") as file:
        file.write('{"event": "tra')
    second = writers.JsonLinesWriter(path, start=2)
    second.scalars("eval", {"step": 2, "mIoU": 0.5})
    second.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["event"], row["step"]) for row in rows] == [
        ("train", 1),
        ("train", 2),
        ("eval", 2),
    ]


def test_values_become_json():
    assert writers.as_json(np.float32(0.5)) == 0.5 and writers.as_json("a") == "a"
    assert writers.as_json(float("nan")) is None and writers.as_json(np.float64("inf")) is None


def test_a_disabled_logger_keeps_time_and_writes_nothing(tmp_path, capsys):
    logger = TrainLogger(tmp_path / "run", steps=4, batch_size=2, enabled=False)
    logger.message("hello")
    logger.update(1)
    row = logger.log(2, {"loss": 1.0})
    logger.picture(2, "a", np.zeros((4, 4, 3), np.uint8))
    logger.close()
    assert row["step"] == 2 and row["images_per_second"] > 0
    assert logger.state_dict()["images"] == 4
    assert capsys.readouterr().out == "" and not (tmp_path / "run").exists()


def test_the_console_shows_what_was_logged(tmp_path, capsys):
    logger = TrainLogger(tmp_path, steps=4, batch_size=2)
    logger.message("[start]")
    logger.log(2, {"loss": 0.25, "lr": 0.01})
    logger.close()
    logger.message("too late")
    printed = capsys.readouterr().out
    for part in ("[start]", "step 2/4", "loss 0.2500", "lr 1.00e-02", "images/s", "ETA"):
        assert part in printed
    assert "too late" not in printed


@pytest.mark.parametrize("has_resource", [True, False])
def test_memory_is_known_or_said_to_be_unknown(tmp_path, monkeypatch, has_resource):
    if not has_resource:
        monkeypatch.setattr(memory, "resource", None)
    logger = TrainLogger(tmp_path, steps=4, batch_size=2, enabled=False)
    summary = logger.summary()
    assert (summary["peak_memory_bytes"] is not None) == has_resource
    assert ("MiB" in format_summary(summary)) == has_resource
    json.dumps(summary, allow_nan=False)
