"""Sizes of image encoders that a test goes through."""

import os

# Whether the largest are to be built, which takes minutes.
ALL = bool(os.environ.get("ALIGN_ALL_TOWERS"))
IMAGE_SIZES = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l2"]


def towers(*some):
    """Return some sizes; all of them where ALIGN_ALL_TOWERS is set.

    What is shown of one seldom differs for its neighbours.
    """
    return IMAGE_SIZES if ALL else list(some)
