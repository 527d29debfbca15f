"""Data sets written as TFDS records: the same images and labels are read back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tifffile
from helpers.data_helpers import (
    eval_samples,
    make_experiment,
    make_folder,
    train_batches,
    write_png,
)

from jaxseg.data import catalog, sources
from jaxseg.data.decode import ImageOptions, decode_image
from jaxseg.data.prepare import codecs, raw_datasets, splits, writer
from jaxseg.data.sources import records
from jaxseg.data.statistics import read_statistics, write_statistics
from jaxseg.errors import DataError

ENVIRONMENT = os.environ | {"PYTHONPATH": ":".join(p for p in sys.path if p)}


def both(root, output, split="train", name="folder", channels=3):
    """The source in place and its prepared form."""
    spec = records.get_spec(name, output)
    prepared = records.open_records(spec, output, split, ImageOptions(channels))
    return sources.open_source(
        catalog.get_spec(name, root), root, split, channels=channels
    ), prepared


def same(ours, prepared):
    assert len(ours) == len(prepared) and list(ours.names) == list(prepared.names)
    for index in range(len(ours)):
        for a, b in zip(ours.read(index), prepared.read(index)):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("codec", ["keep", "png", "zstd", "raw"])
def test_a_folder_comes_back(tmp_path, codec):
    root = make_folder(tmp_path / "mine")
    write_statistics(root, [1, 2, 3], [4, 5, 6])
    folder = writer.prepare("folder", root, tmp_path / "out", codec=codec)
    assert read_statistics(folder) == ((1, 2, 3), (4, 5, 6))
    for split in ("train", "val"):
        ours, prepared = both(root, tmp_path / "out", split)
        same(ours, prepared)
        assert prepared.header(0) == ours.header(0)
    spec, before = prepared.spec, catalog.get_spec("folder", root)
    assert (spec.name, spec.classes, spec.palette) == ("folder", before.classes, before.palette)
    assert {file.name for file in folder.iterdir()} == {
        "dataset.json",
        "dataset_info.json",
        "features.json",
        "names.json",
        "prepared.json",
        "statistics.json",
        "folder-train.array_record-00000-of-00001",
        "folder-val.array_record-00000-of-00001",
    }


@pytest.mark.parametrize("codec", ["keep", "zstd", "jpeg"])
def test_tfds_itself_reads_it(tmp_path, codec):
    root = make_folder(tmp_path / "mine")
    builder = tfds.builder_from_directory(
        writer.prepare("folder", root, tmp_path / "out", codec=codec)
    )
    assert (
        builder.info.splits["train"].num_examples == 5
        and builder.info.splits["val"].num_examples == 2
    )
    record = builder.as_data_source("val")[1]
    image, label = both(root, tmp_path / "out", "val")[1].read(1)
    np.testing.assert_array_equal(record["image"], image)
    np.testing.assert_array_equal(record["label"][..., 0], label)
    assert record["name"] == b"v1"


def test_training_reads_it(tmp_path):
    root = make_folder(tmp_path / "mine")
    writer.prepare("folder", root, tmp_path / "out", codec="zstd")
    files = make_experiment(root=root)
    prepared = make_experiment(root=tmp_path / "out", source="tfds")
    batches = [train_batches(experiment, devices=1) for experiment in (files, prepared)]
    for _ in range(3):
        a, b = (next(each) for each in batches)
        assert all(np.array_equal(a[key], b[key]) for key in a)
    for each in batches:
        each.close()
    assert eval_samples(prepared).names == ["v0", "v1"]


def test_colour_labels_become_ids(tmp_path):
    colors = np.uint8([[200, 0, 0], [0, 200, 0], [9, 9, 9]])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/classes.txt").write_text("sky 200 0 0\nroad 0 200 0\nignore 9 9 9\n")
    ids = np.random.default_rng(0).integers(0, 3, (6, 8))
    for split in ("train", "val"):
        write_png(tmp_path / f"mine/images/{split}/a.png", np.zeros((6, 8, 3), np.uint8))
        write_png(tmp_path / f"mine/labels/{split}/a.png", colors[ids])
    writer.prepare("folder", tmp_path / "mine", tmp_path / "out")
    ours, prepared = both(tmp_path / "mine", tmp_path / "out")
    same(ours, prepared)
    np.testing.assert_array_equal(prepared.read_label(0), np.uint8([0, 1, 255])[ids])
    assert prepared.spec.colors == () and prepared.spec.palette == ((200, 0, 0), (0, 200, 0))


@pytest.mark.parametrize("codec", ["keep", "zstd"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_many_channels_of_many_bits_stay_lossless(tmp_path, codec, dtype):
    root, rng = make_folder(tmp_path / "mine", train=2, val=1), np.random.default_rng(0)
    for file in sorted((root / "images").glob("*/*.png")):
        tifffile.imwrite(
            file.with_suffix(".tif"),
            (rng.random((20, 24, 5)) * 60000).astype(dtype),
            photometric="minisblack",
        )
        file.unlink()
    writer.prepare("folder", root, tmp_path / "out", codec=codec)
    ours, prepared = both(root, tmp_path / "out", channels=5)
    same(ours, prepared)
    assert prepared.header(1)[:3] == ((20, 24), 5, dtype)
    with pytest.raises(DataError) as error:
        writer.prepare("folder", root, tmp_path / "lossy", codec="jpeg")
    assert error.value.field == "codec" and f"{dtype} of 5" in error.value.problem


@pytest.mark.parametrize(
    "channels, dtype", [(1, "uint8"), (3, "uint16"), (4, "uint16"), (4, "uint8")]
)
@pytest.mark.parametrize("codec", ["png", "zstd", "raw"])
def test_png_codecs_are_exact(channels, dtype, codec):
    image = np.random.default_rng(0).integers(
        0, np.iinfo(dtype).max, (9, 7, channels), dtype, endpoint=True
    )
    decoded = decode_image(codecs.encode_image(image, codec), "x", channels)
    np.testing.assert_array_equal(decoded, image)
    assert decoded.dtype == image.dtype


def test_jpeg_has_a_quality():
    image = cv2.resize(
        np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8),
        (64, 64),
        interpolation=cv2.INTER_CUBIC,
    )
    good, bad = (codecs.encode_image(image, "jpeg", quality) for quality in (95, 20))
    errors = [np.abs(decode_image(data, "x").astype(int) - image).mean() for data in (good, bad)]
    assert len(bad) < len(good) and errors[0] < 3 and errors[0] < errors[1]


def test_shards_keep_the_order(tmp_path):
    root = make_folder(tmp_path / "mine", train=7)
    folder = writer.prepare("folder", root, tmp_path / "out", splits=["train"], shards=3)
    assert len(list(folder.glob("folder-train.array_record-*-of-00003"))) == 3
    assert tfds.builder_from_directory(folder).info.splits["train"].shard_lengths == [2, 2, 3]
    same(*both(root, tmp_path / "out"))


def test_a_set_that_needs_conversion(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tiles = [
        (f"a_{i}", rng.integers(0, 256, (8, 8, 3), np.uint8), np.full((8, 8), i, np.uint8))
        for i in range(3)
    ]
    task = raw_datasets.ConversionTask("a", lambda: iter(tiles))
    monkeypatch.setattr(raw_datasets, "list_tasks", lambda name, root, split: [task])
    writer.prepare("potsdam", tmp_path, tmp_path / "out")
    prepared = records.open_records(
        records.get_spec("potsdam", tmp_path / "out"), tmp_path / "out", "train"
    )
    assert prepared.names == ["a_0", "a_1", "a_2"] and prepared.spec.num_classes == 6
    for index, (_, image, label) in enumerate(tiles):
        np.testing.assert_array_equal(prepared.read(index)[0], image)
        np.testing.assert_array_equal(
            prepared.read(index)[1], label
        )  # which is not moved down by one again


# --- What goes wrong ------------------------------------------------------------------------------


def test_wrong_labels_and_images_stop_it_before_it_appears(tmp_path):
    root = make_folder(tmp_path / "mine")
    label = cv2.imread(str(root / "labels/train/t3.png"), cv2.IMREAD_UNCHANGED)
    write_png(root / "labels/train/t3.png", np.full((20, 24), 9, np.uint8))
    with pytest.raises(DataError, match=r"labels/train/t3\.png: label value 9"):
        writer.prepare("folder", root, tmp_path / "out")
    write_png(root / "labels/train/t3.png", label[:10])
    with pytest.raises(DataError, match=r"t3\.png: is 24x20 .* but its label of 't3' is 24x10"):
        writer.prepare("folder", root, tmp_path / "out")
    with pytest.raises(DataError, match="no TFDS data set there"):
        records.find_prepared("folder", tmp_path / "out")
    write_png(root / "labels/train/t3.png", label)
    writer.prepare("folder", root, tmp_path / "out")
    same(*both(root, tmp_path / "out"))


def test_what_is_there_is_kept(tmp_path):
    root = make_folder(tmp_path / "mine")
    folder = writer.prepare("folder", root, tmp_path / "out")
    before = contents(folder)
    assert writer.prepare("folder", root, tmp_path / "out") == folder and contents(folder) == before
    for options, field, words in (
        ({"codec": "zstd"}, "output", "with other options"),
        ({"codec": "gif"}, "codec", "'gif'"),
        ({"splits": ["train[:2]"]}, "splits", "'train[:2]'"),
    ):
        with pytest.raises(DataError) as caught:
            writer.prepare("folder", root, tmp_path / "out", **options)
        assert caught.value.field == field and words in caught.value.problem


SLOW = """
import sys, time
from jaxseg.data.prepare import writer
encode = writer.encode_label
writer.encode_label = lambda label: (time.sleep(0.2), encode(label))[1]
writer.prepare("folder", sys.argv[1], sys.argv[2], shards=10)
"""


def test_killed_and_resumed(tmp_path):
    root, out = make_folder(tmp_path / "mine", train=30), tmp_path / "out"
    killed = subprocess.Popen([sys.executable, "-c", SLOW, str(root), str(out)], env=ENVIRONMENT)
    scratch = out / "folder/1.0.0.unfinished"
    for _ in range(600):
        if len(list(scratch.glob("*-of-00010"))) >= 2:
            break
        time.sleep(0.05)
    with pytest.raises(DataError) as caught:
        writer.prepare("folder", root, out, shards=10)
    assert caught.value.file == str(out / "folder/1.0.0") and "process" in caught.value.problem
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = {file.name: file.stat() for file in scratch.glob("*-of-00010")}
    assert 2 <= len(done) < 10 and not (out / "folder/1.0.0").exists()
    folder = writer.prepare("folder", root, out, shards=10)
    after = {name: (folder / name).stat() for name in done}
    assert {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in done.items()} == {
        name: (stat.st_ino, stat.st_mtime_ns) for name, stat in after.items()
    }
    same(*both(root, out))
    assert contents(folder) == contents(
        writer.prepare("folder", root, tmp_path / "at_once", shards=10)
    )
    assert [file.name for file in (out / "folder").iterdir()] == ["1.0.0"]


def test_an_unfinished_one_of_other_files_is_made_anew(tmp_path):
    root, scratch = make_folder(tmp_path / "mine"), tmp_path / "out/folder/1.0.0.unfinished"
    write_png(root / "labels/val/v1.png", np.full((20, 24), 9, np.uint8))
    with pytest.raises(DataError, match=r"v1\.png: label value 9"):
        writer.prepare("folder", root, tmp_path / "out")
    assert (scratch / "folder-train.array_record-00000-of-00001").is_file()
    for file in root.glob("*/*/?1.png"):
        write_png(file, np.full((20, 24, 3) if "images" in str(file) else (20, 24), 1, np.uint8))
    writer.prepare("folder", root, tmp_path / "out")
    same(*both(root, tmp_path / "out"))


# --- Cityscapes' zips, and the script -------------------------------------------------------------


def make_zips(root: Path, value: int = 26) -> None:
    root.mkdir()
    rng = np.random.default_rng(0)
    images, labels = (zipfile.ZipFile(root / file, "w") for file in splits.ZIPS)
    for split, city in (("train", "bonn"), ("train", "aachen"), ("val", "ulm"), ("test", "berlin")):
        stem = f"{split}/{city}/{city}_000001_000019"
        pixels, ids = (
            rng.integers(0, 256, (16, 32, 3), np.uint8),
            np.full((16, 32), value, np.uint8),
        )
        ids[0] = 3
        images.writestr(
            f"leftImg8bit/{stem}_leftImg8bit.png", cv2.imencode(".png", pixels)[1].tobytes()
        )
        labels.writestr(
            f"gtFine/{stem}_gtFine_labelIds.png", cv2.imencode(".png", ids)[1].tobytes()
        )
        labels.writestr(f"gtFine/{stem}_gtFine_color.png", b"not read")
    images.close()
    labels.close()


def test_cityscapes_zips_become_the_stock_data_set(tmp_path):
    make_zips(tmp_path / "zips")
    folder = writer.prepare("cityscapes", tmp_path / "zips", tmp_path / "out")
    assert folder == tmp_path / "out/cityscapes/semantic_segmentation/1.0.0"
    stock = tfds.builder(
        "cityscapes/semantic_segmentation", data_dir=tmp_path / "out", file_format="array_record"
    )
    assert {name: split.num_examples for name, split in stock.info.splits.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    record = stock.as_data_source("validation")[0]
    assert record["image_id"] == b"ulm_000001_000019" and set(
        np.unique(record["segmentation_label"])
    ) == {3, 26}
    samples = eval_samples(make_experiment("cityscapes", root=tmp_path / "out", source="tfds"))
    assert samples.names == ["ulm_000001_000019"]
    np.testing.assert_array_equal(samples[0]["image"], record["image_left"])
    assert (samples[0]["label"][0] == 255).all() and (samples[0]["label"][1:] == 13).all()


def test_wrong_zips(tmp_path):
    make_zips(tmp_path / "wrong", value=77)
    with pytest.raises(
        DataError,
        match=r"gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds\.png: label value 77",
    ):
        writer.prepare("cityscapes", tmp_path / "wrong", tmp_path / "out")
    shutil.rmtree(tmp_path / "wrong")
    make_zips(tmp_path / "wrong")
    broken = (tmp_path / "wrong" / splits.ZIPS[0]).read_bytes()
    (tmp_path / "wrong" / splits.ZIPS[0]).write_bytes(broken.replace(b"IDAT", b"XXXX"))
    with pytest.raises(
        DataError, match=r"leftImg8bit_trainvaltest\.zip: leftImg8bit/train/aachen/.*png is damaged"
    ):
        writer.prepare("cityscapes", tmp_path / "wrong", tmp_path / "out")
    (tmp_path / "wrong" / splits.ZIPS[0]).write_bytes(broken)
    with zipfile.ZipFile(tmp_path / "wrong" / splits.ZIPS[0], "a") as images:
        images.writestr("leftImg8bit/val/ulm/ulm_000002_000019_leftImg8bit.png", b"")
    with pytest.raises(DataError) as caught:
        writer.prepare("cityscapes", tmp_path / "wrong", tmp_path / "out")
    assert caught.value.file == str(tmp_path / "wrong" / splits.ZIPS[1])
    assert "gtFine/val/ulm/ulm_000002_000019_gtFine_labelIds.png" in caught.value.problem


def test_the_script_needs_neither_tensorflow_nor_torch(tmp_path):
    root, out = make_folder(tmp_path / "mine"), tmp_path / "out"
    script = Path(__file__).parent.parent / "scripts/prepare_data.py"
    code = (
        "import runpy, sys\nsys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print('heavy:', sorted({'tensorflow', 'torch'} & set(sys.modules)))"
    )
    flags = [f"--root={root}", f"--output={out}", "--codec=zstd"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(script), *flags],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (
        f"--config.dataset.source=tfds --config.dataset.root={out}" in done.stdout
        and "heavy: []" in done.stdout
    )
    assert json.loads((out / "folder/1.0.0/dataset.json").read_text())["classes"] == [
        "sky",
        "road",
        "car",
    ]
