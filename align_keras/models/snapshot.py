"""Copy the weights of a model to host memory, to write them later."""

import contextlib
import functools

import keras
import numpy as np
from keras import ops

from align_keras.keras_hub_internals import H5IOStore
from align_keras.keras_hub_internals import ShardedH5IOStore
from align_keras.keras_hub_internals import save_state


class Snapshot:
    """A copy of a model's weights that can be written later.

    It holds what `keras.Model.save_weights` would write now. Training may
    continue in the meantime, and another thread may write the copy.

    Args:
        model: `keras.Model`, built. If the model is compiled, the copy
            includes the state of its optimizer.

    Example:

    ```python
    snapshot = Snapshot(model)
    model.fit(dataset)
    snapshot.write("before.weights.h5")
    ```
    """

    def __init__(self, model):
        recorder = _Recorder()
        with _handing_over(getattr(model, "optimizer", None)):
            save_state(model, recorder, None, "", set())
        self._entries = recorder.entries

    def write(self, path, max_shard_size=None):
        """Write the file that `keras.Model.save_weights` would have written.

        Args:
            path: string or `pathlib.Path`.
            max_shard_size: int or float. See `keras.Model.save_weights`.
                Defaults to `None`, for a single file.
        """
        if max_shard_size is None:
            store = H5IOStore(path, mode="w")
        else:
            store = ShardedH5IOStore(path, max_shard_size, mode="w")
        for place, metadata, values in self._entries:
            entry = store.make(place, metadata)
            for name, value in values.items():
                entry[name] = value
        store.close()

    def arrays(self):
        """Yield each array with the path of its variable."""
        for place, _, values in self._entries:
            for name, value in values.items():
                yield values.paths.get(name, f"{place}/{name}"), value


@contextlib.contextmanager
def _handing_over(optimizer):
    """Make an optimizer save its variables instead of NumPy arrays.

    A process cannot make an array of a variable if it holds only a part of it.
    """
    optimizers = []
    while optimizer is not None:
        optimizers.append(optimizer)
        # Mixed precision wraps the optimizer.
        optimizer = getattr(optimizer, "inner_optimizer", None)

    def save(optimizer, store):
        for index, variable in enumerate(optimizer.variables):
            store[str(index)] = variable

    for one in optimizers:
        one.save_own_variables = functools.partial(save, one)
    try:
        yield
    finally:
        for one in optimizers:
            del one.save_own_variables


class _Recorder(H5IOStore):
    """Records the values that a model saves, instead of writing a file."""

    def __init__(self):
        self.entries = []

    def __bool__(self):
        return True

    def make(self, path, metadata=None):
        self.entries.append((path, metadata, _Values()))
        return self.entries[-1][2]


class _Values(dict):
    """Private copies of the arrays of a layer, by name."""

    def __init__(self):
        super().__init__()
        self.paths = {}

    def __setitem__(self, name, value):
        self.paths[name] = getattr(value, "path", name)
        super().__setitem__(name, to_host(value))


def to_host(value):
    """Copy a variable to host memory.

    If several JAX processes each hold a part of it, all of them must call
    this function.

    Args:
        value: variable or tensor.

    Returns:
        A NumPy array that shares no memory with the variable.
    """
    backend = keras.config.backend()
    if backend == "torch":
        value = ops.convert_to_numpy(value)
    if backend == "jax" and isinstance(value, keras.Variable):
        value = value.value
    # Only JAX arrays can be spread over several processes.
    if not getattr(value, "is_fully_addressable", True):
        if not value.is_fully_replicated:
            from jax.experimental import multihost_utils

            value = multihost_utils.process_allgather(value, tiled=True)
    # On TensorFlow, `convert_to_numpy` copies twice. On some backends the
    # array shares the memory of the variable, so require one that owns its
    # data.
    return np.require(np.asarray(value), requirements="O")
