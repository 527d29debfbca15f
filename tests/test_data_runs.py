"""From a folder to a run: 16-bit images of 5 channels, overfitting, submission files, class weights, several data sets."""

import numpy as np
import pytest
import tifffile
from helpers.data_helpers import make_config, make_folder, write_png
from helpers.narrow import narrow
from make_data import draw_fields, draw_vessels
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import checkpoint, convert, optim, visualize
from jaxseg.config.builders import get_experiment
from jaxseg.config.resolve import fill_class_weights, resolve
from jaxseg.data import label_counts as histogram
from jaxseg.data import pipeline, statistics
from jaxseg.data.catalog import get_spec
from jaxseg.data.prepare.writer import prepare
from jaxseg.errors import ConfigError, DataError, ImageTypeError
from jaxseg.evaluation.evaluate import evaluate_checkpoint
from jaxseg.inference import files as predict
from jaxseg.inference.predictor import Predictor
from jaxseg.training import loop as train
from jaxseg.training import overfit
from jaxseg.training import state as train_state


def small_run(root, steps=2, **dataset):
    config = narrow(get_experiment("quickstart"))
    config.update(dict(steps=steps, batch_size=4, log_every=1, eval_every=0, checkpoint_every=0))
    config.schedule.update(dict(warmup_steps=0))
    config.dataset.update(
        dict(
            name="folder", root=str(root), crop_size=(16, 20), dtype="", image_mean=(), image_std=()
        )
        | dataset
    )
    config.model.num_classes = None
    return config


@pytest.fixture
def fields(tmp_path):
    """Four tiny 16-bit images of 5 channels, as TIFF, and their label map: water is 9."""
    root, rng = tmp_path / "fields", np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(2):
            image, label = draw_fields(rng, 40)
            write_png(
                root / f"labels/{split}/{number}.png", np.where(label == 2, np.uint8(9), label)
            )
            (root / f"images/{split}").mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(root / f"images/{split}/{number}.tif", image, photometric="minisblack")
    (root / "classes.txt").write_text("soil\ncrop\nwater\nbuilding\n")
    (root / "label_map.txt").write_text("0 soil\n1 crop\n9 water\n3 building\n")
    return root


