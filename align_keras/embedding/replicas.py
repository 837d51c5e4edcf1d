"""Split batches of images over the replicas of a strategy."""

from collections.abc import Callable
from typing import Any

import numpy as np


def is_split(strategy: Any) -> bool:
    """Return whether a batch is split over several replicas.

    Args:
        strategy: a `tf.distribute.Strategy`, what `make_strategy` returned,
            or `None`.

    Returns:
        bool.
    """
    return getattr(strategy, "num_replicas_in_sync", 1) > 1 and hasattr(
        strategy, "run"
    )


def local_replicas(strategy: Any) -> int:
    """Return over how many replicas of this process a batch is split.

    Args:
        strategy: as in `is_split`.

    Returns:
        int. 1 if batches are not split.
    """
    if not is_split(strategy):
        return 1
    from align_keras.training.strategies import worker_of

    return strategy.num_replicas_in_sync // worker_of(strategy)[1]


def over_replicas(strategy: Any, encode: Callable) -> Callable:
    """Make `Embedder.images` from a function that runs on each replica.

    Args:
        strategy: a `tf.distribute.Strategy`.
        encode: callable from a tensor of images, or of the bytes of files, to
            vectors. Its variables must have been created on the replicas.

    Returns:
        A callable from a list of arrays, or of files as bytes, to an array.
    """
    import tensorflow as tf

    local = local_replicas(strategy)

    @tf.function(autograph=False, reduce_retracing=True)
    def run(values):
        return strategy.run(encode, (values,))

    def images(batch):
        files = isinstance(batch[0], bytes)
        batch = np.array(batch, object) if files else np.stack(batch)
        parts = iter(np.array_split(batch, local))
        values = strategy.experimental_distribute_values_from_function(
            lambda _: tf.constant(
                next(parts).tolist() if files else next(parts)
            )
        )
        results = strategy.experimental_local_results(run(values))
        return np.concatenate([result.numpy() for result in results])

    return images
