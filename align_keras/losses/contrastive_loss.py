import keras
from keras import ops

from align_keras import backend
from align_keras.losses.gather import cross_replica_gather


@keras.saving.register_keras_serializable(package="align_keras")
class ContrastiveLoss(keras.losses.Loss):
    """Normalised softmax loss between matching images and texts.

    Row `i` of the image embeddings matches row `i` of the text embeddings;
    every other row of the global batch is a negative. The loss of a pair is
    the sum of two cross entropies, image to text and text to image, over
    cosine similarities divided by the temperature.

    Under `tf.distribute`, each replica scores its own rows against the
    gathered rows of all replicas. The sum of the replicas' gradients is then
    the gradient of the loss of the global batch, and the reported loss is its
    value; there is nothing to configure.

    Args:
        label_smoothing: float in `[0, 1)`. The share of the target
            probability that is spread evenly over the whole batch. Defaults
            to `0.1`, as in the paper.
        reduction: string. `"sum_over_batch_size"` gives the mean over the
            global batch, divided among the replicas as Keras expects it;
            `"sum"` their sum; `"none"` one loss per pair. Defaults to
            `"sum_over_batch_size"`.
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
        name="contrastive_loss",
        dtype="float32",
    ):
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(
                "`label_smoothing` must lie in [0, 1). "
                f"Received: label_smoothing={label_smoothing}"
            )
        if reduction not in ("sum_over_batch_size", "sum", "none", None):
            raise ValueError(
                "`reduction` must be 'sum_over_batch_size', 'sum' or 'none'. "
                f"Received: reduction={reduction!r}"
            )
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.label_smoothing = label_smoothing

    def __call__(
        self,
        image_embeddings,
        text_embeddings,
        sample_weight=None,
        temperature=1.0,
    ):
        losses = self.call(image_embeddings, text_embeddings, temperature)
        return self.reduce(losses, sample_weight)

    def call(self, image_embeddings, text_embeddings, temperature=1.0):
        """Compute the loss of each pair, of shape `(batch,)`."""
        return self.score(image_embeddings, text_embeddings, temperature)[0]

    def score(
        self, image_embeddings, text_embeddings, temperature=1.0, mask=None
    ):
        """Compute the loss of each pair and whether it was retrieved.

        Args:
            image_embeddings: tensor of shape `(batch, dim)` with unit rows.
            text_embeddings: tensor of shape `(batch, dim)` with unit rows.
            temperature: float or scalar tensor.
            mask: Optional bool tensor of shape `(batch,)`. Which rows are
                examples; the others are no negatives to anyone.

        Returns:
            A tuple of three float32 tensors of shape `(batch,)`: the loss,
            1.0 where the image's own text scores highest of all texts, and
            1.0 where the text's own image scores highest of all images.
        """
        images = ops.cast(image_embeddings, self.dtype)
        texts = ops.cast(text_embeddings, self.dtype)
        scale = 1.0 / ops.cast(temperature, self.dtype)
        local_size = ops.shape(images)[0]
        rows = ops.arange(local_size, dtype="int32")
        labels = backend.replica_index() * local_size + rows
        if mask is not None:
            mask = cross_replica_gather(ops.cast(mask, self.dtype)) > 0
        image_loss, image_hit = self._softmax_loss(
            ops.matmul(images, ops.transpose(cross_replica_gather(texts)))
            * scale,
            labels,
            mask,
        )
        text_loss, text_hit = self._softmax_loss(
            ops.matmul(texts, ops.transpose(cross_replica_gather(images)))
            * scale,
            labels,
            mask,
        )
        return image_loss + text_loss, image_hit, text_hit

    def reduce(self, losses, sample_weight=None):
        """Reduce the losses of the local pairs as `reduction` says.

        Keras sums the losses and gradients of the replicas, hence the mean
        divides by the size of the global batch.
        """
        if sample_weight is not None:
            losses = losses * ops.cast(sample_weight, losses.dtype)
        if self.reduction in ("none", None):
            return losses
        total = ops.sum(losses)
        if self.reduction == "sum":
            return total
        global_size = ops.shape(losses)[0] * backend.num_replicas()
        return total / ops.cast(global_size, losses.dtype)

    def _softmax_loss(self, logits, labels, mask):
        """Cross entropy of rows with smoothed labels, in closed form."""
        columns = ops.shape(logits)[1]
        matches = ops.expand_dims(labels, 1) == ops.arange(
            columns, dtype="int32"
        )
        positives = ops.sum(ops.where(matches, logits, 0.0), axis=1)
        total = ops.sum(logits, axis=1)
        if mask is not None:
            columns = ops.sum(ops.cast(mask, "int32"))
            total = ops.sum(ops.where(mask, logits, 0.0), axis=1)
            logits = ops.where(mask, logits, -float("inf"))
        smoothing = self.label_smoothing
        loss = ops.logsumexp(logits, axis=1) - (1.0 - smoothing) * positives
        if smoothing:
            loss = loss - smoothing * total / ops.cast(columns, total.dtype)
        hits = ops.argmax(logits, axis=1) == labels
        return loss, ops.cast(hits, self.dtype)

    def get_config(self):
        return {
            "label_smoothing": self.label_smoothing,
            "reduction": self.reduction,
            "name": self.name,
            "dtype": self.dtype,
        }
