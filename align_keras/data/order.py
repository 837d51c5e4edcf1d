"""The order in which training sees the records: a function of the position.

A run must go on anywhere without reading again what it has seen, and be mixed
well all the same. So the order is computed, not drawn from a buffer:

- An epoch takes the files in random order, in groups of about 16.
- A piece is a run of consecutive records of one file. The pieces of a group
  are put in random order.
- Sixteen pieces (fewer, of very small files) make a window, whose records are
  shuffled. It holds no more records than the largest file, nor than
  `window_records`.

All of it follows from the seed, the number of the epoch, and how many records
each file holds. Going on from a position reads again, at most, the part of
one window that lies before it: one file's worth of records. Files that have
been read are not opened. Where a piece begins is told by the index beside the
file, or found by stepping over the file's records once.
"""

import functools
import itertools
import typing

import numpy as np

from align_keras.data.records import record_offsets

# How many files are mixed, and how many pieces make a window at most.
MIXED = 16


class Window(typing.NamedTuple):
    """Records to be read and shuffled at once.

    Attributes:
        files: array of strings, `(pieces,)`.
        firsts: int64 array `(pieces,)`. A piece's first record in its file.
        counts: int64 array `(pieces,)`. A piece's number of records.
        order: int64 array. Which of the window's records to take, in turn,
            when the pieces are laid end to end.
    """

    files: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray
    order: np.ndarray

    def records(self):
        """Yield `(file, number of the record in it)` in order."""
        ends = np.cumsum(self.counts)
        for number in self.order:
            piece = np.searchsorted(ends, number, side="right")
            back = ends[piece] - number
            yield (
                self.files[piece],
                int(self.firsts[piece] + self.counts[piece] - back),
            )


class RecordOrder:
    """An endless stream of records, each once in an epoch.

    Args:
        counts: dict from file to its number of records.
        seed: int.
        window_records: int. Greatest number of records that are shuffled at
            once.
        part: pair of ints, index and count. The stream takes every
            `count`-th record of an epoch. Defaults to `(0, 1)`, all.

    Example:

    ```python
    order = RecordOrder({"a.tfrecord": 1000, "b.tfrecord": 900}, 0, 2048)
    next(order.windows(start=5000)).records()
    ```
    """

    def __init__(self, counts, seed, window_records, part=(0, 1)):
        self.files = np.array(list(counts), object)
        self.counts = np.array(list(counts.values()), np.int64)
        self.seed = seed % 2**64
        self.part = part
        # Records of an epoch in this stream.
        self.size = len(range(part[0], int(self.counts.sum()), part[1]))
        window = max(1, min(window_records, int(self.counts.max())))
        # Pieces of a few records cost more to open than to read.
        self.piece = max(1, min(8, window // 4), window // MIXED)
        self.pieces_of_window = window // self.piece
        self.records_of_window = self.piece * self.pieces_of_window
        self._count_of = counts
        self._offsets = functools.lru_cache(4 * MIXED)(record_offsets)

    def windows(self, start=0):
        """Yield windows without end, from a record of the stream on.

        Args:
            start: int. The number of the first record to take.
        """
        index, count = self.part
        first_epoch, rest = divmod(start, self.size)
        position = rest * count + index
        for epoch in itertools.count(first_epoch):
            yield from self._windows_of_epoch(epoch, position)
            position = index

    def spans(self, window):
        """Tell where the pieces of a window lie in their files.

        Returns:
            Two int64 arrays `(pieces,)`, the first byte and the number of
            bytes of each.

        Raises:
            ValueError: A file holds another number of records than it should.
        """
        begins, ends = [], []
        for file, first, count in zip(
            window.files, window.firsts, window.counts, strict=True
        ):
            offsets = self._offsets(file)
            if len(offsets) - 1 != self._count_of[file]:
                raise ValueError(
                    f"`{file}` should hold {self._count_of[file]} records. "
                    f"Received: {len(offsets) - 1} records. Pack it again, "
                    "or remove the outdated manifest or index beside it."
                )
            begins.append(offsets[first])
            ends.append(offsets[first + count])
        return np.array(begins), np.subtract(ends, begins)

    def _windows_of_epoch(self, epoch, position):
        draw = np.random.default_rng((self.seed, epoch))
        files = draw.permutation(len(self.files))
        groups = np.array_split(files, max(1, round(len(files) / MIXED)))
        begin = 0
        for number, group in enumerate(groups):
            end = begin + self.counts[group].sum()
            if end > position:
                draw = np.random.default_rng((self.seed, epoch, number))
                yield from self._windows_of_group(group, begin, position, draw)
            begin = end

    def _windows_of_group(self, group, begin, position, draw):
        pieces = [
            (file, first, min(self.piece, self.counts[file] - first))
            for file in group
            for first in range(0, self.counts[file], self.piece)
        ]
        pieces = draw.permutation(np.array(pieces, np.int64))
        for first in range(0, len(pieces), self.pieces_of_window):
            files, firsts, counts = pieces[
                first : first + self.pieces_of_window
            ].T
            order = draw.permutation(counts.sum())
            # Where each of them stands in the epoch.
            places = begin + np.arange(len(order))
            index, count = self.part
            wanted = (places >= position) & (places % count == index)
            if wanted.any():
                yield Window(self.files[files], firsts, counts, order[wanted])
            begin += len(order)
