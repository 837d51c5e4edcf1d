"""Compute the order of training records from their position in the stream.

A run must be able to resume at any step without reading again what it has
seen, and still be mixed well. So the order is computed instead of drawn from a
shuffle buffer:

- An epoch takes the files in random order, in groups of about 64.
- A piece is a run of at most eight consecutive records of one file. The pieces
  of a group are put in random order.
- Several pieces form a window. Its records are shuffled so that those of each
  piece are spread over it. A window holds at most `window_records` records,
  and no more than the largest file.

Neighbours in a file are often similar. Small pieces that are spread out keep
them from meeting in a batch; `align_keras.data.mixing` measures how well.

`BalancedOrder` draws from several languages in given shares. A round has about
as many records as a group, a fixed number from each language, and is mixed in
the same way.

The order depends only on the seed, the number of the epoch, and the number of
records in each file. Resuming from a position reads again at most the earlier
part of one window: one file's worth of records. Files that have already been
read are not opened. The index next to a file tells where its pieces begin;
without an index, the file's records are stepped over once.
"""

import functools
import itertools
import typing

import numpy as np

from align_keras.data.records import ASKED
from align_keras.data.records import is_remote
from align_keras.data.records import record_offsets
from align_keras.io.threads import map_ahead

# About how many files, and how many records, form a group. The positions of a
# group's pieces are held in memory.
MIXED_FILES = 64
MIXED_RECORDS = 4_000_000
# Records in a piece. Fewer mix better, but need more reads.
PIECE = 8


