from align_keras import backend


def cross_replica_gather(tensor):
    """Gather the rows of all replicas into the global batch.

    Under a `tf.distribute` strategy each replica holds its share of the
    batch; the result holds the rows of all replicas, in the order of the
    replicas, on each of them. Its gradient is exact: what every replica
    derives for a row is summed on the replica that the row came from. With
    one replica, and on JAX, where a program sees the global batch anyway, the
    tensor is returned as it is.

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
