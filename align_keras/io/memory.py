"""The memory of this process."""

import resource
import sys


def peak_memory() -> int:
    """Return the most memory that this process has ever held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
