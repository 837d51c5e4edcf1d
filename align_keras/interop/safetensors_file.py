"""Read and write safetensors files, and read sharded ones."""

from pathlib import Path

from align_keras.io.atomic import atomic_file
from align_keras.io.json_files import read_object
from align_keras.io.optional import OptionalModule

safetensors = OptionalModule("safetensors", extra="huggingface")
safetensors_numpy = OptionalModule("safetensors.numpy", extra="huggingface")

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# The headers of the largest models are 100 times smaller. Each name in a header
# takes some memory.
MAX_HEADER_BYTES = 16 * 2**20
# Formats that can run any code when they are loaded.
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class SafetensorsFiles:
    """The tensors of a directory with `model.safetensors`, or its shards.

    Tensors are read one by one, so that memory never holds a second copy of a
    large model.

    Args:
        directory: string or `pathlib.Path`.

    Raises:
        ValueError: The directory only has pickled weights, or a file is
            damaged or missing.
        ImportError: The package safetensors is not installed.
    """

    def __init__(self, directory):
        self._directory = Path(directory)
        self.source = f"`{directory}`"
        self._files = {}
        self._slices = {}
        for path in self._paths():
            file = _open(path)
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                self._files[name] = file
                self._slices[name] = file.get_slice(name)
        self._require_index_to_agree()
        self.shapes = {
            name: tuple(part.get_shape()) for name, part in self._slices.items()
        }

    def dtype(self, name):
        """Return a tensor's dtype as the file names it, such as `F32`."""
        return self._slices[name].get_dtype()

    def read(self, name):
        """Return the NumPy array of that name."""
        return self._files[name].get_tensor(name)

    def _paths(self):
        whole = self._directory / WEIGHTS
        self._index = {}
        if whole.is_file():
            return [whole]
        index = self._directory / INDEX
        if not index.is_file():
            raise ValueError(_no_weights(self._directory))
        self._index = shard_of_each_tensor(index)
        paths = [
            self._directory / name for name in sorted(set(self._index.values()))
        ]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise ValueError(
                f"`{index}` names files that are not there: "
                f"{', '.join(missing)}. Download them too."
            )
        return paths

    def _require_index_to_agree(self):
        if not self._index:
            return
        wrong = sorted(set(self._index) ^ set(self._slices))
        if wrong:
            raise ValueError(
                f"`{self._directory / INDEX}` and its files disagree about the "
                f"tensors {', '.join(wrong[:5])}. Download them again."
            )


def shard_of_each_tensor(index):
    """Read the index of a sharded file.

    Args:
        index: `pathlib.Path` of `model.safetensors.index.json`.

    Returns:
        A dict from the name of a tensor to the name of its file.
    """
    shards = read_object(
        index,
        {"weight_map": _are_names},
        "index of safetensors files",
        "Download it again.",
    )["weight_map"]
    names = set(shards.values())
    strange = sorted(
        name
        for name in names
        if Path(name).name != name or not name.endswith(".safetensors")
    )
    if strange:
        raise ValueError(
            f"`{index}` names files that are not safetensors files next to it: "
            f"{', '.join(strange[:5])}."
        )
    return shards


def _are_names(value):
    names = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(name, str) for name in names)


def write_safetensors(path, arrays):
    """Write arrays to a safetensors file that PyTorch libraries accept.

    Args:
        path: string or `pathlib.Path`. The file, which is written atomically.
        arrays: dict from name to NumPy array.
    """
    with atomic_file(path) as temporary:
        # transformers refuses files that do not name their framework.
        safetensors_numpy.save_file(
            arrays, temporary, metadata={"format": "pt"}
        )


def _open(path):
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER_BYTES:
        raise ValueError(
            f"`{path}` is not a complete safetensors file: its header would "
            f"have {size} bytes. Download it again."
        )
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"`{path}` is not a complete safetensors file: {error}. Download "
            "it again."
        ) from error


def _no_weights(directory):
    pickled = [
        path.name
        for pattern in _PICKLED
        for path in sorted(directory.glob(pattern))
    ]
    if not pickled:
        return f"`{directory}` holds no weights: there is no {WEIGHTS}."
    return (
        f"`{directory}` holds only pickled weights ({', '.join(pickled)}), "
        "which could run any program when they are read. Of these, only an "
        "unsharded `pytorch_model.bin` is accepted. If you trust the files, "
        "convert them to safetensors with transformers: "
        "`AutoModel.from_pretrained(directory).save_pretrained(directory)`."
    )
