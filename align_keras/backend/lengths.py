"""Whether tensors may have a length that only the data tell."""

import contextlib
import threading

_local = threading.local()


@contextlib.contextmanager
def any_length():
    """Declare that the graph traced inside runs on texts of any length."""
    before = lengths_are_free()
    _local.free = True
    try:
        yield
    finally:
        _local.free = before


def lengths_are_free():
    """Return whether `any_length` surrounds the caller."""
    return getattr(_local, "free", False)
