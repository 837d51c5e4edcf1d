"""The base class of metrics over the pairs of a batch."""

import keras


class PairMetric(keras.metrics.Mean):
    """A mean over the values that `measure` returns for the pairs of a batch.

    A subclass implements `measure(images, texts, sample_weight, mask)`, which
    returns values and their weights.
    """

    # Makes `AlignDualEncoder` pass the mask.
    takes_mask = True

    def update_state(
        self, image_embeddings, text_embeddings, sample_weight=None, mask=None
    ):
        """Add the pairs of a batch to the mean.

        Args:
            image_embeddings: tensor of shape `(batch, dim)` with unit rows.
            text_embeddings: tensor of shape `(batch, dim)` with unit rows.
            sample_weight: Optional tensor of shape `(batch,)`.
            mask: Optional bool tensor of shape `(batch,)`, False for rows
                that only fill up the batch.
        """
        super().update_state(
            *self.measure(
                image_embeddings, text_embeddings, sample_weight, mask
            )
        )
