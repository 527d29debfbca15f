"""Files and paths: home folders, text in any encoding, folder listings, atomic writes and locks."""

import contextlib
import errno
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from jaxseg.errors import ConfigError, DataError, JaxsegError

log = logging.getLogger(__name__)

# Byte-order marks, the longest first: UTF-32's begins with UTF-16's.
MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
# Folders that operating systems create. Names that begin with a dot are also left out.
SYSTEM_FOLDERS = (
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "@Recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
)


def expand(path: str | Path) -> Path:
    """Expand a leading `~` or `~user`, which shells leave alone inside `flag=~/path`."""
    return Path(os.path.expanduser(path))


def read_text(file: str | Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    Returns:
        The text, without the mark.

    Raises:
        DataError: The file cannot be opened, or is in another encoding.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=file) from None
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    name = encoding.removesuffix("-sig").upper()
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        reason = f"is not {name} text ({error.reason} at byte {error.start})"
        raise DataError(reason, file=file, hint="save it as UTF-8") from None
    if "\0" in text:  # every other byte of UTF-16 is 0 in Latin text
        place = f"byte {data.index(0)} is 0, as in UTF-16 without a byte-order mark"
        raise DataError(f"is not {name} text ({place})", file=file, hint="save it as UTF-8")
    return text


def read_json(file: str | Path) -> Any:
    """Read a JSON file, in any encoding that `read_text` reads.

    Returns:
        The value.

    Raises:
        DataError: The file cannot be read as text, or is not JSON.
    """
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"is not JSON ({error})", file=file) from None


# --- Folders --------------------------------------------------------------------------------------


class Tree(NamedTuple):
    """The content of a folder, each list in the order of paths.

    Attributes:
        files: The files.
        left_out: Files and folders that were skipped.
        broken: Broken symbolic links.
    """

    files: list[Path]
    left_out: list[Path]
    broken: list[Path]


def walk(folder: str | Path, *, nested: bool = True, without: str | Path = "") -> Tree:
    """List the files of a folder, without hidden and system files.

    Hidden files and folders, SYSTEM_FOLDERS and editors' backups (`x.png~`) are left out. Links are
    followed. Each folder is listed once, under its own path if that is inside `folder`, so links to
    a parent folder or to one that is already listed are left out.

    Args:
        folder: The folder.
        nested: List subfolders too; otherwise they appear in none of the lists.
        without: A folder to skip silently, for instance the output folder.

    Returns:
        The files, and what was skipped.

    Raises:
        DataError: A folder cannot be listed.
    """
    tree = Tree([], [], [])
    real = Path(os.path.realpath(folder))
    seen = {str(path) for path in (real, *real.parents)}
    skipped = os.path.realpath(without) if without else None
    folders: list[str] = [str(folder)]
    links: list[str] = []
    while folders or links:
        here = (folders or links).pop()
        target = os.path.realpath(here)
        if here != str(folder):
            if target == skipped:
                continue
            if target in seen:
                tree.left_out.append(Path(here))
                continue
        seen.add(target)
        for entry in _entries(here):
            if _is_folder(entry):
                if nested and _is_left_out(entry.name, SYSTEM_FOLDERS):
                    tree.left_out.append(Path(entry.path))
                elif nested:
                    waiting = links if entry.is_symlink() else folders
                    waiting.append(entry.path)
            elif _is_left_out(entry.name):
                tree.left_out.append(Path(entry.path))
            elif _is_broken_link(entry):
                tree.broken.append(Path(entry.path))
            else:
                tree.files.append(Path(entry.path))
    return Tree(*map(sorted, tree))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, last name first, as a stack is popped from its end."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        raise DataError(f"cannot be listed ({error.strerror})", file=folder) from None


def _is_left_out(name: str, names: tuple[str, ...] = ()) -> bool:
    """Return whether a name is hidden, an editor's backup, or one of `names`."""
    is_emacs_backup = name[0] == name[-1] == "#"
    return name.startswith(".") or name.endswith("~") or is_emacs_backup or name in names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


