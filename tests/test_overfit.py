"""tools/overfit.py, on methods with points and a cascade, or with bases; `training.overfit`."""

import dataclasses

import jax
import pytest
from overfit import HEAD, format_row, overfit, prepare, smallest, update

from jaxseg import optim, zoo
from jaxseg.config.fields import PROBABILITY
from jaxseg.config.schema import DatasetConfig, Experiment, from_dict
from jaxseg.errors import DataError
from jaxseg.models import create_model, variable_shapes
from jaxseg.training import overfit as overfitting


@pytest.mark.parametrize(
    "name", ["emanet_r18-d8_64x64_1k_cityscapes", "pointrend_r18_64x64_1k_cityscapes"]
)
def test_learns_resumes_and_evaluates_in_bfloat16_on_four_devices(name, tmp_path):
    row = overfit(prepare(name, precision_name="bfloat16", reduced=True), 4, tmp_path)
    assert row["last"] < 0.7 * row["first"] and row["resumes"] and row["counted"] and row["passes"]


@pytest.mark.parametrize("method", zoo.METHODS)
def test_every_method_has_a_narrow_model(method):
    experiment = prepare(smallest(method), reduced=True)
    shapes = variable_shapes(create_model(experiment.model), (1, *experiment.dataset.crop_size, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) < 2e6
    assert experiment.model.dropout_rate == 0


def test_page_keeps_other_rows_and_sections():
    row = dict(
        parameters=2_000_000,
        first=2.0,
        last=0.5,
        compile_seconds=3.0,
        step_seconds=0.1,
        resumes=True,
        mIoU=0.5,
        passes=True,
    )
    page = ""
    for title, method, changes in (
        ("a", "CCNet", {}),
        ("b", "FCN", {}),
        ("a", "ANN", {"error": "OSError: x"}),
        ("a", "CCNet", {"passes": False}),
    ):
        page = update(page, title, f"on {title}", [format_row(method, "m", 64, row | changes)])
    first, second = page.split("\n## ")[1:]
    assert first.splitlines()[4:] == [
        f"| {' | '.join(HEAD)} |",
        "|---|---|" + "---:|" * (len(HEAD) - 2),
        "| CCNet | `m` | 64 | 2.00 | 2.000 | 0.500 | 3 | 0.10 | yes | 0.500 | no |",
        "| ANN | `m` | 64 |  |  |  |  |  |  |  | no: OSError: x |",
        "",
        "0 of 2 pass.",
    ]
    assert "| FCN |" in second and "1 of 1 pass." in second and "on b" in second


# --- training.overfit -----------------------------------------------------------------------------


def make_experiment(**dataset):
    model = {"backbone": {}, "neck": {}, "heads": {}, "norm": {}}
    data = {"name": "folder", "train_split": "train+val", "rotate": 0.5, "class_balance": 0.5}
    further = {"concat": {"more": {"name": "folder", "root": "more"}}}
    parts = {"steps": 5000, "batch_size": 16, "model": model, "dataset": data | further | dataset}
    return from_dict(Experiment, parts)


def test_every_augmentation_is_switched_off():
    fields = {field.name: field for field in dataclasses.fields(DatasetConfig)}
    augmentations = {
        name for name, field in fields.items() if field.metadata.get("node") == PROBABILITY
    }
    assert augmentations and augmentations <= overfitting.NO_AUGMENTATION.keys() <= fields.keys()
    assert not any(overfitting.NO_AUGMENTATION[name] for name in augmentations)


def test_the_experiment_that_overfits():
    published = make_experiment()
    found = overfitting.overfit_experiment(published, 2, devices=4)
    data = found.dataset
    assert data.train_split == data.val_split == "train[0:2]" and not data.concat
    assert data.rotate == data.flip == data.class_balance == 0 and not data.photometric
    assert found.steps == 1000 and found.batch_size == 4 and found.model.dropout_rate == 0
    _, schedule = optim.make_optimizer(found.optimizer, found.schedule, found.steps)
    assert found.optimizer.name == "adam" and schedule(1000) == 0 < schedule(500)
    assert published == make_experiment()


def test_overfitting_fails_with_the_worst_classes(monkeypatch, tmp_path):
    rows = {"sky": {"IoU": 0.2}, "road": {"IoU": 0.9}, "car": {"IoU": None}}
    summary = {"step": 50, "images": 2, "per_class": rows}
    seen = {}

    def train(experiment, workdir, *, target_miou):
        seen.update(experiment=experiment, target=target_miou)
        return summary | {"mIoU": seen["score"]}

    monkeypatch.setattr(overfitting, "train", train)
    seen["score"] = 0.96
    assert overfitting.overfit(make_experiment(), tmp_path, 2)["mIoU"] == 0.96
    assert seen["target"] == 0.95 and seen["experiment"].name.endswith("_overfit")
    seen["score"] = 0.5
    with pytest.raises(DataError) as error:
        overfitting.overfit(make_experiment(), tmp_path, 2)
    for part in ("0.5000", "2 training images", "1000 steps", "sky 0.200, road 0.900"):
        assert part in error.value.problem
    assert "car" not in error.value.problem and error.value.file == str(tmp_path)


@pytest.mark.parametrize(
    "split, first",
    [("train", "train[0:4]"), ("train[10:]+extra", "train[10:14]"), ("train[:3]*2", "train[0:3]")],
)
def test_overfitting_takes_the_first_of_a_split(split, first):
    assert overfitting.first_of(split, 4) == first


def test_overfitting_refuses_percents():
    with pytest.raises(DataError) as error:
        overfitting.first_of("train[10%:]", 4)
    assert error.value.field == "dataset.train_split"
