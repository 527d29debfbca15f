"""Recognise weight files by their first bytes, and describe files of other kinds with advice."""

import re
import zipfile
from pathlib import Path

from jaxseg.errors import WeightsError

TORCH_ZIP = "torch zip"
TORCH_PICKLE = "torch pickle"
NPZ = "npz"
SAFETENSORS = "safetensors"
HEAD = 1024  # number of bytes to inspect
FETCH = "fetch the file itself"
UNPACK = "unpack it and give the file in it"
EXPORTED = "give the PyTorch checkpoint that it was made from"
# (first bytes, description of such a file, advice)
SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "it is compressed with gzip", UNPACK),
    (b"BZh", "it is compressed with bzip2", UNPACK),
    (b"\xfd7zXZ\0", "it is compressed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive", UNPACK),
    (b"Rar!", "it is a RAR archive", UNPACK),
    (
        b"\x89HDF\r\n\x1a\n",
        "it is an HDF5 file, as Keras writes",
        f"weights of Keras models cannot be read; {EXPORTED}",
    ),
    (
        b"\x93NUMPY",
        "it is a single NumPy array (.npy)",
        "save all weights by name with numpy.savez",
    ),
    (b"GGUF", "it is a GGUF file", EXPORTED),
    (b"\x89PNG", "it is a PNG image", "give a weight file"),
    (b"\xff\xd8\xff", "it is a JPEG image", "give a weight file"),
    (b"GIF8", "it is a GIF image", "give a weight file"),
    (b"%PDF", "it is a PDF document", "give a weight file"),
    (
        b"version https://git-lfs",
        "it is a git-LFS pointer, a few lines in place of the file",
        "run `git lfs pull` where it came from",
    ),
)
# (pattern of the first bytes, description of such a file, advice)
PATTERNS: tuple[tuple[bytes, str, str], ...] = (
    (
        rb"(?is)(\xef\xbb\xbf)?\s*(<!doctype html|<html|<head|<script|<!--)",
        "it is an HTML page, not weights: a download page, a login or a quota message",
        f"{FETCH}, for instance with the browser",
    ),
    (
        rb"(?s)(\xef\xbb\xbf)?\s*<\?xml",
        "it is an XML document, not weights: often a server's error message",
        FETCH,
    ),
    (
        rb"(?s)(\xef\xbb\xbf)?\s*[\[{]\s*[\"\]}{\[\d-]",
        "it is a JSON text, not weights",
        "give the weight file itself, which is often next to an index or a config",
    ),
    (rb"(?s).{257}ustar", "it is a tar archive", UNPACK),
    (rb"(?s).{4}TFL3", "it is a TensorFlow Lite model", EXPORTED),
    (
        rb"(?s)\x08[\x01-\x1f][\x12\x1a\x22\x3a]",
        "it is an ONNX model or another protocol buffer",
        EXPORTED,
    ),
)


def sniff(path: str | Path) -> str:
    """Return the kind of a weight file: TORCH_ZIP, TORCH_PICKLE, NPZ or SAFETENSORS.

    Raises:
        WeightsError: The file is missing, or not a weight file. The error describes the file
            without its name.
    """
    path = Path(path)
    if path.is_dir():
        is_workdir = (path / "config.json").is_file() and (path / "checkpoints").is_dir()
        raise WeightsError(
            "it is a folder, not a weight file",
            hint="a workdir is read as a checkpoint or as config.init_from"
            if is_workdir
            else "give a file in it",
        )
    if not path.is_file():
        raise WeightsError("there is no such file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not size:
        raise WeightsError("it is empty, 0 bytes", hint=f"{FETCH} again")
    if not any(head):
        raise WeightsError(
            f"it begins with {len(head)} zero bytes, as an interrupted download or copy does",
            hint=f"{FETCH} again",
        )
    if head.startswith(b"PK"):
        return _sniff_zip(path, size)
    if 2 <= int.from_bytes(head[:8], "little") <= size - 8 and head[8:9] == b"{":
        return SAFETENSORS
    if head[8:9] == b"{" and head[4:8] == b"\0\0\0\0":
        raise WeightsError(
            f"it is a .safetensors file cut short to {size} bytes", hint=f"{FETCH} again"
        )
    if re.match(rb"\x80[\x02-\x05]", head):
        return TORCH_PICKLE
    raise _describe_foreign(head, size)


def _sniff_zip(path: Path, size: int) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises many kinds of errors for damaged archives
        raise WeightsError(
            f"it is damaged or cut short: its {size} bytes begin like a zip file but do not end "
            "like one",
            hint=f"{FETCH} again",
        ) from None
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return TORCH_ZIP
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    if any(name.endswith("model.weights.h5") for name in names):
        raise WeightsError("it is a Keras model", hint=EXPORTED)
    held = ", ".join(repr(name) for name in names[:3]) or "nothing"
    raise WeightsError(
        f"it is a zip file, but not one of torch.save or numpy.savez; it holds {held}", hint=UNPACK
    )


def _describe_foreign(head: bytes, size: int) -> WeightsError:
    """Make the error for a file that is not a weight file."""
    for begin, what, advice in SIGNATURES:
        if head.startswith(begin):
            return WeightsError(what, hint=advice)
    for pattern, what, advice in PATTERNS:
        if re.match(pattern, head):
            return WeightsError(what, hint=advice)
    try:
        text = head[:200].decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text and all(char.isprintable() or char.isspace() for char in text):
        begin_text = " ".join(text.split())[:40]
        return WeightsError(f"it is a text file, not weights; it begins {begin_text!r}", hint=FETCH)
    return WeightsError(
        f"it is not a known kind of weight file, or is damaged; its {size} bytes begin with "
        f"{head[:8].hex(' ')}",
        hint="PyTorch's files (torch.save), .safetensors and .npz are read",
    )
