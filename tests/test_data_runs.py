"""From a folder to a run: 16 bits, 5 channels, submissions, class weights, several data sets."""

import numpy as np
import pytest
import tifffile
from helpers.data_helpers import (
    make_experiment,
    make_folder,
    train_batches,
    train_source,
    write_png,
)
from helpers.narrow import narrow
from make_data import draw_fields, draw_vessels
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import models, workdir
from jaxseg.config import get_experiment
from jaxseg.data import label_counts, pipeline, statistics
from jaxseg.data.catalog import get_spec
from jaxseg.data.prepare.writer import prepare
from jaxseg.errors import ConfigError, DataError, ImageTypeError
from jaxseg.evaluation import evaluate_checkpoint
from jaxseg.experiments import load_experiment
from jaxseg.inference import files as predict
from jaxseg.inference.predictor import Predictor
from jaxseg.training import validation
from jaxseg.training.initial import initial_variables
from jaxseg.training.loop import train
from jaxseg.weights.mmseg import to_mmseg


def small_run(root, steps=2, **dataset):
    config = narrow(get_experiment("quickstart"))
    config.update(dict(steps=steps, batch_size=4, log_every=1, eval_every=0, checkpoint_every=0))
    config.schedule.update(dict(warmup_steps=0))
    defaults = dict(crop_size=(16, 20), dtype="", image_mean=(), image_std=())
    config.dataset.update(dict(name="folder", root=str(root)) | defaults | dataset)
    config.model.num_classes = None
    return config


@pytest.fixture
def fields(tmp_path):
    """Four tiny 16-bit images of 5 channels, as TIFF, and their label map: water is 9."""
    root, rng = tmp_path / "fields", np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(2):
            image, label = draw_fields(rng, 40)
            raw = np.where(label == 2, np.uint8(9), label)
            write_png(root / f"labels/{split}/{number}.png", raw)
            (root / f"images/{split}").mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(root / f"images/{split}/{number}.tif", image, photometric="minisblack")
    (root / "classes.txt").write_text("soil\ncrop\nwater\nbuilding\n")
    (root / "label_map.txt").write_text("0 soil\n1 crop\n9 water\n3 building\n")
    return root


def test_a_16_bit_set_of_5_channels_trains_evaluates_and_predicts(fields, tmp_path):
    run = tmp_path / "run"
    summary = train(small_run(fields, channels=5), run)
    dataset = workdir.read_experiment(run).dataset
    images = [tifffile.imread(fields / f"images/train/{n}.tif") for n in range(2)]
    pixels = np.concatenate([image.reshape(-1, 5) for image in images])
    np.testing.assert_allclose(dataset.image_mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(dataset.image_std, pixels.std(0), rtol=1e-6)
    assert dataset.dtype == "uint16" and summary["images"] == 2
    again = evaluate_checkpoint(run)
    assert again["mIoU"] == summary["mIoU"]
    assert again["evaluated"]["root"] == str(fields) and again["evaluated"]["split"] == "val"
    files = predict.predict_checkpoint(run, fields / "images/val", tmp_path / "out")
    raw = predict.predict_checkpoint(run, fields / "images/val", tmp_path / "raw", submission=True)
    for ids_file, raw_file in zip(files, raw):
        ids, values = np.asarray(Image.open(ids_file)), np.asarray(Image.open(raw_file))
        np.testing.assert_array_equal(values, np.uint8([0, 1, 9, 3])[ids])
    assert sorted(file.name for file in (tmp_path / "raw").iterdir()) == ["0.png", "1.png"]
    segment = Predictor.from_checkpoint(run)
    np.testing.assert_array_equal(segment(tifffile.imread(fields / "images/val/1.tif")), ids)
    with pytest.raises(ImageTypeError):
        segment(np.zeros((8, 8, 5), np.uint8))
    rgb = make_folder(tmp_path / "rgb") / "images/train"
    with pytest.raises(DataError) as error:
        predict.predict_checkpoint(run, rgb, tmp_path / "none")
    assert error.value.file == str(rgb / "t0.png") and "3 channels" in error.value.problem


def test_statistics_of_a_file_are_used(fields):
    statistics.write_statistics(fields, [1.0] * 5, [2.0] * 5)
    dataset = load_experiment(small_run(fields, channels=5)).dataset
    assert dataset.image_mean == (1.0,) * 5 and dataset.image_std == (2.0,) * 5


def test_published_weights_start_a_model_of_other_channels(fields, tmp_path):
    experiment = load_experiment(small_run(fields, channels=5))
    model = models.create_model(experiment.model)
    rgb = models.init_variables(model, 7, (1, 16, 20, 3))
    np.savez(tmp_path / "rgb.npz", **to_mmseg(rgb))
    variables, report = initial_variables(experiment, model, str(tmp_path / "rgb.npz"))
    stem, published = (tree["params"]["backbone"]["stem.0"]["kernel"] for tree in (variables, rgb))
    assert stem.shape[2] == 5 and "from RGB to 5 channels" in report
    expected = published[:, :, [0, 1, 2, 0, 1]] / np.float32([2, 2, 1, 2, 2])[:, None]
    np.testing.assert_allclose(stem, expected, rtol=1e-6)
    np.savez(tmp_path / "five.npz", **to_mmseg(variables))
    again, report = initial_variables(experiment, model, str(tmp_path / "five.npz"))
    np.testing.assert_array_equal(again["params"]["backbone"]["stem.0"]["kernel"], stem)
    assert "channels" not in report


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"scales": ()}, "eval.scales"),
        ({"mode": "slide", "crop_size": (8, 8), "stride": (9, 9)}, "eval.stride"),
    ],
)
def test_an_impossible_evaluation_is_refused_before_step_0(tmp_path, changes, field):
    config = small_run(make_folder(tmp_path / "data"))
    config.eval.update(changes)
    with pytest.raises(ConfigError) as error:
        train(config, tmp_path / "run")
    assert error.value.field == field and not (tmp_path / "run").exists()