# --- Writing --------------------------------------------------------------------------------------


def check_output(path: str | Path, field: str, *, is_file: bool = False) -> None:
    """Check, before any work, that a folder or a file can be written; nothing is created.

    Args:
        path: The file or folder that will be written.
        field: The parameter or flag that names it, for the error.
        is_file: Whether it will be a file; otherwise a folder.

    Raises:
        ConfigError: A file is in the way of a folder or a folder of a file, or there is no
            permission to write.
    """
    path = expand(path)
    if os.path.exists(path) and os.path.isdir(path) == is_file:
        found, wanted = ("a folder", "a file") if is_file else ("a file", "a folder")
        hint = f"{field} must be {wanted}"
        raise ConfigError(f"is {found}", file=path, field=field, hint=hint)
    absolute = path.absolute()
    nearest = next(above for above in (absolute, *absolute.parents) if os.path.exists(above))
    if nearest != absolute and not nearest.is_dir():
        raise ConfigError(f"cannot be written, since {nearest} is a file", file=path, field=field)
    if not os.access(nearest, os.W_OK):
        problem = f"cannot be written: no write permission for {nearest}"
        raise ConfigError(problem, file=path, field=field)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Write a file that appears complete or not at all.

    Readers see either the old file or the new one. Several processes may write the same file at
    once; the last one wins. The folder is created if it does not exist.

    Args:
        path: The file.

    Yields:
        A temporary path in the same folder with the same suffix, which is renamed to `path` when
        the block ends without an error.

    Raises:
        JaxsegError: The file cannot be written.
    """
    path = Path(path)
    # Only the end of the name, since the full name with a prefix could exceed the system's limit.
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


# Error codes of file systems, mostly network storage, that do not support locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(path: str | Path, *, waiting: str = "", wait: bool = True) -> Iterator[None]:
    """Lock the creation of a file or folder: one process or thread creates it, the others wait.

    The block must first check whether `path` exists by then. The lock is the file `.NAME.lock`
    next to `path`; it is removed once `path` exists, and released if its process dies. The folder
    is created if it does not exist.

    Args:
        path: The file or folder to create.
        waiting: Message to log once if another process holds the lock.
        wait: Wait for the lock; otherwise raise an error.

    Raises:
        JaxsegError: The lock file cannot be written, or the lock is held elsewhere and `wait` is
            False.
    """
    path = Path(path)
    lock = filelock.FileLock(path.with_name(f".{path.name[-48:]}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, path, waiting, wait)
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise JaxsegError(f"cannot be written ({reason})", file=path) from error
        log.warning(
            "%s cannot be locked (%s): make sure that no other process writes it", path, reason
        )
    try:
        yield
    finally:
        # A process that opened the lock file before its removal may hold the lock at the same time
        # as a process that creates a new lock file; both then find that `path` exists.
        if path.exists():
            with contextlib.suppress(OSError):  # Windows removes it with the release
                Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _acquire(lock: filelock.BaseFileLock, path: Path, waiting: str, wait: bool) -> None:
    """Acquire the lock on creating `path`; see `locked`."""
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        if not wait:
            raise JaxsegError("another process is writing it", file=path) from None
        if waiting:
            log.info("%s", waiting)
        lock.acquire()


def write_json(path: str | Path, value: Any, *, strict: bool = True) -> None:
    """Write a JSON file that appears complete or not at all.

    Args:
        path: The file.
        value: The value.
        strict: Refuse NaN and infinity, which JSON does not have. Otherwise they are written as
            Python's `NaN` and `Infinity`, which `json.loads` reads.

    Raises:
        JaxsegError: The file cannot be written.
        ValueError: A number is not finite, and `strict`.
    """
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=not strict) + "\n", encoding="utf-8")


def cache_dir() -> Path:
    """Return the folder for cached files: JAXSEG_CACHE, or `jaxseg` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return expand(os.environ.get("JAXSEG_CACHE") or Path(base) / "jaxseg")
