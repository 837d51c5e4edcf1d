"""How good a model is: metrics on arrays, and what measures them on data.

Each subject has a file with its metrics, which are pure functions of arrays,
and with its `measure_…`, which reads data, embeds them and returns a `Result`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
