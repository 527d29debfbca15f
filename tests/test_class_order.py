"""Classes in another order than the run's are refused, or mapped by name."""

import dataclasses

import numpy as np
import pytest
from helpers.data_helpers import (
    eval_samples,
    make_experiment,
    make_folder,
    train_source,
    write_png,
)
from PIL import Image

from jaxseg.config import get_experiment
from jaxseg.config.resolve import resolve
from jaxseg.data import catalog, class_order, pipeline
from jaxseg.data.sources.folder import label_map_of
from jaxseg.errors import ConfigError, DataError
from jaxseg.inference import files as predict

RUN, OTHER = ("sky", "road", "car"), ("car", "sky", "road")


def make_other(root, classes=OTHER):
    """make_folder's data with the same meaning, its classes in another order."""
    make_folder(root)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    for file in (root / "labels").glob("*/*.png"):
        table = np.array([*(classes.index(name) for name in RUN), *[255] * 253], np.uint8)
        write_png(file, table[decode(file)])
    return root


def decode(file):
    return np.asarray(Image.open(file))


def in_order(run):
    """The same experiment, which refuses classes in another order."""
    dataset = dataclasses.replace(run.dataset, match_classes="order")
    return dataclasses.replace(run, dataset=dataset)


def run_config(root, **dataset):
    return make_experiment(root=root, classes=RUN, **dataset)


USES = {
    "training": lambda run: catalog.load_spec(run.dataset),
    "evaluation": lambda run: pipeline.eval_dataset(run.dataset, run.eval),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "classes, number",
    [
        (OTHER, 0),
        (("sky", "road", "bus"), 2),
        (("sky", "road"), 2),
        (("sky", "road", "car", "bus"), 3),
    ],
)
def test_other_classes_are_refused(tmp_path, use, classes, number):
    root = make_folder(tmp_path)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    with pytest.raises(DataError) as error:
        USES[use](run_config(root))
    assert error.value.file == str(root / "classes.txt") and error.value.field == "dataset.root"
    assert f"number {number} is '{(*classes, 'absent')[number]}'" in error.value.problem
    assert ("match_classes=name" in error.value.hint) == (set(classes) == set(RUN))


@pytest.mark.parametrize("classes", [("sky", "road", "bus"), ("sky", "road")])
def test_by_name_both_need_the_same_names(tmp_path, classes):
    root = make_folder(tmp_path)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    with pytest.raises(DataError) as error:
        eval_samples(run_config(root, match_classes="name"))
    assert "'bus'" in error.value.hint or "'car'" in error.value.hint


def test_by_name_labels_mean_what_they_meant(tmp_path):
    """In training, evaluation, further data sets, and with label maps and colours."""
    same, other = make_folder(tmp_path / "a"), make_other(tmp_path / "b")
    by_name = run_config(other, match_classes="name")
    expected = eval_samples(run_config(same))
    found = eval_samples(by_name)
    assert found.spec.classes == RUN
    for i in range(len(expected)):
        np.testing.assert_array_equal(found[i]["label"], expected[i]["label"])
    train = train_source(by_name)
    np.testing.assert_array_equal(train.read_label(1), train_source(run_config(same)).read_label(1))
    joined = make_experiment(
        root=str(same),
        match_classes="name",
        concat={"more": {"name": "folder", "root": str(other)}},
    )
    source = train_source(joined)
    np.testing.assert_array_equal(source.read_label(1), source.read_label(6))
    with pytest.raises(DataError) as error:
        train_source(in_order(joined))
    assert error.value.field == "dataset.concat.more" and error.value.file == str(
        other / "classes.txt"
    )
    elsewhere = run_config(same, match_classes="name", evaluation=dict(root=str(other)))
    np.testing.assert_array_equal(eval_samples(elsewhere)[0]["label"], expected[0]["label"])
    with pytest.raises(DataError) as error:
        eval_samples(in_order(elsewhere))
    assert error.value.field == "eval.root"


def test_reordered_specs_keep_values_colours_and_official_labels(tmp_path):
    (tmp_path / "classes.txt").write_text("car 1 1 1\nsky 2 2 2\nroad 3 3 3\nignore 9 9 9\n")
    spec = catalog.get_spec("folder", tmp_path)
    moved = class_order.reorder(spec, RUN)
    assert (
        moved.label_map == {0: 2, 1: 0, 2: 1, 3: 255}
        and moved.colors == ((2, 2, 2), (3, 3, 3), (1, 1, 1)) == moved.palette
    )
    assert moved.submission_ids == (1, 2, 0)
    city = catalog.get_spec("cityscapes")
    moved = class_order.reorder(city, city.classes[::-1])
    assert moved.label_map[7] == 18 and moved.label_map[33] == 0 and moved.label_map[0] == 255
    assert label_map_of(moved, "identity")[0][0] == 18 and label_map_of(city, "identity")[0][0] == 0
    assert class_order.match_classes(city, (), "order", "") is city


def test_resolve_keeps_the_order_and_checks_the_choice(tmp_path):
    config = get_experiment("fcn_r18-d8_64x64_2k_folder")
    config.dataset.root = str(make_folder(tmp_path))
    spec = catalog.get_spec("folder", tmp_path)
    assert resolve(config, spec).dataset.classes == RUN
    config.dataset.match_classes = "names"
    with pytest.raises(ConfigError) as error:
        resolve(config, spec)
    assert error.value.field == "dataset.match_classes"


@pytest.mark.parametrize(
    "inside, counts",
    [
        ("images/val", True),
        ("", True),
        ("photos", True),
        ("images/val/day", True),
        ("other/place", False),
    ],
)
def test_images_to_predict_belong_to_the_data_set_they_lie_in(tmp_path, inside, counts):
    root = make_other(tmp_path / "set")
    (root / inside).mkdir(parents=True, exist_ok=True)
    assert class_order.root_of(root / inside) == (root if counts else None)


def test_predictions_on_data_of_another_order_are_refused_or_written_in_it(tmp_path):
    root = make_other(tmp_path / "set")
    with pytest.raises(DataError) as error:
        class_order.prediction_classes(root, RUN, "order")
    assert error.value.field == "source" and error.value.file == str(root / "classes.txt")
    assert class_order.prediction_classes(root, RUN, "name") == OTHER
    assert class_order.prediction_classes(root, (*RUN, "bus"), "order") == (
        *RUN,
        "bus",
    )  # other classes altogether
    assert (
        class_order.prediction_classes(None, RUN, "order")
        == RUN
        == class_order.prediction_classes(tmp_path, RUN, "order")
    )

    class Segment:
        classes, palette = RUN, ((1, 1, 1), (2, 2, 2), (3, 3, 3))
        experiment = run_config(root)

        def __call__(self, image):
            return np.array([[0, 1, 2]], np.int32).repeat(20, 0).repeat(8, 1)

    files = predict.predict_files(Segment(), root / "images/val", tmp_path / "out", classes=OTHER)
    assert decode(files[0])[0, ::8].tolist() == [1, 2, 0]
    files = predict.predict_files(Segment(), root / "images/val", tmp_path / "plain")
    assert decode(files[0])[0, ::8].tolist() == [0, 1, 2]
