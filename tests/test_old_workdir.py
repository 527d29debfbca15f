"""A workdir of the first edition is evaluated, predicted with and resumed, to the same numbers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
STORED = DATA / "workdir_v1"
EXPECTED = json.loads((STORED / "expected.json").read_text())
# The command line of the run, but for its steps.
FIELDS = {
    "dataset.root": "tiny_folder",
    "keep_checkpoints": 1,
    "batch_size": 4,
    "model.backbone.base_channels": 3,
    "model.backbone.stem_channels": 4,
    "model.heads.decode.channels": 8,
    "model.heads.aux_0.channels": 4,
    "model.dropout_rate": 0.0,
    "pretrained": "",
    "dataset.photometric": False,
    "optimizer.learning_rate": 0.05,
    "schedule.name": "constant",
    "log_every": 20,
    "eval_every": 0,
    "checkpoint_every": 0,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder that holds a copy of the run and of its data."""
    shutil.copytree(STORED / "run", tmp_path / "run")
    shutil.copytree(DATA / "tiny_folder", tmp_path / "tiny_folder")
    return tmp_path


def run_script(folder: Path, name: str, *arguments: str) -> None:
    """Run one of scripts/ in `folder`, on one device."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def check_metrics(path: Path) -> None:
    """Compare a metrics.json with the evaluation by the code that trained the run."""
    summary = json.loads(path.read_text())
    assert summary["step"] == EXPECTED["step"]
    assert summary["mIoU"] == pytest.approx(EXPECTED["mIoU"], abs=2e-3)
    assert summary["aAcc"] == pytest.approx(EXPECTED["aAcc"], abs=2e-3)
    found = {name: row["IoU"] for name, row in summary["per_class"].items()}
    assert found == pytest.approx(EXPECTED["IoU"], abs=5e-3)


def read_classes(path: Path) -> np.ndarray:
    """Return the class numbers [H, W] of a PNG with a palette."""
    with Image.open(path) as image:
        return np.asarray(image)


def test_old_workdir_is_evaluated(folder: Path) -> None:
    """Evaluation gives the metrics that the old code gave."""
    (folder / "run" / "metrics.json").unlink()
    run_script(folder, "eval.py", "--checkpoint=run", "--pictures=0")
    check_metrics(folder / "run" / "metrics.json")


def test_old_workdir_predicts(folder: Path) -> None:
    """Prediction gives the label maps that the old code gave."""
    images = "--input=tiny_folder/images/val"
    run_script(folder, "predict.py", "--checkpoint=run", images, "--output=predictions")
    paths = sorted((STORED / "predictions").iterdir())
    assert len(paths) == 3
    for path in paths:
        expected, found = read_classes(path), read_classes(folder / "predictions" / path.name)
        assert found.shape == expected.shape
        same = (found == expected).mean()
        assert same >= 0.997, f"{path.name}: {same:.2%} of the pixels agree"


def test_old_workdir_resumes(folder: Path) -> None:
    """Four more steps give the weights of the old code: optimizer and data continue as well."""
    fields = FIELDS | {"steps": EXPECTED["resumed"]["step"]}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    config = f"--config={ROOT}/configs/fcn.py:r10-d8_32x32_1k_folder"
    run_script(folder, "train.py", config, "--workdir=run", *overrides)
    check_metrics(folder / "run" / "metrics.json")  # still the best step
    step = f"--checkpoint=run/checkpoints/{EXPECTED['resumed']['step']}"
    run_script(folder, "convert_mmseg.py", step, "--to_mmseg=weights.npz")
    with np.load(folder / "weights.npz") as weights:
        found = {
            name: [value.sum(dtype=np.float64), np.linalg.norm(value)]
            for name, value in weights.items()
            if value.dtype == np.float32
        }
    expected = EXPECTED["resumed"]["weights"]
    assert set(found) == set(expected)
    for name, values in found.items():
        tolerance = 1e-3 * max(expected[name][1], 0.1)
        assert values == pytest.approx(expected[name], abs=tolerance), name
