"""Store byte strings on disk, and read single rows without loading the rest."""

from pathlib import Path

import numpy as np


class ColumnWriter:
    """Writes byte strings one after another, and the offset of each end.

    Args:
        directory: string or `pathlib.Path`.
        name: string. The files are `NAME.bin` and `NAME.npy`.
    """

    def __init__(self, directory: str | Path, name: str):
        self._ends_path = Path(directory) / f"{name}.npy"
        self._file = open(Path(directory) / f"{name}.bin", "wb")
        self._ends = [0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        np.save(self._ends_path, np.array(self._ends, "uint64"))

    def append(self, value: bytes) -> None:
        """Append a row."""
        self._file.write(value)
        self._ends.append(self._ends[-1] + len(value))


class Column:
    """Byte strings that a `ColumnWriter` wrote, opened with memory maps.

    Args:
        directory: string or `pathlib.Path`.
        name: string.
        count: int. The expected number of rows.

    Raises:
        ValueError: the files are damaged or have another number of rows.
    """

    def __init__(self, directory: str | Path, name: str, count: int):
        path = Path(directory) / f"{name}.bin"
        try:
            size = path.stat().st_size
            self._ends = np.load(
                Path(directory) / f"{name}.npy", "r", allow_pickle=False
            )
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"`{directory}` has a damaged column `{name}`: {error}. "
                "Build the index again."
            ) from None
        ends = self._ends
        sound = ends.shape == (count + 1,) and ends.dtype == "uint64"
        if not (sound and ends[0] == 0 and ends[-1] == size):
            raise ValueError(
                f"`{path}` does not hold the {count} rows that the index "
                "lists: it is damaged. Build the index again."
            )
        self._bytes: np.ndarray = np.empty(0, "uint8")
        if size:
            self._bytes = np.memmap(path, "uint8", "r")

    def __getitem__(self, row):
        # Damaged offsets give fewer bytes, never bytes of another file.
        start, end = int(self._ends[row]), int(self._ends[row + 1])
        return self._bytes[start:end].tobytes()
