"""What metrics of the pairs of a batch have in common."""

import keras


class PairMetric(keras.metrics.Mean):
    """A mean over what `measure` finds in the pairs of a batch.

    `measure(images, texts, sample_weight, mask)` returns values and weights.
    """

    # `AlignDualEncoder` passes its mask to metrics that say so.
    takes_mask = True

    def update_state(
        self, image_embeddings, text_embeddings, sample_weight=None, mask=None
    ):
        """Count the pairs of a batch.

        Args:
            image_embeddings: tensor of shape `(batch, dim)`, unit rows.
            text_embeddings: tensor of shape `(batch, dim)`, unit rows.
            sample_weight: Optional tensor of shape `(batch,)`.
            mask: Optional bool tensor of shape `(batch,)`, False for rows
                that only fill up the batch.
        """
        super().update_state(
            *self.measure(
                image_embeddings, text_embeddings, sample_weight, mask
            )
        )
