"""Evaluate models: metrics on arrays, and functions that measure them on data.

Each evaluation has one file. It holds the metrics, which are pure functions of
arrays, and a function `measure_…`, which reads and embeds the data and returns
a `Result`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
