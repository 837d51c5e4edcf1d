"""Put any number of records into random order by a hash of their keys.

A seeded hash gives each key a pseudorandom place. The order depends only on
the keys and the seed: it makes no difference where a record comes from, how
many records there are, or how the work is divided. Records with the same key
follow each other in the order of the source.

A source that can only be read as a stream, such as an archive, is distributed
over bucket files by the first bits of the hash. Each bucket is then sorted in
memory.
"""

import collections
import hashlib
import pickle

# About the size of a bucket, and of the data buffered before it is written.
BUCKET_BYTES = 256 * 2**20


def random_place(key, seed):
    """Return the value to sort a key by for a random order.

    Args:
        key: string. The key of a record.
        seed: int. Another seed gives another order.

    Returns:
        A pair: 8 pseudorandom bytes, and the key, which decides between two
        keys with the same bytes.
    """
    salt = (seed % 2**64).to_bytes(8, "little")
    contents = key.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(contents, digest_size=8, key=salt).digest(), key


def shuffle_stream(entries, seed, folder, size):
    """Put a stream into random order by means of temporary files.

    It holds about `BUCKET_BYTES` in memory at a time. The files need as much
    disk space as the stream, and each is removed once it has been read.

    Args:
        entries: iterable of tuples that begin with a key, a string.
        seed: int. See `random_place`.
        folder: `pathlib.Path`. A directory for the files, which is created,
            and removed at the end.
        size: int. About how many bytes the entries have.

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
        # Buckets are consecutive ranges of the hash.
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
