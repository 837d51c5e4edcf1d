import keras
from keras import ops

from align_keras import backend
from align_keras.losses.gather import cross_replica_gather
from align_keras.losses.pair_loss import PairLoss
from align_keras.losses.tiles import log_sums


def plain_contrastive_loss(images, texts, temperature, label_smoothing):
    """Compute the loss of each pair by the paper's definition.

    This implements equations 1 and 2 on one device, with all scores at once.
    `ContrastiveLoss` gives the same numbers on several devices, in tiles and
    with a mask.

    Args:
        images: tensor of shape `(batch, dim)` with unit rows.
        texts: tensor of shape `(batch, dim)` with unit rows.
        temperature: float or scalar tensor.
        label_smoothing: float in `[0, 1)`.

    Returns:
        Tensor of shape `(batch,)`.
    """
    size = ops.shape(images)[0]
    scores = ops.matmul(images, ops.transpose(texts)) / temperature
    targets = (1.0 - label_smoothing) * ops.eye(size, dtype=scores.dtype)
    targets = targets + label_smoothing / size
    image_to_text = -ops.sum(targets * ops.log_softmax(scores, axis=1), axis=1)
    text_to_image = -ops.sum(targets * ops.log_softmax(scores, axis=0), axis=0)
    return image_to_text + text_to_image


@keras.saving.register_keras_serializable(package="align_keras")
class ContrastiveLoss(PairLoss):
    """Normalised softmax loss between matching images and texts.

    Row `i` of the image embeddings matches row `i` of the text embeddings;
    every other row of the global batch is a negative. The loss of a pair is
    the sum of two cross entropies, image to text and text to image, over
    cosine similarities divided by the temperature. `plain_contrastive_loss`
    above spells out the formula.

    Under `tf.distribute`, each replica scores its own rows against the
    gathered rows of all replicas. The gradients of the replicas then add up
    to the gradient of the global batch's loss, which is also the loss that is
    reported. There is nothing to configure.

    Args:
        label_smoothing: float in `[0, 1)`. The share of the target
            probability that is spread evenly over the whole batch. Defaults
            to `0.1`, as in the paper.
        reduction: string. `"sum_over_batch_size"` returns the mean over the
            global batch, divided among the replicas as Keras expects;
            `"sum"` returns the sum, and `"none"` one loss per pair. Defaults
            to `"sum_over_batch_size"`.
        tile_size: int, `"auto"` or `None`. Maximum number of columns of the
            similarity matrix to compute at a time. Tiles give the same
            result in less memory: for a batch of N, it grows with N times
            `tile_size` instead of N squared. `None` computes all columns at
            once. `"auto"` is 128, or `None` if the global batch is known to
            be below 4096. Defaults to `"auto"`.
        name: string. The name of the loss.
        dtype: The dtype of the similarities, the softmax and the result.
            Defaults to `"float32"`, whatever the dtype of the embeddings.

    Call arguments:
        image_embeddings: tensor of shape `(batch, dim)` with unit rows.
        text_embeddings: tensor of shape `(batch, dim)` with unit rows.
        sample_weight: Optional tensor of shape `(batch,)` that weights the
            pairs.
        temperature: float or scalar tensor by which the similarities are
            divided. Defaults to `1.0`.
        mask: Optional bool tensor of shape `(batch,)`, False for rows that
            only fill up the batch.

    Example:

    ```python
    images = keras.ops.normalize(keras.random.normal((8, 64)))
    texts = keras.ops.normalize(keras.random.normal((8, 64)))
    ContrastiveLoss()(images, texts, temperature=1 / 64)
    ```

    Reference:
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), section 4.1,
          equations 1 and 2.
        - [Zhai and Wu, 2019](https://arxiv.org/abs/1811.12649) for the
          normalised softmax.
    """

    def __init__(
        self,
        label_smoothing=0.1,
        reduction="sum_over_batch_size",
        tile_size="auto",
        name="contrastive_loss",
        dtype="float32",
    ):
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(
                "`label_smoothing` must lie in [0, 1). "
                f"Received: label_smoothing={label_smoothing}"
            )
        super().__init__(reduction, tile_size, name, dtype)
        self.label_smoothing = label_smoothing

    def compare(self, images, texts, labels, offsets):
        all_images = cross_replica_gather(images)
        all_texts = cross_replica_gather(texts)
        tile_size = self.tile_size_of(images)
        if backend.num_replicas() == 1:
            text_score, image_sums, best_text, text_sums, best_image = log_sums(
                images, texts, labels, offsets, tile_size, both_ways=True
            )
            image_score = text_score
        else:
            text_score, image_sums, best_text = log_sums(
                images, all_texts, labels, offsets, tile_size
            )
            image_score, text_sums, best_image = log_sums(
                texts, all_images, labels, offsets, tile_size
            )
        # The loss of a confident pair is the small difference of large
        # numbers, so both must come from the same products.
        losses = (image_sums - text_score) + (text_sums - image_score)
        if self.label_smoothing:
            image_mean = self._mean(all_images, offsets)
            text_mean = self._mean(all_texts, offsets)
        else:
            image_mean = text_mean = ops.zeros_like(images[0])
        losses = losses + _linear_terms(
            images, texts, image_mean, text_mean, self.label_smoothing
        )
        return losses, best_text, best_image

    def _mean(self, rows, offsets):
        """Average the rows that are examples; the others are zeros."""
        if offsets is None:
            return ops.mean(rows, axis=0)
        count = ops.sum(ops.cast(offsets == 0.0, rows.dtype))
        return ops.sum(rows, axis=0) / ops.maximum(count, 1.0)

    def get_config(self):
        config = super().get_config()
        config["label_smoothing"] = self.label_smoothing
        return config


def _linear_terms(images, texts, image_mean, text_mean, smoothing):
    """Compute the terms of each pair's loss that are linear in the scores.

    The value is the effect of label smoothing; the mean of a row's scores
    equals the score of the mean column. The value leaves out the matching
    scores, which the caller subtracts without a gradient, but the gradient
    includes theirs. Adding up all gradients here saves memory, since each of
    them is as large as the embeddings.
    """

    @backend.custom_gradient
    def terms(images, texts, image_mean, text_mean):
        means = ops.matmul(images, text_mean) + ops.matmul(texts, image_mean)
        matching = ops.einsum("nd,nd->n", images, texts)
        losses = smoothing * (2.0 * matching - means)

        def gradient(*upstream):
            (upstream,) = keras.tree.flatten(upstream)
            by_row = ops.expand_dims(upstream, 1)
            weight = 2.0 * (smoothing - 1.0)
            return (
                by_row * (weight * texts - smoothing * text_mean),
                by_row * (weight * images - smoothing * image_mean),
                -smoothing * ops.matmul(upstream, texts),
                -smoothing * ops.matmul(upstream, images),
            )

        return losses, gradient

    return terms(images, texts, image_mean, text_mean)
