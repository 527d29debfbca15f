"""Label counts and their cache, class weights and repeat factors by hand, image statistics."""

import json
import math

import numpy as np
import pytest
from helpers.data_helpers import make_folder, write_png

from jaxseg.data import label_counts, statistics
from jaxseg.data.catalog import get_spec
from jaxseg.data.decode import Decoded
from jaxseg.data.sources import open_source
from jaxseg.errors import DataError


class Images:
    """A source of images in memory."""

    def __init__(self, images):
        self.images, self.files = images, [f"image{i}" for i in range(len(images))]

    def __len__(self):
        return len(self.images)

    def read_decoded(self, index):
        image = self.images[index]
        return image if isinstance(image, Decoded) else Decoded(image)


def folder_source(root, split="train"):
    return open_source(get_spec("folder", root), root, split)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    return make_folder(tmp_path / "data")


# --- Counts ---


def test_counts_are_those_of_the_labels_and_read_once(root, monkeypatch):
    source = folder_source(root)
    labels = [source.read_label(i) for i in range(len(source))]
    expected = [[(label == value).sum() for value in (0, 1, 2, 255)] for label in labels]
    counts = label_counts.count_labels(source, 3)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)

    again = folder_source(root)
    monkeypatch.setattr(
        type(again), "read_label", lambda *_: pytest.fail("the labels were read again")
    )
    np.testing.assert_array_equal(label_counts.count_labels(again, 3), expected)


def test_a_changed_label_is_counted_again(root):
    before = label_counts.count_labels(folder_source(root), 3)
    write_png(root / "labels/train/t1.png", np.full((20, 24), 2, np.uint8))
    after = label_counts.count_labels(folder_source(root), 3)
    assert after[1].tolist() == [0, 0, 480, 0]
    np.testing.assert_array_equal(after[[0, 2, 3, 4]], before[[0, 2, 3, 4]])


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_cache_is_no_cache(root, damage):
    counts = label_counts.count_labels(folder_source(root), 3)
    (file,) = root.parent.glob("cache/labels/*.npz")
    file.write_bytes(file.read_bytes()[:100] if damage is None else damage)
    np.testing.assert_array_equal(label_counts.count_labels(folder_source(root), 3), counts)
    with np.load(file) as stored:
        np.testing.assert_array_equal(stored["counts"], counts)


def test_a_cache_that_cannot_be_written_stops_nothing(root, monkeypatch, caplog):
    (root / "file").touch()
    monkeypatch.setenv("JAXSEG_CACHE", str(root / "file"))  # no folder can be made below a file
    assert label_counts.count_labels(folder_source(root), 3).shape == (5, 4)
    assert [record.levelname for record in caplog.records] == [
        "WARNING"
    ] and "set JAXSEG_CACHE to another folder" in caplog.text


def test_a_label_beyond_what_float32_counts():
    label = np.zeros((4097, 4097), np.uint8)
    label[0, :2] = 255, 1
    assert label_counts.count_pixels(label, 2).tolist() == [
        4097 * 4097 - 2,
        1,
        1,
    ]  # odd, so not a float32


def test_counts_follow_repetitions(root):
    once, counts = (
        label_counts.count_labels(folder_source(root), 3),
        label_counts.count_labels(folder_source(root, "train[:2]*2+train[4:]"), 3),
    )
    np.testing.assert_array_equal(counts, once[[0, 1, 0, 1, 4]])


def test_a_bad_label_is_named_and_nothing_is_kept(root):
    write_png(root / "labels/train/t3.png", np.full((20, 24), 9, np.uint8))
    with pytest.raises(DataError, match=r"t3\.png: label value 9"):
        label_counts.count_labels(folder_source(root), 3)
    assert not list(root.parent.glob("cache/labels/*"))


# --- Weights and repeats ---


def test_class_weights_by_hand():
    raw = [1 / math.log(1.02 + share) for share in (0.75, 0.25)]
    weights = label_counts.class_weights(np.array([300, 0, 100]))
    np.testing.assert_allclose(
        weights, [2 * raw[0] / sum(raw), 1, 2 * raw[1] / sum(raw)], rtol=1e-12
    )
    assert label_counts.class_weights(np.zeros(2, int)) == (1.0, 1.0)