def test_training_stops_early_at_the_target(tmp_path, monkeypatch):
    config = small_run(make_folder(tmp_path / "data"), steps=6)
    config.eval_every = 2

    def fail(*arguments, **options):
        raise RuntimeError("evaluation failed")

    with monkeypatch.context() as patch:
        patch.setattr(validation, "evaluate", fail)
        with pytest.raises(RuntimeError, match="evaluation failed"):
            train(config, tmp_path / "run")
    saved = [int(folder.name) for folder in (tmp_path / "run/checkpoints").iterdir()]
    assert saved == [2]  # though its evaluation failed
    assert train(config, tmp_path / "run", target_miou=0.0)["step"] == 4  # not 6


def test_class_weights_follow_the_labels(tmp_path):
    root = make_folder(tmp_path / "data")
    config = small_run(root)
    # What --config.losses.decode.class_weight=auto gives.
    config.losses.decode.class_weight = ("auto",)
    counts = np.zeros(256)
    for file in (root / "labels/train").iterdir():
        counts += np.bincount(np.asarray(Image.open(file)).ravel(), minlength=256)
    weights = load_experiment(config).losses["decode"].options["class_weight"]
    np.testing.assert_allclose(weights, label_counts.class_weights(counts[:3]), atol=1e-6)


def test_several_data_sets_train_together(tmp_path):
    main, other = make_folder(tmp_path / "a"), make_folder(tmp_path / "b", train=2)
    more = {
        "b": {"name": "folder", "root": str(other), "repeat": 3},
        "v": {"name": "folder", "root": str(other), "train_split": "val"},
    }
    experiment = make_experiment(root=main, concat=more)
    source = train_source(experiment)
    assert source.names == ["t0", "t1", "t2", "t3", "t4", *["t0", "t1"] * 3, "v0", "v1"]
    np.testing.assert_array_equal(source.read(8)[0], source.read(6)[0])
    assert source.files[5] == str(other / "images/train/t0.png")
    batches = train_batches(experiment, devices=1)
    assert {file for k in range(8) for file in batches.names(k)} == set(source.files)
    (other / "classes.txt").write_text("sky\nroad\nvan\n")
    with pytest.raises(DataError) as error:
        train_source(experiment)
    assert error.value.field == "dataset.concat.b"
    assert error.value.file == str(other / "classes.txt")
    assert "'van'" in error.value.problem and "'car'" in error.value.problem


