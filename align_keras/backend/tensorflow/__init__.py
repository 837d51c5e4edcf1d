"""The functions that `align_keras.backend` offers, on TensorFlow."""

import ctypes
import os
from pathlib import Path

import tensorflow as tf

# Releases of Abseil that TensorFlow may contain; `SetMinLogLevel` is named
# after the release.
_RELEASES = ("20250127", "20240722", "20230802")


def _heed_log_level():
    """Apply `TF_CPP_MIN_LOG_LEVEL` to everything that TensorFlow logs.

    XLA's notices ignore it, and come with a warning that logging was not
    initialised.
    """
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "")
    if level not in ("1", "2", "3"):
        return
    for path in Path(tf.sysconfig.get_lib()).glob("libtensorflow*.so.*"):
        library = ctypes.CDLL(str(path))
        for release in _RELEASES:
            name = f"_ZN4absl12lts_{release}14SetMinLogLevel"
            name += "ENS0_18LogSeverityAtLeastE"
            if hasattr(library, name):
                getattr(library, name)(ctypes.c_int(int(level)))


_heed_log_level()