def test_repeat_factors_by_hand():
    # Of four images all hold class 0, one class 1, two class 2, none class 3:
    # r = 1, sqrt(t * 4), sqrt(t * 2).
    counts = np.array([[5, 0, 0, 0], [5, 1, 1, 0], [5, 0, 9, 0], [5, 0, 0, 0]])
    assert label_counts.repeat_factors(counts, 1.0).tolist() == [
        1,
        2,
        1,
        1,
    ]  # sqrt(4) = 2, sqrt(2) = 1.41
    assert label_counts.repeat_factors(counts, 4.0).tolist() == [2, 4, 3, 2]  # 2; 4; sqrt(8) = 2.83
    assert label_counts.repeat_factors(counts[:, :3], 0.0).tolist() == [1, 1, 1, 1]
    assert label_counts.repeat_factors(np.ones((2, 3), int), 0.1).tolist() == [1, 1]
    assert label_counts.repeat_factors(np.zeros((2, 3), int), 1.0).tolist() == [1, 1]


# --- Statistics ---


@pytest.mark.parametrize(
    "dtype, channels, offset", [("uint8", 3, 0), ("uint16", 5, 40000), ("float32", 1, 1e6)]
)
def test_statistics_are_numpys_over_all_pixels(dtype, channels, offset):
    rng = np.random.default_rng(0)
    sizes = [(7, 9), (3, 2), (8, 8)]
    images = [(rng.integers(0, 200, (*size, channels)) + offset).astype(dtype) for size in sizes]
    pixels = np.concatenate([image.reshape(-1, channels) for image in images]).astype(np.float64)
    mean, std = statistics.image_statistics(Images(images))
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-9)


def test_statistics_of_samples_are_spread_over_all_images():
    images = [np.full((2, 2, 1), value, np.uint8) for value in (10, 20, 30, 40, 50)]
    assert statistics.image_statistics(Images(images), samples=3)[0] == (30.0,)
    assert statistics.image_statistics(Images(images), samples=2)[0] == (30.0,)


def test_a_constant_channel_can_be_normalised(caplog):
    images = [np.stack([np.arange(4, dtype=np.uint8), np.full(4, 255, np.uint8)], -1)[None]] * 2
    mean, std = statistics.image_statistics(Images(images))
    assert (mean[1], std[1]) == (255.0, 1.0) and "channels [1] hold one value" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_refused(value):
    images = [np.zeros((2, 3, 2), np.float32) for _ in range(3)]
    images[2][1, 2, 0] = value
    with pytest.raises(
        DataError, match=rf"image2: holds {value} .*row 1, column 2, channel 0.*write a number"
    ):
        statistics.image_statistics(Images(images))


def test_statistics_need_no_labels(root):
    (root / "labels/train/t1.png").write_bytes(b"damaged")
    assert len(statistics.image_statistics(folder_source(root))[0]) == 3


def test_statistics_of_other_channels_are_refused(tmp_path):
    statistics.write_statistics(tmp_path, (1.5, 2.0), (0.25, 0.5))
    assert statistics.read_statistics(tmp_path, 2)
    with pytest.raises(DataError) as caught:
        statistics.read_statistics(tmp_path, 5)
    assert caught.value.file == str(tmp_path / "statistics.json")
    assert "2 channels" in caught.value.problem and "channels=5" in caught.value.problem


def test_statistics_file_returns_what_was_written(tmp_path):
    assert statistics.read_statistics(tmp_path) is None
    file = statistics.write_statistics(tmp_path, (1.5, 2.0), (0.25, 1 / 3))
    assert file == tmp_path / "statistics.json" and statistics.read_statistics(tmp_path) == (
        (1.5, 2.0),
        (0.25, 1 / 3),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.json"]


@pytest.mark.parametrize(
    "content, wrong",
    [
        ("{", "Expecting"),
        ("[1, 2]", "indices must be integers"),
        ({"mean": [1]}, "no key 'std'"),
        ({"mean": [1, 2], "std": [1]}, "2 means and 1 stds"),
        ({"mean": [], "std": []}, "0 means"),
        ({"mean": [1], "std": [0]}, "std 0.0 is not above 0"),
        ({"mean": ["a"], "std": [1]}, "could not convert"),
        ('{"mean": [NaN], "std": [1]}', "holds nan"),
    ],
)
def test_a_malformed_statistics_file_says_how_to_write_it(tmp_path, content, wrong):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "statistics.json").write_text(text)
    with pytest.raises(DataError) as caught:
        statistics.read_statistics(tmp_path)
    assert wrong in caught.value.problem and "check_data.py" in caught.value.hint
    assert caught.value.file == str(tmp_path / "statistics.json")


def test_statistics_that_cannot_be_written_are_given_as_config_fields(tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(DataError) as caught:
            statistics.write_statistics(root, (1.5,), (2.0,))
        assert caught.value.file == str(root / "statistics.json")
        assert "image_mean=(1.5,)" in caught.value.hint and "image_std=(2,)" in caught.value.hint
    assert not (tmp_path / "missing").exists()