@pytest.mark.parametrize(
    "entry, field",
    [
        ({"name": "folder", "repeats": 5}, "repeats"),
        ({"name": "folder", "repeat": 0}, "repeat"),
        ({"name": "folder"}, "root"),
        ({"name": "folder", "source": "tdfs"}, "source"),
        ({"root": "x"}, "name"),
    ],
)
def test_entries_of_concat_are_checked(tmp_path, entry, field):
    config = small_run(make_folder(tmp_path))
    config.dataset.concat = ConfigDict({"b": entry})
    with pytest.raises(ConfigError) as error:
        load_experiment(config)
    assert error.value.field == f"dataset.concat.b.{field}"


@pytest.mark.parametrize(
    "given, field",
    [
        ({"image_mean": (1.0, 2.0, 3.0)}, "dataset.image_mean"),
        ({"image_mean": (1.0,) * 3, "image_std": (0.0, 1.0, 1.0)}, "dataset.image_std"),
    ],
)
def test_given_statistics_are_checked(tmp_path, given, field):
    with pytest.raises(ConfigError) as error:
        load_experiment(small_run(make_folder(tmp_path), **given))
    assert error.value.field == field


def test_statistics_of_other_channels_stop_a_run(tmp_path):
    file = statistics.write_statistics(make_folder(tmp_path), [1.0], [2.0])
    with pytest.raises(DataError) as error:
        load_experiment(small_run(tmp_path))
    assert error.value.file == str(file) and "1 channels" in error.value.problem


def test_batches_of_one(tmp_path):
    batches = train_batches(make_experiment(root=make_folder(tmp_path), batch_size=1), devices=1)
    assert next(batches)["image"].shape == (1, 1, 16, 20, 3)
    expected = {str(tmp_path / f"images/train/t{n}.png") for n in range(5)}
    assert {file for k in range(5) for file in batches.names(k)} == expected
    batches.close()


def test_rare_classes_are_seen_more_often(tmp_path):
    root = make_folder(tmp_path)
    for number in range(5):
        values = np.uint8([0, 2 if number == 3 else 1])
        write_png(root / f"labels/train/t{number}.png", np.resize(values, (20, 24)))
    source = train_source(make_experiment(root=root))
    assert pipeline.sample_indices(source, 0.0) == range(5)
    assert pipeline.sample_indices(source, 0.8) == [0, 1, 2, 3, 3, 4]  # sqrt(0.8 / 0.2) = 2
    batches = train_batches(make_experiment(root=root, class_balance=0.8), devices=1)
    shown = [index for k in range(3) for index in batches.indices(k)]
    assert sorted(shown[:6]) == sorted(shown[6:]) == [0, 1, 2, 3, 3, 4]


@pytest.mark.parametrize("ids, dtype", [((0, 7, 255), "L"), ((300, 7, 1000), "I;16")])
def test_submissions_hold_the_data_sets_own_values(tmp_path, ids, dtype):
    predict.save_submission(tmp_path / "x.png", np.int32([[0, 1], [2, 1]]), ids)
    with Image.open(tmp_path / "x.png") as stored:
        assert stored.mode == dtype
        assert np.asarray(stored).ravel().tolist() == [ids[0], ids[1], ids[2], ids[1]]


def test_the_value_of_each_class_in_submissions(tmp_path):
    assert get_spec("cityscapes").submission_ids[:3] == (7, 8, 11)
    assert get_spec("ade20k").submission_ids == tuple(range(1, 151))
    assert get_spec("loveda").submission_ids == () == get_spec("shapes").submission_ids
    root = make_folder(tmp_path)
    (root / "label_map.txt").write_text("2 sky\n0\troad\n1 car\n7 ignore\n8 car\n")
    assert get_spec("folder", root).submission_ids == (2, 0, 1)
    prepare("folder", root, tmp_path / "prepared")
    assert get_spec("folder", tmp_path / "prepared", "tfds").submission_ids == (2, 0, 1)


def test_example_images():
    image, mask = draw_vessels(np.random.default_rng(0), 64)
    assert image.shape == (64, 64, 3) and set(np.unique(mask)) == {0, 255}
    image, label = draw_fields(np.random.default_rng(0))
    assert image.shape == (160, 160, 5) and image.dtype == np.uint16 and label.max() < 4
