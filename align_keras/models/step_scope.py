"""Context that the layers of a training step need besides their inputs."""

import contextlib
import threading

_local = threading.local()


@contextlib.contextmanager
def step_scope(mask=None, remat=False):
    """Set the context of a step for the layers that run inside it.

    Args:
        mask: Optional bool tensor of shape `(batch,)`. Which rows are
            examples; the others only fill up the batch.
        remat: bool. Whether blocks recompute their activations in the
            backward pass, to save memory. Defaults to `False`.
    """
    before = getattr(_local, "step", (None, False))
    _local.step = (mask, remat)
    try:
        yield
    finally:
        _local.step = before


def current_mask():
    """Return the mask that tells which rows are examples, or `None`."""
    return getattr(_local, "step", (None, False))[0]


def rematerializing():
    """Return whether blocks must recompute their activations."""
    return getattr(_local, "step", (None, False))[1]


@contextlib.contextmanager
def listening_for_hits():
    """Collect the retrieval hits of a step's loss, for the recall metrics.

    Yields:
        A list that `note_hits` fills.
    """
    before = getattr(_local, "hits", None)
    _local.hits = []
    try:
        yield _local.hits
    finally:
        _local.hits = before


def note_hits(hits):
    """Pass hits to the listening step; return whether a step listens."""
    listener = getattr(_local, "hits", None)
    if listener is None:
        return False
    listener[:] = hits
    return True
