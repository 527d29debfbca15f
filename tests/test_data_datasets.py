"""Specs: class counts, palettes, label maps, and the classes of a folder."""

import json

import pytest

from jaxseg.data.datasets import DataError, default_palette, get_spec, list_datasets

NUM_CLASSES = {
    "shapes": 7, "cityscapes": 19, "dark_zurich": 19, "night_driving": 19, "ade20k": 150, "voc12": 21, "voc12aug": 21,
    "pascal_context": 60, "pascal_context_59": 59, "coco_stuff10k": 171, "coco_stuff164k": 171, "loveda": 7, "potsdam": 6,
    "vaihingen": 6, "isaid": 16, "mapillary_v1_65": 65, "camvid": 11, "drive": 2, "chase_db1": 2, "hrf": 2, "stare": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in list_datasets() if name != "folder"])
def test_spec_is_complete(name):
    spec = get_spec(name)
    assert spec.num_classes == NUM_CLASSES[name] == len(spec.palette)
    assert len(set(spec.classes)) == spec.num_classes and all(c == c.strip() for c in spec.classes)
    assert all(len(color) == 3 and 0 <= min(color) and max(color) <= 255 for color in spec.palette)
    assert sorted(set(spec.label_map.values()) - {255}) == list(range(spec.num_classes))
    facts = json.loads(spec.to_json())
    assert tuple(facts["classes"]) == spec.classes and facts["label_map"]["1"] == spec.label_map[1]


def test_label_maps():
    assert get_spec("cityscapes").label_map[7] == 0 and get_spec("cityscapes").label_map[33] == 18
    assert get_spec("cityscapes").label_map[29] == 255 and get_spec("cityscapes").palette[0] == (128, 64, 128)
    assert get_spec("ade20k").label_map[0] == 255 and get_spec("ade20k").label_map[150] == 149
    assert 11 not in get_spec("coco_stuff164k").label_map and get_spec("coco_stuff164k").label_map[181] == 170
    assert get_spec("mapillary_v1_65").label_map[65] == 255 and get_spec("camvid").label_map[11] == 255


def test_unknown_name_gives_the_nearest():
    with pytest.raises(DataError, match="'cityscape'. Did you mean 'cityscapes'"):
        get_spec("cityscape")


def test_folder_classes(tmp_path):
    (tmp_path / "classes.txt").write_text("road\ntraffic light 250 170 30\n\nclass 7\n")
    spec = get_spec("folder", tmp_path)
    assert spec.classes == ("road", "traffic light", "class 7")
    assert spec.palette == (default_palette(3)[0], (250, 170, 30), default_palette(3)[2])
    assert spec.label_map == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "classes.txt: holds no class"),
        ("a\nb\na\n", "classes.txt, line 1: class 'a' is listed 2 times"),
        ("a\n", "classes.txt: holds one class; softmax needs two or more: list the background as class 0"),
        ("a 1 2 3\nvoid 0 0 0\n", "holds one class"),
        ("a 1 2 3\nb 1 2 3\n", r"line 2: colour \(1, 2, 3\) of 'b' is that of 'a' too"),
        ("a 1 2 300\nb\n", "line 1: colour .* of 'a' is not within"),
        ("\n".join(map(str, range(300))), "300 classes; at most 254"),
    ],
)
def test_bad_classes(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        get_spec("folder", tmp_path)


def test_folder_colours(tmp_path):
    (tmp_path / "classes.txt").write_text("road 128 64 128\nVoid 0 0 0\nsky 1 2 3\nignore 255 255 255\n")
    spec = get_spec("folder", tmp_path)
    assert spec.classes == ("road", "sky") and spec.colors == spec.palette == ((128, 64, 128), (1, 2, 3))
    assert spec.ignored_colors == ((0, 0, 0), (255, 255, 255)) and spec.label_map == {0: 0, 1: 255, 2: 1, 3: 255}
    assert json.loads(spec.to_json())["colors"] == [[128, 64, 128], [1, 2, 3]]
    (tmp_path / "classes.txt").write_text("road 128 64 128\nvoid\n")  # without a colour: a class
    assert get_spec("folder", tmp_path).classes == ("road", "void") and get_spec("folder", tmp_path).colors == ()


def test_folder_without_root_or_classes(tmp_path):
    with pytest.raises(DataError, match="--config.dataset.root=DIR"):
        get_spec("folder")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        get_spec("folder", tmp_path / "nowhere")
    with pytest.raises(DataError, match="classes.txt: no such file; write the class names"):
        get_spec("folder", tmp_path)


def test_default_palette_is_distinct():
    assert len(set(default_palette(254))) == 254
