"""Weight files: genuine ones (tests/data/state_dict, by PyTorch 2.13), other formats, hostile."""

import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxseg import convert
from jaxseg.errors import WeightsError
from jaxseg.weights.state_dict import read_state_dict, write_state_dict

DATA = Path(__file__).parent / "data" / "state_dict"


@pytest.mark.parametrize("name", ["mmseg.pth", "legacy.pth"])
def test_reads_genuine_files(name):
    """Every dtype and stride, beside foreign classes, NumPy scalars and an optimiser."""
    found = read_state_dict(DATA / name)
    with np.load(DATA / "expected.npz") as expected:
        assert list(found) == expected.files
        for key, value in found.items():
            assert value.dtype == expected[key].dtype and value.flags.c_contiguous
            np.testing.assert_array_equal(value, expected[key], err_msg=key)
    assert (
        found["half.weight"].dtype
        == found["bfloat16.weight"].dtype
        == found["double.weight"].dtype
        == np.float32
    )
    assert found["mask"].dtype == np.bool_ and found["bn.num_batches_tracked"].dtype == np.int64
    assert "torch" not in sys.modules


def test_takes_off_wrappers():
    assert list(read_state_dict(DATA / "wrapped.pth")) == ["conv.weight", "transposed.weight"]


def test_moving_average_only_if_asked(tmp_path):
    """MMSegmentation 0.x's copies: of parameters, not of statistics."""
    plain, average = read_state_dict(DATA / "ema.pth"), read_state_dict(DATA / "ema.pth", ema=True)
    assert list(plain) == list(average) == ["conv.weight", "bn.running_mean"]
    np.testing.assert_array_equal(average["conv.weight"], plain["conv.weight"] + 1)
    np.testing.assert_array_equal(average["bn.running_mean"], plain["bn.running_mean"])
    with pytest.raises(WeightsError) as error:
        read_state_dict(DATA / "wrapped.pth", ema=True)
    assert error.value.file == str(DATA / "wrapped.pth")
    assert "moving average" in error.value.problem
    both = dictionary(
        state_dict=dictionary(w=tensor(0)),
        state_dict_ema=dictionary(w=tensor(1)),
        ema_state_dict=dictionary(),
    )
    assert read_state_dict(torch_zip(tmp_path, both))["w"][0] == 0
    assert read_state_dict(torch_zip(tmp_path, both), ema=True)["w"][0] == 1
    swapped = dictionary(state_dict=dictionary(w=tensor(0)), ema_state_dict=dictionary(w=tensor(1)))
    assert read_state_dict(torch_zip(tmp_path, swapped), ema=True)["w"][0] == 0


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_other_formats_come_back_exactly(tmp_path, suffix):
    weights = {
        "a.weight": np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32).T,
        "n": np.zeros((), np.int64),
    }
    write_state_dict(tmp_path / f"x{suffix}", weights)
    found = convert.read_state_dict(tmp_path / f"x{suffix}")
    assert sorted(found) == sorted(weights) and os.listdir(tmp_path) == [f"x{suffix}"]
    for key in weights:
        assert found[key].dtype == weights[key].dtype and np.array_equal(found[key], weights[key])


def test_safetensors_of_half_precision(tmp_path):
    values = np.array([1.5, -2.0])
    save_file(
        {"b": values.astype(ml_dtypes.bfloat16), "h": values.astype(np.float16)},
        tmp_path / "x.safetensors",
    )
    found = read_state_dict(tmp_path / "x.safetensors")
    assert {v.dtype for v in found.values()} == {np.dtype(np.float32)} and all(
        np.array_equal(v, values) for v in found.values()
    )


@pytest.mark.parametrize("name", ["x.pth", "x.npz", "x.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 not really", pickle.dumps({"a": 1}), b"\x80\x02." * 20]
)
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["mmseg.pth", "legacy.pth", "expected.npz"])
def test_truncated_files_are_named(tmp_path, name):
    whole = (DATA / name).read_bytes()
    for length in (len(whole) // 3, len(whole) - 40):
        (tmp_path / name).write_bytes(whole[:length])
        refusal(tmp_path / name)


def refusal(path: Path) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        read_state_dict(path)
    assert error.value.file == str(path) and error.value.problem
    return error.value


def test_unknown_kinds_of_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "x.pth").problem
    (tmp_path / "folder.pth").mkdir()
    assert "folder" in refusal(tmp_path / "folder.pth").problem
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    refusal(tmp_path / "objects.npz")


# --- Hostile pickles, in PyTorch's zip format: storage '0' holds 0, 1, 2, 3 -----------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"I%d\n" % value


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def dictionary(**items: bytes) -> bytes:
    return b"}" + b"".join(text(key) + value + b"s" for key, value in items.items())


