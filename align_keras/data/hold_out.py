"""Choose the images that are held out for evaluation."""

import collections
import hashlib
import posixpath

from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.folders import is_file_within

# More images make an evaluation slower but hardly more accurate.
MOST = 1000
# Fewer images say nothing, but do not take more than a quarter of a small set.
FEWEST = 8


def choose_held_out(folder, names, share, allow_outside=False):
    """Choose images that training must not see.

    The choice depends only on the names, so it is the same each time. Images
    with the same key (the name without its suffix) or the same bytes stay on
    the same side.

    Args:
        folder: `pathlib.Path` to which the names are relative.
        names: list of strings. Paths of images. Files that are missing or
            will not be read are ignored.
        share: float from 0 to 0.5. The share to hold out, but at least 8
            images, or a quarter if that is less, and at most 1000.
        allow_outside: bool. Whether images outside the folder count. Defaults
            to `False`.

    Returns:
        Set of names, empty if `share` is 0.
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
        digests: dict from names of images to values that are equal for equal
            bytes.
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
        # A group that does not fit, such as a thousand copies of one image,
        # stays in training.
        if len(chosen) + len(group) <= wanted:
            chosen.update(group)
    return chosen


def _groups(digests):
    """Group the names that must stay on the same side."""
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
