"""`pytorch_model.bin`: PyTorch's values, and no program but the description."""

import collections
import io
import pickle
import re
import resource
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from align_keras.interop.pickled_weights import PickledWeights

LEGACY = pytest.mark.parametrize("legacy", [False, True])


def save(path, contents, legacy=False):
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    return path


def every_kind_of_tensor():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, 5, generator=generator)
    tensors = {
        "plain": base,
        "tied": base,
        "transposed": base.permute(2, 0, 1),
        "cut": base[1::2, :, 1:4],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base[0].clone()),
        "bfloat16": base.to(torch.bfloat16),
        "half": base.half(),
        "double": base.double(),
        "bool": base > 0,
    }
    for kind in ("int64", "int32", "int16", "int8", "uint8"):
        tensors[kind] = (100 * base[0]).abs().to(getattr(torch, kind))
    return tensors


@LEGACY
def test_every_tensor_has_the_values_of_pytorch(tmp_path, legacy):
    tensors = every_kind_of_tensor()
    path = save(tmp_path / "a.bin", collections.OrderedDict(tensors), legacy)
    # PyTorch's own reader is the reference.
    expected = torch.load(path, weights_only=True)
    found = PickledWeights(path)
    assert set(found.shapes) == set(expected)
    for name, tensor in expected.items():
        assert found.shapes[name] == tuple(tensor.shape)
        array = found.read(name)
        if tensor.dtype == torch.bfloat16:
            assert array.dtype == ml_dtypes.bfloat16
            array, tensor = array.astype("float32"), tensor.float()
        reference = tensor.detach().numpy()
        assert array.dtype == reference.dtype
        np.testing.assert_array_equal(array, reference)
        array[...] = 0  # It is the caller's.
    assert found.dtype("bfloat16") == "BF16"
    assert found.dtype("plain") == "F32"


@LEGACY
def test_the_state_of_a_module_is_read(tmp_path, legacy):
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    )
    found = PickledWeights(save(tmp_path / "a", module.state_dict(), legacy))
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(found.read(name), tensor.numpy())


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def programs(place):
    """What a stranger could let a pickle do, each by another road."""
    import os
    import subprocess

    return {
        "a function": Call(os.mkdir, place),
        "a process": Call(subprocess.getoutput, f"mkdir {place}"),
        "eval": Call(eval, f"__import__('os').mkdir({place!r})"),
        "an attribute": Call(getattr, str, "upper"),
        "a class": Call(type, "x", (), {}),
        "PyTorch's own": Call(torch.load, place),
        "a module": torch.nn.Linear(1, 1),
    }


@LEGACY
@pytest.mark.parametrize("name", list(programs("")))
def test_a_program_is_named_and_not_run(tmp_path, name, legacy):
    place = tmp_path / "made"
    program = programs(str(place))[name]
    weights = collections.OrderedDict(a=torch.zeros(2), b=program)
    path = save(tmp_path / "a.bin", weights, legacy)
    with pytest.raises(ValueError, match="a.bin` is refused: it calls `"):
        PickledWeights(path)
    assert not place.exists()


def test_what_may_be_called_cannot_be_changed(tmp_path):
    """BUILD sets attributes, of a function as well."""
    inner = b"ctorch._utils\n_rebuild_tensor_v2\n}(V_function\nccollections\n"
    inner = b"\x80\x02" + inner + b"OrderedDict\nu\x86b."
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", inner)
    with pytest.raises(ValueError, match="a.bin"):
        PickledWeights(path)
    sound = save(tmp_path / "b.bin", {"a": torch.ones(2)})
    np.testing.assert_array_equal(PickledWeights(sound).read("a"), [1, 1])


