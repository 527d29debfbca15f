"""check_data.py on one broken folder for each kind of problem, and browse_data.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.broken_data import ERRORS, WARNINGS, cut, kinds, label, relabel, report_on
from helpers.data_helpers import make_experiment, make_folder, train_batches, write_png
from PIL import Image

from jaxseg import browse
from jaxseg.config.schema import EvalConfig
from jaxseg.data import label_counts, statistics
from jaxseg.data.catalog import get_spec, load_spec
from jaxseg.data.sources import shapes
from jaxseg.data.validate import formatting, problems, report
from jaxseg.errors import DataError

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    return make_folder(tmp_path / "data")


def last_line(result):
    return formatting.as_text(result).splitlines()[-1]


def test_a_good_folder_is_ok_and_its_counts_are_kept(root, monkeypatch):
    result = report_on(root)
    text = formatting.as_text(result)
    assert (
        result.ok
        and not result.problems
        and last_line(result) == "ok: training can start, 0 warnings"
    )
    assert (
        "5 pairs" in text
        and "24x20 (5)" in text
        and "3 channels uint8 (5)" in text
        and "  2 car " in text
    )
    totals = result.splits[0].totals()
    np.testing.assert_allclose(result.weights, label_counts.class_weights(totals[:3]))
    assert "--config.losses.decode.class_weight='(" in text
    monkeypatch.setattr(
        type(result.splits[0].source),
        "read_label",
        lambda *_: pytest.fail("the labels were read again"),
    )
    np.testing.assert_array_equal(
        label_counts.count_labels(result.splits[0].source, 3).sum(0), totals
    )


@pytest.mark.parametrize("name", ERRORS)
def test_an_error(root, name):
    case = ERRORS[name]
    case.damage(root)
    result = report_on(root)
    text = formatting.as_text(result)
    assert kinds(result)[case.kind, case.split] == case.count and case.words in text, text
    assert not result.ok and last_line(result).startswith("NOT OK: training would go wrong: ")


@pytest.mark.parametrize("name", WARNINGS)
def test_a_warning(root, name):
    case = WARNINGS[name]
    case.damage(root)
    result = report_on(root)
    text = formatting.as_text(result)
    assert kinds(result) == {(case.kind, case.split): case.count} and case.words in text, text
    assert result.ok and last_line(result).startswith("ok: training can start, 1 warning")


def test_every_kind_of_problem_is_tested():
    assert {case.kind for case in (ERRORS | WARNINGS).values()} == set(problems.KINDS)
    assert all(problems.KINDS[case.kind].is_error for case in ERRORS.values())
    assert not any(problems.KINDS[case.kind].is_error for case in WARNINGS.values())


def test_problems_are_collected_not_stopped_at(root):
    ERRORS["values"].damage(root)
    os.link(root / "images/train/t1.png", root / "images/train/t1.webp")
    cut(root / "images/train/t0.png")
    (root / "labels/train/t3.png").unlink()
    (root / "labels/val/v1.png").unlink()
    result = report_on(root)
    assert kinds(result).keys() == {
        ("shared name", "train"),
        ("value", "train"),
        ("value", "val"),
        ("damaged image", "train"),
        ("missing label", "train"),
        ("missing label", "val"),
    }
    assert "999" in formatting.as_text(result) and not list(root.parent.glob("cache/labels/*"))


def test_few_files_of_many_are_printed_and_all_are_in_the_json(root):
    relabel(root, "train", 9)
    result = report_on(root)
    text = formatting.as_text(result)
    assert (
        "and 2 more (the JSON report lists all)" in text
        and "t2.png: label value 9" in text
        and "t3.png: label" not in text
    )
    assert text.count("change the value") == 1  # the fix is given once
    facts = json.loads(formatting.as_json(result))
    files = [problem["file"] for problem in facts["problems"] if problem["kind"] == "value"]
    assert [Path(file).stem for file in files] == ["t0", "t1", "t2", "t3", "t4"] and not facts["ok"]
    assert (
        facts["splits"]["val"]["pairs"] == 2
        and sum(facts["splits"]["val"]["pixels"]) + facts["splits"]["val"]["ignored"] == 960
    )


def test_slices_repetitions_and_sums_of_splits(root):
    result = report_on(root, train_split="train[:2]*3+train[2:]")
    assert len(result.splits[0].counts) == 9 and not result.problems
    cut(root / "labels/train/t0.png")
    assert kinds(report_on(root, train_split="train*3")) == {("damaged label", "train"): 1}
    (root / "labels/train/t0.png").write_bytes((root / "labels/train/t1.png").read_bytes())
    leaky = report_on(root, train_split="train + val")
    assert kinds(leaky) == {
        ("leak", "val"): 2
    } and "v1.png: training reads this file, too; take it out" in formatting.as_text(leaky)
    (root / "labels/train/t3.png").unlink()
    broken = report_on(root, train_split="train + val")
    assert kinds(broken) == {("missing label", "train"): 1, ("leak", "val"): 2}


def test_concatenated_data_sets_are_checked_and_counted(root, tmp_path):
    other = make_folder(tmp_path / "other", train=3)
    label(other, "train/t1", 0, 8)
    result = report_on(root, concat=dict(more=dict(name="folder", root=str(other), repeat=2)))
    assert kinds(result)["value", "train, concat.more"] == 1 and [
        split.title for split in result.splits
    ][1:] == ["train, concat.more", "val"]
    expected = result.splits[0].totals() + 2 * result.splits[1].totals()
    np.testing.assert_allclose(result.weights, label_counts.class_weights(expected[:3]))
    (other / "classes.txt").write_text("sky\nroad\nbus\n")
    with pytest.raises(DataError, match="number 2 is 'bus'") as caught:
        report_on(root, concat=dict(more=dict(name="folder", root=str(other))))
    assert caught.value.field == "dataset.concat.more"


def test_one_class_in_an_official_label_is_no_mistake(tmp_path):
    for split, count in (("training", 3), ("validation", 2)):
        for index in range(count):
            write_png(
                tmp_path / f"images/{split}/{split}{index}.jpg",
                np.full((8, 8, 3), 40 * index + count, np.uint8),
            )
            ids = np.resize(
                np.uint8([0, 1] if index else [1, 2, 3]), (8, 8)
            )  # 0 is ignored, 1 is the first class
            write_png(tmp_path / f"annotations/{split}/{split}{index}.png", ids)
    assert {kind for kind, _ in kinds(report_on(tmp_path, name="ade20k"))} == {"absent"}


def test_records_are_checked_too(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    monkeypatch.setattr(shapes, "SPLITS", {split: 4 for split in shapes.SPLITS})
    result = report_on("", name="shapes")
    assert len(result.splits[1].counts) and not any(
        problem.kind.startswith("damaged") for problem in result.problems
    )


def test_statistics_are_written_and_a_failure_is_reported(root):
    config = report.folder_config(str(root))

    def write():
        return report.check_data(config, EvalConfig(), load_spec(config), write_statistics=True)

    result = write()
    assert statistics.read_statistics(root) == statistics.image_statistics(result.splits[0].source)
    text = formatting.as_text(result)
    assert f"Wrote {root}/statistics.json, which train.py reads: mean (" in text
    cut(root / "labels/train/t0.png")  # which statistics do not need
    assert write().statistics
    cut(root / "images/train/t1.png")
    result = write()
    assert ("statistics", "train") in kinds(result) and result.statistics is None


# --- Scripts --------------------------------------------------------------------------------------


def run(script, *args):
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, args)],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_check_script_exits_by_what_it_finds(root, tmp_path):
    good = run(
        "check_data.py", f"--root={root}", f"--json={tmp_path / 'report.json'}", "--statistics"
    )
    assert (
        good.returncode == 0
        and good.stdout.splitlines()[-1] == "ok: training can start, 0 warnings"
    ), good.stderr
    assert (
        json.loads((tmp_path / "report.json").read_text())["ok"]
        and (root / "statistics.json").is_file()
    )
    ERRORS["values"].damage(root)
    variant = f"--config={SCRIPTS.parent}/configs/pspnet.py:r18-d8_240x320_2k_folder"
    bad = run("check_data.py", variant, f"--config.dataset.root={root}")
    assert bad.returncode == 1 and bad.stdout.splitlines()[-1].startswith("NOT OK"), bad.stderr
    assert "--config.losses.aux_0.class_weight=" in bad.stdout


def test_check_script_needs_a_folder_or_a_config():
    nothing = run("check_data.py")
    assert nothing.returncode == 1 and "give --root=DIR or --config" in nothing.stderr


# --- Browsing -------------------------------------------------------------------------------------


def write_pictures(experiment, output, count, raw=False):
    spec = load_spec(experiment.dataset)
    return browse.browse(experiment, spec, output, count, raw=raw)


@pytest.fixture
def panels(monkeypatch):
    """(photo, label) of every panel that is drawn."""
    seen = []

    def panel(photo, label, spec, title):
        seen.append((photo, label))
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(browse, "panel", panel)
    return seen


def test_browse_shows_what_training_sees(root, tmp_path, panels):
    experiment = make_experiment(root=root, ratio_range=(0.4, 0.4), cat_max_ratio=1.0)
    files = write_pictures(experiment, tmp_path / "look", 6)
    batches = train_batches(experiment, devices=1)
    batch = next(batches)
    rows = [{key: value[0, row] for key, value in batch.items()} for row in range(4)]
    for (photo, mask), row in zip(panels, rows):
        height, width = row["size"]
        assert photo.shape == (height, width, 3)
        assert height < 16 and width < 20  # the padding is not shown
        np.testing.assert_array_equal(photo, row["image"][:height, :width])
        np.testing.assert_array_equal(mask, row["label"][:height, :width])
    names = [Path(file).stem for file in batches.names(0)]
    batches.close()
    assert [file.stem for file in files[:4]] == [f"{i:03d}_{name}" for i, name in enumerate(names)]
    assert len(panels) == 6 and files[-1].name == "sheet.png"
    assert all(file.is_file() for file in files)


def test_browse_raw_shows_the_files(root, tmp_path, panels):
    files = write_pictures(make_experiment(root=root), tmp_path / "look", 3, raw=True)
    for (photo, _), file in zip(panels, files):
        stem = file.stem.split("_")[1]
        expected = cv2.imread(str(root / f"images/train/{stem}.png"))[..., ::-1]
        np.testing.assert_array_equal(photo, expected)


def test_a_panel_and_a_sheet_have_room_for_all(root):
    spec = get_spec("folder", root)
    photo, mask = np.full((30, 90, 3), 7, np.uint8), np.zeros((30, 90), np.int32)
    picture = browse.panel(photo, mask, spec, "title")
    assert (
        picture.shape[1] == 2 * 450 + browse.GAP and (picture[30, 30] == 7).all()
    )  # enlarged five times
    cells = [np.zeros((20 + i, 40, 3), np.uint8) for i in range(5)]
    sheet = browse.sheet(cells, [mask], spec)
    assert sheet.shape[1] == 4 * (40 + 2 * browse.GAP) and sheet.shape[0] > 2 * (
        24 + 2 * browse.GAP
    )
    assert Image.fromarray(sheet).size == sheet.shape[1::-1]
