"""What the layers of a training step need to know beside their inputs."""

import contextlib
import threading

_local = threading.local()


@contextlib.contextmanager
def step_scope(mask=None, remat=False):
    """Tell the layers that run inside about the step they are part of.

    Args:
        mask: Optional bool tensor of shape `(batch,)`. Which rows are
            examples; the others only fill up the batch.
        remat: bool. Whether blocks compute their activations anew in the
            backward pass, to save memory.
    """
    before = getattr(_local, "step", (None, False))
    _local.step = (mask, remat)
    try:
        yield
    finally:
        _local.step = before


def current_mask():
    """Return the mask of the rows that are examples, or `None`."""
    return getattr(_local, "step", (None, False))[0]


def rematerializing():
    """Return whether blocks are to compute their activations anew."""
    return getattr(_local, "step", (None, False))[1]


@contextlib.contextmanager
def listening_for_hits():
    """Collect what the loss of a step retrieved, for metrics to count later.

    Yields:
        A list, which `note_hits` fills.
    """
    before = getattr(_local, "hits", None)
    _local.hits = []
    try:
        yield _local.hits
    finally:
        _local.hits = before


def note_hits(hits):
    """Give hits to the step that listens; returns whether there is one."""
    listener = getattr(_local, "hits", None)
    if listener is None:
        return False
    listener[:] = hits
    return True
