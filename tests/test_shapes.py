"""The embedded data set: determinism, variety, no colour shortcut, and an atomic cache."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.data_helpers import check_experiment, eval_samples, make_experiment, train_batches

from jaxseg.data.sources import shapes
from jaxseg.errors import DataError


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLITS", {"train": 6, "val": 3})
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    return tmp_path


def confusion(truth, prediction):
    count = len(shapes.CLASSES)
    return np.bincount(truth.ravel() * count + prediction.ravel(), minlength=count**2).reshape(
        count, count
    )


def mean_iou(counts):
    hits = np.diag(counts)
    return (hits / (counts.sum(0) + counts.sum(1) - hits)).mean()


def test_scenes_depend_on_split_and_index_alone():
    image, label = shapes.draw_scene("val", 3)
    again = shapes.draw_scene("val", 3)
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(label, again[1])
    assert (image != shapes.draw_scene("train", 3)[0]).any() and (
        image != shapes.draw_scene("val", 4)[0]
    ).any()
    assert image.shape == (shapes.SIZE, shapes.SIZE, 3) and image.dtype == label.dtype == np.uint8


def test_every_class_is_common():
    labels = np.stack([shapes.draw_scene("val", index)[1] for index in range(50)])
    share = np.bincount(labels.ravel(), minlength=len(shapes.CLASSES)) / labels.size
    assert (
        len(share) == len(shapes.CLASSES) >= 7 and share[1:].min() > 0.02 and 0.4 < share[0] < 0.8
    )


def test_colour_does_not_tell_the_class():
    """The most frequent class of each colour (512 bins), fitted on train, stays below 0.35."""

    def bins(image):
        red, green, blue = (image // 32).astype(int).transpose(2, 0, 1)
        return (red * 8 + green) * 8 + blue

    counts = np.zeros((512, len(shapes.CLASSES)))
    for index in range(200):
        image, label = shapes.draw_scene("train", index)
        np.add.at(counts, (bins(image), label), 1)
    val = [shapes.draw_scene("val", index) for index in range(50)]
    for table in (counts, counts / counts.sum(0)):
        best = table.argmax(1)
        assert (
            mean_iou(sum(confusion(label.astype(int), best[bins(image)]) for image, label in val))
            < 0.35
        )


def test_written_once_and_read_back(small):
    config = make_experiment("shapes", crop_size=(96, 96), batch_size=2)
    check_experiment(config)
    samples = eval_samples(config)
    image, label = shapes.draw_scene("val", 2)
    np.testing.assert_array_equal(samples[2]["image"], image)
    np.testing.assert_array_equal(samples[2]["label"], label)
    assert (
        len(samples) == 3
        and samples.shape(0) == (96, 96)
        and samples.spec.classes == shapes.CLASSES
    )
    batches = train_batches(config, devices=1)
    assert next(batches)["image"].shape == (1, 2, 96, 96, 3) and batches.names(0)[0].startswith(
        "shapes-train-"
    )
    batches.close()
    folder = small / "data/shapes" / shapes.VERSION
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert shapes.prepare(small / "data") == folder
    assert written == {file: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_unknown_split(small):
    with pytest.raises(DataError, match="'shapes' has no split 'test'; it has train and val"):
        eval_samples(make_experiment("shapes"), "test")


SCRIPT = """
import sys, time
from pathlib import Path
from jaxseg.data.catalog import get_spec
from jaxseg.data.sources import shapes
from jaxseg.data.sources.records import open_records
shapes.SPLITS = {"train": 6, "val": 3}
draw, pause = shapes.draw_scene, float(sys.argv[2])
shapes.draw_scene = lambda *where: (time.sleep(pause), draw(*where))[1]
records = open_records(get_spec("shapes"), shapes.prepare(Path(sys.argv[1])), "train")
assert len(records) == 6 and records.read(5)[0].shape == (96, 96, 3)
assert "tensorflow" not in sys.modules and "torch" not in sys.modules
"""


def start(folder, pause):
    environment = os.environ | {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(pause)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def unfinished(folder):
    return list(folder.glob("shapes-unfinished-*/**/*.array_record*"))


def test_killed_and_concurrent_starts_leave_a_whole_data_set(tmp_path):
    killed = start(tmp_path, 10)
    for _ in range(600):
        if list(tmp_path.glob("shapes-unfinished-*")):
            break
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert (
        list(tmp_path.glob("shapes-unfinished-*"))
        and not (tmp_path / "shapes" / shapes.VERSION).exists()
    )
    both = [start(tmp_path, 0.05) for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=120)[0] is None and process.returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shapes"]
