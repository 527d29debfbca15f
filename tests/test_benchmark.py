"""The benchmark: rows hold what they should, and it needs no more libraries than the model."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.data_helpers import make_folder

from jaxseg import benchmark
from jaxseg.benchmark.data import measure_data
from jaxseg.config import get_experiment
from jaxseg.errors import ConfigError
from jaxseg.experiments import open_experiment

QUICK = benchmark.Timing(warmup=1, repeats=3, steps=2)
TINY = dict(widths=(8, 16, 16), blocks=(1, 1))
FIELDS = {
    "config",
    "what",
    "batch",
    "size",
    "seconds",
    "seconds_min",
    "seconds_max",
    "images_per_second",
    "device",
}  # MMSegmentation's too


def open_tiny(**dataset):
    """(experiment, spec) of a tiny CGNet."""
    config = get_experiment("cgnet_32x48_1k_folder" if dataset else "cgnet_32x48_1k_cityscapes")
    config.model.backbone.update(TINY)
    config.dataset.update(dataset)
    return open_experiment(config)


def make_tiny():
    return open_tiny()[0]


def check(row, images, timing=QUICK):
    json.dumps(row, allow_nan=False)
    assert row.keys() >= FIELDS
    assert (
        row["seconds_min"]
        <= row["seconds_p10"]
        <= row["seconds"]
        <= row["seconds_p90"]
        <= row["seconds_max"]
    )
    assert (
        row["images_per_second"] > 0
        and row["batch"] == images
        and row["timing"] == dataclasses.asdict(timing)
    )


def test_train_counts_the_images_of_all_devices():
    row = benchmark.measure(make_tiny(), "train", precision_name="float16", devices=4, timing=QUICK)
    check(row, 2 * 4)
    assert row["size"] == [32, 48] and row["precision"] == "float16" and row["compile_seconds"] > 0
    assert (
        row["flops"] > 1e6
        and row["peak_memory_gb"] > 0
        and row["peak_memory_source"] in ("memory_stats", "memory_analysis")
    )


def test_infer_and_slide_count_the_work_of_every_window():
    whole = benchmark.measure(
        make_tiny(), "infer", precision_name="tf32", batch=3, size=(64, 64), timing=QUICK
    )
    check(whole, 3)
    assert whole["precision"] == "tf32"
    experiment = make_tiny()
    windows = dataclasses.replace(
        experiment.eval, mode="slide", crop_size=(32, 32), stride=(32, 32)
    )
    experiment = dataclasses.replace(experiment, eval=windows)
    slide = benchmark.measure(experiment, "slide", size=(64, 64), timing=QUICK)
    check(slide, 1)
    assert slide["window"] == [32, 32] and slide["stride"] == [32, 32]
    assert 0.5 < slide["flops"] / (whole["flops"] / 3) < 2  # four windows of a quarter of the image


def test_data_reads_the_experiments_own_data_set(tmp_path):
    experiment, spec = open_tiny(root=str(make_folder(tmp_path)))
    row = measure_data(experiment, spec, batch=2, timing=QUICK)
    check(row, 2)
    assert row["workers"] == 0 and row["cpu_ms_per_image"] > 0
    assert np.isclose(row["ms_per_image"], 1000 / row["images_per_second"])
    assert len(row["resident_mb"]) == 3 and min(row["resident_mb"]) > 10


@pytest.mark.parametrize(
    "what, options, field",
    [
        ("trian", {}, "what"),
        ("train", dict(precision_name="flaot16"), "precision_name"),
        ("train", dict(devices=5), "devices"),
    ],
)
def test_unknown_names_are_refused(what, options, field):
    with pytest.raises(ConfigError) as error:
        benchmark.measure(make_tiny(), what, **options)
    assert error.value.field == field


def test_what_would_be_measured_becomes_neutral(tmp_path):
    config = get_experiment("cgnet_32x48_1k_folder")
    config.dataset.update(root=str(make_folder(tmp_path)), image_mean=(), image_std=())
    config.losses.decode.class_weight = ("auto",)
    experiment, _ = open_experiment(config, measured=False)
    neutral = benchmark.without_measurements(experiment)
    assert neutral.dataset.image_mean == (0.0,) * 3 and neutral.dataset.image_std == (1.0,) * 3
    assert neutral.losses["decode"].get("class_weight") == (1.0,) * 3
    assert benchmark.without_measurements(make_tiny()) == make_tiny()


def test_rows_are_added_to_the_file(tmp_path):
    path = tmp_path / "new" / "speed.json"
    for row in ({"a": 1}, {"b": 2}):
        benchmark.append(path, [row])
    assert json.loads(path.read_text()) == [{"a": 1}, {"b": 2}]
    path.write_text("{}")
    with pytest.raises(ConfigError) as error:
        benchmark.append(path, [])
    assert error.value.file == str(path)


BARE = """
import sys
ABSENT = "grain tensorflow_datasets orbax cv2 tensorboardX PIL matplotlib torch safetensors".split()
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not to be needed")
sys.meta_path.insert(0, Absent())
import runpy
sys.argv = sys.argv[1:]
sys.path.insert(0, "scripts")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("what", ["train", "infer"])
def test_script_needs_the_models_libraries_only(tmp_path, what):
    root = Path(__file__).parent.parent
    overrides = [f"--config.model.backbone.{field}={value}" for field, value in TINY.items()]
    command = [
        sys.executable,
        "-c",
        BARE,
        "scripts/benchmark.py",
        "--config=configs/cgnet.py:32x32_1k_cityscapes",
        *overrides,
        f"--what={what}",
        "--size=32x32",
        "--warmup=1",
        "--repeats=2",
        f"--json={tmp_path}/speed.json",
    ]
    environment = os.environ | {"PYTHONPATH": str(root)}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "speed.json").read_text())
    check(row, 2 if what == "train" else 1, benchmark.Timing(1, 2))
    assert (
        row["what"] == what
        and row["precision"] == "float32"
        and row == json.loads(result.stdout.splitlines()[-1])
    )
