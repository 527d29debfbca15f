"""TFDS data sets read in place: prepared by us, by TFDS, by others, and all that can be wrong."""

import contextlib
import io
import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.data_helpers import make_folder

from jaxseg.data import sources
from jaxseg.data.builtin import named_label_map
from jaxseg.data.prepare import writer
from jaxseg.data.sources import records
from jaxseg.errors import DataError


@pytest.fixture
def prepared(tmp_path):
    """A data_dir with 12 training and 2 validation records in shards of 4 and 2."""
    make_folder(tmp_path / "mine", train=12)
    writer.prepare("folder", tmp_path / "mine", tmp_path / "out", shards=3)
    return tmp_path / "out"


def open_split(root, split="train", name="folder"):
    return records.open_records(records.get_spec(name, root), root, split)


def refused(message, *arguments):
    with pytest.raises(DataError, match=message):
        open_split(*arguments)


# --- Foreign data sets ---


def encoded(pixels):
    return io.BytesIO(cv2.imencode(".png", pixels)[1].tobytes())


def make_foreign(root, config="", label="annotation", channels=1, version="1.2.0", **more):
    """A data set by TFDS's own writer: 3 training and 2 validation records of raw ids 7, 8, 0."""
    with tfds.core.registered.skip_registration():

        class Foreign(tfds.core.GeneratorBasedBuilder):
            """Whatever."""

            VERSION = tfds.core.Version(version)
            pkg_dir_path = root
            BUILDER_CONFIGS = (
                [tfds.core.BuilderConfig(name=config, version=version)] if config else []
            )

            def _info(self):
                pictures = {
                    "image": tfds.features.Image(),
                    label: tfds.features.Image(shape=(None, None, channels)),
                }
                features = tfds.features.FeaturesDict(
                    pictures | more | {"id": tfds.features.Text()}
                )
                return tfds.core.DatasetInfo(
                    builder=self, features=features, disable_shuffling=True
                )

            def _split_generators(self, dl_manager):
                return {
                    "train": self._generate_examples(3),
                    "validation": self._generate_examples(2),
                }

            def _generate_examples(self, count):
                for index in range(count):
                    ids = np.full(
                        (6, 8) if channels == 1 else (6, 8, channels), 7 + index % 2, np.uint8
                    )
                    ids[0] = 0
                    image = np.full((6, 8, 3), index, np.uint8)
                    yield (
                        index,
                        {"image": encoded(image), label: encoded(ids), "id": str(index)}
                        | dict.fromkeys(more, 1),
                    )

    Foreign(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def test_a_foreign_one_needs_its_classes_only(tmp_path):
    make_foreign(tmp_path, number=tfds.features.Scalar(np.int64))
    refused("classes.txt: no such file", tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    (tmp_path / "label_map.txt").write_text("0 ignore\n7 sky\n8 road\n")
    source = open_split(tmp_path, "val")
    assert source.names == ["folder-validation-00000", "folder-validation-00001"]
    image, label = source.read(1)
    assert (
        image.shape == (6, 8, 3)
        and (image == 1).all()
        and (label[0] == 255).all()
        and (label[1:] == 1).all()
    )
    np.testing.assert_array_equal(source.read_label(1), label)
    assert source.header(1)[:3] == ((6, 8), 3, "uint8")
    assert sources.open_source(source.spec, tmp_path, "train[:2]+val", source="tfds").names[
        1:3
    ] == ["folder-train-00001", source.names[0]]


def test_an_id_outside_the_map_names_the_record(tmp_path):
    make_foreign(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(
        DataError, match=r"1\.2\.0: record folder-train-00000: label value 7, 40 pixels"
    ):
        open_split(tmp_path).read(0)


def test_features_of_other_names_or_kinds(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    make_foreign(tmp_path, label="truth")
    refused(
        r"none of its features is an image named .*; it has .*truth Image\(None, None, 1\)",
        tmp_path,
    )


def test_labels_of_colours_are_not_trained_on(tmp_path):
    """TFDS's scene_parse150 has such labels: instances in three channels, not classes."""
    make_foreign(tmp_path, channels=3)
    assert set(records.STOCK) == {"cityscapes"}
    refused(
        r"feature 'annotation' \(None, None, 3\)",
        tmp_path,
        "train",
        "ade20k",
    )


# --- Finding ---


def test_where_it_is_found(prepared, tmp_path):
    final = prepared / "folder/1.0.0"
    assert all(
        records.find_prepared("folder", root) == final
        for root in (prepared, prepared / "folder", final)
    )
    (prepared / "folder/1.0.0.unfinished").mkdir()
    shutil.copy(final / "dataset_info.json", prepared / "folder/1.0.0.unfinished")
    assert records.find_prepared("folder", prepared) == final
    make_foreign(prepared, config="small")
    assert records.find_prepared("folder", prepared) == final  # by its name
    refused(
        "holds several data sets, folder/1.0.0, foreign/small/1.2.0; set config.dataset.root",
        prepared,
        "train",
        "voc12",
    )
    shutil.copytree(final, prepared / "folder/1.10.0")
    assert records.find_prepared("folder", prepared).name == "1.10.0"


def test_nothing_there(tmp_path):
    refused("needs its folder: config.dataset.root=DIR", "")
    refused(
        "gone: no TFDS data set there .no such folder.; prepare 'folder' there with scripts",
        tmp_path / "gone",
    )
    (tmp_path / "images").mkdir()
    refused("no TFDS data set there .images.; .* config.dataset.source=files", tmp_path)


def test_records_of_another_data_set(prepared):
    refused(
        "dataset.json: these are records of 'folder', not of 'voc12'; set config.dataset.name",
        prepared,
        "train",
        "voc12",
    )
    file = prepared / "folder/1.0.0/dataset.json"
    file.write_text(file.read_text().replace('"classes"', '"clases"'))
    refused("dataset.json: cannot be read as a data set's spec", prepared)


# --- Splits ---


def test_splits(prepared):
    whole = open_split(prepared)
    assert sorted(whole.names) == sorted(f"t{i}" for i in range(12)) and open_split(
        prepared, "validation"
    ).names == ["v0", "v1"]
    spec = records.get_spec("folder", prepared)
    part = sources.open_source(spec, prepared, "train[3:5]+val", source="tfds")
    assert (
        part.names == [*whole.names[3:5], "v0", "v1"]
        and part.fingerprint() != whole.fingerprint() == open_split(prepared).fingerprint()
    )
    np.testing.assert_array_equal(part.read(1)[0], whole.read(4)[0])
    np.testing.assert_array_equal(part.read_image(1), whole.read_image(4))
    refused("the data set 'folder' has no split 'test'; it has train and val", prepared, "test")


# --- Records ---


def test_a_source_can_be_sent_to_a_worker(prepared):
    source = open_split(prepared)
    source.read(0)
    sent = pickle.dumps(source)
    assert len(sent) < 20_000
    np.testing.assert_array_equal(pickle.loads(sent).read(11)[0], source.read(11)[0])


def test_a_damaged_record_is_named(prepared):
    shard = prepared / "folder/1.0.0/folder-train.array_record-00001-of-00003"
    size = shard.stat().st_size
    shard.write_bytes(bytes(size))
    source = open_split(prepared)
    assert source.read(0)[1].shape == (20, 24)
    with pytest.raises(
        DataError,
        match=rf"1.0.0: record {source.names[5]} cannot be read .*; \S*00001-of-00003 is damaged",
    ):
        source.read(5)


def test_a_missing_shard_is_named(prepared):
    before = open_split(prepared).fingerprint()
    shard = prepared / "folder/1.0.0/folder-train.array_record-00001-of-00003"
    shard.touch()
    assert open_split(prepared).fingerprint() != before
    shard.unlink()
    refused("00001-of-00003: no such file, but .*dataset_info.json lists it", prepared)


def test_a_broken_or_foreign_description(prepared):
    file = prepared / "folder/1.0.0/dataset_info.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    refused("is stored as tfrecord, which needs TensorFlow; prepare it as ArrayRecord", prepared)
    file.write_text("{")
    refused("dataset_info.json: cannot be read by TFDS", prepared)


def test_the_stock_data_set_has_raw_ids(tmp_path):
    folder = tmp_path / "cityscapes/semantic_segmentation/1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()
    spec = records.get_spec("cityscapes", tmp_path)
    assert spec.label_map == named_label_map("cityscapes_ids", 19) and spec.label_map[26] == 13


@pytest.mark.parametrize("seed", range(4))
def test_bytes_that_are_no_record_end_in_an_error(seed):
    rng = np.random.default_rng(seed)
    for length in range(1, 60):
        # Fields of delimited lengths, most of them wrong, with long numbers among them.
        data = bytes(rng.choice([10, 18, 0, 1, 128, 255, 3], length).astype(np.uint8))
        with contextlib.suppress(ValueError, LookupError):
            found = records.parse_example(data)
            assert all(len(value) <= length for value in found.values())
    with pytest.raises(ValueError):
        records.parse_example(b"\x80" * 40)
