"""Where images and texts lie on the sphere, as metrics of training.

docs/evaluation.md defines the quantities, and `align_keras.evaluation`
measures them on all of a data set at once.
"""

import keras
from keras import ops

from align_keras import backend
from align_keras.losses import cross_replica_gather
from align_keras.models.pair_metric import PairMetric

EMBEDDINGS = ("image", "text")


@keras.saving.register_keras_serializable(package="align_keras")
class Alignment(PairMetric):
    """Mean squared distance of an image and its text.

    0 where every text lies on its image, 2 where they are orthogonal.

    Args:
        name: string. Defaults to `"alignment"`.
        dtype: The dtype of the mean.

    Example:

    ```python
    model.compile(
        Lamb(1e-3),
        metrics=[Alignment(), Uniformity("image"), ModalityGap()],
    )
    ```

    Reference:
        - [Wang and Isola, 2020](https://arxiv.org/abs/2005.10242)
    """

    def __init__(self, name="alignment", dtype=None):
        super().__init__(name, dtype)

    def measure(self, images, texts, sample_weight, mask):
        images, texts = (ops.cast(rows, self.dtype) for rows in (images, texts))
        return (
            ops.sum(ops.square(images - texts), axis=1),
            _weights(images, sample_weight, mask),
        )


class _MeanOverTwo(PairMetric):
    """A mean over every two rows of the global batch.

    Two rows weigh the product of their weights. It takes the matrix of all of
    them.
    """

    def measure(self, images, texts, sample_weight, mask):
        rows = self.rows(
            ops.cast(images, self.dtype),
            ops.cast(texts, self.dtype),
        )
        weights = _weights(rows, sample_weight, mask)
        columns = cross_replica_gather(rows)
        count = ops.shape(rows)[0]
        # With `floatx` of 64 bits, `arange` would give integers of 64 bits.
        own = backend.replica_index() * count + ops.arange(count, dtype="int32")
        others = ops.arange(ops.shape(columns)[0], dtype="int32")
        # Each two once, on the replica of the first.
        later = others > ops.expand_dims(own, 1)
        both = ops.expand_dims(weights, 1) * cross_replica_gather(weights)
        return (
            ops.reshape(self.compare(rows, columns), (-1,)),
            ops.reshape(both * ops.cast(later, self.dtype), (-1,)),
        )

    def mean(self):
        # Of nothing it has no value, and 0 would be one.
        return self.total / self.count


@keras.saving.register_keras_serializable(package="align_keras")
class Uniformity(_MeanOverTwo):
    """How evenly the vectors of images, or of texts, are spread.

    The logarithm of the mean of `exp(-2 ||x_i - x_j||^2)` over every two
    different rows of a batch: 0 where all are the same, about -4 where unit
    vectors of many dimensions are spread evenly. NaN before two rows were
    seen.

    Args:
        embeddings: string. `"image"` or `"text"`. Defaults to `"image"`.
        name: string. Defaults to `"{embeddings}_uniformity"`.
        dtype: The dtype of the mean.

    Example:

    ```python
    metric = Uniformity("text")
    metric(keras.ops.eye(4), keras.ops.eye(4))  # -4.0
    ```

    Reference:
        - [Wang and Isola, 2020](https://arxiv.org/abs/2005.10242)
    """

    def __init__(self, embeddings="image", name=None, dtype=None):
        if embeddings not in EMBEDDINGS:
            raise ValueError(
                f"`embeddings` must be one of {EMBEDDINGS}. "
                f"Received: embeddings={embeddings!r}"
            )
        super().__init__(name or f"{embeddings}_uniformity", dtype)
        self.embeddings = embeddings

    def rows(self, images, texts):
        return images if self.embeddings == "image" else texts

    def compare(self, rows, columns):
        squares = [ops.sum(ops.square(x), axis=1) for x in (rows, columns)]
        apart = ops.expand_dims(squares[0], 1) + squares[1]
        apart = apart - 2 * ops.matmul(rows, ops.transpose(columns))
        return ops.exp(-2 * ops.maximum(apart, 0.0))

    def result(self):
        return ops.log(self.mean())

    def get_config(self):
        return {**super().get_config(), "embeddings": self.embeddings}


@keras.saving.register_keras_serializable(package="align_keras")
class ModalityGap(_MeanOverTwo):
    """Distance between the mean image and the mean text.

    Its square is estimated as the mean of `(x_i - y_i) · (x_j - y_j)` over
    every two different pairs of a batch. Unlike the distance of a batch's
    means, this does not depend on the size of the batch; below zero it counts
    as zero. NaN before two pairs were seen.

    Args:
        name: string. Defaults to `"modality_gap"`.
        dtype: The dtype of the mean.

    Example:

    ```python
    metric = ModalityGap()
    metric([[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2)  # 1.4142
    ```

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2203.02053)
    """

    def __init__(self, name="modality_gap", dtype=None):
        super().__init__(name, dtype)

    def rows(self, images, texts):
        return images - texts

    def compare(self, rows, columns):
        return ops.matmul(rows, ops.transpose(columns))

    def result(self):
        return ops.sqrt(ops.maximum(self.mean(), 0.0))


def _weights(rows, sample_weight, mask):
    """Weights of the rows; those that only fill up the batch have none."""
    weights = ops.ones_like(rows[:, 0])
    for part in (sample_weight, mask):
        if part is not None:
            weights = weights * ops.cast(part, rows.dtype)
    return weights
