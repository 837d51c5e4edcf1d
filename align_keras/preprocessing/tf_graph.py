"""What code that is traced into a TensorFlow graph needs to know."""

import functools
import sys


def in_tf_graph():
    """Whether the caller is being traced into a TensorFlow graph.

    Returns:
        bool. False if TensorFlow has not been imported at all.
    """
    tf = sys.modules.get("tensorflow")
    return hasattr(tf, "executing_eagerly") and not tf.executing_eagerly()


def set_up_when_called(function):
    """Keep the operations of a function out of the graph that calls it.

    TensorFlow copies the operations of all branches into one graph, and sets
    that graph up for each iterator of a data set. A function that is not
    copied is set up when it is called for the first time, which for rare
    files is never.

    Args:
        function: callable from tensors to tensors.

    Returns:
        A callable like `function`. Outside of a graph, it is `function`.
    """

    @functools.cache
    def traced():
        import tensorflow as tf

        return tf.function(
            function,
            autograph=False,
            experimental_attributes={"_noinline": True},
        )

    @functools.wraps(function)
    def call(*tensors):
        return (traced() if in_tf_graph() else function)(*tensors)

    return call
