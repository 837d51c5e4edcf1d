"""Which images are held out to measure on."""

import collections
import hashlib
import posixpath

from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.folders import is_file_within

# More images make an evaluation slower, hardly truer.
MOST = 1000
# Fewer say nothing; but a quarter of a small collection is enough to lose.
FEWEST = 8


def choose_held_out(folder, names, share, allow_outside=False):
    """Choose images that training must not see.

    The choice follows from the names alone, so that it is the same each time.
    Images with one key (a name up to its suffix) or the same bytes stay
    together, on one side or the other.

    Args:
        folder: `pathlib.Path` to which the names are relative.
        names: list of strings. Paths of images; files that are missing, or
            will not be read, are passed over.
        share: float from 0 to 0.5. The share to hold out; yet at least 8
            images, or a quarter where that is less, and at most 1000.
        allow_outside: bool. Whether images outside the folder count. Defaults
            to `False`.

    Returns:
        Set of names, empty where `share` is 0.
    """
    names = [n for n in names if is_file_within(folder, n, allow_outside)]
    sizes = {name: (folder / name).stat().st_size for name in names}
    names = [name for name in names if sizes[name] <= MAX_FILE_BYTES]
    shared = collections.Counter(sizes.values())

    def digest(name):
        # Only files of equal size can have equal bytes.
        if shared[sizes[name]] < 2:
            return name
        return hashlib.sha256((folder / name).read_bytes()).digest()

    return choose_by_digest({name: digest(name) for name in names}, share)


def choose_by_digest(digests, share):
    """Choose images that training must not see; see `choose_held_out`.

    Args:
        digests: dict from names of images to what is equal for equal bytes.
        share: float from 0 to 0.5.

    Returns:
        Set of names.
    """
    if not 0 <= share <= 0.5:
        raise ValueError(
            "`hold_out` must be a share from 0 to 0.5 of the images. "
            f"Received: hold_out={share}"
        )
    names = list(digests)
    wanted = max(round(share * len(names)), min(FEWEST, len(names) // 4))
    wanted = min(wanted, MOST) if share else 0
    chosen = set()
    for group in sorted(_groups(digests), key=_draw):
        # A group that does not fit, such as one image a thousand times,
        # stays in training.
        if len(chosen) + len(group) <= wanted:
            chosen.update(group)
    return chosen


def _groups(digests):
    """Lists of names that belong on one side."""
    parent = {}

    def root(item):
        while parent.setdefault(item, item) != item:
            item = parent[item]
        return item

    for name, digest in digests.items():
        parent[root(name)] = root(("key", posixpath.splitext(name)[0]))
        parent[root(name)] = root(("bytes", digest))
    groups = collections.defaultdict(list)
    for name in digests:
        groups[root(name)].append(name)
    return groups.values()


def _draw(group):
    return hashlib.sha256(min(group).encode("utf-8", "surrogatepass")).digest()
