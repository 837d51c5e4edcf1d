"""Compute the contrastive loss with fewer negatives, for ablations."""

import keras
from keras import ops


class FewerNegatives(keras.losses.Loss):
    """Normalised softmax loss that uses only a share of the negatives.

    Row `i` is scored against itself and the rows that follow it in the batch,
    as many as the share allows; after the last row comes the first. Batches
    are in random order, so these rows are a random part of the batch. With a
    share of 1 this is `ContrastiveLoss`. It works on one device only.

    Args:
        share: float in (0, 1]. The share of the other pairs to use.
        label_smoothing: float. See `ContrastiveLoss`. Defaults to `0.1`.
    """

    def __init__(self, share: float, label_smoothing: float = 0.1):
        super().__init__(name="fewer_negatives", dtype="float32")
        self.share = share
        self.label_smoothing = label_smoothing

    def __call__(self, images, texts, sample_weight=None, temperature=1.0):
        losses = self.score(images, texts, temperature)[0]
        return self.reduce(losses, sample_weight)

    def score(self, image_embeddings, text_embeddings, temperature=1.0):
        """Return loss and hits of each pair, like `ContrastiveLoss.score`."""
        images = ops.cast(image_embeddings, "float32")
        texts = ops.cast(text_embeddings, "float32")
        logits = ops.matmul(images, ops.transpose(texts))
        logits = logits / ops.cast(temperature, "float32")
        image_loss, image_hit = self._softmax_loss(logits)
        text_loss, text_hit = self._softmax_loss(ops.transpose(logits))
        return image_loss + text_loss, image_hit, text_hit

    def reduce(self, losses, sample_weight=None):
        """Return the mean over the batch."""
        if sample_weight is not None:
            losses = losses * ops.cast(sample_weight, losses.dtype)
        return ops.mean(losses)

    def _softmax_loss(self, logits):
        size = ops.shape(logits)[0]
        place = ops.arange(size, dtype="int32")
        distance = ops.mod(place[None, :] - place[:, None], size)
        others = ops.cast(size - 1, "float32") * self.share
        counted = ops.cast(distance, "float32") <= ops.round(others)
        kept = ops.where(counted, logits, -1e9)
        positives = ops.sum(ops.where(distance == 0, logits, 0.0), axis=1)
        number = ops.sum(ops.cast(counted, "float32"), axis=1)
        mean = ops.sum(ops.where(counted, logits, 0.0), axis=1) / number
        smoothing = self.label_smoothing
        loss = ops.logsumexp(kept, axis=1) - (1 - smoothing) * positives
        hits = ops.argmax(kept, axis=1) == place
        return loss - smoothing * mean, ops.cast(hits, "float32")