def test_a_16_bit_set_of_5_channels_trains_evaluates_and_predicts(fields, tmp_path, monkeypatch):
    summary = train.train(small_run(fields, channels=5), tmp_path / "run")
    config = checkpoint.read_config(tmp_path / "run")
    pixels = np.concatenate(
        [tifffile.imread(fields / f"images/train/{n}.tif").reshape(-1, 5) for n in range(2)]
    )
    np.testing.assert_allclose(config.dataset.image_mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(config.dataset.image_std, pixels.std(0), rtol=1e-6)
    assert config.dataset.dtype == "uint16" and summary["images"] == 2
    again = evaluate_checkpoint(tmp_path / "run")
    assert (
        again["mIoU"] == summary["mIoU"]
        and again["evaluated"]["root"] == str(fields)
        and again["evaluated"]["split"] == "val"
    )
    files = predict.predict_checkpoint(tmp_path / "run", fields / "images/val", tmp_path / "out")
    raw = predict.predict_checkpoint(
        tmp_path / "run", fields / "images/val", tmp_path / "raw", submission=True
    )
    for ids, official in zip(files, raw):
        ids, official = np.asarray(Image.open(ids)), np.asarray(Image.open(official))
        np.testing.assert_array_equal(official, np.uint8([0, 1, 9, 3])[ids])
    assert sorted(file.name for file in (tmp_path / "raw").iterdir()) == ["0.png", "1.png"]
    segment = Predictor.from_checkpoint(tmp_path / "run")
    np.testing.assert_array_equal(segment(tifffile.imread(fields / "images/val/1.tif")), ids)
    with pytest.raises(ImageTypeError, match="uint16, not uint8"):
        segment(np.zeros((8, 8, 5), np.uint8))
    with pytest.raises(
        DataError, match=r"t0.png: the image has 3 channels, but the model was trained on 5"
    ):
        predict.predict_checkpoint(
            tmp_path / "run", make_folder(tmp_path / "rgb") / "images/train", tmp_path / "none"
        )


def test_statistics_of_a_file_are_used(fields):
    statistics.write_statistics(fields, [1.0] * 5, [2.0] * 5)
    config = resolve(small_run(fields, channels=5))
    assert config.dataset.image_mean == (1.0,) * 5 and config.dataset.image_std == (2.0,) * 5


def test_published_weights_start_a_model_of_other_channels(fields, tmp_path, monkeypatch):
    config = resolve(small_run(fields, channels=5))
    model, shape = train.models.create_model(config.model), (1, 16, 20, 3)
    rgb = train.models.init_variables(model, seed=7, image_shape=shape)
    np.savez(tmp_path / "rgb.npz", **convert.to_mmseg(rgb))
    monkeypatch.setattr(train.train_state, "create", lambda variables, *rest: variables)
    variables, told = train.initial_state(config, model, None, None, str(tmp_path / "rgb.npz"))
    stem, published = (tree["params"]["backbone"]["stem.0"]["kernel"] for tree in (variables, rgb))
    assert stem.shape[2] == 5 and "first convolution, of RGB, now reads 5 channels" in told
    np.testing.assert_allclose(
        stem, published[:, :, [0, 1, 2, 0, 1]] / np.float32([2, 2, 1, 2, 2])[:, None], rtol=1e-6
    )
    np.savez(tmp_path / "five.npz", **convert.to_mmseg(variables))
    again, told = train.initial_state(config, model, None, None, str(tmp_path / "five.npz"))
    np.testing.assert_array_equal(again["params"]["backbone"]["stem.0"]["kernel"], stem)
    assert "channels" not in told


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6])
def test_other_channels_keep_the_response_to_grey(channels):
    rgb, other = (
        np.random.default_rng(0).random((3, 3, 3, 4), np.float32),
        np.zeros((3, 3, channels, 4), np.float32),
    )
    adapted = train_state.adapt_channels({"a": rgb, "b": rgb}, {"a": other, "b": rgb})
    np.testing.assert_allclose(adapted["a"].sum(2), rgb.sum(2), rtol=1e-5)
    assert adapted["b"] is rgb
    with pytest.raises(ValueError, match="2 variables depend on the number of channels"):
        train_state.adapt_channels({"a": rgb, "b": rgb}, {"a": other, "b": other})


def test_overfitting_proves_the_data_or_says_that_it_does_not(tmp_path, monkeypatch):
    seen = {}

    def fake(config, workdir, enough):
        seen.update(config=config, enough=enough)
        return {
            "mIoU": seen["score"],
            "step": 50,
            "images": 2,
            "per_class": {"sky": {"IoU": 0.2}, "road": {"IoU": 0.9}, "car": {"IoU": None}},
        }

    monkeypatch.setattr(overfit, "train", fake)
    config = small_run(
        make_folder(tmp_path / "data"),
        steps=5000,
        rotate=0.5,
        train_split="train+val",
        class_balance=0.5,
    )
    seen["score"] = 0.96
    assert overfit.overfit(config, tmp_path / "run", 2)["mIoU"] == 0.96
    data = seen["config"].dataset
    assert (
        data.train_split == data.val_split == "train[0:2]"
        and data.rotate == data.flip == data.class_balance == 0
    )
    assert (
        seen["config"].steps == 1000
        and seen["enough"] == 0.95
        and seen["config"].optimizer.name == "adam"
    )
    assert seen["config"].batch_size == 4 and config.dataset.rotate == 0.5  # 4 devices
    assert (
        optim.make_optimizer(seen["config"])[1](1000)
        == 0
        < optim.make_optimizer(seen["config"])[1](500)
    )
    seen["score"] = 0.5
    with pytest.raises(
        DataError,
        match=r"mIoU 0.5000 on the 2 training images .* after 1000 steps, below 0.95; lowest: sky 0.200, road 0.900",
    ):
        overfit.overfit(config, tmp_path / "run", 2)


