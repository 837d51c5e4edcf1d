"""Sum over the columns of all replicas, holding only a few at a time.

These are the sums of `plain_sigmoid_loss` in sigmoid_loss.py over the global
batch.
"""

import keras
from keras import ops

from align_keras import backend
from align_keras.losses.tiles import Tiles
from align_keras.losses.tiles import no_best
from align_keras.losses.tiles import tiled_best
from align_keras.losses.tiles import tiled_softplus_sums
from align_keras.losses.tiles import tiled_softplus_sums_gradient

# Every round adds to the program, which must not grow with the replicas.
MOST_ROUNDS = 8


def exchanged_softplus_sums(images, texts, bias, offsets, tile_size):
    """Compute sums of `log(1 + exp(score + bias))` over all replicas' texts.

    With tiles, one replica after another sends its rows to all others. With
    more than eight replicas, several send at a time, in at most eight rounds.
    The backward pass sends the rows again, so no replica ever holds the rows
    of all.

    Args:
        images: float tensor of shape `(batch, dim)`.
        texts: float tensor of shape `(batch, dim)`.
        bias: float scalar tensor.
        offsets: float tensor of shape `(global_batch,)` that is added to the
            scores of each column, without a gradient, or `None`.
        tile_size: int. Maximum number of columns in a tile; `None` sends all
            rows and computes all scores at once.

    Returns:
        A tuple of three tensors of shape `(batch,)`: the sum for each image;
        and, without a gradient, the int32 positions in the global batch of
        the best text for each image and the best image for each text.

    Reference:
        - [Zhai et al., 2023](https://arxiv.org/abs/2303.15343), section 3.3.
          There, each replica passes its texts on to its neighbour, for which
          `tf.distribute` has no operation.
    """

    @backend.custom_gradient
    def exchanged(images, texts, bias):
        sums = ops.zeros_like(images[:, 0])
        best_text, best_image = no_best(images), no_best(texts)
        for senders in _rounds(images, offsets, tile_size):
            # Wait until the rows that were sent before are no longer needed.
            columns = senders.send(texts, after=best_image[0])
            best_text, sums = tiled_softplus_sums(
                senders.tiles(images, columns), bias, best_text, sums
            )
            columns = senders.send(images, after=best_text[0])
            best_image = tiled_best(senders.tiles(texts, columns), best_image)

        def gradients(*upstream):
            upstream = keras.tree.flatten(upstream)[0]
            # The upstream gradient of a mean is known from the start, so
            # without waiting the backward pass could start too early.
            image_gradient = backend.wait_for(
                best_image[0], ops.zeros_like(images)
            )
            text_gradient = ops.zeros_like(texts)
            bias_gradient = ops.zeros_like(bias)
            for senders in _rounds(images, offsets, tile_size):
                columns = senders.send(texts, after=image_gradient)
                by_row, by_column, by_bias = tiled_softplus_sums_gradient(
                    senders.tiles(images, columns), bias, upstream
                )
                image_gradient = image_gradient + by_row
                text_gradient = text_gradient + senders.take_back(by_column)
                bias_gradient = bias_gradient + by_bias
            return image_gradient, text_gradient, bias_gradient

        return (sums, best_text[1], best_image[1]), gradients

    return exchanged(images, texts, bias)


def _rounds(rows, offsets, tile_size):
    """Yield the `_Senders` of each round; `rows` are those of one replica."""
    replicas = backend.num_replicas()
    at_once = replicas if tile_size is None else -(-replicas // MOST_ROUNDS)
    for first in range(0, replicas, at_once):
        number = min(at_once, replicas - first)
        yield _Senders(first, number, ops.shape(rows)[0], offsets, tile_size)


class _Senders:
    """Consecutive replicas that send their rows in the same round."""

    def __init__(self, first, number, local_size, offsets, tile_size):
        self.first = first * local_size
        self.size = number * local_size
        self.tile_size = self.size if tile_size is None else tile_size
        self.offsets = offsets
        if offsets is not None:
            self.offsets = offsets[self.first : self.first + self.size]
        replicas = first + ops.arange(number, dtype="int32")
        is_me = ops.equal(replicas, backend.replica_index())
        self.is_me = ops.reshape(is_me, (number, 1, 1))

    def send(self, rows, after):
        """Send the senders' rows to all replicas, once `after` is known."""
        parts = ops.where(self.is_me, ops.expand_dims(rows, 0), 0.0)
        parts = backend.wait_for(after, parts)
        parts = ops.reshape(parts, (self.size, ops.shape(rows)[1]))
        return backend.all_reduce_sum([parts])[0]

    def take_back(self, gradient):
        """Sum a gradient over the replicas and return this replica's rows.

        They are zeros if this replica is not among the senders.
        """
        (gradient,) = backend.all_reduce_sum([gradient])
        shape = (ops.shape(self.is_me)[0], -1, ops.shape(gradient)[1])
        parts = ops.where(self.is_me, ops.reshape(gradient, shape), 0.0)
        return ops.sum(parts, axis=0)

    def tiles(self, rows, columns):
        """Return the `Tiles` of this replica's rows and the columns sent."""
        return Tiles(
            rows, columns, self.offsets, self.tile_size, first=self.first
        )
