"""Communication between the processes that share a run."""

import json
import os

import keras
import numpy as np

from align_keras.training.strategies import worker_of

# How many numbers to send at once. Each byte is sent as a float, because not
# all devices can sum bytes.
BLOCK = 1 << 20


class Workers:
    """The processes of a run, and this process among them.

    All processes must call the same methods in the same order.

    Args:
        strategy: What `make_strategy` returned, or a `tf.distribute.Strategy`.

    Attributes:
        index: int. The number of this process.
        count: int. The number of processes.
        is_first: bool. Whether this is the first process, which writes the
            run.
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
        """Sum numbers over the processes, in float32.

        Args:
            *values: floats.

        Returns:
            list of floats, the same in all processes.
        """
        if self._total is None:
            return list(values)
        return self._total(np.array(values, "float32")).tolist()

    def wait(self):
        """Wait until all processes have reached this point."""
        self.sums(1.0)

    def send(self, value=None):
        """Send a JSON value of the first process to all.

        Args:
            value: The value to send. Ignored in all but the first process.

        Returns:
            The value of the first process.
        """
        if self._total is None:
            return value
        text = json.dumps(value).encode() if self.is_first else b""
        # Float32 would not hold a large size exactly.
        size = [int(n) for n in self.sums(*divmod(len(text), BLOCK))]
        size = size[0] * BLOCK + size[1]
        return json.loads(b"".join(self._blocks(text, size)))

    def send_file(self, path, target=None):
        """Send a file of the first process to the others.

        Args:
            path: string or `pathlib.Path`. The file in the first process.
            target: string or `pathlib.Path`. Where this process writes it.
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
        """Yield the bytes of the first process in blocks."""
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
        # `tf.identity` places the values on the device of each replica.
        votes = strategy.run(tf.identity, args=(values,))
        return strategy.reduce("SUM", votes, axis=None)

    replicas = strategy.num_replicas_in_sync // worker_of(strategy)[1]

    def total(values):
        # All replicas of a worker contribute the same values.
        return reduce(tf.constant(values)).numpy() / np.float32(replicas)

    return total
