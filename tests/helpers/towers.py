"""Sizes of image encoders that a test goes through."""

import os

# Whether to take the time for all sizes, see CONTRIBUTING.md.
THOROUGH = bool(os.environ.get("ALIGN_THOROUGH"))
IMAGE_SIZES = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l2"]


def towers(*some):
    """Return some sizes; all of them where ALIGN_THOROUGH is set.

    What is shown of one seldom differs for its neighbours.
    """
    return IMAGE_SIZES if THOROUGH else list(some)
