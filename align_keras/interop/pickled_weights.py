"""Read `pytorch_model.bin` without executing the pickle inside.

PyTorch writes the tensors of a model as raw bytes, and a pickle that holds
their names and shapes. A pickle is a program. This module interprets only the
instructions that such a file needs, for dicts and descriptions of tensors.
`torch.load(weights_only=True)` does the same, but needs PyTorch. With Python's
own reader, a few bytes could allocate gigabytes, and deeply nested keys could
crash the process.
"""

import dataclasses
import io
import math
import pickletools
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

PICKLED_WEIGHTS = "pytorch_model.bin"
# The pickle of the largest models is 20 times smaller.
MAX_PICKLE_BYTES = 4 * 2**20
# The limit of NumPy.
MAX_DIMENSIONS = 64
# PyTorch's storage classes, with the dtype names of safetensors.
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
# The beginning of files written before PyTorch 1.6, which introduced zip files.
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
        except _Refused as error:
            raise ValueError(f"{self.source} is refused: {error}.") from error
        except _DAMAGE as error:
            raise self._damaged(error) from error
        self._tensors = self._named(found)
        self.shapes = {name: t.shape for name, t in self._tensors.items()}

    def dtype(self, name):
        """Return a tensor's dtype as safetensors names it, such as `F32`."""
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
            view = np.lib.stride_tricks.as_strided(
                values[tensor.offset :],
                tensor.shape,
                [step * dtype.itemsize for step in tensor.strides],
                writeable=False,
            )
            return np.array(view)
        except _DAMAGE as error:
            raise self._damaged(error) from error

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
            raise EOFError("a byte order other than little-endian")
        if self._archive.getinfo(names[0]).file_size > MAX_PICKLE_BYTES:
            raise EOFError("too long a description")
        return _Description(io.BytesIO(self._member(names[0]))).read()

    def _member(self, name):
        if self._archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise EOFError(f"{name} is compressed")  # To any size, that is.
        return self._archive.read(name)  # Its checksum is verified.

    def _open_legacy(self):
        self._archive = None
        with open(self._path, "rb") as file:
            head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
            parts = [_Description(head).read() for _ in range(3)]
            if parts[:2] != [_LEGACY_MAGIC, _LEGACY_VERSION]:
                raise EOFError("neither of PyTorch's layouts")
            if parts[2].get("little_endian") is not True:
                raise EOFError("a byte order other than little-endian")
            description = _Description(head)
            found = description.read()
            keys = _Description(head).read()
            if (
                not isinstance(keys, list)
                or not all(isinstance(key, str) for key in keys)
                or set(keys) != set(description.storages)
            ):
                raise EOFError("storages other than those it names")
            file.seek(head.tell())
            self._places = {}
            for key in keys:
                storage = description.storages[key]
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

    # === Results ===

    def _named(self, found):
        if not isinstance(found, dict) or not all(
            isinstance(name, str) and isinstance(tensor, _Tensor)
            for name, tensor in found.items()
        ):
            raise ValueError(
                f"{self.source} holds something other than named tensors. Save "
                "the `state_dict()` of the model, or its safetensors."
            )
        return dict(found)

    def _damaged(self, error):
        return ValueError(
            f"{self.source} is not a complete PyTorch file: "
            f"{str(error)[:200] or type(error).__name__}. Download it again."
        )


# The errors that a truncated or forged pickle can cause.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,  # Of an archive with a password.
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
    """The name of a storage class, with nothing that a pickle could call."""

    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name


def _is_count(value):
    return type(value) is int and value >= 0


def _tensor(storage, offset, shape, strides, *unused):
    """Stand in for `_rebuild_tensor_v2`; refuse to exceed the storage."""
    shape, strides = tuple(shape), tuple(strides)
    if (
        not isinstance(storage, _Storage)
        or len(shape) > MAX_DIMENSIONS
        or not all(map(_is_count, (offset, *shape, *strides)))
        or len(shape) != len(strides)
    ):
        raise EOFError("a malformed tensor")
    last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) and offset + last >= storage.size:
        raise EOFError("a tensor that is larger than its storage")
    # Refuse strides that repeat numbers, so that a tensor is never larger than
    # its storage in the file.
    if math.prod(shape) > storage.size:
        raise EOFError("a tensor that is larger than its storage")
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor, *unused):
    return tensor


def _ordered_dict(pairs=()):
    """Stand in for `OrderedDict`; Python 2 passes the items as an argument."""
    found = {}
    for key, value in pairs:
        _set(found, key, value)
    return found


def _set(found, key, value):
    """Set an item; only accept keys that cannot be nested, for fast lookup."""
    if type(found) is not dict or type(key) not in (str, int):
        raise EOFError("a key that is neither a name nor a number")
    found[key] = value


_ALLOWED = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered_dict,
    **{f"torch {name}": _Kind(name) for name in _TYPES},
}
_FUNCTIONS = (_tensor, _parameter, _ordered_dict)


class _Refused(Exception):
    """Raised for a pickle that does more than describe tensors."""