@pytest.mark.parametrize(
    "split, first",
    [("train", "train[0:4]"), ("train[10:]+extra", "train[10:14]"), ("train[:3]*2", "train[0:3]")],
)
def test_overfitting_takes_the_first_of_a_split(split, first):
    assert overfit.first_of(split, 4) == first
    with pytest.raises(DataError, match="give numbers, 'train\\[100:\\]', not percents"):
        overfit.first_of("train[10%:]", 4)


def test_what_an_evaluation_cannot_do_is_refused_before_step_0(tmp_path):
    for changes, words in (
        ({"scales": ()}, "config.eval.scales"),
        ({"mode": "slide", "crop_size": (8, 8), "stride": (9, 9)}, "config.eval.stride"),
    ):
        config = small_run(make_folder(tmp_path / "data"))
        config.eval.update(changes)
        with pytest.raises(ValueError, match=words):
            train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_ends_when_it_is_good_enough(tmp_path, monkeypatch):
    config = small_run(make_folder(tmp_path / "data"), steps=6)
    config.eval_every = 2

    def fail(*arguments, **options):
        raise RuntimeError("evaluation failed")

    with monkeypatch.context() as patch:
        patch.setattr("jaxseg.evaluation.evaluate.evaluate", fail)
        with pytest.raises(RuntimeError, match="evaluation failed"):
            train.train(config, tmp_path / "run")
    saved = [int(folder.name) for folder in (tmp_path / "run/checkpoints").iterdir()]
    assert saved == [2]  # though its evaluation failed
    assert train.train(config, tmp_path / "run", enough=0.0)["step"] == 4  # not 6


def test_class_weights_follow_the_labels(tmp_path):
    root = make_folder(tmp_path / "data")
    config = small_run(root)
    config.losses.decode.class_weight = (
        "auto",
    )  # what --config.losses.decode.class_weight=auto gives
    config.model.num_classes = 3
    counts = np.zeros(256)
    for file in (root / "labels/train").iterdir():
        counts += np.bincount(np.asarray(Image.open(file)).ravel(), minlength=256)
    fill_class_weights(config)
    np.testing.assert_allclose(
        config.losses.decode.class_weight, histogram.class_weights(counts[:3]), atol=1e-6
    )


def test_several_data_sets_train_together(tmp_path):
    main, other = make_folder(tmp_path / "a"), make_folder(tmp_path / "b", train=2)
    more = {
        "b": {"name": "folder", "root": str(other), "repeat": 3},
        "v": {"name": "folder", "root": str(other), "train_split": "val"},
    }
    config = make_config(root=str(main), concat=more)
    source = pipeline.train_source(config.dataset)
    assert source.names == ["t0", "t1", "t2", "t3", "t4", *["t0", "t1"] * 3, "v0", "v1"]
    np.testing.assert_array_equal(source.read(8)[0], source.read(6)[0])
    assert source.files[5] == str(other / "images/train/t0.png")
    batches = pipeline.train_batches(config, devices=1)
    assert {file for k in range(8) for file in batches.names(k)} == set(source.files)
    (other / "classes.txt").write_text("sky\nroad\nvan\n")
    with pytest.raises(DataError, match=r"number 2 is 'van'.* number 2 is 'car'") as error:
        pipeline.train_source(config.dataset)
    assert error.value.field == "dataset.concat.b" and error.value.file == str(
        other / "classes.txt"
    )


@pytest.mark.parametrize("entry, field", [
    ({"name": "folder", "repeats": 5}, "repeats"), ({"name": "folder", "repeat": 0}, "repeat"), ({"name": "folder"}, "root"),
    ({"name": "folder", "source": "tdfs"}, "source"), ({"root": "x"}, "name"),
])  # fmt: skip
def test_entries_of_concat_are_checked(tmp_path, entry, field):
    config = small_run(make_folder(tmp_path))
    config.dataset.concat = ConfigDict({"b": entry})
    with pytest.raises(ConfigError) as error:
        resolve(config)
    assert error.value.field == f"dataset.concat.b.{field}"


