"""A random order for any number of records: that of a hash of their keys.

A hash that the seed enters gives each key a place, as good as drawn. The order
follows from the keys and the seed alone: where a record came from, how many
there are and how the work was shared out make no difference. Records with one
key stand together, in the order of the source.

What cannot be read in any order, such as an archive, is scattered over bucket
files by the first bits of the hash, and each bucket is then sorted in memory.
"""

import collections
import hashlib
import pickle

# What a bucket holds, about, and what waits in memory to be written to them.
BUCKET_BYTES = 256 * 2**20


def random_place(key, seed):
    """Return what to sort a key by for a random order.

    Args:
        key: string. The key of a record.
        seed: int. Another seed gives another order.

    Returns:
        A pair: 8 bytes that are as good as random, and the key, which decides
        where two keys have the same bytes.
    """
    salt = (seed % 2**64).to_bytes(8, "little")
    contents = key.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(contents, digest_size=8, key=salt).digest(), key


def shuffle_stream(entries, seed, folder, size):
    """Put a stream into random order, by way of files.

    Memory holds about `BUCKET_BYTES` at a time. The files take as much room
    as the stream, and each is removed once it has been read.

    Args:
        entries: iterable of tuples that begin with a key, a string.
        seed: int. See `random_place`.
        folder: `pathlib.Path`. A directory for the files, which is made,
            and removed at the end.
        size: int. How many bytes the entries have, about.

    Yields:
        The entries.
    """
    buckets = -(-max(size, 1) // BUCKET_BYTES)
    folder.mkdir()
    waiting, waiting_bytes = collections.defaultdict(list), 0

    def flush():
        for bucket, pieces in waiting.items():
            with open(folder / f"bucket-{bucket}", "ab") as file:
                file.writelines(pieces)
        waiting.clear()

    for entry in entries:
        place = random_place(entry[0], seed)
        piece = pickle.dumps((place, entry))
        # Buckets are ranges of the hash, one after the other.
        bucket = int.from_bytes(place[0], "big") * buckets >> 64
        waiting[bucket].append(piece)
        waiting_bytes += len(piece)
        if waiting_bytes >= BUCKET_BYTES:
            flush()
            waiting_bytes = 0
    flush()
    for bucket in range(buckets):
        yield from _sorted_bucket(folder / f"bucket-{bucket}")
    folder.rmdir()


def _sorted_bucket(path):
    if not path.exists():
        return
    found = []
    with open(path, "rb") as file:
        while file.peek(1):
            found.append(pickle.load(file))
    path.unlink()
    found.sort(key=lambda item: item[0])
    for _, entry in found:
        yield entry
