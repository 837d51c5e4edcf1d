"""Compute the gradient of a batch's loss, in one pass or in microbatches.

The functions here have no side effects: they take the values of the model's
variables and return the new ones. This lets a step replay its dropout, update
the moving statistics of normalisations once, or be skipped.
"""

import dataclasses
from typing import Any

import keras
from keras import ops

from align_keras import backend
from align_keras.backend.padding import IS_EXAMPLE
from align_keras.backend.padding import SAMPLE_WEIGHT
from align_keras.backend.padding import unpack
from align_keras.models.step_scope import step_scope


@dataclasses.dataclass
class Batch:
    """A replica's rows of a batch.

    Attributes:
        inputs: dict of tensors. The inputs of the model.
        mask: bool tensor of shape `(batch,)`. Which rows are examples; the
            others fill up the batch. `None` if all are examples.
        sample_weight: float tensor of shape `(batch,)`, or `None`.
    """

    inputs: dict
    mask: Any
    sample_weight: Any
    _examples: Any = dataclasses.field(default=None, init=False)

    @classmethod
    def of(cls, data):
        """Create a batch from an element of a data set.

        Args:
            data: tuple, or only the inputs, see `backend.padding.unpack`.
        """
        inputs, mask, sample_weight = unpack(data)
        rows = dict(inputs) if isinstance(inputs, dict) else {}
        if sample_weight is not None:
            sample_weight = _one_for_each_row(sample_weight)
            rows[SAMPLE_WEIGHT] = sample_weight
        _require_equal_counts(rows)
        return cls(inputs, mask, sample_weight)

    @property
    def examples(self):
        """Number of examples on all replicas, a scalar tensor."""
        # Not `functools.cached_property`: before Python 3.12 it holds a lock
        # while it computes, and the other replicas would wait for ever.
        if self._examples is None:
            self._examples = self._count_examples()
        return self._examples

    def _count_examples(self):
        if self.mask is None:
            rows = ops.shape(keras.tree.flatten(self.inputs)[0])[0]
            return ops.cast(rows * backend.num_replicas(), "float32")
        local = ops.sum(ops.cast(self.mask, "float32"))
        return backend.all_reduce_sum([local])[0]

    def marks(self):
        """Return the mask in a dict, passed in place of labels, or `None`."""
        return None if self.mask is None else {IS_EXAMPLE: self.mask}

    def compared(self, embeddings):
        """Return the arguments of `compute_loss` and `compute_metrics`."""
        return self.inputs, self.marks(), embeddings, self.sample_weight

    def share(self):
        """Return this replica's share of the examples of all replicas."""
        if self.mask is None:
            return ops.ones(()) / backend.num_replicas()
        return ops.sum(ops.cast(self.mask, "float32")) / self.examples

    def weights(self):
        """Return the weights of the rows, zero for padding, or `None`."""
        if self.mask is None:
            return self.sample_weight
        weights = ops.cast(self.mask, "float32")
        if self.sample_weight is not None:
            weights = weights * ops.cast(self.sample_weight, "float32")
        return weights


def _require_equal_counts(rows):
    """Refuse arrays with different numbers of rows; one row would broadcast."""
    known = {name: array.shape[:1] for name, array in rows.items()}
    message = (
        "All inputs of a batch, and weights, must have one row for each pair. "
        f"Received: {known}"
    )
    first, *others = rows.values() or [None]
    for other in others:
        sizes = first.shape[0], other.shape[0]
        if None in sizes:
            sizes = ops.shape(first)[0], ops.shape(other)[0]
            backend.require(sizes[0] == sizes[1], message)
        elif sizes[0] != sizes[1]:
            raise ValueError(message)


def _one_for_each_row(weights):
    """Return weights of shape `(batch,)`; `(batch, 1)` would broadcast."""
    if isinstance(weights, dict):
        raise ValueError(
            "`sample_weight` must be one number for each pair. "
            f"Received a dict of: {sorted(weights)}"
        )
    try:
        rank = len(weights.shape)
    except ValueError:  # Tensors from a generator have no known rank.
        return ops.reshape(weights, (-1,))
    if rank == 2 and weights.shape[1] == 1:
        return ops.squeeze(weights, 1)
    if rank != 1:
        raise ValueError(
            "`sample_weight` must have one weight for each pair, the shape "
            f"(batch,). Received: shape {tuple(weights.shape)}"
        )
    return weights


@dataclasses.dataclass
class Step:
    """The results of a training step.

    Attributes:
        loss: scalar tensor. This replica's share of the loss.
        hits: list of tensors of shape `(batch,)`. See `ContrastiveLoss.score`.
        embeddings: dict of tensors. The outputs of the model.
        gradients: list of tensors, one for each trainable variable.
        state: list of tensors. The new values of all other variables.
    """

    loss: Any
    hits: list
    embeddings: dict
    gradients: list
    state: list


