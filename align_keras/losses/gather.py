from align_keras import backend


def cross_replica_gather(tensor):
    """Gather the rows of all replicas into the global batch.

    Under a `tf.distribute` strategy each replica holds its share of the
    batch. The result holds the rows of all replicas, in replica order, on
    every replica. Its gradient is exact: the gradients that all replicas
    compute for a row are summed on the replica that the row came from. With
    one replica, and on JAX, where a program already sees the global batch,
    the tensor is returned unchanged.

    Args:
        tensor: float tensor of shape `(local_batch, ...)`. All replicas must
            hold the same number of rows.

    Returns:
        A tensor of shape `(global_batch, ...)` and of the same dtype.

    Example:

    ```python
    strategy = tf.distribute.MirroredStrategy()
    rows = strategy.run(lambda: cross_replica_gather(tf.ones((2, 8))))
    ```

    Reference:
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), section 5: the
          embeddings of all cores are concatenated to form the batch.
    """
    return backend.all_gather(tensor)
