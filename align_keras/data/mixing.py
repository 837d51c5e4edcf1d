"""Measure how well data is mixed, within batches and between neighbours."""

import itertools
import os

import numpy as np

from align_keras.data.record_files import open_records
from align_keras.data.records import decode_record
from align_keras.data.records import read_record
from align_keras.data.records import read_shard
from align_keras.data.records import record_offsets

# The number of runs of neighbours to look at, and the length of each.
RUNS = 16
RUN = 24
# The additional share of words that sorted neighbours have in common. In random
# order, this excess occurs at most once in a thousand checks.
EXCESS = 0.1


def crowding(labels, batch_size):
    """Measure how far batches are from a uniform draw.

    Counts the pairs with equal labels in each batch, and divides their mean by
    its expected value for batches drawn at random from all records: 1 is a
    uniform draw, 2 means twice as many pairs. Labels are classes, or anything
    that makes two records alike, such as the number of the run of sixty
    neighbours in a sorted folder.

    Args:
        labels: array `(records,)`. The label of each record, in training
            order. An incomplete last batch is left out.
        batch_size: int. At least 2.

    Returns:
        float.

    Raises:
        ValueError: There is no complete batch, or no two records have the
            same label.

    Example:

    ```python
    crowding(["cat", "cat", "dog", "dog"], batch_size=2)  # 3.0
    ```
    """
    _, labels, totals = np.unique(
        labels, return_inverse=True, return_counts=True
    )
    count = len(labels)
    batches = count // batch_size
    pairs = (totals * (totals - 1)).sum() / max(1, count * (count - 1))
    if batch_size < 2 or not batches or not pairs:
        raise ValueError(
            "`crowding` needs a whole batch of at least 2 records, and two "
            f"records of one label. Received: {count} records of "
            f"{len(totals)} labels, batch_size={batch_size}."
        )
    numbers = np.arange(batches * batch_size) // batch_size
    of_batch = numbers * len(totals) + labels[: len(numbers)]
    _, found = np.unique(of_batch, return_counts=True)
    found = (found * (found - 1)).sum() / batches
    return float(found / (pairs * batch_size * (batch_size - 1)))


def describe_order(source):
    """Return a warning if neighbouring records have similar captions.

    Looks at a few hundred records, and skips data that `pack` has put into
    random order. Compares neighbours with records that are far apart, so data
    whose captions are all similar causes no warning.

    Args:
        source: see `open_records`.

    Returns:
        string, a sentence with the numbers and what to do; `None` if there is
        nothing to warn about.
    """
    records = open_records(source)
    if records.in_random_order:
        return None
    runs = [[_words(record) for record in run] for run in _runs(records.paths)]
    near = [_shared(*pair) for run in runs for pair in itertools.pairwise(run)]
    far = [
        _shared(one, other)
        for first, second in itertools.combinations(runs, 2)
        for one, other in zip(first, second, strict=False)
    ]
    if not near or not far or np.mean(near) - np.mean(far) < EXCESS:
        return None
    folder = os.path.dirname(records.paths[0])
    return (
        f"In `{folder}`, captions of neighbouring records share "
        f"{np.mean(near):.0%} of their words, and those of records far apart "
        f"{np.mean(far):.0%}: the records are sorted, so a batch holds more of "
        "one kind than it would by chance; `align-keras pack` writes them, or "
        "the data they were made from, in random order."
    )


def _runs(shards):
    """Yield lists of consecutive serialized records of a file."""
    chosen = np.linspace(0, len(shards) - 1, min(RUNS, len(shards)))
    per_shard = -(-RUNS // len(chosen))
    for shard in (shards[int(place)] for place in chosen):
        if per_shard == 1:
            # Its start is known, even in a remote file without an index.
            yield list(itertools.islice(read_shard(shard), RUN))
            continue
        count = len(record_offsets(shard)) - 1
        for first in range(0, count, max(RUN, -(-count // per_shard))):
            last = min(first + RUN, count)
            yield [read_record(shard, index) for index in range(first, last)]


def _words(record):
    try:
        captions = decode_record(record)["captions"]
    except ValueError:
        return frozenset()
    return frozenset(captions[0].lower().split())


def _shared(one, other):
    """Return the Jaccard similarity of two sets of words."""
    return len(one & other) / max(1, len(one | other))
