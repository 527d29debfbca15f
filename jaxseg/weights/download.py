"""Fetching published weights: resumed where a download stopped, checked against the SHA-256 in the file's name."""

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxseg.errors import WeightsError
from jaxseg.files import expand

log = logging.getLogger(__name__)

ADDRESS = "https://download.openmmlab.com"  # MMSegmentation's own; JAXSEG_MMSEG_URL replaces it
ATTEMPTS = 5  # connections in a row that bring nothing new before giving up
CHUNK = 1 << 20


class DownloadError(WeightsError):
    """A file that could not be fetched or is not what was published; the message says what to do."""


def fetch(
    path: str,
    folder: str | Path,
    address: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The file at `path` below `address` (or JAXSEG_MMSEG_URL, or MMSegmentation's own server), as a file in `folder`.

    A file that is there already is checked and kept. What has been fetched waits as NAME.part and is continued by the
    next call; only a complete and right file gets its name. `progress` is called with (bytes so far, bytes in all).

    Several processes may fetch one file into one folder at once: one does, the others wait for it.

    Raises:
        DownloadError: an unreachable address, a missing file, or one whose SHA-256 does not begin with the eight
            hexadecimal digits at the end of its name.
    """
    base = address or os.environ.get("JAXSEG_MMSEG_URL") or ADDRESS
    url = f"{base.rstrip('/')}/{path}"
    if not url.startswith(("http://", "https://")):
        raise DownloadError(
            "is no web address", file=base, field="--address", hint="give http://... or https://..."
        )
    target = expand(folder) / Path(path).name
    if target.is_file():
        _check(target, "it is not the published file", target, "remove it and run this again")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with _alone(part):
        if target.is_file():  # another process fetched it meanwhile
            return target
        _receive(url, part, progress or (lambda done, total: None))
        try:
            _check(part, "it is not the published file; it was removed", url, "run this again")
        except DownloadError:
            part.unlink()
            raise
        os.replace(part, target)
    return target


@contextlib.contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Wait until no other process fetches into `part`; a process that dies stops holding it."""
    while True:
        with open(part, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info(
                    "another process is fetching %s; waiting for it", part.with_suffix("").name
                )
                fcntl.flock(file, fcntl.LOCK_EX)
            # Renamed or removed while this waited, it is not the file of this name any more: once again.
            if not part.exists() or not os.path.samestat(os.fstat(file.fileno()), part.stat()):
                continue
            try:
                yield
            finally:
                if part.exists() and not part.stat().st_size:
                    part.unlink()
            return


def _receive(url: str, part: Path, progress: Callable[[int, int], None]) -> None:
    """Append to `part` until it has the length that the server says, over as many connections as that takes."""
    idle = 0
    while True:
        start = part.stat().st_size if part.exists() else 0
        try:
            if _append(url, part, start, progress):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DownloadError(
                    f"the server answers {error.code} {error.reason}", file=url
                ) from error
            problem = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        idle = 0 if part.exists() and part.stat().st_size > start else idle + 1
        if idle == ATTEMPTS:
            raise DownloadError(
                f"cannot be fetched: {problem}",
                file=url,
                hint=f"what has come stays in {part}, and the same command continues it",
            )


def _append(url: str, part: Path, start: int, progress: Callable[[int, int], None]) -> bool:
    """One connection from byte `start`; whether the file is complete now."""
    headers = {"User-Agent": "jaxseg", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if (
            error.code == 416 and start
        ):  # nothing follows: complete, or not this file; the digest tells
            return True
        raise
    with response:
        resumed = response.status == 206
        if resumed and not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
            raise DownloadError(
                f"the server sent another part than asked for ({response.headers.get('Content-Range')})",
                file=url,
            )
        done = start if resumed else 0  # a server without ranges starts over
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else 0
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    return done == total if total else True


def _check(file: Path, complaint: str, source: object, hint: str) -> None:
    """Compare with the digits in the name, NAME-<8 of SHA-256>.pth; a name without any cannot be checked.

    Raises:
        DownloadError: they differ; it says `complaint` of `source`, and the hint.
    """
    expected = re.search(r"[-_]([0-9a-f]{8})\.\w+(?:\.part)?$", file.name)
    if expected is None:
        return
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(expected[1]):
        raise DownloadError(
            f"{complaint} (SHA-256 begins {found[:8]}, not {expected[1]})", file=source, hint=hint
        )