@pytest.mark.parametrize("given, message", [
    ({"image_mean": (1.0, 2.0, 3.0)}, "both must have 3 values, one a channel"), ({"image_mean": (1.0,) * 3, "image_std": (0.0, 1.0, 1.0)}, "above 0"),
])  # fmt: skip
def test_given_statistics_are_checked(tmp_path, given, message):
    root = make_folder(tmp_path)
    with pytest.raises(ValueError, match=message):
        resolve(small_run(root, **given))
    statistics.write_statistics(root, [1.0], [2.0])
    with pytest.raises(ValueError, match=r"statistics.json: .*correct it, or write it anew"):
        resolve(small_run(root))


def test_batches_of_one(tmp_path):
    config = make_config(root=str(make_folder(tmp_path)), batch_size=1)
    batches = pipeline.train_batches(config, devices=1)
    assert next(batches)["image"].shape == (1, 1, 16, 20, 3)
    assert {file for k in range(5) for file in batches.names(k)} == {
        str(tmp_path / f"images/train/t{n}.png") for n in range(5)
    }
    batches.close()


def test_rare_classes_are_seen_more_often(tmp_path):
    root = make_folder(tmp_path)
    for number in range(5):
        write_png(
            root / f"labels/train/t{number}.png",
            np.resize(np.uint8([0, 2 if number == 3 else 1]), (20, 24)),
        )
    source = pipeline.train_source(make_config(root=str(root)).dataset)
    assert pipeline.sample_indices(source, 0.0) == range(5)
    assert pipeline.sample_indices(source, 0.8) == [0, 1, 2, 3, 3, 4]  # sqrt(0.8 / 0.2) = 2
    batches = pipeline.train_batches(make_config(root=str(root), class_balance=0.8), devices=1)
    shown = [index for k in range(3) for index in batches.indices(k)]
    assert sorted(shown[:6]) == sorted(shown[6:]) == [0, 1, 2, 3, 3, 4]


def test_any_image_becomes_a_picture():
    image = np.random.default_rng(0).integers(0, 60000, (9, 8, 5)).astype(np.uint16)
    assert visualize.to_rgb(image).shape == (9, 8, 3) and visualize.to_rgb(image).dtype == np.uint8
    assert visualize.to_rgb(image).min() == 0 and visualize.to_rgb(image).max() == 255
    grey = visualize.to_rgb(image[..., :2].astype(np.float32))
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    np.testing.assert_array_equal(
        visualize.to_rgb(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)),
        np.arange(12).reshape(2, 2, 3),
    )


@pytest.mark.parametrize("ids, dtype", [((0, 7, 255), "L"), ((300, 7, 1000), "I;16")])
def test_submissions_hold_the_data_sets_own_values(tmp_path, ids, dtype):
    predict.save_official(tmp_path / "x.png", np.int32([[0, 1], [2, 1]]), ids)
    with Image.open(tmp_path / "x.png") as stored:
        assert stored.mode == dtype and np.asarray(stored).ravel().tolist() == [
            ids[0],
            ids[1],
            ids[2],
            ids[1],
        ]


def test_what_stands_for_a_class_in_submissions(tmp_path):
    assert get_spec("cityscapes").official_ids[:3] == (7, 8, 11) and get_spec(
        "ade20k"
    ).official_ids == tuple(range(1, 151))
    assert get_spec("loveda").official_ids == () == get_spec("shapes").official_ids
    root = make_folder(tmp_path)
    (root / "label_map.txt").write_text("2 sky\n0\troad\n1 car\n7 ignore\n8 car\n")
    assert get_spec("folder", root).official_ids == (2, 0, 1)
    prepare("folder", root, tmp_path / "prepared")
    assert get_spec("folder", tmp_path / "prepared", "tfds").official_ids == (2, 0, 1)


def test_example_images():
    image, mask = draw_vessels(np.random.default_rng(0), 64)
    assert image.shape == (64, 64, 3) and set(np.unique(mask)) == {0, 255}
    image, label = draw_fields(np.random.default_rng(0))
    assert image.shape == (160, 160, 5) and image.dtype == np.uint16 and label.max() < 4
