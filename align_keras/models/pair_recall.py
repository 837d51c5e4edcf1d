import numbers

import keras
from keras import ops

from align_keras import backend
from align_keras.losses import cross_replica_gather
from align_keras.models.pair_metric import PairMetric

DIRECTIONS = ("image_to_text", "text_to_image")


@keras.saving.register_keras_serializable(package="align_keras")
class PairRecall(PairMetric):
    """How often an image's own text is among the best `k` in the batch.

    Texts are ranked by cosine similarity within the global batch. Among equal
    scores, the first in the batch ranks first. Padding rows are left out.
    This computes the matrix of all scores in the batch.

    Args:
        k: int. Number of best results to look at. Defaults to `5`.
        direction: string. `"image_to_text"` ranks texts for each image,
            `"text_to_image"` ranks images for each text. Defaults to
            `"image_to_text"`.
        name: string. Defaults to `"{direction}_recall_at_{k}"`.
        dtype: The dtype of the mean.

    Example:

    ```python
    model.compile(
        Lamb(1e-3),
        metrics=[PairRecall(5), PairRecall(5, "text_to_image")],
    )
    ```
    """

    def __init__(self, k=5, direction="image_to_text", name=None, dtype=None):
        if direction not in DIRECTIONS:
            raise ValueError(
                f"`direction` must be one of {DIRECTIONS}. "
                f"Received: direction={direction!r}"
            )
        if not isinstance(k, numbers.Integral) or k < 1:
            raise ValueError(
                f"`k` must be an int of at least 1. Received: k={k!r}"
            )
        super().__init__(name or f"{direction}_recall_at_{k}", dtype)
        self.k = k
        self.direction = direction

    def measure(self, images, texts, sample_weight, mask):
        rows, columns = images, texts
        if self.direction == "text_to_image":
            rows, columns = columns, rows
        scores = ops.matmul(rows, ops.transpose(cross_replica_gather(columns)))
        if mask is not None:
            counts = cross_replica_gather(ops.cast(mask, "float32")) > 0
            scores = ops.where(counts, scores, -2.0)
            weight = ops.cast(mask, "float32")
            if sample_weight is not None:
                weight = weight * ops.cast(sample_weight, "float32")
            sample_weight = weight
        count = ops.shape(rows)[0]
        # With a 64-bit `floatx`, `arange` would return 64-bit integers.
        place = ops.arange(count, dtype="int32")
        own = ops.expand_dims(backend.replica_index() * count + place, 1)
        best = ops.take_along_axis(scores, own, axis=1)
        earlier = ops.arange(ops.shape(scores)[1], dtype="int32") < own
        before = (scores > best) | ((scores == best) & earlier)
        rank = ops.sum(ops.cast(before, "int32"), axis=1)
        return ops.cast(rank < self.k, "float32"), sample_weight

    def get_config(self):
        config = super().get_config()
        return {**config, "k": self.k, "direction": self.direction}
