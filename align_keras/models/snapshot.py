"""The weights of a model at one moment, in the memory of the host."""

import contextlib
import functools

import keras
import numpy as np
from keras import ops

from align_keras.keras_hub_internals import H5IOStore
from align_keras.keras_hub_internals import ShardedH5IOStore
from align_keras.keras_hub_internals import save_state


class Snapshot:
    """What `keras.Model.save_weights` would write now, to be written later.

    The model may be trained on meanwhile, and other threads may write.

    Args:
        model: `keras.Model`, built. Its optimizer's state is part of it where
            the model is compiled.

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
            max_shard_size: int or float. As of `keras.Model.save_weights`.
                Defaults to `None`: one file.
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
    """Let an optimizer save variables in the place of NumPy arrays of them.

    A process cannot make an array of a variable that it holds a part of.
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
    """Takes what a model saves, in the place of a file."""

    def __init__(self):
        self.entries = []

    def __bool__(self):
        return True

    def make(self, path, metadata=None):
        self.entries.append((path, metadata, _Values()))
        return self.entries[-1][2]


class _Values(dict):
    """Arrays that nothing else changes, by the names of a layer."""

    def __init__(self):
        super().__init__()
        self.paths = {}

    def __setitem__(self, name, value):
        self.paths[name] = getattr(value, "path", name)
        super().__setitem__(name, to_host(value))


def to_host(value):
    """Copy a variable to the memory of the host.

    Where processes of JAX hold a part of it each, all of them must call this.

    Args:
        value: variable or tensor.

    Returns:
        NumPy array that nothing else changes.
    """
    backend = keras.config.backend()
    if backend == "torch":
        value = ops.convert_to_numpy(value)
    if backend == "jax" and isinstance(value, keras.Variable):
        value = value.value
    # What is no array of JAX lies here whole.
    if not getattr(value, "is_fully_addressable", True):
        if not value.is_fully_replicated:
            from jax.experimental import multihost_utils

            value = multihost_utils.process_allgather(value, tiled=True)
    # On TensorFlow, `convert_to_numpy` copies twice. Some backends lend the
    # memory of the variable.
    return np.require(np.asarray(value), requirements="O")
