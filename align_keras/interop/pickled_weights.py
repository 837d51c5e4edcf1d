"""`pytorch_model.bin`, read without running the program that a pickle is.

PyTorch writes the tensors of a model as raw bytes, and a pickle that says how
they are named and cut. Of all that a pickle may call, what is allowed here is
what such a file needs: a dict, and the description of a tensor. That is what
`torch.load(weights_only=True)` does, too; PyTorch is not needed for it.
"""

import collections
import dataclasses
import io
import math
import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

PICKLED_WEIGHTS = "pytorch_model.bin"
# The pickle of the largest models takes a hundredth.
MAX_PICKLE_BYTES = 16 * 2**20
# Storages of PyTorch, with the names that safetensors files have for them.
_TYPES = {
    "DoubleStorage": ("F64", np.float64),
    "FloatStorage": ("F32", np.float32),
    "HalfStorage": ("F16", np.float16),
    "BFloat16Storage": ("BF16", ml_dtypes.bfloat16),
    "LongStorage": ("I64", np.int64),
    "IntStorage": ("I32", np.int32),
    "ShortStorage": ("I16", np.int16),
    "CharStorage": ("I8", np.int8),
    "ByteStorage": ("U8", np.uint8),
    "BoolStorage": ("BOOL", np.bool_),
}
# How files begin that were written before PyTorch 1.6 took to zip archives.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


class PickledWeights:
    """The tensors of a `pytorch_model.bin`, with `SafetensorsFiles`' interface.

    Args:
        path: string or `pathlib.Path`.

    Raises:
        ValueError: The file is damaged, or holds more than named tensors.
    """

    def __init__(self, path):
        self._path = Path(path)
        self.source = f"`{self._path}`"
        try:
            if zipfile.is_zipfile(self._path):
                found = self._open_archive()
            else:
                found = self._open_legacy()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{self.source} is refused: {error}.") from error
        except _DAMAGE as error:
            raise self._damaged(error) from error
        self._tensors = self._named(found)
        self.shapes = {name: t.shape for name, t in self._tensors.items()}

    def dtype(self, name):
        """Return the name of a tensor's type as safetensors has it: `F32`."""
        return _TYPES[self._tensors[name].storage.kind][0]

    def read(self, name):
        """Return the NumPy array of that name."""
        tensor = self._tensors[name]
        storage = tensor.storage
        dtype = np.dtype(_TYPES[storage.kind][1])
        try:
            values = np.frombuffer(self._bytes(storage), dtype)
            if len(values) != storage.size:
                raise EOFError(f"{len(values)} of {storage.size} numbers")
        except _DAMAGE as error:
            raise self._damaged(error) from error
        view = np.lib.stride_tricks.as_strided(
            values[tensor.offset :],
            tensor.shape,
            [step * dtype.itemsize for step in tensor.strides],
            writeable=False,
        )
        return np.array(view)

    # === Two layouts ===

    def _open_archive(self):
        self._archive = zipfile.ZipFile(self._path)
        names = [
            name
            for name in self._archive.namelist()
            if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(names) != 1:
            raise EOFError("no data.pkl")
        self._folder = names[0].partition("/")[0]
        order = f"{self._folder}/byteorder"
        if order in self._archive.NameToInfo and self._member(order) != (
            b"little"
        ):
            raise EOFError("bytes in the order of another processor")
        if self._archive.getinfo(names[0]).file_size > MAX_PICKLE_BYTES:
            raise EOFError("too long a description")
        return _Unpickler(io.BytesIO(self._member(names[0]))).load()

    def _member(self, name):
        if self._archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise EOFError(f"{name} is compressed")  # To any size, that is.
        return self._archive.read(name)  # Its checksum is verified.

    def _open_legacy(self):
        self._archive = None
        with open(self._path, "rb") as file:
            parts = [_Unpickler(file).load() for _ in range(3)]
            if parts[:2] != [_LEGACY_MAGIC, _LEGACY_VERSION]:
                raise EOFError("neither of PyTorch's layouts")
            if parts[2].get("little_endian") is not True:
                raise EOFError("bytes in the order of another processor")
            unpickler = _Unpickler(file)
            found = unpickler.load()
            keys = _Unpickler(file).load()
            if set(keys) != set(unpickler.storages):
                raise EOFError("other storages than it names")
            self._places = {}
            for key in keys:
                storage = unpickler.storages[key]
                size = int.from_bytes(file.read(8), "little")
                if size != storage.size:
                    raise EOFError(f"{size} of {storage.size} numbers")
                self._places[key] = file.tell()
                file.seek(storage.bytes(), 1)
        return found

    def _bytes(self, storage):
        if self._archive:
            name = f"{self._folder}/data/{storage.key}"
            if self._archive.getinfo(name).file_size != storage.bytes():
                raise EOFError(f"{name} has another size")
            return self._member(name)
        with open(self._path, "rb") as file:
            file.seek(self._places[storage.key])
            return file.read(storage.bytes())

    # === What comes out ===

    def _named(self, found):
        if not isinstance(found, dict) or not all(
            isinstance(name, str) and isinstance(tensor, _Tensor)
            for name, tensor in found.items()
        ):
            raise ValueError(
                f"{self.source} holds something else than named tensors. "
                "Save the `state_dict()` of the model, or its safetensors."
            )
        return dict(found)

    def _damaged(self, error):
        return ValueError(
            f"{self.source} is not a complete file of PyTorch's: "
            f"{str(error)[:200] or type(error).__name__}. Download it again."
        )


# What a pickle that was cut, or made up, can end in.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    TypeError,
    UnicodeError,
    ValueError,
    zipfile.BadZipFile,
)


@dataclasses.dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    size: int

    def bytes(self):
        return self.size * np.dtype(_TYPES[self.kind][1]).itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


class _Kind:
    """The class of a storage, by name; pickles have nothing to call in it."""

    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name


class _Callable:
    """A function that a pickle may call, and whose attributes it cannot set."""

    __slots__ = ("_function",)

    def __init__(self, function):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args):
        return self._function(*args)

    def __setattr__(self, name, value):
        raise AttributeError(name)


def _is_count(value):
    return type(value) is int and value >= 0


def _tensor(storage, offset, shape, strides, *unused):
    """What `_rebuild_tensor_v2` is called with, if it stays in its storage."""
    shape, strides = tuple(shape), tuple(strides)
    if (
        not isinstance(storage, _Storage)
        or not all(map(_is_count, (offset, *shape, *strides)))
        or len(shape) != len(strides)
    ):
        raise EOFError("a tensor that is none")
    last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) and offset + last >= storage.size:
        raise EOFError("a tensor that is larger than its storage")
    # No number stands for many: what is read takes no more than the file.
    if math.prod(shape) > storage.size:
        raise EOFError("a tensor that is larger than its storage")
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor, *unused):
    return tensor


_ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_parameter),
    ("collections", "OrderedDict"): _Callable(collections.OrderedDict),
    **{("torch", name): _Kind(name) for name in _TYPES},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.storages = {}

    def find_class(self, module, name):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it calls `{module}.{name}`, which no file of weights needs "
                "and which could do anything. Take the model from somebody "
                "whom you trust, as safetensors"
            ) from None

    def persistent_load(self, pid):
        kind, storage_type, key, _, size, *view = pid
        if (
            kind != "storage"
            or not isinstance(storage_type, _Kind)
            or not isinstance(key, str)
            or not _is_count(size)
            or any(view)
        ):
            raise EOFError("a storage that is none")
        storage = _Storage(storage_type.name, key, size)
        if self.storages.setdefault(key, storage) != storage:
            raise EOFError("two storages of one name")
        return storage
