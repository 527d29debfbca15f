"""Files and paths: `~` expanded, text read whatever wrote it, files that appear whole or not at all."""

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxseg.errors import DataError, JaxsegError

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


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, of the same suffix, that takes its place when the block ends without an error.

    Whoever reads `path` sees the old file or the new one, never half of it; several processes may do this at once, and
    the last one wins. The folder is made if it is missing.

    Raises:
        JaxsegError: the file cannot be written.
    """
    path = Path(path)
    # The end of the name, for its suffix: the whole one could be too long with something before it.
    part = path.with_name(f".part-{os.getpid()}-{threading.get_ident()}-{path.name[-48:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise JaxsegError(f"cannot be written ({error.strerror or error})", file=path) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any, *, strict: bool = True) -> None:
    """Write JSON, whole or not at all.

    Args:
        path: the file.
        value: what is written.
        strict: refuse numbers that are not finite, as JSON has none. Otherwise Python's `NaN` and `Infinity` are
            written, which `json.loads` reads.
    """
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=not strict) + "\n", encoding="utf-8")
