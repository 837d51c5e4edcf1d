"""The processes that share a run, and what they tell one another."""

import json
import os

import keras
import numpy as np

from align_keras.training.strategies import worker_of

# Numbers that are sent at once. A byte is sent as a number, for not all
# devices add up bytes.
BLOCK = 1 << 20


class Workers:
    """The processes of a run, this one among them.

    What one of its methods sends is sent by all of them at the same time.

    Args:
        strategy: What `make_strategy` returned, or a `tf.distribute.Strategy`.

    Attributes:
        index: int. The number of this process. The first one writes the run.
        count: int. How many there are.
        is_first: bool. Whether this is the first one.
    """

    def __init__(self, strategy):
        self.index, self.count = worker_of(strategy)
        self.is_first = self.index == 0
        self._total = None
        if self.count > 1:
            of_jax = keras.config.backend() == "jax"
            make = _total_of_jax if of_jax else _total_of_tensorflow
            self._total = make(strategy)

    def sums(self, *values):
        """Sum numbers up over the processes.

        Args:
            *values: floats.

        Returns:
            list of floats, the same everywhere.
        """
        if self._total is None:
            return list(values)
        return self._total(np.array(values, "float32")).tolist()

    def wait(self):
        """Wait until all processes are here."""
        self.sums(1.0)

    def send(self, value=None):
        """Send a JSON value of the first process to all.

        Args:
            value: What the first process sends; that of others is ignored.

        Returns:
            The value.
        """
        if self._total is None:
            return value
        text = json.dumps(value).encode() if self.is_first else b""
        # A sum of large numbers would not be exact.
        size = [int(n) for n in self.sums(*divmod(len(text), BLOCK))]
        size = size[0] * BLOCK + size[1]
        return json.loads(b"".join(self._blocks(text, size)))

    def send_file(self, path, target=None):
        """Send a file of the first process to those that ask for it.

        Args:
            path: string or `pathlib.Path`. What the first one sends.
            target: string or `pathlib.Path`. Where this one writes it.
                Defaults to `None`: nowhere.
        """
        size = self.send(os.path.getsize(path) if self.is_first else None)
        source = open(path, "rb") if self.is_first else None
        sink = open(target, "wb") if target is not None else None
        try:
            for begin in range(0, size, BLOCK):
                part = min(BLOCK, size - begin)
                text = source.read(part) if source else b""
                (block,) = self._blocks(text, part)
                if sink:
                    sink.write(block)
        finally:
            for file in (source, sink):
                if file:
                    file.close()

    def _blocks(self, text, size):
        """Yield the bytes of the first process, some at a time."""
        for begin in range(0, size, BLOCK):
            block = np.zeros(min(BLOCK, size - begin), "float32")
            if self.is_first:
                part = text[begin : begin + BLOCK]
                block[:] = np.frombuffer(part, "uint8")
            yield self._total(block).astype("uint8").tobytes()


def _total_of_jax(strategy):
    from jax.experimental import multihost_utils

    def total(values):
        return multihost_utils.process_allgather(values).sum(axis=0)

    return total


def _total_of_tensorflow(strategy):
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)
    def reduce(values):
        # The identity lies on the device of its replica.
        votes = strategy.run(tf.identity, args=(values,))
        return strategy.reduce("SUM", votes, axis=None)

    replicas = strategy.num_replicas_in_sync // worker_of(strategy)[1]

    def total(values):
        # Each replica of a worker has the same vote.
        return reduce(tf.constant(values)).numpy() / np.float32(replicas)

    return total
