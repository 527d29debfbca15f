"""A workdir that the first edition wrote (tests/data/first_edition) resumes, evaluates, predicts.

Its model is a narrow FCN, trained for 2 steps on 4 images; the class weights were measured. Losses
of the steps that follow, and the prediction in expected.npz, are the first edition's own.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import Predictor, checkpoint, convert
from jaxseg.config.finder import get_experiment
from jaxseg.errors import CheckpointError
from jaxseg.evaluation import evaluate_checkpoint
from jaxseg.training.initial import load_initial
from jaxseg.training.loop import train

OLD = Path(__file__).parent / "data" / "first_edition"
LOSSES = (0.9740980267524719, 1.0435764789581299)  # of steps 3 and 4


@pytest.fixture
def run(tmp_path):
    shutil.copytree(OLD / "run", tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    assert "schema" not in config
    config["dataset"]["root"] = str(OLD / "data")
    file.write_text(json.dumps(config))
    return tmp_path / "run"


def config_of_the_run(**changes):
    config = get_experiment("fcn_r18-d8_32x32_1k_folder")
    config.model.backbone.update(dict(depth=10, base_channels=4, stem_channels=4))
    for head in config.model.heads.values():
        head.channels = 8
    config.update(dict(batch_size=4, log_every=1, eval_every=0, checkpoint_every=0))
    config.update(dict(steps=4, keep_checkpoints=1, pretrained=""))
    config.dataset.root = str(OLD / "data")
    config.losses.decode.class_weight = ("auto",)
    rule = {"pattern": "decode_head", "learning_rate": 10.0}
    config.optimizer.multipliers = ConfigDict({"head": rule})
    config.update(changes)
    return config


def test_it_evaluates_as_it_did(run):
    stored = json.loads((run / "metrics.json").read_text())
    summary = evaluate_checkpoint(run, pictures=0)
    for name in ("mIoU", "aAcc", "mAcc"):
        assert summary[name] == pytest.approx(stored[name], abs=1e-3)
    assert summary["step"] == 2 and summary["training"] == stored["training"]


def test_it_predicts_as_it_did(run):
    segment = Predictor.from_checkpoint(run)
    assert segment.classes == ("sky", "road", "car")
    image = np.asarray(Image.open(OLD / "data" / "images" / "val" / "val1.png"))
    with np.load(OLD / "expected.npz") as expected:
        np.testing.assert_allclose(
            segment.probabilities(image), expected["probabilities"], atol=1e-5
        )
        assert (segment(image) == expected["mask"]).mean() > 0.999


def test_it_resumes_as_it_would_have(run):
    before = checkpoint.read_experiment(run)
    train(config_of_the_run(), run)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["event"] == "train"]
    np.testing.assert_allclose(losses, LOSSES, rtol=1e-4)
    assert json.loads((run / "config.json").read_text())["schema"] == 2
    after = checkpoint.read_experiment(run)
    assert after.losses == before.losses and after.steps == 4
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["2", "4"]


def test_it_is_compared_with_the_config_that_resumes_it(run):
    config = config_of_the_run()
    config.optimizer.multipliers.head.learning_rate = 5.0
    with pytest.raises(CheckpointError) as error:
        train(config, run)
    assert error.value.field == "optimizer.multipliers.head.learning_rate"


def test_it_starts_another_run_and_exports(run, tmp_path):
    count = convert.export_checkpoint(run, tmp_path / "x.npz")
    _, variables = checkpoint.load_variables(run)
    _, report = load_initial(variables, str(run))
    assert not report.missing and not report.unused
    _, exported = load_initial(variables, str(tmp_path / "x.npz"))
    assert len(exported.loaded) == len(report.loaded) and count > len(report.loaded)
