"""Training metrics for the geometry of image and text embeddings.

docs/evaluation.md defines them, and `align_keras.evaluation` measures them on
a whole data set at once.
"""

import keras
from keras import ops

from align_keras import backend
from align_keras.losses import cross_replica_gather
from align_keras.models.pair_metric import PairMetric

EMBEDDINGS = ("image", "text")


@keras.saving.register_keras_serializable(package="align_keras")
class Alignment(PairMetric):
    """Mean squared distance between an image and its text.

    It is 0 if each text has the embedding of its image, and 2 if the two are
    orthogonal.

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
    """A mean over all pairs of different rows of the global batch.

    The weight of a pair is the product of the weights of its rows. This
    computes the matrix of all pairs.
    """

    def measure(self, images, texts, sample_weight, mask):
        rows = self.rows(
            ops.cast(images, self.dtype),
            ops.cast(texts, self.dtype),
        )
        weights = _weights(rows, sample_weight, mask)
        columns = cross_replica_gather(rows)
        count = ops.shape(rows)[0]
        # With a 64-bit `floatx`, `arange` would return 64-bit integers.
        own = backend.replica_index() * count + ops.arange(count, dtype="int32")
        others = ops.arange(ops.shape(columns)[0], dtype="int32")
        # Count each pair of rows once, on the replica of the first row.
        later = others > ops.expand_dims(own, 1)
        both = ops.expand_dims(weights, 1) * cross_replica_gather(weights)
        return (
            ops.reshape(self.compare(rows, columns), (-1,)),
            ops.reshape(both * ops.cast(later, self.dtype), (-1,)),
        )

    def mean(self):
        # Without data there is no mean: NaN, as 0 could be a real value.
        return self.total / self.count


@keras.saving.register_keras_serializable(package="align_keras")
class Uniformity(_MeanOverTwo):
    """How evenly the embeddings of images, or of texts, are spread.

    This is the logarithm of the mean of `exp(-2 ||x_i - x_j||^2)` over all
    pairs of different rows in a batch. It is 0 if all embeddings are equal,
    and about -4 if unit vectors of many dimensions are spread evenly. It is
    NaN until two rows have been seen.

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
    any two different image–text pairs in a batch. Unlike the distance between
    the means of a batch, this does not depend on the batch size. A negative
    estimate counts as zero. The metric is NaN until two pairs have been seen.

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
    """Return the weights of the rows; padding rows have zero weight."""
    weights = ops.ones_like(rows[:, 0])
    for part in (sample_weight, mask):
        if part is not None:
            weights = weights * ops.cast(part, rows.dtype)
    return weights