def call(name: bytes, *arguments: bytes) -> bytes:
    return b"c" + name.replace(b".", b"\n", 1) + b"\n" + group(*arguments) + b"R"


def tensor(
    offset: int = 0,
    shape: tuple = (2,),
    strides: tuple = (1,),
    *,
    length: int = 4,
    key: str = "0",
    kind: bytes = b"FloatStorage",
):
    storage = (
        group(text("storage"), b"ctorch\n" + kind + b"\n", text(key), text("cpu"), number(length))
        + b"Q"
    )
    parts = [
        storage,
        number(offset),
        group(*map(number, shape)),
        group(*map(number, strides)),
        b"\x89",
        b"N",
    ]
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + group(*parts) + b"R"


def torch_zip(folder: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(folder / "bad.pth", "w", compression) as archive:
        archive.writestr("bad/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("bad/data/0", np.arange(4, dtype=np.float32).tobytes())
    return folder / "bad.pth"


def test_nothing_is_executed(tmp_path):
    """Attacks are ignored beside the weights, and refused in place of them."""
    trap = tmp_path / "executed"
    code = f"open({str(trap)!r}, 'w')"
    attacks = [
        call(b"os.system", text(f"touch {trap}")),
        call(b"posix.system", text(f"touch {trap}")),
        call(b"builtins.eval", text(code)),
        call(b"builtins.exec", text(code)),
        call(b"numpy.f2py.exec_command", text(f"touch {trap}")),
        b"c__builtin__\neval\n" + group(text(code)) + b"R",
        b"(" + text(code) + b"ibuiltins\neval\n",
        call(b"builtins.getattr", b"cos\nO_RDWR\n", text("system"))
        + group(text(f"touch {trap}"))
        + b"R",
        b"ccollections\nOrderedDict\n"
        + dictionary(update=call(b"builtins.eval", text(code)))
        + b"b",
        b"ctorch._utils\n_rebuild_tensor_v2\n" + dictionary(__code__=text("x")) + b"b",
    ]
    for attack in attacks:
        path = torch_zip(tmp_path, dictionary(meta=attack, state_dict=dictionary(w=tensor())))
        assert list(read_state_dict(path)) == ["w"]
        for content in (
            attack,
            dictionary(state_dict=attack),
            dictionary(state_dict=dictionary(w=tensor(), x=attack)),
        ):
            try:
                assert list(read_state_dict(torch_zip(tmp_path, content))) == [
                    "w"
                ]  # the attack was a number or a name
            except WeightsError as error:
                assert "bad.pth" in str(error)
        assert not trap.exists()
    assert list(read_state_dict(DATA / "mmseg.pth"))  # and nothing was changed for the next file


@pytest.mark.parametrize(
    "content",
    [
        tensor(shape=(2**40,), strides=(0,)),
        tensor(shape=(2**62, 2**62), strides=(0, 0)),
        tensor(shape=(5,)),
        tensor(offset=3),
        tensor(offset=-1),
        tensor(offset=3, strides=(-1,)),
        tensor(shape=(-2,)),
        tensor(shape=(2, 2), strides=(1,)),
        tensor(length=2**60),
        tensor(length=-1),
        tensor(key="../../secret"),
        tensor(key="1"),
        tensor(kind=b"EvilStorage"),
        tensor(kind=b"DoubleStorage"),
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + group(text("no storage"), number(0), group(), group())
        + b"R",
        text("w") + b"Q",
        b"\x82\x01",
        b"\x8e" + struct.pack("<Q", 2**62),
        b"\x8b" + struct.pack("<i", 2**31 - 1),
        b"K\x01r\xff\xff\xff\xff",
    ],
)
def test_malformed_tensors_are_refused(tmp_path, content):
    refusal(torch_zip(tmp_path, dictionary(state_dict=dictionary(w=content))))


@pytest.mark.parametrize("name", ["mmseg.pth", "legacy.pth"])
def test_random_damage_is_read_or_refused(tmp_path, name):
    """Whatever bytes change, reading gives arrays or a WeightsError that names the file."""
    whole, rng = (DATA / name).read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 9)):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / name).write_bytes(damaged)
        try:
            found = read_state_dict(tmp_path / name)
        except WeightsError as error:
            assert error.file == str(tmp_path / name)
        else:
            assert all(isinstance(value, np.ndarray) for value in found.values())


