"""Files and paths: `~` expanded, text read whatever wrote it, files that appear whole or not at all."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxseg.errors import ConfigError, DataError

# Byte-order marks, the longest first: UTF-32's begins with UTF-16's.
MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))


def expand(path: str | Path) -> Path:
    """The path with a leading `~` or `~user` replaced by that home folder; shells leave it alone after `--flag=`."""
    return Path(os.path.expanduser(path))


def read_text(file: str | Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark, the mark removed.

    Raises:
        DataError: the file cannot be opened, or is in another encoding, which nothing in it tells.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=file) from None
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"is not {encoding.removesuffix('-sig').upper()} text ({error.reason} at byte {error.start})", file=file,
                        hint="save it as UTF-8") from None  # fmt: skip


def check_output(path: str | Path, field: str, *, is_file: bool = False) -> None:
    """Find out, before any work, whether a folder or a file can be written; nothing is made.

    Args:
        path: what will be written.
        field: the flag or config field that names it.
        is_file: whether `path` is to be a file; else a folder.

    Raises:
        ConfigError: something else lies there or above, or it may not be written.
    """
    path = expand(path)
    if os.path.exists(path) and os.path.isdir(path) == is_file:
        wanted = ("a folder", "a file") if is_file else ("a file", "a folder")
        raise ConfigError(f"is {wanted[0]}", file=path, field=field, hint=f"{field} must be {wanted[1]}")
    nearest = next(above for above in (path.absolute(), *path.absolute().parents) if os.path.exists(above))
    if nearest != path.absolute() and not nearest.is_dir():
        raise ConfigError(f"cannot be written, since {nearest} is a file", file=path, field=field)
    if not os.access(nearest, os.W_OK):
        raise ConfigError(f"cannot be written: there is no permission to write {nearest}", file=path, field=field)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, of the same suffix, that takes its place when the block ends without an error.

    Whoever reads `path` sees the old file or the new one, never half of it; several processes may do this at once, and
    the last one wins. The folder is made if it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON, whole or not at all; not-finite numbers are refused, as JSON has none."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