@pytest.mark.parametrize(
    "contents",
    [
        torch.zeros(2),
        [torch.zeros(2)],
        {"state_dict": {"a": torch.zeros(2)}},
        {"a": torch.zeros(2), "epoch": 3},
        {3: torch.zeros(2)},
        {},
    ],
)
def test_what_is_not_named_tensors_is_refused(tmp_path, contents):
    path = save(tmp_path / "a.bin", contents)
    if contents == {}:
        assert PickledWeights(path).shapes == {}
        return
    with pytest.raises(ValueError, match="something other than named tensors"):
        PickledWeights(path)


def read_all(path):
    """Read all tensors of a file."""
    found = PickledWeights(path)
    for name in found.shapes:
        found.read(name)


@LEGACY
def test_a_file_that_was_cut_is_named(tmp_path, legacy):
    path = save(tmp_path / "a.bin", every_kind_of_tensor(), legacy)
    contents = path.read_bytes()
    refused = 0
    for size in range(0, len(contents), max(1, len(contents) // 60)):
        path.write_bytes(contents[:size])
        try:
            read_all(path)
        except ValueError as error:
            assert "a.bin" in str(error)
            refused += 1
    assert refused >= 60


def test_a_bit_that_flips_is_noticed(tmp_path):
    path = save(tmp_path / "a.bin", {"a": torch.ones(1000)})
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("a/data/0")
    contents = bytearray(path.read_bytes())
    contents[info.header_offset + 2000] ^= 1
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="a.bin` is not a complete PyTorch"):
        PickledWeights(path).read("a")


def rewritten(path, change):
    """The file with another description of its tensors."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    members["a/data.pkl"] = change(members["a/data.pkl"])
    with zipfile.ZipFile(path, "w") as file:
        for name, contents in members.items():
            file.writestr(name, contents)


def test_a_tensor_outside_of_its_storage_is_refused(tmp_path):
    # 300 numbers are written as a pickle writes a short: `M` and two bytes.
    path = save(tmp_path / "a.bin", {"a": torch.ones(300)})
    length = b"M" + (300).to_bytes(2, "little")
    longer = b"M" + (301).to_bytes(2, "little")

    def lengthen(contents):
        at = contents.rindex(length)
        return contents[:at] + longer + contents[at + 3 :]

    rewritten(path, lengthen)
    with pytest.raises(ValueError, match="larger than its storage"):
        PickledWeights(path)


def test_a_number_that_stands_for_many_is_refused(tmp_path):
    huge = torch.ones(1).expand(10**6, 10**6)
    with pytest.raises(ValueError, match="larger than its storage"):
        PickledWeights(save(tmp_path / "a.bin", {"a": huge}))


def short(text):
    """A string, as a pickle writes it."""
    text = text.encode()
    return b"X" + len(text).to_bytes(4, "little") + text


def number(value):
    contents = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(contents)]) + contents


def tensor_of(shape, strides):
    """The description of a tensor of 16 numbers."""
    storage = short("storage") + b"ctorch\nFloatStorage\n" + short("0")
    storage = b"(" + storage + short("cpu") + number(16) + b"tQ"
    shape, strides = (
        b"(" + b"".join(map(number, numbers)) + b"t"
        for numbers in (shape, strides)
    )
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    rest = b"\x89ccollections\nOrderedDict\n)R"
    call = b"(" + storage + number(0) + shape + strides + rest + b"tR"
    return b"}" + short("a") + rebuild + call + b"s."


# Each is small, and took gigabytes, minutes or the process itself.
HARM = {
    "a key as deep as a file": b"})" + 300_000 * b"\x85" + b"Ns.",
    "a key that doubles": b"})" + 60 * b"2\x86" + b"Ns.",
    "a key of references": b"})q\x00"
    + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))
    + b"Ns.",
    "a place far away": b"}r\xff\xff\xff\x7f(lK\x00as.",
    "dimensions": tensor_of(100_000 * [255], 100_000 * [1]),
    "too many dimensions": tensor_of(65 * [1], 65 * [1]),
    "a step of a thousand bits": tensor_of([1], [2**1000]),
    "nothing, very wide": tensor_of([0, 2**70], [1, 1]),
    "a call of a tensor": b"}" + b"ctorch\nFloatStorage\n)Rs.",
    "an item of no dict": b"]" + short("a") + b"Ns.",
    "attributes of a function": b"ccollections\nOrderedDict\n}b.",
    "an end without a mark": b"}u.",
    "nothing at all": b".",
    "a set": b"\x8f.",
    "a class": b"ccollections\nOrderedDict\n)\x81.",
}


@LEGACY
@pytest.mark.parametrize("name", list(HARM))
def test_a_description_that_does_harm_is_named_at_once(tmp_path, name, legacy):
    path = tmp_path / "a.bin"
    if legacy:
        head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        head = b"".join(pickle.dumps(part, 2) for part in head)
        keys = pickle.dumps(["0"], 2)
        numbers = (16).to_bytes(8, "little") + bytes(64)
        path.write_bytes(head + b"\x80\x02" + HARM[name] + keys + numbers)
    else:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a/data.pkl", b"\x80\x02" + HARM[name])
            file.writestr("a/data/0", bytes(64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(ValueError, match="a.bin` is "):
        found = PickledWeights(path)
        for tensor in found.shapes:
            found.read(tensor)
    # Not measurements: they took minutes, and gigabytes.
    assert time.process_time() - start < 20
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500_000


def test_the_descriptions_of_the_test_are_sound(tmp_path):
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + tensor_of([4, 4], [4, 1]))
        file.writestr("a/data/0", np.arange(16, dtype="<f4").tobytes())
    expected = np.arange(16.0).reshape(4, 4)
    np.testing.assert_array_equal(PickledWeights(path).read("a"), expected)


def test_an_archive_with_a_password_is_named(tmp_path):
    path = save(tmp_path / "a.bin", {"a": torch.ones(300)})
    contents = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        for found in re.finditer(re.escape(mark), bytes(contents)):
            contents[found.start() + place] |= 1
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="a.bin` is not a complete PyTorch"):
        PickledWeights(path)


def test_any_change_of_a_byte_is_read_or_named(tmp_path):
    rng = np.random.default_rng(0)
    for legacy in (False, True):
        path = save(tmp_path / "a.bin", every_kind_of_tensor(), legacy)
        contents = path.read_bytes()
        start = 0 if legacy else contents.index(b"\x80\x02")
        for _ in range(300):
            changed = bytearray(contents)
            changed[start + rng.integers(2000)] = rng.integers(256)
            # Checksums would tell it of an archive, and hide the reader.
            if not legacy:
                zipped = zipfile.ZipFile(io.BytesIO(contents))
                size = zipped.getinfo("a/data.pkl").file_size
                change = bytes(changed[start : start + size])
                with zipfile.ZipFile(path, "w") as file:
                    for name in zipped.namelist():
                        own = name == "a/data.pkl"
                        file.writestr(
                            name, change if own else zipped.read(name)
                        )
            else:
                path.write_bytes(changed)
            try:
                read_all(path)
            except ValueError as error:
                assert "a.bin" in str(error)


def test_compressed_members_are_refused(tmp_path):
    path = save(tmp_path / "a.bin", {"a": torch.zeros(10**6)})
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, contents in members.items():
            file.writestr(name, contents)
    with pytest.raises(ValueError, match="compressed"):
        PickledWeights(path)


def test_a_pickle_of_nothing_but_size_is_refused(tmp_path):
    path = tmp_path / "a.bin"
    # BINBYTES8 of 2**60 bytes.
    path.write_bytes(b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"x.")
    with pytest.raises(ValueError, match="a.bin` is not a complete PyTorch"):
        PickledWeights(path)
    path.write_bytes(pickle.dumps("no weights"))
    with pytest.raises(ValueError, match="a.bin` is not a complete PyTorch"):
        PickledWeights(path)