class Window(typing.NamedTuple):
    """Records that are read and shuffled together.

    Attributes:
        files: array of strings, `(pieces,)`. The file of each piece.
        firsts: int64 array `(pieces,)`. The first record of each piece in its
            file.
        counts: int64 array `(pieces,)`. The number of records of each piece.
        order: int64 array. The records to take, in order, as indices into the
            concatenated pieces.
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
    """An endless stream in which each record occurs once per epoch.

    Args:
        counts: dict from file to its number of records.
        seed: int.
        window_records: int. The maximum number of records to shuffle at once.
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
        # The number of records per epoch in this stream.
        self.size = len(range(part[0], int(self.counts.sum()), part[1]))
        window = max(1, min(window_records, int(self.counts.max())))
        self.piece = max(1, min(PIECE, window // 4))
        self.pieces_of_window = window // self.piece
        self.records_of_window = self.piece * self.pieces_of_window
        self._count_of = counts
        # Keep the borders of two groups: this one and the next.
        self._keep_borders(MIXED_FILES)

    def _keep_borders(self, files):
        self._borders = functools.lru_cache(2 * files)(self._read_borders)

    def windows(self, start=0):
        """Yield windows endlessly, starting at a record of the stream.

        Args:
            start: int. The number of the first record to take.
        """
        index, count = self.part
        first_epoch, rest = divmod(start, self.size)
        position = rest * count + index
        for epoch in itertools.count(first_epoch):
            yield from self._windows_of_epoch(epoch, position)
            position = index

    def places(self, start=0):
        """Yield the file of each record of the stream, and its number there.

        Args:
            start: int. The number of the first record.
        """
        for window in self.windows(start):
            yield from window.records()

    def spans(self, windows):
        """Return the byte ranges of the pieces of windows.

        Args:
            windows: list of `Window`.

        Returns:
            list of pairs of int64 arrays `(pieces,)`, one for each window:
            the first byte and the number of bytes of each piece.

        Raises:
            ValueError: A file does not hold the expected number of records.
        """
        files = dict.fromkeys(itertools.chain(*(w.files for w in windows)))
        # Requests to a store are slow, so make several at once.
        remote = any(map(is_remote, files))
        read = functools.partial(map_ahead, workers=ASKED) if remote else map
        borders = dict(zip(files, read(self._borders, files), strict=True))
        return [_spans(w, w.firsts // self.piece, borders) for w in windows]

    def _read_borders(self, file):
        """Read the start of each piece of a file, and the end of the last."""
        offsets = record_offsets(file)
        if len(offsets) - 1 != self._count_of[file]:
            raise ValueError(
                f"`{file}` should hold {self._count_of[file]} records. "
                f"Received: {len(offsets) - 1} records. Pack it again, "
                "or remove the outdated manifest or index next to it."
            )
        return np.append(offsets[: -1 : self.piece], offsets[-1])

    def _windows_of_epoch(self, epoch, position):
        draw = np.random.default_rng((self.seed, epoch))
        files = draw.permutation(len(self.files))
        number = max(
            round(len(files) / MIXED_FILES), self.counts.sum() // MIXED_RECORDS
        )
        groups = np.array_split(files, np.clip(number, 1, len(files)))
        begin = 0
        for number, group in enumerate(groups):
            end = begin + self.counts[group].sum()
            if end > position:
                draw = np.random.default_rng((self.seed, epoch, number))
                pieces = self._pieces(group, 0 * group, self.counts[group])
                yield from self._windows_of(pieces, begin, position, draw)
            begin = end

    def _windows_of(self, pieces, begin, position, draw):
        pieces = draw.permutation(pieces)
        for first in range(0, len(pieces), self.pieces_of_window):
            files, firsts, counts, left_out, taken = pieces[
                first : first + self.pieces_of_window
            ].T
            order = _spread(taken, draw)
            # Pieces are read whole, even if only some records are taken.
            moved = np.cumsum(counts) - counts - np.cumsum(taken) + taken
            order += np.repeat(moved + left_out, taken)[order]
            # The position of each record in the epoch.
            places = begin + np.arange(len(order))
            index, count = self.part
            wanted = (places >= position) & (places % count == index)
            if wanted.any():
                yield Window(self.files[files], firsts, counts, order[wanted])
            begin += len(order)

    def _pieces(self, files, begins, ends):
        """Cut runs of records of files into pieces.

        Returns:
            int64 array `(pieces, 5)`: file, first record, number of records,
            and how many of these to skip and then to take.
        """
        first = begins // self.piece
        numbers = -(-ends // self.piece) - first
        run = np.repeat(np.arange(len(files)), numbers)
        before = np.cumsum(numbers) - numbers - first
        firsts = (np.arange(len(run)) - before[run]) * self.piece
        counts = np.minimum(self.piece, self.counts[files[run]] - firsts)
        left_out = np.maximum(begins[run] - firsts, 0)
        taken = np.minimum(ends[run] - firsts, counts) - left_out
        return np.stack([files[run], firsts, counts, left_out, taken], axis=1)


class BalancedOrder(RecordOrder):
    """An endless stream of records in which each language has a given share.

    Each language has its own stream: pass after pass over its files, each pass
    in random order. A round takes the next records of every language, in
    proportion to its share, and mixes them. Rounds are dealt to the parts in
    turn, so a part does not read the records of others, except in pieces that
    two parts share.

    Args:
        counts: dict from file to its number of records.
        languages: dict from file to its language.
        exponent: float from 0 to 1. See `language_shares`.
        seed: int.
        window_records: int. See `RecordOrder`.
        part: pair of ints, index and count. The stream takes every `count`-th
            round. Defaults to `(0, 1)`, all.

    Example:

    ```python
    counts = {"de.tfrecord": 9000, "cs.tfrecord": 1000}
    languages = {"de.tfrecord": "de", "cs.tfrecord": "cs"}
    order = BalancedOrder(counts, languages, 0.5, 0, 2048)
    order.size, order.taken  # 10000, [2500, 7500]
    ```
    """

    def __init__(
        self, counts, languages, exponent, seed, window_records, part=(0, 1)
    ):
        super().__init__(counts, seed, window_records)
        self.round_of_part = part
        names = sorted({languages[file] for file in counts})
        places = {name: place for place, name in enumerate(names)}
        number = np.array([places[languages[file]] for file in counts])
        self.files_of = [np.flatnonzero(number == n) for n in range(len(names))]
        records = {
            name: int(self.counts[files].sum())
            for name, files in zip(names, self.files_of, strict=True)
        }
        shares = language_shares(records, exponent)
        most = min(MIXED_RECORDS, MIXED_FILES * int(self.counts.mean()))
        most = min(most, self.size)
        self.taken = [max(1, round(most * shares[name])) for name in names]
        self.size = sum(self.taken)
        self._keep_borders(
            sum(map(self._most_files, self.files_of, self.taken))
        )

    def _most_files(self, files, taken):
        """Return how many files of a language a round may need."""
        smallest = np.cumsum(np.sort(self.counts[files]))
        return min(len(files), int(np.searchsorted(smallest, taken)) + 2)

    def _windows_of_epoch(self, epoch, position):
        index, count = self.round_of_part
        number = epoch * count + index
        runs = [
            np.array(list(self._runs(language, number * taken, taken))).T
            for language, taken in enumerate(self.taken)
        ]
        pieces = self._pieces(*np.concatenate(runs, axis=1))
        draw = np.random.default_rng((self.seed, number))
        yield from self._windows_of(pieces, 0, position, draw)

    def _runs(self, language, begin, length):
        """Yield file, first and last record of a run of a language's stream."""
        files = self.files_of[language]
        size = int(self.counts[files].sum())
        for number in range(begin // size, -(-(begin + length) // size)):
            draw = np.random.default_rng((self.seed, language, number))
            shown = draw.permutation(files)
            ends = number * size + np.cumsum(self.counts[shown])
            starts = ends - self.counts[shown]
            first = np.maximum(begin, starts) - starts
            last = np.minimum(begin + length, ends) - starts
            part = first < last
            yield from zip(shown[part], first[part], last[part], strict=True)


def language_shares(records, exponent):
    """Compute each language's share of the training pairs.

    Args:
        records: dict from language to its number of records.
        exponent: float from 0 to 1. With 0, all languages have equal shares;
            with 1, the shares are those of the records.

    Returns:
        dict from language to its share, which is proportional to
        `records ** exponent`.
    """
    weights = {name: count**exponent for name, count in records.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _spread(counts, draw):
    """Shuffle the records of a window.

    A record may come anywhere in the window. But of the n records of a piece,
    one falls into each nth of the window, so a batch seldom holds two of them.

    Args:
        counts: int64 array `(pieces,)`. The number of records of each piece.
        draw: NumPy random generator.

    Returns:
        int64 array. The records to take, in order.
    """
    pieces = np.repeat(np.arange(len(counts)), counts)
    mixed = np.lexsort((draw.random(len(pieces)), pieces))
    begins = np.repeat(np.cumsum(counts) - counts, counts)
    parts = np.empty(len(pieces))
    parts[mixed] = np.arange(len(pieces)) - begins
    places = (parts + draw.random(len(pieces))) / np.repeat(counts, counts)
    return np.argsort(places)


def _spans(window, numbers, borders):
    of_pieces = [borders[file] for file in window.files]
    begins, ends = (
        np.array([b[n] for b, n in zip(of_pieces, which, strict=True)])
        for which in (numbers, numbers + 1)
    )
    return begins, ends - begins
