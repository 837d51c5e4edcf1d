"""How well data is mixed: a number for batches, and a look at neighbours."""

import itertools
import os

import numpy as np

from align_keras.data.record_files import open_records
from align_keras.data.records import decode_record
from align_keras.data.records import read_record
from align_keras.data.records import read_shard
from align_keras.data.records import record_offsets

# How many runs of neighbours are looked at, and how long each is.
RUNS = 16
RUN = 24
# By how much more of their words neighbours must share. In random order this
# is seen once in a thousand looks at most.
EXCESS = 0.1


def crowding(labels, batch_size):
    """Tell how far batches are from a uniform draw.

    Counts the pairs of one label in each batch, and divides their mean by
    what it would be if a batch was drawn at random from all records: 1 is a
    uniform draw, 2 means twice as many. Labels are classes, or whatever makes
    two records alike, such as the number of the run of sixty neighbours in a
    sorted folder.

    Args:
        labels: array `(records,)`. The label of each record, in the order of
            training. A last batch that is not full is left out.
        batch_size: int. At least 2.

    Returns:
        float.

    Raises:
        ValueError: There is not one whole batch, or there are no two records
            of one label.

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
    """Say so if neighbouring records have captions that are alike.

    Looks at some hundred records, and not at what `pack` put into random
    order. Compares neighbours with records that are far apart, so that
    captions that are all alike raise no alarm.

    Args:
        source: what `open_records` takes.

    Returns:
        string, a sentence that names the numbers and says what to do; `None`
        if there is nothing to say.
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
        f"{np.mean(near):.0%} of their words, and of records far apart "
        f"{np.mean(far):.0%}: the records are sorted, so that a batch holds "
        "more of one kind than chance would; `align-keras pack` writes them, "
        "or what they were made of, in random order."
    )


def _runs(shards):
    """Yield lists of serialized records that are neighbours in a file."""
    chosen = np.linspace(0, len(shards) - 1, min(RUNS, len(shards)))
    per_shard = -(-RUNS // len(chosen))
    for shard in (shards[int(place)] for place in chosen):
        if per_shard == 1:
            # Where it begins is known, even of a remote file without index.
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
    """The share of the words of both that stand in both."""
    return len(one & other) / max(1, len(one | other))