def test_compressed_archives_are_refused(tmp_path):
    """A few kilobytes could otherwise become gigabytes."""
    path = torch_zip(tmp_path, dictionary(w=tensor()), zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(path).problem
    archive = zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("w.npy", "w", force_zip64=True) as entry:
        for _ in range(17):
            entry.write(bytes(2**26))
    assert "unpack to" in refusal(tmp_path / "bomb.npz").problem


# --- What a file is, by its bytes -----------------------------------------------------------------


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "empty"),
        (bytes(4096), "zero bytes"),
        (b"\n<!DOCTYPE html><title>Quota exceeded", "HTML"),
        (b"<?xml version='1.0'?><Error>", "XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-LFS"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"x" * 257 + b"ustar\x0000" + bytes(200), "tar"),
        (b"\x89HDF\r\n\x1a\n" + bytes(9), "HDF5"),
        (b"\x08\x07\x12\x07pytorch", "ONNX"),
        (b'{"weight_map": {}}', "JSON"),
        (b"just some words", "just some words"),
        (b"\x93NUMPY\x01\x00v", "single NumPy array"),
        (b"PK\x03\x04" + bytes(90), "cut short"),
        (struct.pack("<Q", 5000) + b'{"a":', "cut short"),
        (b"\x01\x02\xff\xfe", "01 02 ff fe"),
    ],
)
@pytest.mark.parametrize("name", ["x.pth", "x.npz", "x.anything"])
def test_a_file_is_called_what_its_bytes_are(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    assert what in refusal(tmp_path / name).problem


@pytest.mark.parametrize("name", ["x.pth.tar", "x.bin", "x.ckpt", "x.safetensors", "x"])
def test_the_suffix_does_not_matter(tmp_path, name):
    weights = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    for write in (np.savez, lambda file, **arrays: save_file(arrays, file.name)):
        with open(tmp_path / name, "wb") as file:
            write(file, **weights)
        np.testing.assert_array_equal(
            read_state_dict(tmp_path / name)["a.weight"], weights["a.weight"]
        )
    (tmp_path / name).write_bytes((DATA / "legacy.pth").read_bytes())
    assert "half.weight" in read_state_dict(tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_in_a_pickle_are_read(tmp_path, protocol):
    weights = {
        "w": np.arange(6, dtype=">f8").reshape(2, 3).T,
        "h": np.ones(2, np.float16),
        "n": np.array(7),
        "m": np.array([True, False]),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": weights, "epoch": 3}, protocol))
    found = read_state_dict(tmp_path / "x.pkl")
    assert (
        list(found) == list(weights)
        and found["w"].dtype == np.float32
        and found["m"].dtype == np.bool_
    )
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"w": np.array([{}], object)}, protocol))
    assert "w" in refusal(tmp_path / "x.pkl").problem


def test_weights_are_found_under_other_keys(tmp_path):
    for key in ("model_state_dict", "net", "generator"):
        path = torch_zip(tmp_path, dictionary(epoch=number(3), **{key: dictionary(w=tensor())}))
        assert list(read_state_dict(path)) == ["w"]
    assert list(
        read_state_dict(
            torch_zip(tmp_path, dictionary(model=dictionary(state_dict=dictionary(w=tensor()))))
        )
    ) == ["w"]
    two = dictionary(generator=dictionary(w=tensor()), critic=dictionary(w=tensor()))
    assert "generator, critic" in refusal(torch_zip(tmp_path, two)).problem
    refusal(
        torch_zip(tmp_path, b"}q\x01" + text("state_dict") + b"h\x01s")
    )  # a dict that holds itself


@pytest.mark.parametrize(
    "content, what",
    [
        (b"cmine\nNet\n)\x81", "whole model or another object (mine.Net)"),
        (b"]", "list"),
        (tensor(), "single tensor"),
        (dictionary(epoch=number(3), model=b"cmine\nNet\n)\x81"), "'model' is a whole model"),
        (dictionary(epoch=number(3)), "no tensors"),
        (dictionary(w=tensor(), s=b"ctorch._utils\n_rebuild_sparse_tensor\n)R"), "s is a sparse"),
        (
            dictionary(
                state_dict=dictionary(w=b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R")
            ),
            "w has no values",
        ),
        (dictionary(w=b"ctorch.storage\n_load_from_bytes\n)R"), "pickle.dump"),
        (b"K\x01\x85" + b"<", "damaged"),
    ],
)
def test_what_holds_no_weights_is_described(tmp_path, content, what):
    assert what in refusal(torch_zip(tmp_path, content)).problem


def test_torchscript_is_named(tmp_path):
    with zipfile.ZipFile(
        torch_zip(tmp_path, dictionary(w=tensor()), zipfile.ZIP_DEFLATED), "a"
    ) as archive:
        archive.writestr("bad/constants.pkl", b"")
    assert "TorchScript" in refusal(tmp_path / "bad.pth").problem
