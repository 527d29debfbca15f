"""The table of published experiments, and fetching their weights from a server that misbehaves."""

import hashlib
import http.server
import re
import threading
from pathlib import Path

import pytest

from jaxseg import zoo
from jaxseg.errors import ConfigError
from jaxseg.weights.download import DownloadError, fetch


def test_the_table_is_whole():
    rows = zoo.published()
    assert zoo.published() is rows and len(rows) == len({row["name"] for row in rows}) == 478
    for row in rows:
        assert bool(row["checkpoint"]) == bool(row["url_path"])
        if row["checkpoint"]:
            assert row["url_path"].endswith(f"/{row['checkpoint']}") and re.search(
                r"-[0-9a-f]{8}\.pth$", row["checkpoint"]
            )
    assert sum(bool(row["url_path"]) for row in rows) == 449


def test_a_file_belongs_to_the_experiment_of_its_name():
    """Backbone, crop and schedule are in the file's name."""
    odd = (
        "fast_scnn_512x1024_160k_cityscapes",
        "fcn_m-v2-d8_512x1024_80k_cityscapes",
    )  # files of names of their own
    for row in zoo.published():
        if row["checkpoint"] and row["name"] not in odd:
            parts = [
                f"_{zoo.backbone_of(row)}_" if zoo.backbone_of(row) else "",
                *re.search(r"(\d+x\d+)_(\d+k)", row["name"]).groups(),
            ]
            assert all(part in row["checkpoint"] for part in parts), row


def test_methods_cover_every_experiment_once():
    assert len(zoo.METHODS) == 25
    names = [row["name"] for method in zoo.METHODS for row in zoo.rows_of(method)]
    assert sorted(names) == sorted(row["name"] for row in zoo.published())


def test_tables():
    table = zoo.markdown_table()
    assert (
        table.startswith(zoo.BEGIN)
        and table.endswith(zoo.END)
        and len(table.splitlines()) == 25 + 4
    )
    assert "| Fast-SCNN | `fast_scnn` | its own | 1.5 | 70.96 | - | - | 1 |" in table
    rows = zoo.find(["pspnet", "r18-d8", "512x1024"])
    assert [row["name"] for row in rows] == ["pspnet_r18-d8_512x1024_80k_cityscapes"]
    file = "pspnet_r18-d8_512x1024_80k_cityscapes_20201225_021458-09ffa746.pth"
    assert f"12,790,086  74.87    76.04  {file}" in zoo.text_table(rows)


def test_the_readme_has_the_table_that_the_code_makes():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert zoo.markdown_table() in readme, (
        "run python scripts/list_configs.py --markdown and put its output into README.md"
    )


def test_weights_path():
    name = "fcn_r50-d8_512x1024_40k_cityscapes"
    path = f"mmsegmentation/v0.5/fcn/{name}/{name}_20200604_192608-efe53f0d.pth"
    assert zoo.weights_path(name) == path
    assert zoo.weights_path("hrnetv2_w18").endswith("hrnetv2_w18-00eb2006.pth")
    for name, decisive in (
        ("fcn_r50-d8_512x1024_40k_citiscapes", "'fcn_r50-d8_512x1024_40k_cityscapes'"),
        ("", "478"),
        ("encnet_r50s-d8_512x512_80k_ade20k", "encnet"),
    ):
        with pytest.raises(ConfigError) as error:
            zoo.weights_path(name)
        assert (
            error.value.field == "name"
            and f"'{name}'" in error.value.problem
            and decisive in error.value.hint
        )


CONTENT = bytes(range(256)) * 400
NAME = f"net_{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth".replace("net_", "net-")


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if not self.path.endswith(".pth"):
            self.send_error(404)
            return
        asked = (
            re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") if server.ranges else None
        )
        start = int(asked[1]) if asked else 0
        if asked and start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.drop_after or None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.content, server.requests, server.ranges, server.drop_after = CONTENT, [], True, 0
    server.address = f"http://127.0.0.1:{server.server_port}/mirror/"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetches_once(server, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_MMSEG_URL", server.address)
    seen = []
    for _ in range(2):
        path = fetch(f"v0.5/net/{NAME}", tmp_path / "new", progress=lambda *at: seen.append(at))
        assert path == tmp_path / "new" / NAME and path.read_bytes() == CONTENT
    assert server.requests == [(f"/mirror/v0.5/net/{NAME}", None)] and seen[-1] == (
        len(CONTENT),
        len(CONTENT),
    )
    assert [p.name for p in path.parent.iterdir()] == [NAME]


@pytest.mark.parametrize("ranges", [True, False])
def test_continues_what_is_there(server, tmp_path, ranges):
    server.ranges = ranges
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    assert fetch(NAME, tmp_path, server.address).read_bytes() == CONTENT
    assert server.requests == [(f"/mirror/{NAME}", "bytes=1000-")]


def test_continues_after_dropped_connections(server, tmp_path):
    server.drop_after = 30000
    assert fetch(NAME, tmp_path, server.address).read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]


def test_takes_a_part_that_was_complete(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert fetch(NAME, tmp_path, server.address).read_bytes() == CONTENT


def test_refuses_a_corrupted_file(server, tmp_path):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(DownloadError, match=f"not {NAME[4:12]}") as error:
        fetch(NAME, tmp_path, server.address)
    assert error.value.file == f"{server.address}{NAME}"
    assert [path.name for path in tmp_path.iterdir()] == [f".{NAME}.lock"]
    (tmp_path / NAME).write_bytes(b"something else")
    with pytest.raises(DownloadError) as error:
        fetch(NAME, tmp_path, server.address)
    assert error.value.file == str(tmp_path / NAME)


def test_fetching_one_file_twice_at_once_sends_it_once(server, tmp_path):
    server.drop_after, results = 30000, []  # several connections, so that both would append
    threads = [
        threading.Thread(
            target=lambda: results.append(fetch(NAME, tmp_path, server.address).read_bytes())
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 4 and len(server.requests) == 4
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


def test_says_what_is_wrong(server, tmp_path):
    with pytest.raises(DownloadError) as error:
        fetch("v0.5/nothing", tmp_path, server.address)
    assert "404" in error.value.problem and error.value.file == f"{server.address}v0.5/nothing"
    with pytest.raises(DownloadError) as error:
        fetch(NAME, tmp_path, "file:///etc")
    assert error.value.file == "file:///etc" and error.value.field == "address"
    with pytest.raises(DownloadError) as error:
        fetch(NAME, tmp_path, "http://127.0.0.1:9")
    assert error.value.file == f"http://127.0.0.1:9/{NAME}" and not error.value.hint
