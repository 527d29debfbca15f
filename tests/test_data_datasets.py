"""Specs: class counts, palettes, label maps, and the classes of a folder."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxseg.data import statistics
from jaxseg.data.catalog import get_spec, list_datasets
from jaxseg.data.decode import make_table, map_label
from jaxseg.data.folder_spec import default_palette
from jaxseg.data.sources import records
from jaxseg.data.validate import checks
from jaxseg.errors import DataError

NUM_CLASSES = {
    "shapes": 7,
    "cityscapes": 19,
    "dark_zurich": 19,
    "night_driving": 19,
    "ade20k": 150,
    "voc12": 21,
    "voc12aug": 21,
    "pascal_context": 60,
    "pascal_context_59": 59,
    "coco_stuff10k": 171,
    "coco_stuff164k": 171,
    "loveda": 7,
    "potsdam": 6,
    "vaihingen": 6,
    "isaid": 16,
    "mapillary_v1_65": 65,
    "camvid": 11,
    "drive": 2,
    "chase_db1": 2,
    "hrf": 2,
    "stare": 2,
}


@pytest.mark.parametrize("name", [name for name in list_datasets() if name != "folder"])
def test_spec_is_complete(name):
    spec = get_spec(name)
    assert spec.num_classes == NUM_CLASSES[name] == len(spec.palette)
    assert len(set(spec.classes)) == spec.num_classes and all(c == c.strip() for c in spec.classes)
    assert all(len(color) == 3 and min(color) >= 0 and max(color) <= 255 for color in spec.palette)
    assert sorted(set(spec.label_map.values()) - {255}) == list(range(spec.num_classes))
    facts = json.loads(spec.to_json())
    assert tuple(facts["classes"]) == spec.classes and facts["label_map"]["1"] == spec.label_map[1]


def test_label_maps():
    assert get_spec("cityscapes").label_map[7] == 0 and get_spec("cityscapes").label_map[33] == 18
    assert get_spec("cityscapes").label_map[29] == 255 and get_spec("cityscapes").palette[0] == (
        128,
        64,
        128,
    )
    assert get_spec("ade20k").label_map[0] == 255 and get_spec("ade20k").label_map[150] == 149
    assert (
        11 not in get_spec("coco_stuff164k").label_map
        and get_spec("coco_stuff164k").label_map[181] == 170
    )
    assert (
        get_spec("mapillary_v1_65").label_map[65] == 255 and get_spec("camvid").label_map[11] == 255
    )


def test_unknown_name_gives_the_nearest():
    with pytest.raises(DataError, match=r"'cityscape'\. Did you mean 'cityscapes'"):
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
        ("", "holds no class"),
        ("a\nb\na\n", "line 1: class 'a' is listed 2 times"),
        ("a\n", "holds one class; softmax needs two or more: list the background as class 0"),
        ("a 1 2 3\nvoid 0 0 0\n", "holds one class"),
        ("void\n", "holds no class that is not ignored"),
        ("a 1 2 3\nb 1 2 3\n", r"line 2: colour \(1, 2, 3\) of 'b' is also that of 'a'"),
        ("a 1 2 300\nb\n", "line 1: colour .* of 'a' is not within"),
        ("0 a\n0 b\n", "line 2: label value 0 of 'b' is also that of 'a'"),
        ("0 a\n" + "9" * 5000 + " b\n", "holds a number of 5000 digits"),
        (
            "0 a\n4294967296 b\n",
            "line 2: label value 4294967296 is not within -2147483648..4294967295",
        ),
        ("\n".join(map(str, range(300))), "300 classes; at most 254"),
    ],
)
def test_bad_classes(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    refused(tmp_path, message)


def refused(root, message, file="classes.txt"):
    """The error about a file of a `folder`."""
    with pytest.raises(DataError) as caught:
        get_spec("folder", root)
    assert Path(caught.value.file) == root / file and re.search(message, caught.value.problem), str(
        caught.value
    )
    return caught.value


# Every form in which lists of classes are written -> (label value, name) of each class.
ONE, TWO = {0: "ground", 1: "box"}, {1: "ground", 2: "box"}
FORMS = {
    "ground\r\nbox\r\n": ONE,
    "\ufeffground\nbox": ONE,
    "- ground\n- box\n": ONE,
    "ground,\nbox,\n": ONE,
    "'ground'\n\"box\"\n": ONE,
    "ground, box\n": ONE,
    "ground;box": ONE,
    "ground|box": ONE,
    '["ground", "box"]': ONE,
    "CLASSES = ('ground', 'box',)": ONE,
    "1 ground\n2 box\n": TWO,
    "1: ground\n2: box": TWO,
    "1,ground\n2,box": TWO,
    "1;ground\n2;box": TWO,
    "1\tground\n2\tbox": TWO,
    "1. ground\n2. box": TWO,
    "1) ground\n2) box": TWO,
    "1|ground\n2|box": TWO,
    "1=ground\n2=box": TWO,
    "ground: 1\nbox: 2": TWO,
    "ground,1\nbox,2": TWO,
    "ground 1\nbox 2": TWO,
    '{"1": "ground", "2": "box"}': TWO,
    "{'ground': 1, 'box': 2}": TWO,
    '[{"id": 1, "name": "ground"}, {"id": 2, "name": "box"}]': TWO,
    "names:\n  1: ground\n  2: box": TWO,
    "Pixel Value, Class\n1, ground\n2, box\n": TWO,
    "id,name\n1,ground\n2,box": TWO,
    "name;id\nground;1\nbox;2": TWO,
    "id name\n1 ground\n2 box": TWO,
    "label\n1 ground\n2 box": TWO,
    "Idx,Ratio,Stuff,Name\n1,0.5,1,ground\n2,0.5,1,box\n": TWO,
    "7 ground\n70000 box": {7: "ground", 70000: "box"},
    "-1 ignore\n0 ground\n5 box": {0: "ground", 5: "box"},
    "__ignore__\n_background_\nbox": {0: "_background_", 1: "box"},
    "_background_\nbox": {0: "_background_", 1: "box"},
    "lane 1\nlane 2": {0: "lane 1", 1: "lane 2"},
    "0 lane 1\n1 lane 2": {0: "lane 1", 1: "lane 2"},
    "building, edifice\nbox": {0: "building, edifice", 1: "box"},
    "ground\nvoid\nbox": {0: "ground", 2: "box"},
    "Ignore\nground\nbox": TWO,
    "red\ngreen": {0: "red", 1: "green"},
    "key\nred light": {0: "key", 1: "red light"},
    "0 ground\n1 box\n255 void": ONE,
    "ground\nbox 1": {0: "ground", 1: "box 1"},
}
# The same with colours.
COLORED = [
    "ground 1 2 3\nbox 4 5 6",
    "ground,1,2,3\nbox,4,5,6",
    "ground (1, 2, 3)\nbox (4, 5, 6)",
    "1 2 3\tground\n4 5 6\tbox",
    "ground #010203\nbox #040506",
    "# label:color_rgb:parts:actions\nground:1,2,3::\nbox:4,5,6:lid,side:open\n",
    "0,ground,1,2,3\n1,box,4,5,6",
    "0 1 2 3 ground\n1 4 5 6 box",
    "name,r,g,b\nground,1,2,3\nbox,4,5,6",
    "name r g b\nground 1 2 3\nbox 4 5 6",
    'id,name,color\n0,ground,"1,2,3"\n1,box,#040506',
    "Value,Red,Green,Blue,Alpha,Class_Name\n0,1,2,3,255,ground\n1,4,5,6,255,box",
    '[{"name": "ground", "color": [1, 2, 3]}, {"name": "box", "color": "#040506"}]',
]
UNCLEAR = {
    "class\nground\nbox": "line 1: 'class' looks like a heading",
    "Class Name\nground\nbox": "line 1: 'Class Name' looks like a heading",
    "name\nground\nbox": "line 1: 'name' looks like a heading",
    "2\nground\nbox": "line 1: '2' is the number of classes",
    "car\n2 wheeler\n3 wheeler": "line 1: 'car' has no number",
    "0 ground\nbox": "line 2: 'box' has no number",
    "box\n__ignore__\nground": "line 2: __ignore__ is not the first",
    "ground,0,0,0,255\nbox,1,2,3,255": "line 1: it is not clear",
    "ground 9 8 7 255\nbox 1 2 3 255": "line 1: it is not clear",
    "ground 0.1 0.2 0.3\nbox 0.2 0.3 0.4": "line 1: it is not clear",
    "name,id,trainId\nground,7,0\nbox,8,1": "line 1: it is not clear which column",
    "[ground, box]": "is not one",
    '{"categories": []}': "is not a list of class names",
    "id,name\n0,ground,flat\n1,box,flat": "line 2: 3 columns",
}


@pytest.mark.parametrize("text", FORMS)
def test_every_form_of_a_class_list(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8", newline="")
    spec = get_spec("folder", tmp_path)
    assert {
        raw: spec.classes[index] for raw, index in spec.label_map.items() if index != 255
    } == FORMS[text]


@pytest.mark.parametrize("text", COLORED)
def test_every_form_of_a_class_list_with_colours(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    spec = get_spec("folder", tmp_path)
    assert (
        spec.classes == ("ground", "box")
        and spec.colors == ((1, 2, 3), (4, 5, 6))
        and spec.label_map == {0: 0, 1: 1}
    )


@pytest.mark.parametrize("text", UNCLEAR)
def test_class_lists_that_could_be_read_in_two_ways(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    refused(tmp_path, UNCLEAR[text])


def test_labelmes_ignored_class_has_no_number(tmp_path):
    (tmp_path / "classes.txt").write_text("__ignore__\n_background_\nbox\n")
    assert get_spec("folder", tmp_path).label_map == {-1: 255, 0: 0, 1: 1}


@pytest.mark.parametrize("text, explicit", [("a\nb", False), ("0 a\n1 b", True)])
def test_whether_the_label_values_were_written_down(tmp_path, text, explicit):
    (tmp_path / "classes.txt").write_text(text)
    assert get_spec("folder", tmp_path).explicit_map == explicit
    (tmp_path / "label_map.txt").write_text("0 a\n1 b\n")
    assert get_spec("folder", tmp_path).explicit_map
    assert get_spec("ade20k").explicit_map and not get_spec("voc12").explicit_map


# --- label_map.txt ---


def mapped(root, text):
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    (root / "label_map.txt").write_text(text)
    return get_spec("folder", root)


def test_label_values_of_any_size(tmp_path):
    spec = mapped(
        tmp_path,
        "-9999 ignore\n4294967295\tignore\n-2147483648: ignore\n0,sky\n"
        "-3--1 road\n-6..-5 road\n70000-70001 car\n",
    )
    assert spec.label_map == {
        -9999: 255,
        2**32 - 1: 255,
        -(2**31): 255,
        0: 0,
        -3: 1,
        -2: 1,
        -1: 1,
        -6: 1,
        -5: 1,
        70000: 2,
        70001: 2,
    }
    assert spec.label_ranges == () and spec.submission_ids == (0, -3, 70000)


def test_long_ranges_stay_ranges(tmp_path):
    spec = mapped(
        tmp_path, "1000-4294967295 ignore\n0 sky\n-2147483648--1 ignore\n1-300 road\n301 car\n"
    )
    assert spec.label_map == {0: 0, 301: 2}
    assert spec.label_ranges == (
        (-(2**31), -1, 255),
        (1, 300, 1),
        (1000, 2**32 - 1, 255),
    ) and spec.submission_ids == (0, 1, 301)
    (tmp_path / "dataset.json").write_text(spec.to_json())
    assert records._read_spec(tmp_path / "dataset.json", "folder") == dataclasses.replace(
        spec, layout=None
    )
    table = checks.format_label_map(spec)
    assert all(
        text in table
        for text in (
            "1-300 -> 1 road",
            "301 -> 2 car",
            "-2147483648..-1,1000-4294967295 -> ignored",
        )
    )


def test_labels_of_long_ranges_are_mapped(tmp_path):
    spec = mapped(tmp_path, "1000-4294967295 ignore\n-2147483648--1 sky\n0-299 road\n300-999 car\n")
    ids = np.array([[-9999, -1, 0], [299, 300, 2**32 - 1]])
    label = map_label(ids, make_table(spec.label_map, spec.label_ranges), spec, "x.tif")
    np.testing.assert_array_equal(label, [[0, 0, 1], [1, 2, 255]])
    with pytest.raises(DataError, match="label value -2147483649, 1 pixels"):
        map_label(ids - 2**31 + 9998, make_table(spec.label_map, spec.label_ranges), spec, "x.tif")


@pytest.mark.parametrize(
    "lines, problem",
    [
        ("5 sky\n", "line 4: label value 5 has a line already"),
        ("-2147483648-9 ignore\n", "line 4: label value 5 has a line already"),
        ("100-200 sky\n200-4294967295 car\n", "line 5: label value 200 has a line already"),
        ("9-8 ignore\n", "line 4: '9-8 ignore' ends below where it begins"),
        ("4294967296 ignore\n", "line 4: .* is not within"),
        ("-2147483649 ignore\n", "line 4: .* is not within"),
        ("1.5 ignore\n", "line 4: '1.5 ignore' is not a label value and a class"),
        ("8\n", "line 4: '8' is not a label value and a class"),
    ],
)
def test_label_maps_that_are_refused(tmp_path, lines, problem):
    with pytest.raises(DataError):
        mapped(tmp_path, "5 sky\n6 road\n7 car\n" + lines)
    refused(tmp_path, problem, "label_map.txt")


# --- Text of any encoding ---


@pytest.mark.parametrize("file", ["classes.txt", "label_map.txt"])
def test_encodings(tmp_path, file):
    texts = {"classes.txt": "sky\ncaf\u00e9\n", "label_map.txt": "0 sky\n1 caf\u00e9\n"}
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le", "utf-16-be"):
        for name, text in texts.items():
            (tmp_path / name).write_text(text, encoding=encoding if name == file else "utf-8")
        if encoding in ("latin-1", "utf-16-le", "utf-16-be"):
            refused(tmp_path, "is not UTF-8 text", file)
        else:
            assert get_spec("folder", tmp_path).classes == ("sky", "caf\u00e9")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings_of_what_lies_beside_records(tmp_path, encoding):
    spec = mapped(tmp_path, "0 sky\n1 road\n2 car\n")
    readers = {
        "statistics.json": (
            '{"mean": [1], "std": [2], "of": "\u00e9"}',
            lambda: statistics.read_statistics(tmp_path),
            ((1.0,), (2.0,)),
        ),
        "names.json": (
            '{"train": ["\u00e9"]}',
            lambda: records._names(tmp_path, spec, "train", 1),
            ["\u00e9"],
        ),
        "dataset.json": (
            spec.to_json().replace("sky", "\u00e9"),
            lambda: records._read_spec(tmp_path / "dataset.json", "folder").classes[0],
            "\u00e9",
        ),
    }
    for name, (text, read, value) in readers.items():
        (tmp_path / name).write_text(text, encoding=encoding)
        if encoding != "latin-1":
            assert read() == value
            continue
        with pytest.raises(DataError, match=f"{name}: is not UTF-8 text"):
            read()


@pytest.mark.parametrize("text", ["{", "[]", "[1, 2]"])
def test_names_that_cannot_be_read(tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(DataError) as caught:
        records._names(tmp_path, get_spec("voc12"), "train", 1)
    assert caught.value.file == str(tmp_path / "names.json")


def test_folder_colours(tmp_path):
    (tmp_path / "classes.txt").write_text(
        "road 128 64 128\nVoid 0 0 0\nsky 1 2 3\nignore 255 255 255\n"
    )
    spec = get_spec("folder", tmp_path)
    assert spec.classes == ("road", "sky") and spec.colors == spec.palette == (
        (128, 64, 128),
        (1, 2, 3),
    )
    assert spec.ignored_colors == ((0, 0, 0), (255, 255, 255)) and spec.label_map == {
        0: 0,
        1: 255,
        2: 1,
        3: 255,
    }
    assert json.loads(spec.to_json())["colors"] == [[128, 64, 128], [1, 2, 3]]
    (tmp_path / "classes.txt").write_text(
        "road 128 64 128\nvoid\nsky\n"
    )  # its number is ignored without a colour, too
    assert (
        get_spec("folder", tmp_path).label_map == {0: 0, 1: 255, 2: 1}
        and get_spec("folder", tmp_path).colors == ()
    )


def test_folder_without_root_or_classes(tmp_path):
    with pytest.raises(DataError) as error:
        get_spec("folder")
    assert (error.value.file, error.value.field) == ("", "dataset.root")
    with pytest.raises(DataError) as error:
        get_spec("folder", tmp_path / "nowhere")
    assert (error.value.file, error.value.field) == (str(tmp_path / "nowhere"), "dataset.root")
    with pytest.raises(DataError) as error:
        get_spec("folder", tmp_path)
    assert error.value.file == str(tmp_path / "classes.txt")
    (tmp_path / "_classes.csv").touch()
    with pytest.raises(DataError) as error:
        get_spec("folder", tmp_path)
    assert "_classes.csv" in error.value.hint


def test_default_palette_is_distinct():
    assert len(set(default_palette(254))) == 254
