"""Download published weights: resumable, and checked against the SHA-256 in the file's name."""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from jaxseg.errors import WeightsError
from jaxseg.files import expand, locked

ADDRESS = "https://download.openmmlab.com"  # MMSegmentation's own; JAXSEG_MMSEG_URL replaces it
MAX_IDLE_ATTEMPTS = 5  # connections in a row without new data before giving up
CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int], None]


class DownloadError(WeightsError):
    """A file cannot be downloaded, or is not the published one."""


def fetch(
    path: str, folder: str | Path, address: str = "", progress: Progress | None = None
) -> Path:
    """Download a file into a folder, unless it exists there.

    An existing file is checked and kept. An interrupted download is kept as `NAME.part` and
    continued by the next call; only a complete and checked file gets its final name. If several
    processes download the same file into the same folder at once, one downloads and the others
    wait.

    Args:
        path: Path of the file, relative to the address.
        folder: Folder for the file; created if it does not exist.
        address: Base URL; by default JAXSEG_MMSEG_URL, or MMSegmentation's own server.
        progress: Called with the bytes so far and in total, 0 if the server does not report it.

    Returns:
        The downloaded file.

    Raises:
        DownloadError: The address cannot be reached or has no such file, or the file's SHA-256 does
            not begin with the eight hexadecimal digits at the end of its name.
    """
    base = address or os.environ.get("JAXSEG_MMSEG_URL") or ADDRESS
    url = f"{base.rstrip('/')}/{path}"
    if not url.startswith(("http://", "https://")):
        raise DownloadError(
            "is not a web address",
            file=base,
            field="address",
            hint="give http://... or https://...",
        )
    target = expand(folder) / Path(path).name
    if target.is_file():
        _check_digest(target, target, hint="remove it and download it again")
        return target
    part = target.with_name(f"{target.name}.part")
    with locked(target, waiting=f"another process is downloading {target.name}; waiting for it"):
        if target.is_file():
            return target
        _receive(url, part, progress or (lambda done, total: None))
        try:
            _check_digest(part, url, hint="it was removed; download it again")
        except DownloadError:
            part.unlink()
            raise
        os.replace(part, target)
    return target


def _receive(url: str, part: Path, progress: Progress) -> None:
    """Append to `part` until it is complete, with as many connections as necessary."""
    idle = 0
    while True:
        start = _size(part)
        try:
            if _append(url, part, start, progress):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            problem = f"the server answers {error.code} {error.reason}"
            if error.code < 500:
                raise DownloadError(problem, file=url) from error
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        idle = 0 if _size(part) > start else idle + 1
        if idle == MAX_IDLE_ATTEMPTS:
            kept = f"the partial download stays in {part}, and the same command continues it"
            raise DownloadError(
                f"cannot be downloaded: {problem}", file=url, hint=kept if part.exists() else ""
            )


def _size(file: Path) -> int:
    """Size in bytes, 0 if there is no such file."""
    return file.stat().st_size if file.exists() else 0


def _append(url: str, part: Path, start: int, progress: Progress) -> bool:
    """Download from byte `start` over one connection; return whether the file is complete."""
    headers = {"User-Agent": "jaxseg"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        # Range not satisfiable: the part is complete or wrong, which the digest will show.
        if error.code == 416 and start:
            return True
        raise
    with response:
        resumed = response.status == 206
        received = response.headers.get("Content-Range", "")
        if resumed and not received.startswith(f"bytes {start}-"):
            raise DownloadError(
                f"the server sent another range than requested ({received})", file=url
            )
        done = start if resumed else 0  # a server without ranges starts over
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else 0
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    return done == total or not total


def _check_digest(file: Path, source: object, hint: str) -> None:
    """Compare the SHA-256 with the digits in the name NAME-<8 digits>.pth, if there are any."""
    expected = re.search(r"[-_]([0-9a-f]{8})\.\w+(?:\.part)?$", file.name)
    if expected is None:
        return
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(expected[1]):
        raise DownloadError(
            f"is not the published file (SHA-256 begins {found[:8]}, not {expected[1]})",
            file=source,
            hint=hint,
        )