def in_one_pass(model, batch, parameters, state, scale_loss):
    """Differentiate the loss of a batch, embedding it as a whole.

    Args:
        model: `AlignDualEncoder`, compiled.
        batch: `Batch`.
        parameters: list of tensors. Values of the trainable variables.
        state: list of tensors. Values of the other variables.
        scale_loss: callable. Scales the loss before it is differentiated.

    Returns:
        A `Step`.
    """

    def objective(parameters):
        with _stateless(model, parameters, state) as scope:
            with step_scope(batch.mask, model.remat):
                embeddings = model(batch.inputs, training=True)
            loss, hits = model.loss_and_hits(batch, embeddings)
        found = loss, hits, embeddings, _state_after(model, scope)
        return scale_loss(loss), found

    _, (loss, hits, embeddings, state), gradients = backend.value_and_gradients(
        objective, parameters
    )
    return Step(loss, hits, embeddings, gradients, state)


def in_microbatches(model, batch, parameters, state, scale_loss, size):
    """Differentiate the same loss using the memory of a microbatch.

    The first pass embeds all microbatches and keeps only the embeddings. The
    loss of the whole batch is computed from them and differentiated with
    respect to them. The second pass embeds each microbatch again, with the
    same random state, and backpropagates its share of those gradients.
    Normalisations see microbatches, and their moving statistics follow the
    average over them.

    Args:
        model: `AlignDualEncoder`, compiled.
        batch: `Batch`.
        parameters: list of tensors. Values of the trainable variables.
        state: list of tensors. Values of the other variables.
        scale_loss: callable. Scales the loss before it is differentiated.
        size: int. Number of rows in a microbatch on one device.

    Returns:
        A `Step`.

    Reference:
        - [Gao et al., 2021](https://arxiv.org/abs/2101.06983)
    """
    parts = dict(batch.inputs)
    if batch.mask is not None:
        parts["mask"] = batch.mask
    parts = {name: split(rows, size) for name, rows in parts.items()}
    own = model.overrides("call", "embed", "image_features")
    if model.image_encoder_is_frozen and not own:
        parts = _run_frozen_encoder(model, parts, parameters, state)
    rewind = backend.mark_random_state()
    embeddings, new_state = _first_pass(model, parts, parameters, state)

    def objective(arguments):
        embeddings = dict(zip(EMBEDDINGS, arguments[:2], strict=True))
        with _stateless(model, arguments[2:], state):
            loss, hits = model.loss_and_hits(batch, embeddings)
        return scale_loss(loss), (loss, hits)

    rows = batch.inputs["token_ids"].shape[0]
    whole = [join(embeddings[name], rows) for name in EMBEDDINGS]
    _, (loss, hits), gradients = backend.value_and_gradients(
        objective, whole + parameters
    )
    cached = {
        name: split(gradient, size)
        for name, gradient in zip(EMBEDDINGS, gradients[:2], strict=True)
    }
    rewind()
    extra, gradients = _second_pass(
        model, parts, cached, parameters, state, gradients[2:], scale_loss
    )
    whole = dict(zip(EMBEDDINGS, whole, strict=True))
    loss = loss + ops.cast(extra, loss.dtype)
    return Step(loss, hits, whole, gradients, new_state)


EMBEDDINGS = ("image_embeddings", "text_embeddings")


def split(rows, size):
    """Reshape `(batch, ...)` to `(parts, rows of a part, ...)`.

    If a program sees the rows of several devices, each part takes `size` rows
    from every device, so that no row has to move.
    """
    shards, batch = backend.num_shards(), rows.shape[0]
    message = (
        "`microbatch_size` must divide the batch of a replica. Received: "
        f"microbatch_size={size}. Choose another batch size or microbatch size."
    )
    if batch is None:
        backend.require(ops.shape(rows)[0] % size == 0, message)
    elif batch % (shards * size):
        raise ValueError(f"{message} The batch is {batch // shards}.")
    if shards == 1:
        return ops.reshape(rows, (-1, size, *rows.shape[1:]))
    rows = ops.reshape(rows, (shards, -1, size, *rows.shape[1:]))
    rows = ops.swapaxes(rows, 0, 1)
    return ops.reshape(rows, (-1, shards * size, *rows.shape[3:]))


