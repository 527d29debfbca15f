"""Batches: their shapes, and that a sample depends on (seed, batch, row) and on nothing else."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.data_helpers import (
    eval_samples,
    make_experiment,
    make_folder,
    train_batches,
    train_source,
)
from tifffile import imwrite

from jaxseg.errors import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(make_folder(tmp_path_factory.mktemp("folder")))


def take(config, count, **arguments):
    """The first batches, as one dict of [count, rows, ...]."""
    batches = train_batches(config, **({"devices": 1} | arguments))
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return {
        key: np.stack([b[key].reshape(-1, *b[key].shape[2:]) for b in taken]) for key in taken[0]
    }


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_shapes_and_types(root):
    batch = next(train_batches(make_experiment(root=root), devices=2))
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "image": ((2, 2, 16, 20, 3), np.uint8),
        "label": ((2, 2, 16, 20), np.uint8),
        "size": ((2, 2, 2), np.int32),
    }
    assert set(np.unique(batch["label"])) <= {0, 1, 2, 255}


def test_devices_and_processes_share_out_the_same_batches(root):
    config = make_experiment(root=root)
    whole = take(config, 3)
    same(whole, take(config, 3, devices=4))
    parts = [take(config, 3, devices=2, process_index=p, process_count=2) for p in range(2)]
    same(whole, {key: np.concatenate([part[key] for part in parts], 1) for key in whole})


def test_starting_later_continues_the_same(root):
    config = make_experiment(root=root)
    same({key: value[4:] for key, value in take(config, 7).items()}, take(config, 3, start=4))


def test_position_counts_batches_taken(root):
    batches = train_batches(make_experiment(root=root), devices=1, start=5)
    assert batches.position == 5
    next(batches), next(batches)
    assert batches.position == 7
    batches.close()


def test_seed_changes_order_and_augmentation(root):
    one, other = (
        train_batches(make_experiment(root=root, seed=seed), devices=1) for seed in (1, 2)
    )
    assert [one.names(k) for k in range(5)] != [other.names(k) for k in range(5)]
    assert (next(one)["image"] != next(other)["image"]).any()


def test_every_epoch_shows_all_in_another_order(root):
    names = train_batches(make_experiment(root=root, batch_size=5), devices=1).names
    epochs = [names(k) for k in range(6)]
    files = [f"{root}/images/train/t{index}.png" for index in range(5)]
    assert all(sorted(epoch) == files for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 2


def test_names_are_of_the_rows(root):
    config = make_experiment(
        root=root,
        batch_size=3,
        crop_size=(20, 24),
        ratio_range=(1.0, 1.0),
        cat_max_ratio=1.0,
        flip=0.0,
        photometric=False,
    )
    batches = train_batches(config, devices=1)
    samples = eval_samples(config, "train")
    for k in range(4):
        batch = next(batches)
        for row, name in enumerate(batches.names(k)):
            sample = samples[samples.names.index(Path(name).stem)]
            np.testing.assert_array_equal(batch["image"][0, row], sample["image"])
            np.testing.assert_array_equal(batch["label"][0, row], sample["label"])


def test_a_batch_larger_than_the_data_set(root):
    batches = train_batches(make_experiment(root=root, batch_size=12), devices=1)
    assert next(batches)["image"].shape[1] == 12 and len(set(batches.names(0))) == 5


def test_batch_must_divide(root):
    with pytest.raises(DataError) as error:
        train_batches(make_experiment(root=root), devices=3)
    assert error.value.field == "batch_size"


def test_training_reads_missing_data_as_evaluation_does(tmp_path):
    make_folder(tmp_path, train=1)
    image = np.full((20, 24, 3), 5.0, np.float32)
    image[3, 4], image[6, 7, 1] = -9999, -9999
    imwrite(tmp_path / "images/train/t0.tif", image, photometric="rgb")
    (tmp_path / "images/train/t0.png").unlink()
    experiment = make_experiment(
        root=tmp_path,
        val_split="train",
        dtype="float32",
        nodata=(-9999,),
        image_mean=(1.0, 2.0, 3.0),
        image_std=(1.0, 1.0, 1.0),
    )
    pixels, label = train_source(experiment).read(0)
    assert pixels[3, 4].tolist() == [1, 2, 3] and pixels[6, 7].tolist() == [5, 2, 5]
    assert label[3, 4] == 255 and pixels.max() == 5
    sample = eval_samples(experiment)[0]
    np.testing.assert_array_equal(pixels, sample["image"])
    np.testing.assert_array_equal(label, sample["label"])
    with pytest.raises(DataError) as error:
        dataset = dataclasses.replace(experiment.dataset, max_pixels=100)
        train_source(dataclasses.replace(experiment, dataset=dataset)).read(0)
    assert error.value.field == "dataset.max_pixels"


def test_samples_refuse_an_index_outside(root):
    samples = eval_samples(make_experiment(root=root))
    assert len(samples) == 2 == len(list(samples))
    with pytest.raises(IndexError):
        samples[2]


WORKERS = """
import sys
import numpy as np
from helpers.data_helpers import make_experiment, train_batches
if __name__ == "__main__":
    batches = train_batches(make_experiment(root=sys.argv[1], num_workers=2), devices=1, start=1)
    found = {f"{key}{k}": value for k in range(3) for key, value in next(batches).items()}
    np.savez(sys.argv[2], **found)
    batches.close()
    loaded = [name for name in ("tensorflow", "torch", "jaxseg.models") if name in sys.modules]
    assert not loaded, loaded
"""


def test_worker_processes_give_the_same_and_tensorflow_stays_out(root, tmp_path):
    (tmp_path / "main.py").write_text(WORKERS)
    environment = {
        "PYTHONPATH": ":".join(p for p in sys.path if p),
        "PATH": "",
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, str(tmp_path / "main.py"), root, str(tmp_path / "out.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    stored = np.load(tmp_path / "out.npz")
    here = train_batches(make_experiment(root=root), devices=1, start=1)
    for k in range(3):
        for key, value in next(here).items():
            np.testing.assert_array_equal(value, stored[f"{key}{k}"])
    here.close()


KILLED = """
import multiprocessing, sys, time
from helpers.data_helpers import make_experiment, train_batches
if __name__ == "__main__":
    batches = train_batches(make_experiment(root=sys.argv[1], num_workers=1), devices=1)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def is_running(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_run(root, tmp_path):
    (tmp_path / "main.py").write_text(KILLED)
    environment = {
        "PYTHONPATH": ":".join(p for p in sys.path if p),
        "PATH": "",
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
    }
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py"), root],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    workers = [int(pid) for pid in run.stdout.readline().split()]
    assert workers and all(map(is_running, workers))
    run.kill()
    run.wait()
    run.stdout.close()  # not read to its end: what outlived the run would hold it open
    for _ in range(100):
        if not any(map(is_running, workers)):
            return
        time.sleep(0.1)
    for pid in filter(is_running, workers):
        os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"workers {workers} outlived their run")
