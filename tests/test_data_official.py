"""Official releases in miniature: images, labels, tiles, and messages about missing files."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from helpers.data_helpers import write_png
from PIL import Image
from scipy.io import savemat

from jaxseg.data.builtin import CONVERTED
from jaxseg.data.catalog import get_spec
from jaxseg.data.decode import decode_image
from jaxseg.data.prepare import raw_datasets, raw_labels
from jaxseg.errors import DataError

SIZE = (6, 8)
MASK = np.repeat(np.array([[0, 255]], np.uint8), 4, 1).repeat(
    6, 0
)  # left half dark, right half bright


def put(file: Path, pixels: np.ndarray) -> None:
    """Write an image or label in the format of its suffix; of a dict a .mat file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".mat":
        savemat(file, pixels)
    elif file.suffix == ".gz":
        Image.fromarray(pixels).save(data := io.BytesIO(), "PPM")
        file.write_bytes(gzip.compress(data.getvalue()))
    elif file.suffix in (".gif", ".ppm"):
        Image.fromarray(pixels).save(file)
    else:
        write_png(file, pixels)


def photo(size=SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def lines(file: Path, *words: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(words) + "\n")


def bars(*values) -> np.ndarray:
    """A label [H, W] of vertical bars of these ids, or [H, W, 3] of these colours."""
    return np.repeat(np.array([values]), -(-SIZE[1] // len(values)), 1)[:, : SIZE[1]].repeat(
        SIZE[0], 0
    )


# --- The miniatures -------------------------------------------------------------------------------


def make_voc12aug(root):
    voc, sbd = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE/dataset"
    for name, stems in {"train": ("2007_000032", "2007_000039"), "val": ("2007_000033",)}.items():
        lines(voc / f"ImageSets/Segmentation/{name}.txt", *stems)
        lines(voc / f"ImageSets/Main/{name}.txt", "not_this")
        for stem in stems:
            put(voc / f"JPEGImages/{stem}.jpg", photo())
            put(voc / f"SegmentationClass/{stem}.png", bars(0, 20, 255).astype(np.uint8))
            put(voc / f"SegmentationObject/{stem}.png", bars(1, 2).astype(np.uint8))
    lines(sbd / "train.txt", "2008_000002", "2007_000032", "2007_000033")
    lines(sbd / "val.txt", "2008_000003")
    for stem in ("2008_000002", "2007_000032", "2007_000033", "2008_000003"):
        put(voc / f"JPEGImages/{stem}.jpg", photo())
        put(sbd / f"img/{stem}.jpg", photo())
        put(
            sbd / f"cls/{stem}.mat",
            {"GTcls": {"Segmentation": bars(0, 15).astype(np.uint8), "Boundaries": np.zeros(3)}},
        )


def make_pascal_context(root):
    for name, stems in {"train": ("2008_000002",), "val": ("2008_000003", "2008_000007")}.items():
        lines(root / f"VOC2010/ImageSets/Main/{name}.txt", *stems)
        for stem in stems:
            put(root / f"VOC2010/JPEGImages/{stem}.jpg", photo())
            put(root / f"trainval/{stem}.mat", {"LabelMap": bars(2, 1, 255, 458).astype(np.uint16)})


def make_coco_stuff10k(root):
    for name, stems in {
        "train": ("COCO_train2014_000000000077",),
        "test": ("COCO_train2014_000000000064",),
    }.items():
        lines(root / f"imageLists/{name}.txt", *stems)
        for stem in stems:
            put(root / f"images/{stem}.jpg", photo())
            put(
                root / f"annotations/{stem}.mat",
                {"S": bars(0, 1, 13, 182).astype(np.uint8), "names": np.arange(3)},
            )


def make_potsdam(root, label="5_Labels_all_noBoundary/top_potsdam_{}_label_noBoundary.tif"):
    for stems in raw_datasets.POTSDAM:
        for stem in stems:
            put(root / f"2_Ortho_RGB/top_potsdam_{stem}_RGB.tif", photo())
            put(
                root / label.format(stem),
                bars((255, 255, 255), (255, 0, 0), (0, 0, 0)).astype(np.uint8),
            )


def make_vaihingen(root, label="eroded/top_mosaic_09cm_{}_noBoundary.tif"):
    for stems in raw_datasets.VAIHINGEN:
        for stem in stems:
            put(root / f"ISPRS_semantic_labeling_Vaihingen/top/top_mosaic_09cm_{stem}.tif", photo())
            put(
                root / label.format(stem),
                bars((0, 255, 255), (255, 255, 0), (0, 0, 0)).astype(np.uint8),
            )


def make_isaid(root):
    for split, stem in (("train", "P0000"), ("train", "P0001"), ("val", "P0003")):
        put(root / split / f"images/images/{stem}.png", photo())
        put(
            root / split / f"Semantic_masks/images/{stem}_instance_color_RGB.png",
            bars((0, 0, 0), (0, 100, 155)).astype(np.uint8),
        )
        put(root / split / f"Instance_masks/images/{stem}_instance_id_RGB.png", photo())


def make_camvid(root):
    for stem in (
        "0001TP_008520",
        "0001TP_008550",
        "0006R0_f00930",
        "0016E5_07920",
        "0016E5_07959",
        "0016E5_08159",
        "Seq05VD_f00000",
    ):
        put(root / f"701_StillsRaw_full/{stem}.png", photo())
        put(
            root / f"LabeledApproved_full/{stem}_L.png",
            bars((128, 128, 128), (64, 192, 0), (0, 0, 0), (192, 0, 192)).astype(np.uint8),
        )


def make_drive(root):
    for folder, first in (("training", 21), ("test", 1)):
        for number in range(first, first + 20):
            put(root / f"DRIVE/{folder}/images/{number:02}_{folder}.tif", photo())
            put(root / f"DRIVE/{folder}/1st_manual/{number:02}_manual1.gif", MASK)
            put(root / f"DRIVE/{folder}/mask/{number:02}_{folder}_mask.gif", MASK)


def make_chase_db1(root):
    for stem in (f"Image_{number:02}{side}" for number in range(1, 15) for side in "LR"):
        put(root / f"{stem}.jpg", photo())
        for hand in ("1stHO", "2ndHO"):
            put(root / f"{stem}_{hand}.png", MASK)


def make_hrf(root):
    for number in range(1, 16):
        for group, suffix in (("h", "jpg"), ("g", "jpg"), ("dr", "JPG")):
            put(root / f"images/{number:02}_{group}.{suffix}", photo())
            put(root / f"manual1/{number:02}_{group}.tif", MASK)
            put(root / f"mask/{number:02}_{group}_mask.tif", MASK)


def make_stare(root, suffix=".ppm.gz"):
    for stem in raw_datasets.STARE:
        put(root / f"stare-images/{stem}{suffix}", photo())
        put(root / f"labels-ah/{stem}.ah{suffix}", MASK)


# name: (train, val, classes along a row of the first train label, a file without which it fails)
VESSELS = [0, 1]
SETS = {
    "voc12aug": (4, 1, [0, 20, 255], "benchmark_RELEASE/dataset/cls/2008_000003.mat"),
    "pascal_context": (1, 2, [1, 0, 59], "trainval/2008_000002.mat"),
    "pascal_context_59": (1, 2, [0, 255, 58], "VOC2010/ImageSets/Main/train.txt"),
    "coco_stuff10k": (1, 1, [255, 0, 11, 170], "annotations/COCO_train2014_000000000077.mat"),
    "potsdam": (24, 14, [0, 5, 255], "2_Ortho_RGB/top_potsdam_6_8_RGB.tif"),
    "vaihingen": (16, 17, [2, 4, 255], "eroded/top_mosaic_09cm_area37_noBoundary.tif"),
    "isaid": (2, 1, [0, 15, 255], "train/images/images/P0001.png"),
    "camvid": (3, 2, [0, 1, 255, 10], "LabeledApproved_full/0006R0_f00930_L.png"),
    "drive": (20, 20, VESSELS, "DRIVE/training/1st_manual/33_manual1.gif"),
    "chase_db1": (20, 8, VESSELS, "Image_10R_1stHO.png"),
    "hrf": (15, 30, VESSELS, "manual1/05_dr.tif"),
    "stare": (10, 10, VESSELS, "stare-images/im0139.ppm.gz"),
}


def make(name, root):
    globals()[f"make_{name.removesuffix('_59')}"](root)
    return root


def along(row: np.ndarray) -> list[int]:
    """The values of a row, each run once."""
    return [int(value) for index, value in enumerate(row) if index == 0 or value != row[index - 1]]


# --- Every set ------------------------------------------------------------------------------------


def test_every_set_is_tested():
    assert tuple(SETS) == raw_datasets.NAMES
    assert set(raw_datasets.NAMES) == set(CONVERTED)  # what messages know of these


@pytest.mark.parametrize("name", SETS)
def test_the_official_download_is_read(name, tmp_path):
    train, val, classes, _ = SETS[name]
    make(name, tmp_path)
    found = {split: raw_datasets.list_tasks(name, tmp_path, split) for split in ("train", "val")}
    assert [len(tasks) for tasks in found.values()] == [train, val]
    names = [task.name for tasks in found.values() for task in tasks]
    assert len(set(names)) == train + val
    assert len(
        {
            file
            for tasks in found.values()
            for task in tasks
            for file in task.files
            if file.is_file()
        }
    ) == 2 * len(names)
    ((stem, image, label),) = found["train"][0].load()
    pixels = decode_image(image.read_bytes(), image) if isinstance(image, Path) else image
    assert stem.startswith(found["train"][0].name) and pixels.dtype == label.dtype == np.uint8
    assert pixels.shape == (*label.shape, 3) and along(label[0]) == classes
    assert set(np.unique(label)) <= {*range(get_spec(name).num_classes), 255}
    if not isinstance(image, Path):
        np.testing.assert_array_equal(pixels[: SIZE[0], : SIZE[1]], photo())


@pytest.mark.parametrize("name", SETS)
def test_a_missing_piece_is_named_with_where_it_comes_from(name, tmp_path):
    missing = SETS[name][3]
    (make(name, tmp_path) / missing).unlink()
    if name == "camvid":  # without a list the labels say what there is
        lines(tmp_path / "train.txt", "0006R0_f00930")
    with pytest.raises(DataError) as caught:
        raw_datasets.list_tasks(name, tmp_path, "train")
    tail = missing.rsplit("/")[-1]
    assert all(part in str(caught.value) for part in (str(tmp_path), tail, name, "unpack there")), (
        str(caught.value)
    )
    with pytest.raises(DataError) as caught:
        raw_datasets.list_tasks(name, tmp_path / "elsewhere", "val")
    assert (caught.value.file, caught.value.field) == (str(tmp_path / "elsewhere"), "root")


@pytest.mark.parametrize(
    "name, given, split, field",
    [
        ("ade20k", True, "train", "name"),
        ("drive", True, "test", "splits"),
        ("drive", False, "train", "root"),
        ("isaid", True, "train", "root"),
        ("camvid", True, "train", "root"),
    ],
)
def test_wrong_names_are_refused(tmp_path, name, given, split, field):
    with pytest.raises(DataError) as caught:
        raw_datasets.list_tasks(name, tmp_path if given else "", split)
    assert caught.value.field == field and f"'{name}'" in caught.value.problem


# --- Single sets ----------------------------------------------------------------------------------


def test_voc_train_keeps_its_own_labels(tmp_path):
    make_voc12aug(tmp_path)
    expected = ["2007_000032", "2007_000039", "2008_000002", "2008_000003"]
    for root in (tmp_path, tmp_path / "VOCdevkit/.."):
        assert [
            task.name for task in raw_datasets.list_tasks("voc12aug", root, "train")
        ] == expected
    ((_, image, label),) = raw_datasets.list_tasks("voc12aug", tmp_path, "train")[2].load()
    assert image == tmp_path / "VOCdevkit/VOC2012/JPEGImages/2008_000002.jpg" and along(
        label[0]
    ) == [0, 15]
    (tmp_path / "benchmark_RELEASE").rename(tmp_path / "VOCdevkit/VOCaug")
    assert [
        task.name for task in raw_datasets.list_tasks("voc12aug", tmp_path / "VOCdevkit", "train")
    ] == expected


def test_a_mat_file_must_hold_its_array(tmp_path):
    make_coco_stuff10k(tmp_path)
    (task,) = raw_datasets.list_tasks("coco_stuff10k", tmp_path, "train")
    file = tmp_path / "annotations/COCO_train2014_000000000077.mat"
    savemat(file, {"T": np.zeros(SIZE)})
    for content in (file.read_bytes(), b"no mat"):
        file.write_bytes(content)
        with pytest.raises(DataError) as caught:
            list(task.load())
        assert caught.value.file == str(file) and "array S" in caught.value.problem
    savemat(file, {"S": bars(12, 1)})  # an id that COCO-Stuff does not give
    with pytest.raises(DataError, match="label value 12"):
        list(task.load())
    savemat(file, {"S": bars(1, 1)[:5]})
    with pytest.raises(DataError, match=r"8x6 .* 8x5"):
        list(task.load())


def test_ids_agree_with_the_classes():
    for name, rest in (("pascal_context", 0), ("pascal_context_59", 255)):
        spec = get_spec(name)
        ids = raw_labels.context_ids(spec)
        assert {spec.classes[ids[raw]] for raw in (2, 284, 397, 458)} == {
            "aeroplane",
            "person",
            "table",
            "wood",
        }
        assert ids[0] == ids[459] == rest and sorted({*ids.values()} - {255}) == list(
            range(spec.num_classes)
        )
    spec = get_spec("coco_stuff10k")
    ids = raw_labels.coco_ids(spec)
    assert [spec.classes[ids[raw]] for raw in (1, 13, 90, 92, 182)] == [
        "person",
        "stop sign",
        "toothbrush",
        "banner",
        "wood",
    ]
    assert len(ids) == 172 and ids[0] == 255


def test_labels_without_boundary_are_preferred_and_not_mixed(tmp_path):
    make_potsdam(tmp_path, "5_Labels_all/top_potsdam_{}_label.tif")
    assert len(raw_datasets.list_tasks("potsdam", tmp_path, "val")) == 14
    put(
        tmp_path / "5_Labels_all_noBoundary/top_potsdam_2_13_label_noBoundary.tif",
        bars((0, 0, 0)).astype(np.uint8),
    )
    with pytest.raises(DataError, match=r"top_potsdam_2_14_label_noBoundary\.tif"):
        raw_datasets.list_tasks("potsdam", tmp_path, "val")


def test_complete_labels_of_vaihingen_have_the_names_of_its_images(tmp_path):
    make_vaihingen(tmp_path, "gts/top_mosaic_09cm_{}.tif")
    ((stem, _, label),) = raw_datasets.list_tasks("vaihingen", tmp_path, "val")[0].load()
    assert stem == "area2_0_0_512_512" and along(label[0]) == [2, 4, 255]


def test_a_few_stray_colours_are_ignored_and_more_are_an_error(tmp_path, caplog):
    make_isaid(tmp_path)
    task = raw_datasets.list_tasks("isaid", tmp_path, "val")[0]
    colors = np.zeros((20, 30, 3), np.uint8)
    put(tmp_path / "val/images/images/P0003.png", photo((20, 30)))
    file = tmp_path / "val/Semantic_masks/images/P0003_instance_color_RGB.png"
    colors[4, 7:13] = 0, 0, 64
    put(file, colors)
    ((_, _, label),) = task.load()
    assert (label[4, 7:13] == 255).all() and (label[:20, :30] == 0).sum() == 594
    assert "6 of 600 pixels" in caplog.text and str(file) in caplog.text
    colors[5, 7] = 0, 0, 64
    put(file, colors)
    with pytest.raises(
        DataError,
        match=r"RGB.png: 7 of 600 .* \(0, 0, 64\) at row 4, column 7; the nearest is \(0, 0, 63\)",
    ):
        list(task.load())


def test_camvid_is_split_as_by_segnet_or_by_a_list(tmp_path):
    make_camvid(tmp_path)
    names = {
        split: [task.name for task in raw_datasets.list_tasks("camvid", tmp_path, split)]
        for split in ("train", "val", "test")
    }
    assert names["train"] == ["0001TP_008520", "0006R0_f00930", "0016E5_07920"]
    assert names["val"] == ["0016E5_07959", "0016E5_08159"] and names["test"] == [
        "0001TP_008550",
        "Seq05VD_f00000",
    ]
    lines(
        tmp_path / "val.txt",
        "/SegNet/CamVid/val/0006R0_f00930.png /SegNet/CamVid/valannot/0006R0_f00930.png",
    )
    assert [task.name for task in raw_datasets.list_tasks("camvid", tmp_path, "val")] == [
        "0006R0_f00930"
    ]


def test_camvid_has_a_class_for_each_of_its_colours():
    colors = [color for group in raw_labels.CAMVID_COLORS for color in group]
    assert len(set(colors)) == 31 and (0, 0, 0) not in colors
    assert len(raw_labels.CAMVID_COLORS) == get_spec("camvid").num_classes


def test_masks_are_0_and_255(tmp_path):
    make_stare(tmp_path, ".ppm")
    task = raw_datasets.list_tasks("stare", tmp_path, "val")[-1]
    assert task.name == "im0324"
    ((_, image, label),) = task.load()
    np.testing.assert_array_equal(image, photo())
    np.testing.assert_array_equal(label, MASK // 255)
    file = tmp_path / "labels-ah/im0324.ah.ppm"
    put(file, MASK // 255)
    for content, words in ((file.read_bytes(), "largest value is 1"), (b"", "cannot be read")):
        file.write_bytes(content)
        with pytest.raises(DataError) as caught:
            list(task.load())
        assert caught.value.file == str(file) and words in caught.value.problem


# --- Tiles ----------------------------------------------------------------------------------------

# Width and height of Vaihingen's images, by area.
# fmt: off
VAIHINGEN_SIZES = {
    1: (1919, 2569), 2: (2428, 2767), 3: (2006, 3007), 4: (1887, 2557), 5: (1887, 2557),
    6: (1887, 2557), 7: (1887, 2557), 8: (1887, 2557), 10: (1887, 2557), 11: (1893, 2566),
    12: (1922, 2575), 13: (2818, 2558), 14: (1919, 2565), 15: (1919, 2565), 16: (1919, 2565),
    17: (2336, 1281), 20: (1866, 2315), 21: (1903, 2546), 22: (1903, 2546), 23: (1903, 2546),
    24: (1903, 2546), 26: (2995, 1783), 27: (1917, 3313), 28: (1917, 2567), 29: (1917, 2563),
    30: (1934, 2563), 31: (1980, 2555), 32: (1980, 2555), 33: (1581, 2555), 34: (1388, 2555),
    35: (2805, 1884), 37: (1996, 1995), 38: (3816, 2550),
}
# fmt: on


def count(name, width, height):
    side, stride, _ = raw_datasets.DATASETS[name].tile
    return len(raw_datasets.tile_starts(width, side, stride)) * len(
        raw_datasets.tile_starts(height, side, stride)
    )


def test_tiles_are_as_many_as_published():
    assert [len(stems) * count("potsdam", 6000, 6000) for stems in raw_datasets.POTSDAM] == [
        3456,
        2016,
    ]
    sizes = [[VAIHINGEN_SIZES[int(stem[4:])] for stem in stems] for stems in raw_datasets.VAIHINGEN]
    assert [sum(count("vaihingen", *size) for size in part) for part in sizes] == [344, 398]


def test_the_last_tile_is_moved_back_to_the_border():
    assert raw_datasets.tile_starts(6000, 512, 512)[-2:] == [5120, 5488]
    assert raw_datasets.tile_starts(1024, 512, 512) == [0, 512] and raw_datasets.tile_starts(
        1025, 512, 512
    ) == [
        0,
        512,
        513,
    ]
    assert raw_datasets.tile_starts(896, 896, 512) == raw_datasets.tile_starts(100, 896, 512) == [0]
    assert raw_datasets.tile_starts(1408, 896, 512) == [0, 512] and raw_datasets.tile_starts(
        1500, 896, 512
    ) == [
        0,
        512,
        604,
    ]


def test_tiles_of_isprs(tmp_path):
    make_potsdam(tmp_path)
    image, colors = photo((512, 600)), np.zeros((512, 600, 3), np.uint8)
    colors[:, 520:] = 0, 255, 0
    put(tmp_path / "2_Ortho_RGB/top_potsdam_2_10_RGB.tif", image)
    put(tmp_path / "5_Labels_all_noBoundary/top_potsdam_2_10_label_noBoundary.tif", colors)
    first, second = raw_datasets.list_tasks("potsdam", tmp_path, "train")[0].load()
    assert (first[0], second[0]) == ("2_10_0_0_512_512", "2_10_88_0_600_512")
    np.testing.assert_array_equal(second[1], image[:, 88:])
    assert (
        (first[2] == 255).all()
        and (second[2][:, 432:] == 3).all()
        and (second[2][:, :432] == 255).all()
    )


def test_tiles_of_isaid_are_padded(tmp_path):
    make_isaid(tmp_path)
    image = photo((700, 1000))
    put(tmp_path / "val/images/images/P0003.png", image)
    put(
        tmp_path / "val/Semantic_masks/images/P0003_instance_color_RGB.png",
        np.zeros((700, 1000, 3), np.uint8),
    )
    tiles = list(raw_datasets.list_tasks("isaid", tmp_path, "val")[0].load())
    assert [name for name, _, _ in tiles] == ["P0003_0_896_0_896", "P0003_0_896_104_1000"]
    _, pixels, label = tiles[1]
    assert (
        pixels.shape == (896, 896, 3)
        and (pixels[700:] == 0).all()
        and (label[700:] == 255).all()
        and (label[:700] == 0).all()
    )
    np.testing.assert_array_equal(pixels[:700], image[:, 104:])