def join(parts, batch):
    """Undo `split`; `batch` is the number of rows, or `None`."""
    shards = backend.num_shards()
    count, size, *shape = ops.shape(parts)
    parts = ops.reshape(parts, (count, shards, size // shards, *shape))
    rows = -1 if batch is None else batch
    return ops.reshape(ops.swapaxes(parts, 0, 1), (rows, *shape))


def _stateless(model, parameters, state):
    """Return a scope that replaces and tracks the values of the variables."""
    variables = model.trainable_variables, model.non_trainable_variables
    mapping = [
        *zip(variables[0], parameters, strict=True),
        *zip(variables[1], state, strict=True),
    ]
    return keras.StatelessScope(mapping, collect_losses=True)


def _state_after(model, scope):
    return [scope.get_current_value(v) for v in model.non_trainable_variables]


def _run_frozen_encoder(model, parts, parameters, state):
    """Replace the images with the vectors of a frozen encoder."""

    def run(carry, part):
        with _stateless(model, parameters, state):
            vectors = model.image_vectors(part["images"])
        return carry, {"image_vectors": vectors}

    _, vectors = backend.scan(
        run,
        (),
        {"images": parts["images"]},
        {"image_vectors": model.image_pooling_layer.compute_dtype},
    )
    rest = {name: rows for name, rows in parts.items() if name != "images"}
    return {**rest, **vectors}


def _embed(model, part, parameters, state):
    """Embed a microbatch; return embeddings, new state and added losses."""
    inputs = {name: rows for name, rows in part.items() if name != "mask"}
    with _stateless(model, parameters, state) as scope:
        with step_scope(part.get("mask"), model.remat):
            # Calling the model itself accepts only its declared inputs.
            run = model.embed if "image_vectors" in inputs else model
            embeddings = run(inputs, training=True)
    return embeddings, _state_after(model, scope), list(scope.losses)


def _first_pass(model, parts, parameters, state):
    """Embed all microbatches, without gradients.

    The random state is passed from one microbatch to the next. The moving
    statistics start from the same values in every microbatch and are averaged,
    weighted by the number of examples.
    """
    seeds, averages = _moving_state(model)

    def run(carry, part):
        drawn, sums, total = carry
        before = _replace(state, seeds, drawn)
        embeddings, after, _ = _embed(model, part, parameters, before)
        weight = ops.ones((), sums_dtype)
        if "mask" in part:
            weight = ops.sum(ops.cast(part["mask"], sums_dtype))
        sums = [
            value + ops.cast(weight, value.dtype) * after[i]
            for i, value in zip(averages, sums, strict=True)
        ]
        carry = [after[i] for i in seeds], sums, total + weight
        return carry, {name: embeddings[name] for name in EMBEDDINGS}

    sums_dtype = model.contrastive_head.compute_dtype
    start = (
        [state[i] for i in seeds],
        [ops.zeros_like(state[i]) for i in averages],
        ops.zeros((), sums_dtype),
    )
    (drawn, sums, total), embeddings = backend.scan(
        run, start, parts, dict.fromkeys(EMBEDDINGS, sums_dtype)
    )
    # A replica that holds only padding has no examples.
    total = ops.maximum(total, 1.0)
    means = [value / ops.cast(total, value.dtype) for value in sums]
    new_state = _replace(_replace(state, seeds, drawn), averages, means)
    return embeddings, new_state


def _second_pass(
    model, parts, cached, parameters, state, gradients, scale_loss
):
    """Backpropagate the cached gradients of the embeddings."""
    seeds, _ = _moving_state(model)
    count = ops.shape(cached[EMBEDDINGS[0]])[0] * backend.num_replicas()

    def run(carry, rows):
        drawn, extra, gradients = carry
        part, cached = rows
        before = _replace(state, seeds, drawn)

        def objective(parameters):
            embeddings, after, losses = _embed(model, part, parameters, before)
            value = sum(
                ops.sum(embeddings[name] * cached[name]) for name in EMBEDDINGS
            )
            # Losses that layers add are averaged over the microbatches.
            added = ops.zeros_like(value)
            if losses:
                added = sum(ops.cast(ops.sum(v), value.dtype) for v in losses)
                added = added / ops.cast(count, value.dtype)
                value = value + scale_loss(added)
            return value, ([after[i] for i in seeds], added)

        _, (drawn, added), new = backend.value_and_gradients(
            objective, parameters
        )
        gradients = [g + n for g, n in zip(gradients, new, strict=True)]
        return (drawn, extra + added, gradients), ()

    extra = ops.zeros((), cached[EMBEDDINGS[0]].dtype)
    start = ([state[i] for i in seeds], extra, gradients)
    (_, extra, gradients), _ = backend.scan(run, start, (parts, cached))
    return extra, gradients


def _moving_state(model):
    """Find the variables that a step changes: random state and averages.

    Returns:
        A pair of lists of positions in `model.non_trainable_variables`.
    """
    frozen = {
        id(variable)
        for layer in model._flatten_layers()
        if not layer.trainable
        for variable in layer.variables
    }
    seeds, averages = [], []
    for i, variable in enumerate(model.non_trainable_variables):
        if "int" in variable.dtype:
            seeds.append(i)
        elif id(variable) not in frozen:
            averages.append(i)
    return seeds, averages


def _replace(values, positions, new):
    values = list(values)
    for i, value in zip(positions, new, strict=True):
        values[i] = value
    return values
