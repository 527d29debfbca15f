"""Home folders, text in any encoding, and folders as their owners see them."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxseg import checkpoint, files
from jaxseg.errors import DataError, JaxsegError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root, found):
    return [str(path.relative_to(root)) for path in found]


# --- Paths ----------------------------------------------------------------------------------------


def test_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert files.expand("~/a/~b") == Path("/home/ann/a/~b") and files.expand(Path("~")) == Path(
        "/home/ann"
    )
    assert files.expand("~root/x") == Path(os.path.expanduser("~root/x")) != Path("~root/x")
    assert files.expand("a~/x") == Path("a~/x")


def test_home_in_the_librarys_own_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JAXSEG_CACHE", "~/cache")
    assert files.cache_dir() == tmp_path / "cache"
    touch(tmp_path, "run/config.json", "run/checkpoints/5/x")
    assert checkpoint.find_workdir("~/run") == (tmp_path / "run", None)
    assert checkpoint.find_workdir("~/run/checkpoints/5") == (tmp_path / "run", "5")


# --- Text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_that_says_its_encoding(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("caf\u00e9\n\u9053\u8def\n", encoding=encoding)
    assert files.read_text(tmp_path / "a.txt") == "caf\u00e9\n\u9053\u8def\n"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be"])
def test_text_that_does_not(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("caf\u00e9 is a word\n", encoding=encoding)
    with pytest.raises(DataError) as caught:
        files.read_text(tmp_path / "a.txt")
    assert caught.value.file == str(tmp_path / "a.txt") and caught.value.hint == "save it as UTF-8"


def test_json(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-16")
    assert files.read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_text("{")
    for name, words in (("a.json", "not JSON"), ("b.json", "cannot be read")):
        with pytest.raises(DataError) as caught:
            files.read_json(tmp_path / name)
        assert caught.value.file == str(tmp_path / name) and words in caught.value.problem


# --- Folders --------------------------------------------------------------------------------------


def test_what_systems_and_editors_leave_behind(tmp_path):
    touch(tmp_path, "a.png", "sub/b.png", "notes.txt")
    others = (
        ".DS_Store",
        "._a.png",
        ".ipynb_checkpoints/a.png",
        "@eaDir/a.png/t.jpg",
        "__MACOSX/._a.png",
        "a.png~",
        "#a.png#",
        "sub/.git/c.png",
        "lost+found/d",
    )
    touch(tmp_path, *others)
    tree = files.walk(tmp_path)
    assert names(tmp_path, tree.files) == ["a.png", "notes.txt", "sub/b.png"]
    assert set(names(tmp_path, tree.left_out)) == {
        "#a.png#",
        ".DS_Store",
        "._a.png",
        ".ipynb_checkpoints",
        "@eaDir",
        "__MACOSX",
        "a.png~",
        "lost+found",
        "sub/.git",
    }
    assert names(tmp_path, files.walk(tmp_path, nested=False).files) == ["a.png", "notes.txt"]
    assert names(tmp_path, files.walk(tmp_path, without=tmp_path / "sub").files) == [
        "a.png",
        "notes.txt",
    ]


def test_circles_of_links_end(tmp_path):
    touch(tmp_path, "root/a.png", "root/one/b.png", "root/two/c.png")
    root = tmp_path / "root"
    for link, target in {
        "self": ".",
        "one/up": "..",
        "one/other": "../two",
        "two/other": "../one",
        "above": "../..",
        "knot": "knot",
    }.items():
        (root / link).symlink_to(target)
    tree = files.walk(root)
    assert names(root, tree.files) == ["a.png", "one/b.png", "two/c.png"]
    assert names(root, tree.left_out) == [
        "above",
        "one/other",
        "one/up",
        "self",
        "two/other",
    ] and names(root, tree.broken) == ["knot"]


def test_folders_behind_links_are_listed_once(tmp_path):
    touch(tmp_path, "elsewhere/a.png", "elsewhere/deep/b.png", "root/z/c.png")
    root = tmp_path / "root"
    for link, target in {
        "first": "../elsewhere",
        "second": "../elsewhere",
        "a": "z",
        "file.png": "z/c.png",
        "gone": "nowhere",
    }.items():
        (root / link).symlink_to(target)
    tree = files.walk(root)
    assert names(root, tree.files) == ["file.png", "first/a.png", "first/deep/b.png", "z/c.png"]
    assert names(root, tree.left_out) == ["a", "second"] and names(root, tree.broken) == ["gone"]


def test_a_folder_that_cannot_be_listed(tmp_path):
    with pytest.raises(DataError) as caught:
        files.walk(tmp_path / "nowhere")
    assert caught.value.file == str(tmp_path / "nowhere")


# --- Locks ----------------------------------------------------------------------------------------


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_only_one_thread_makes_a_file(tmp_path):
    target, made = tmp_path / "sub/a.txt", []

    def make():
        with files.locked(target):
            if not target.exists():
                made.append(1)
                time.sleep(0.05)
                with files.atomic_path(target) as part:
                    part.write_text("x")

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and os.listdir(target.parent) == ["a.txt"]


def test_a_held_lock_is_waited_for_with_one_message(tmp_path, caplog):
    target, order = tmp_path / "a.txt", []

    def make():
        with files.locked(target, waiting="waiting for a.txt"):
            order.append("second")

    caplog.set_level(logging.INFO, "jaxseg")
    with files.locked(target, waiting="never logged"):
        thread = threading.Thread(target=make)
        thread.start()
        while not caplog.messages:
            thread.join(0.01)
        with pytest.raises(JaxsegError) as caught, files.locked(target, wait=False):
            pass
        order.append("first")
    thread.join()
    assert caught.value.file == str(target)
    assert order == ["first", "second"] and caplog.messages == ["waiting for a.txt"]
    assert hidden(tmp_path) == [".a.txt.lock"]  # nothing was made: the next one locks the same file


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = "import os, sys\nfrom jaxseg import files\nwith files.locked(sys.argv[1]): os._exit(9)"
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    assert subprocess.run(command).returncode == 9
    with files.locked(tmp_path / "a", wait=False):
        assert hidden(tmp_path) == [".a.lock"]


def test_a_lock_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(JaxsegError) as caught, files.locked(tmp_path / "file/a"):
        pass
    assert caught.value.file == str(tmp_path / "file/a")
