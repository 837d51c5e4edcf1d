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
