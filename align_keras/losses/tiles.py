"""Sum over all pairs of two sets of vectors, at once or in tiles.

The memory of the full score matrix grows with rows times columns. The tiled
form computes some columns at a time and keeps only what the sums need; its
gradient computes the tiles again. Both forms give the same numbers as
`plain_contrastive_loss` and `plain_sigmoid_loss`.
"""

import keras
import numpy as np
from keras import ops

from align_keras import backend

# The offset of a row or column that is left out. It is finite, because the
# difference of two infinities would be NaN.
EXCLUDED = -1e30


def log_sums(
    rows, columns, labels, offsets=None, tile_size=None, both_ways=False
):
    """Compute log-sums of exponentials of scores, and the best columns.

    The score of a row and a column is their inner product plus the offset of
    the column.

    Args:
        rows: float tensor of shape `(num_rows, dim)`.
        columns: float tensor of shape `(num_columns, dim)`.
        labels: int32 tensor of shape `(num_rows,)`, the position of the column
            that matches each row.
        offsets: float tensor of shape `(num_columns,)` without a gradient.
            Defaults to `None`.
        tile_size: int. Maximum number of columns in a tile; `None` computes
            all scores at once. Defaults to `None`.
        both_ways: bool. Whether to return the same for each column, over the
            rows. The offsets then apply to the rows too, so there must be as
            many rows as columns. Defaults to `False`.

    Returns:
        A tuple of three tensors of shape `(num_rows,)`: the score of the
        matching column, without a gradient and rounded like the scores in the
        log-sums; the log-sums; and the int32 positions of the first maximum.
        With `both_ways`, it also holds the log-sums and positions of the
        columns, of shape `(num_columns,)`.

    Reference:
        - [Milakov and Gimelshein, 2018](https://arxiv.org/abs/1805.02867) for
          log-sums in one pass.
    """
    if tile_size is None:
        scores = Tiles(rows, columns, offsets, None, both_ways).all_scores()
        matching = ops.stop_gradient(_pick(scores, labels))
        sums = (ops.logsumexp(scores, axis=1), _first_best(scores, 1)[1])
        if both_ways:
            sums += (ops.logsumexp(scores, axis=0), _first_best(scores, 0)[1])
        return matching, *sums

    @backend.custom_gradient
    def tiled(rows, columns):
        tiles = Tiles(rows, columns, offsets, tile_size, both_ways)
        outputs = _tiled_log_sums(tiles, labels)

        def gradient(*upstream):
            upstream = keras.tree.flatten(upstream)
            return _tiled_log_sums_gradient(
                tiles, outputs[1::2], upstream[1::2]
            )

        return outputs, gradient

    return tiled(rows, columns)


def softplus_sums(rows, columns, bias, offsets=None, tile_size=None):
    """Compute sums of `log(1 + exp(score + bias))` and the best matches.

    Args:
        rows: float tensor of shape `(batch, dim)`.
        columns: float tensor of shape `(batch, dim)`.
        bias: float scalar tensor.
        offsets: float tensor of shape `(batch,)` without a gradient, added
            for rows and columns. Defaults to `None`.
        tile_size: int. Maximum number of columns in a tile; `None` computes
            all scores at once. Defaults to `None`.

    Returns:
        A tuple of three tensors of shape `(batch,)`: the sums, and the int32
        positions of the first maximum of each row and of each column.
    """
    if tile_size is None:
        scores = Tiles(rows, columns, offsets, None, True).all_scores()
        sums = ops.sum(ops.softplus(scores + bias), axis=1)
        return sums, _first_best(scores, 1)[1], _first_best(scores, 0)[1]

    @backend.custom_gradient
    def tiled(rows, columns, bias):
        tiles = Tiles(rows, columns, offsets, tile_size, True)

        def gradient(*upstream):
            upstream = keras.tree.flatten(upstream)
            return tiled_softplus_sums_gradient(tiles, bias, upstream[0])

        (_, position), sums, best_rows = tiled_softplus_sums(
            tiles, bias, no_best(rows), ops.zeros_like(rows[:, 0])
        )
        return (sums, position, best_rows), gradient

    return tiled(rows, columns, bias)


