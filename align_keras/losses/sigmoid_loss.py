import keras
from keras import ops

from align_keras import backend
from align_keras.losses.exchange import exchanged_softplus_sums
from align_keras.losses.pair_loss import PairLoss
from align_keras.losses.tiles import softplus_sums


def plain_sigmoid_loss(images, texts, temperature, bias):
    """Compute the loss of each image by the definition in the SigLIP paper.

    It runs on one device, with all scores at once; see
    `plain_contrastive_loss`.

    Args:
        images: tensor of shape `(batch, dim)` with unit rows.
        texts: tensor of shape `(batch, dim)` with unit rows.
        temperature: float or scalar tensor.
        bias: float or scalar tensor.

    Returns:
        Tensor of shape `(batch,)`.
    """
    scores = ops.matmul(images, ops.transpose(texts)) / temperature + bias
    match = 2.0 * ops.eye(ops.shape(images)[0], dtype=scores.dtype) - 1.0
    return -ops.sum(ops.log_sigmoid(match * scores), axis=1)


@keras.saving.register_keras_serializable(package="align_keras")
class SigmoidLoss(PairLoss):
    """Pairwise sigmoid loss between matching images and texts.

    The loss classifies every combination of an image and a text in the global
    batch as matching or not. The logit is their cosine similarity divided by
    the temperature, plus a bias. The loss of a pair is the sum of the binary
    cross entropies of its image with all texts. The model learns the bias;
    create it with `AlignDualEncoder(initial_bias=-10.0,
    initial_temperature=0.1)` to start from the values in the reference.

    Under `tf.distribute`, each replica scores its own images against the
    texts of all replicas. There is nothing to configure. If the scores are
    computed in tiles, the replicas send their rows one after another, so no
    replica holds the rows of all.

    Args:
        reduction: string. See `ContrastiveLoss`. Defaults to
            `"sum_over_batch_size"`.
        tile_size: int, `"auto"` or `None`. See `ContrastiveLoss`. Defaults to
            `"auto"`.
        name: string. The name of the loss.
        dtype: The dtype of the logits and the result. Defaults to
            `"float32"`, whatever the dtype of the embeddings.

    Call arguments:
        image_embeddings: tensor of shape `(batch, dim)` with unit rows.
        text_embeddings: tensor of shape `(batch, dim)` with unit rows.
        sample_weight: Optional tensor of shape `(batch,)` that weights the
            images.
        temperature: float or scalar tensor by which the similarities are
            divided. Defaults to `1.0`.
        mask: Optional bool tensor of shape `(batch,)`, False for rows that
            only fill up the batch.
        bias: float or scalar tensor that is added to the logits. Defaults to
            `-10.0`.

    Example:

    ```python
    images = keras.ops.normalize(keras.random.normal((8, 64)))
    texts = keras.ops.normalize(keras.random.normal((8, 64)))
    SigmoidLoss()(images, texts, temperature=0.1, bias=-10.0)
    ```

    Reference:
        - [Zhai et al., 2023](https://arxiv.org/abs/2303.15343), section 3.2
          and algorithm 1.
    """

    # Makes `AlignDualEncoder` pass its bias.
    takes_bias = True

    def __init__(
        self,
        reduction="sum_over_batch_size",
        tile_size="auto",
        name="sigmoid_loss",
        dtype="float32",
    ):
        super().__init__(reduction, tile_size, name, dtype)

    def compare(self, images, texts, labels, offsets, bias=-10.0):
        # A copy, for TensorFlow would hand the variable itself to a function
        # that has a gradient for tensors only.
        bias = ops.copy(ops.convert_to_tensor(bias, self.dtype))
        tile_size = self.tile_size_of(images)
        compute = softplus_sums
        if backend.num_replicas() > 1:
            compute = exchanged_softplus_sums
        sums, best_text, best_image = compute(
            images, texts, bias, offsets, tile_size
        )
        # For the matching pair, softplus(-logit) = softplus(logit) - logit.
        logits = ops.sum(images * texts, axis=1) + bias
        return sums - logits, best_text, best_image
