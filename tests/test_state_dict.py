"""Weight files: genuine ones of torch.save (tests/data/state_dict, written by PyTorch 2.13), other formats, hostile ones."""

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
from jaxseg.state_dict import StateDictError, read_state_dict, write_state_dict

DATA = Path(__file__).parent / "data" / "state_dict"


@pytest.mark.parametrize("name", ["mmseg.pth", "legacy.pth"])
def test_reads_genuine_files(name):
    """Every dtype and stride, beside a history of a foreign class, NumPy scalars and an optimiser; both of PyTorch's formats."""
    found = read_state_dict(DATA / name)
    with np.load(DATA / "expected.npz") as expected:
        assert list(found) == expected.files
        for key, value in found.items():
            assert value.dtype == expected[key].dtype and value.flags.c_contiguous
            np.testing.assert_array_equal(value, expected[key], err_msg=key)
    assert found["half.weight"].dtype == found["bfloat16.weight"].dtype == found["double.weight"].dtype == np.float32
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
    with pytest.raises(StateDictError, match="wrapped.pth: it has no moving average"):
        read_state_dict(DATA / "wrapped.pth", ema=True)
    both = dictionary(state_dict=dictionary(w=tensor(0)), state_dict_ema=dictionary(w=tensor(1)), ema_state_dict=dictionary())
    assert read_state_dict(torch_zip(tmp_path, both))["w"][0] == 0
    assert read_state_dict(torch_zip(tmp_path, both), ema=True)["w"][0] == 1
    swapped = dictionary(state_dict=dictionary(w=tensor(0)), ema_state_dict=dictionary(w=tensor(1)))
    assert read_state_dict(torch_zip(tmp_path, swapped), ema=True)["w"][0] == 0


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_other_formats_come_back_exactly(tmp_path, suffix):
    weights = {"a.weight": np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32).T, "n": np.zeros((), np.int64)}
    write_state_dict(tmp_path / f"x{suffix}", weights)
    found = convert.read_state_dict(tmp_path / f"x{suffix}")
    assert sorted(found) == sorted(weights) and os.listdir(tmp_path) == [f"x{suffix}"]
    for key in weights:
        assert found[key].dtype == weights[key].dtype and np.array_equal(found[key], weights[key])


def test_safetensors_of_half_precision(tmp_path):
    values = np.array([1.5, -2.0])
    save_file({"b": values.astype(ml_dtypes.bfloat16), "h": values.astype(np.float16)}, tmp_path / "x.safetensors")
    found = read_state_dict(tmp_path / "x.safetensors")
    assert {v.dtype for v in found.values()} == {np.dtype(np.float32)} and all(np.array_equal(v, values) for v in found.values())


@pytest.mark.parametrize("name", ["x.pth", "x.npz", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", pickle.dumps({"a": 1}), b"\x80\x02." * 20])
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StateDictError, match=name):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", ["mmseg.pth", "legacy.pth", "expected.npz"])
def test_truncated_files_are_named(tmp_path, name):
    whole = (DATA / name).read_bytes()
    for length in (len(whole) // 3, len(whole) - 40):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(StateDictError, match=name):
            read_state_dict(tmp_path / name)


def test_unknown_kinds_of_file(tmp_path):
    with pytest.raises(StateDictError, match="x.onnx: weights come as .pth"):
        read_state_dict(tmp_path / "x.onnx")
    with pytest.raises(StateDictError, match="x.pth: there is no such file"):
        read_state_dict(tmp_path / "x.pth")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    with pytest.raises(StateDictError, match="objects.npz"):
        read_state_dict(tmp_path / "objects.npz")


# --- Hostile pickles, in PyTorch's zip format: storage '0' holds 0, 1, 2, 3 -------------------------------------------


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


def tensor(offset: int = 0, shape: tuple = (2,), strides: tuple = (1,), *, length: int = 4, key: str = "0", kind: bytes = b"FloatStorage"):
    storage = group(text("storage"), b"ctorch\n" + kind + b"\n", text(key), text("cpu"), number(length)) + b"Q"
    parts = [storage, number(offset), group(*map(number, shape)), group(*map(number, strides)), b"\x89", b"N"]
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + group(*parts) + b"R"


def torch_zip(folder: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(folder / "bad.pth", "w", compression) as archive:
        archive.writestr("bad/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("bad/data/0", np.arange(4, dtype=np.float32).tobytes())
    return folder / "bad.pth"


def test_nothing_is_executed(tmp_path):
    """Calls, evaluated text, attribute chains and state: beside the weights they are ignored, as the weights they are refused."""
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
        call(b"builtins.getattr", b"cos\nO_RDWR\n", text("system")) + group(text(f"touch {trap}")) + b"R",
        b"ccollections\nOrderedDict\n" + dictionary(update=call(b"builtins.eval", text(code))) + b"b",
        b"ctorch._utils\n_rebuild_tensor_v2\n" + dictionary(__code__=text("x")) + b"b",
    ]
    for attack in attacks:
        path = torch_zip(tmp_path, dictionary(meta=attack, state_dict=dictionary(w=tensor())))
        assert list(read_state_dict(path)) == ["w"]
        for content in (attack, dictionary(state_dict=attack), dictionary(state_dict=dictionary(w=tensor(), x=attack))):
            try:
                assert list(read_state_dict(torch_zip(tmp_path, content))) == ["w"]  # the attack was a number or a name
            except StateDictError as error:
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
        b"ctorch._utils\n_rebuild_tensor_v2\n" + group(text("no storage"), number(0), group(), group()) + b"R",
        text("w") + b"Q",
        b"\x82\x01",
        b"\x8e" + struct.pack("<Q", 2**62),
        b"\x8b" + struct.pack("<i", 2**31 - 1),
        b"K\x01r\xff\xff\xff\xff",
    ],
)
def test_malformed_tensors_are_refused(tmp_path, content):
    with pytest.raises(StateDictError, match="bad.pth"):
        read_state_dict(torch_zip(tmp_path, dictionary(state_dict=dictionary(w=content))))


def test_compressed_archives_are_refused(tmp_path):
    """A few kilobytes could otherwise become gigabytes."""
    with pytest.raises(StateDictError, match="bad.pth: it is compressed"):
        read_state_dict(torch_zip(tmp_path, dictionary(w=tensor()), zipfile.ZIP_DEFLATED))