def tiled_best(tiles, best):
    """Update `best`, of earlier columns, with the columns of the tiles."""

    def step(best, tile):
        return _better(best, _first_best(tiles.scores(tile), 1), tile), {}

    return tiles.scan(step, best)[0]


class Tiles:
    """Scores of rows and columns, computed for a few columns at a time.

    Args:
        rows: float tensor of shape `(num_rows, dim)`.
        columns: float tensor of shape `(num_columns, dim)`.
        offsets: float tensor of shape `(num_columns,)` or `None`.
        tile_size: int. Maximum number of columns in a tile, or `None` if all
            scores are computed at once.
        both_ways: bool. Whether the offsets apply to the rows too. Defaults
            to `False`.
        first: int. Position of the first column, if the columns are only a
            part of all columns. Defaults to `0`.
    """

    def __init__(
        self, rows, columns, offsets, tile_size, both_ways=False, first=0
    ):
        self.first = first
        self.rows = rows
        self.columns = columns
        self.offsets = offsets
        self.both_ways = both_ways
        self.dtype = rows.dtype
        if tile_size is None:
            return
        # Tiles of equal size need the least padding in the last one.
        self.num_columns = ops.shape(columns)[0]
        self.num_tiles = -(-self.num_columns // tile_size)
        self.size = -(-self.num_columns // self.num_tiles)
        self.padding = self.num_tiles * self.size - self.num_columns
        self.is_padded = not isinstance(self.padding, int) or self.padding > 0

    def all_scores(self):
        """Compute the scores of all rows and columns."""
        scores = ops.matmul(self.rows, ops.transpose(self.columns))
        return self._exclude(scores, self.offsets)

    def scores(self, tile):
        """Compute the scores of all rows with the columns of a tile."""
        scores = ops.matmul(self.rows, ops.transpose(tile["columns"]))
        return self._exclude(scores, tile.get("offsets"))

    def _exclude(self, scores, offsets):
        if offsets is None:
            return scores
        scores = scores + offsets
        if self.both_ways and self.offsets is not None:
            scores = scores + ops.expand_dims(self.offsets, 1)
        return scores

    def scan(self, step, carry, dtypes=None, **of_columns):
        """Loop over the tiles and join their outputs for each column.

        `step` takes the carry and a dict of a tile: its `"first"` position,
        its `"columns"`, their `"offsets"` if any, and their part of each of
        `of_columns`. It returns the carry and a dict of outputs.
        """
        offsets = self.offsets
        if self.is_padded and offsets is None:
            offsets = ops.zeros((self.num_columns,), self.dtype)
        tiles = {
            "first": self.first
            + ops.arange(self.num_tiles, dtype="int32") * self.size,
            "columns": self._cut(backend.replicate(self.columns)),
            **{name: self._cut(value) for name, value in of_columns.items()},
        }
        if offsets is not None:
            tiles["offsets"] = self._cut(offsets, EXCLUDED)
        carry, outputs = backend.scan(step, carry, tiles, dtypes or {})
        return carry, {name: self._join(x) for name, x in outputs.items()}

    def _cut(self, x, fill=0.0):
        if self.is_padded:
            tail = ops.full((self.padding, *ops.shape(x)[1:]), fill, x.dtype)
            x = ops.concatenate([x, tail])
        return ops.reshape(x, (self.num_tiles, self.size, *ops.shape(x)[1:]))

    def _join(self, x):
        shape = (self.num_tiles * self.size, *ops.shape(x)[2:])
        return ops.reshape(x, shape)[: self.num_columns]


def no_best(rows):
    """Return the initial best score and position, before any column."""
    lowest = ops.full_like(rows[:, 0], -np.inf)
    return lowest, ops.zeros_like(lowest, "int32")


def _first_best(scores, axis):
    """Return the highest scores along an axis and their first positions."""
    positions = ops.argmax(scores, axis=axis)
    return ops.max(scores, axis=axis), ops.cast(positions, "int32")


def _pick(scores, labels):
    """Return the score of one column for each row."""
    return ops.take_along_axis(scores, ops.expand_dims(labels, 1), 1)[:, 0]


def _better(best, best_of_tile, tile):
    """Combine the best of earlier tiles with the best of this tile."""
    (value, position), (new_value, new_position) = best, best_of_tile
    position = ops.where(
        new_value > value, new_position + tile["first"], position
    )
    return ops.maximum(value, new_value), position


def _exp_sums(scores, highest, axis):
    return ops.sum(ops.exp(scores - ops.expand_dims(highest, axis)), axis=axis)


def _tiled_log_sums(tiles, labels):
    def step(carry, tile):
        best, total, matching = carry
        scores = tiles.scores(tile)
        label = labels - tile["first"]
        is_inside = ops.logical_and(label >= 0, label < tiles.size)
        label = ops.where(is_inside, label, 0)
        matching = ops.where(is_inside, _pick(scores, label), matching)
        new_best = _better(best, _first_best(scores, 1), tile)
        total = total * ops.exp(best[0] - new_best[0])
        total = total + _exp_sums(scores, new_best[0], 1)
        carry = new_best, total, matching
        if not tiles.both_ways:
            return carry, {}
        highest, position = _first_best(scores, 0)
        log_sum = highest + ops.log(_exp_sums(scores, highest, 0))
        return carry, {"log_sum": log_sum, "position": position}

    best = no_best(tiles.rows)
    zeros = ops.zeros_like(best[0])
    dtypes = {"log_sum": tiles.dtype, "position": "int32"}
    carry, of_columns = tiles.scan(
        step, (best, zeros, zeros), dtypes if tiles.both_ways else None
    )
    (highest, position), total, matching = carry
    outputs = matching, highest + ops.log(total), position
    if tiles.both_ways:
        outputs += of_columns["log_sum"], of_columns["position"]
    return outputs


def _tiled_log_sums_gradient(tiles, log_sums, upstream):
    row_sums = ops.expand_dims(log_sums[0], 1)
    row_upstream = ops.expand_dims(upstream[0], 1)

    def step(row_gradient, tile):
        scores = tiles.scores(tile)
        gradient = row_upstream * ops.exp(scores - row_sums)
        if tiles.both_ways:
            gradient = gradient + tile["upstream"] * ops.exp(
                scores - tile["log_sums"]
            )
        row_gradient = row_gradient + ops.matmul(gradient, tile["columns"])
        column_gradient = ops.matmul(ops.transpose(gradient), tiles.rows)
        return row_gradient, {"columns": column_gradient}

    of_columns = {}
    if tiles.both_ways:
        of_columns = {"log_sums": log_sums[1], "upstream": upstream[1]}
    row_gradient, outputs = tiles.scan(
        step,
        ops.zeros_like(tiles.rows),
        {"columns": tiles.dtype},
        **of_columns,
    )
    return row_gradient, outputs["columns"]


def tiled_softplus_sums(tiles, bias, best, sums):
    """Update the best and the sums of earlier columns with the tiles.

    Returns:
        A tuple of both, and with `both_ways` the best row of each column.
    """

    def step(carry, tile):
        best, sums = carry
        scores = tiles.scores(tile)
        best = _better(best, _first_best(scores, 1), tile)
        sums = sums + ops.sum(ops.softplus(scores + bias), axis=1)
        if not tiles.both_ways:
            return (best, sums), {}
        return (best, sums), {"position": _first_best(scores, 0)[1]}

    dtypes = {"position": "int32"} if tiles.both_ways else None
    (best, sums), of_columns = tiles.scan(step, (best, sums), dtypes)
    return (best, sums, *of_columns.values())


def tiled_softplus_sums_gradient(tiles, bias, upstream):
    """Compute the gradients of rows, columns and bias from that of the sums."""
    upstream = ops.expand_dims(upstream, 1)

    def step(carry, tile):
        row_gradient, bias_gradient = carry
        gradient = upstream * ops.sigmoid(tiles.scores(tile) + bias)
        row_gradient = row_gradient + ops.matmul(gradient, tile["columns"])
        bias_gradient = bias_gradient + ops.sum(gradient)
        column_gradient = ops.matmul(ops.transpose(gradient), tiles.rows)
        return (row_gradient, bias_gradient), {"columns": column_gradient}

    carry = ops.zeros_like(tiles.rows), ops.zeros_like(bias)
    carry, outputs = tiles.scan(step, carry, {"columns": tiles.dtype})
    return carry[0], outputs["columns"], carry[1]