class _Description:
    """Interprets a pickle, if it only describes tensors.

    Args:
        file: file. It is read up to the end of the pickle.
    """

    def __init__(self, file):
        self.storages = {}
        self._file = file
        self._stack = []
        self._below = []  # The stack under each mark.
        self._memo = {}

    def read(self):
        """Return the object that the pickle describes."""
        for opcode, argument, _ in pickletools.genops(self._file):
            run = _INSTRUCTIONS.get(opcode.name)
            if run is None:
                raise _Refused(
                    f"it holds the instruction `{opcode.name}`, which no file "
                    "of weights needs. Save the `state_dict()` of the model "
                    "again, or its safetensors"
                )
            run(self, argument)
        return self._stack.pop()

    def _nothing(self, _):
        pass

    def _push(self, value):
        self._stack.append(value)

    def _push_none(self, _):
        self._push(None)

    def _push_true(self, _):
        self._push(True)

    def _push_false(self, _):
        self._push(False)

    def _push_dict(self, _):
        self._push({})

    def _push_list(self, _):
        self._push([])

    def _push_empty(self, _):
        self._push(())

    # === The stack ===

    def _mark(self, _):
        self._below.append(self._stack)
        self._stack = []

    def _marked(self):
        values, self._stack = self._stack, self._below.pop()
        return values

    def _gather(self, count):
        if len(self._stack) < count:
            raise EOFError("fewer values than an instruction needs")
        values = tuple(self._stack[-count:])
        self._stack[-count:] = [values]

    def _gather_marked(self, _):
        values = tuple(self._marked())
        self._push(values)

    def _append(self, _):
        value = self._stack.pop()
        self._extend([value])

    def _append_marked(self, _):
        self._extend(self._marked())

    def _extend(self, values):
        if type(self._stack[-1]) is not list:
            raise EOFError("values appended to something that is not a list")
        self._stack[-1].extend(values)

    def _set_one(self, _):
        value, key = self._stack.pop(), self._stack.pop()
        _set(self._stack[-1], key, value)

    def _set_marked(self, _):
        values = self._marked()
        for key, value in zip(values[::2], values[1::2], strict=True):
            _set(self._stack[-1], key, value)

    def _keep(self, place):
        self._memo[place] = self._stack[-1]

    def _keep_next(self, _):
        self._keep(len(self._memo))

    def _recall(self, place):
        self._push(self._memo[place])

    # === Calls ===

    def _find(self, name):
        if name not in _ALLOWED:
            raise _Refused(
                f"it calls `{name.replace(' ', '.')[:200]}`, which no file of "
                "weights needs and which could do anything. Get the model from "
                "somebody you trust, as safetensors"
            )
        self._push(_ALLOWED[name])

    def _find_named(self, _):
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise EOFError("a function without a name")
        self._find(f"{module} {name}")

    def _call(self, _):
        arguments, function = self._stack.pop(), self._stack.pop()
        if function not in _FUNCTIONS or not isinstance(arguments, tuple):
            raise EOFError("a call of something that is not a function")
        self._push(function(*arguments))

    def _build(self, _):
        self._stack.pop()  # Versions of modules, which we do not need.
        if type(self._stack[-1]) is not dict:
            raise EOFError("attributes of something that has none")

    def _open_storage(self, _):
        kind, storage_type, key, _, size, *view = self._stack.pop()
        if (
            kind != "storage"
            or not isinstance(storage_type, _Kind)
            or not isinstance(key, str)
            or not _is_count(size)
            or any(view)
        ):
            raise EOFError("a malformed storage")
        storage = _Storage(storage_type.name, key, size)
        if self.storages.setdefault(key, storage) != storage:
            raise EOFError("two storages with the same name")
        self._push(storage)


_INSTRUCTIONS = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _Description._nothing),
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
            *("BINUNICODE", "SHORT_BINUNICODE"),
            # Strings from Python 2.
            *("BINSTRING", "SHORT_BINSTRING"),
        ),
        _Description._push,
    ),
    "NONE": _Description._push_none,
    "NEWTRUE": _Description._push_true,
    "NEWFALSE": _Description._push_false,
    "EMPTY_DICT": _Description._push_dict,
    "EMPTY_LIST": _Description._push_list,
    "EMPTY_TUPLE": _Description._push_empty,
    "MARK": _Description._mark,
    "TUPLE": _Description._gather_marked,
    "TUPLE1": lambda self, _: self._gather(1),
    "TUPLE2": lambda self, _: self._gather(2),
    "TUPLE3": lambda self, _: self._gather(3),
    "APPEND": _Description._append,
    "APPENDS": _Description._append_marked,
    "SETITEM": _Description._set_one,
    "SETITEMS": _Description._set_marked,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Description._keep),
    "MEMOIZE": _Description._keep_next,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Description._recall),
    "GLOBAL": _Description._find,
    "STACK_GLOBAL": _Description._find_named,
    "REDUCE": _Description._call,
    "BUILD": _Description._build,
    "BINPERSID": _Description._open_storage,
}
