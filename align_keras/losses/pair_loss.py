import keras
from keras import ops

from align_keras import backend
from align_keras.losses.gather import cross_replica_gather
from align_keras.losses.tiles import EXCLUDED

# From this global batch size on, the matrix of scores is computed in tiles. At
# this size it would take 64 MiB, and four times as much with each doubling.
TILED_FROM = 4096
TILE_SIZE = 128


class PairLoss(keras.losses.Loss):
    """Base of losses that compare all images with all texts of a batch.

    A subclass implements `compare`. This class handles scaling, masks,
    replicas and reduction.

    Args:
        reduction: string. `"sum_over_batch_size"` returns the mean over the
            global batch, divided among the replicas as Keras expects;
            `"sum"` returns the sum, and `"none"` one loss per pair.
        tile_size: int, `"auto"` or `None`. Maximum number of columns of the
            matrix of scores to compute at a time. `None` computes all columns
            at once. `"auto"` is `None` if the global batch is known to be
            below 4096, and 128 otherwise.
        name: string. The name of the loss.
        dtype: The dtype of the scores and the result, whatever the dtype of
            the embeddings.
    """

    def __init__(self, reduction, tile_size, name, dtype):
        if reduction not in ("sum_over_batch_size", "sum", "none", None):
            raise ValueError(
                "`reduction` must be 'sum_over_batch_size', 'sum' or 'none'. "
                f"Received: reduction={reduction!r}"
            )
        is_size = isinstance(tile_size, int) and tile_size > 0
        if not (is_size or tile_size in ("auto", None)):
            raise ValueError(
                "`tile_size` must be a positive int, 'auto' or None. "
                f"Received: tile_size={tile_size!r}"
            )
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.tile_size = tile_size

    def __call__(
        self,
        image_embeddings,
        text_embeddings,
        sample_weight=None,
        temperature=1.0,
        mask=None,
        **kwargs,
    ):
        losses, *_ = self.score(
            image_embeddings, text_embeddings, temperature, mask, **kwargs
        )
        return self.reduce(losses, sample_weight, mask)

    def call(
        self, image_embeddings, text_embeddings, temperature=1.0, **kwargs
    ):
        """Compute the loss of each pair, of shape `(batch,)`."""
        return self.score(
            image_embeddings, text_embeddings, temperature, **kwargs
        )[0]

    def score(
        self,
        image_embeddings,
        text_embeddings,
        temperature=1.0,
        mask=None,
        **kwargs,
    ):
        """Compute the loss of each pair and whether it was retrieved.

        Args:
            image_embeddings: tensor of shape `(batch, dim)` with unit rows.
            text_embeddings: tensor of shape `(batch, dim)` with unit rows.
            temperature: float or scalar tensor.
            mask: bool tensor of shape `(batch,)`, False for rows that only
                fill up the batch. They do not serve as negatives, and their
                own loss and hits are 0. Defaults to `None`: all rows count.
            **kwargs: Other call arguments of the loss.

        Returns:
            A tuple of three float tensors of shape `(batch,)`: the loss, 1.0
            where the image's own text scores highest of all texts, and 1.0
            where the text's own image scores highest of all images. Among
            equal scores, the first in the batch counts as the highest.
        """
        images = ops.cast(image_embeddings, self.dtype)
        texts = ops.cast(text_embeddings, self.dtype)
        # The gradient of a product takes less memory than that of a quotient.
        images = images * (1.0 / ops.cast(temperature, self.dtype))
        offsets = None
        if mask is not None:
            mask = ops.cast(mask, "bool")
            images = ops.where(ops.expand_dims(mask, 1), images, 0.0)
            texts = ops.where(ops.expand_dims(mask, 1), texts, 0.0)
            left_out = 1.0 - self._gather_mask(mask)
            offsets = left_out * ops.cast(EXCLUDED, self.dtype)
        local_size = ops.shape(images)[0]
        labels = backend.replica_index() * local_size + ops.arange(
            local_size, dtype="int32"
        )
        losses, best_text, best_image = self.compare(
            images, texts, labels, offsets, **kwargs
        )
        results = [losses, best_text == labels, best_image == labels]
        if mask is not None:
            results = [ops.where(mask, x, ops.zeros_like(x)) for x in results]
        return tuple(ops.cast(x, self.dtype) for x in results)

    def compare(self, images, texts, labels, offsets):
        """Compute the loss of each pair, its best text and its best image.

        Args:
            images: tensor of shape `(batch, dim)`, divided by the temperature.
            texts: tensor of shape `(batch, dim)`.
            labels: int32 tensor of shape `(batch,)`, the positions of the
                pairs in the global batch.
            offsets: tensor of shape `(global_batch,)` that is added to the
                scores of each column, or `None`.

        Returns:
            A tuple of three tensors of shape `(batch,)`: the loss, and the
            positions in the global batch of the best text and the best image.
        """
        raise NotImplementedError

    def reduce(self, losses, sample_weight=None, mask=None):
        """Reduce the losses of the local pairs according to `reduction`.

        Keras sums the losses and gradients of the replicas, so the mean
        divides by the number of pairs in the global batch.

        Args:
            losses: tensor of shape `(batch,)`.
            sample_weight: tensor of shape `(batch,)` that weights the pairs.
                Defaults to `None`.
            mask: bool tensor of shape `(batch,)`. The mean is over the pairs
                where it is True. Defaults to `None`.

        Returns:
            A scalar tensor, or the weighted losses if there is no reduction.
        """
        if sample_weight is not None:
            losses = losses * ops.cast(sample_weight, losses.dtype)
        if mask is not None:
            losses = ops.where(mask, losses, ops.zeros_like(losses))
        if self.reduction in ("none", None):
            return losses
        total = ops.sum(losses)
        if self.reduction == "sum":
            return total
        if mask is None:
            count = ops.shape(losses)[0] * backend.num_replicas()
        else:
            count = ops.maximum(ops.sum(self._gather_mask(mask)), 1.0)
        return total / ops.cast(count, losses.dtype)

    def _gather_mask(self, mask):
        return cross_replica_gather(ops.cast(mask, self.dtype))

    def tile_size_of(self, rows):
        """Return the number of columns at a time, given the local rows."""
        if self.tile_size != "auto":
            return self.tile_size
        size = rows.shape[0]
        if size is not None and size * backend.num_replicas() < TILED_FROM:
            return None
        return TILE_SIZE

    def get_config(self):
        return {
            "reduction": self.reduction,
            "tile_size": self.tile_size,
            "name": self.name,
            "dtype": self.dtype,
        }
