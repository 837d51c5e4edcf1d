"""`pytorch_model.bin`: PyTorch's values, and no program but the description."""

import collections
import pickle
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
    with pytest.raises(ValueError, match="something else than named tensors"):
        PickledWeights(path)


@LEGACY
def test_a_file_that_was_cut_is_named(tmp_path, legacy):
    path = save(tmp_path / "a.bin", every_kind_of_tensor(), legacy)
    contents = path.read_bytes()
    refused = 0
    for size in range(0, len(contents), max(1, len(contents) // 60)):
        path.write_bytes(contents[:size])
        try:
            found = PickledWeights(path)
            for name in found.shapes:
                found.read(name)
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
    with pytest.raises(ValueError, match="a.bin` is not a complete file"):
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
    with pytest.raises(ValueError, match="a.bin` is not a complete file"):
        PickledWeights(path)
    path.write_bytes(pickle.dumps("no weights"))
    with pytest.raises(ValueError, match="a.bin` is not a complete file"):
        PickledWeights(path)
