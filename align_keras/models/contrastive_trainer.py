import inspect
import numbers

import keras
from keras import ops

from align_keras import backend
from align_keras.losses import ContrastiveLoss
from align_keras.models import gradients
from align_keras.models.batch_normalization import BatchNormalization
from align_keras.models.step_scope import listening_for_hits
from align_keras.models.step_scope import note_hits

IMAGE_RECALL = "image_to_text_recall_at_1"
TEXT_RECALL = "text_to_image_recall_at_1"
# The modules that define our own models; classes elsewhere are a user's.
_MODULES = (__name__, "align_keras.models.align_dual_encoder")


def _compares_pairs(loss):
    """Whether a loss takes the same arguments as `ContrastiveLoss()`."""
    if isinstance(loss, type) or not callable(loss):
        return False
    if hasattr(loss, "score"):
        return True
    try:
        inspect.signature(loss).bind("images", "texts", "weights", "temp")
    except TypeError:
        return False
    return True


# Our metrics: attributes, `None` where nothing is measured, and classes.
_OWN_METRICS = {
    "image_recall": keras.metrics.Mean,
    "text_recall": keras.metrics.Mean,
    "nonfinite_steps": keras.metrics.Sum,
    "image_norm": keras.metrics.Mean,
    "text_norm": keras.metrics.Mean,
}


class ContrastiveTrainer(backend.Trainer):
    """Training of a dual encoder through `compile` and `fit`."""

    microbatch_size = None
    remat = False
    skip_nonfinite = False
    pair_metrics = ()
    gradient_norms = False
    image_recall = text_recall = nonfinite_steps = None
    image_norm = text_norm = None

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        metrics=None,
        microbatch_size=None,
        remat=False,
        skip_nonfinite=False,
        gradient_norms=False,
        **kwargs,
    ):
        """Configure the model for training.

        Args:
            optimizer: `keras.optimizers.Optimizer` or its name.
            loss: Loss, called with `(image_embeddings, text_embeddings,
                sample_weight, temperature)`. Defaults to
                `ContrastiveLoss()`.
            metrics: list of `keras.metrics.Metric`, such as
                `PairRecall(k=5)`. Each is updated with `(image_embeddings,
                text_embeddings, sample_weight=…)` of a batch. Recall at 1
                within the batch is reported anyway, unless the loss is one
                without the method `score`. Defaults to `None`.
            microbatch_size: int. Number of pairs that a replica embeds at a
                time. This bounds the memory for a batch of any size, while
                the loss and its gradients stay those of the whole batch.
                Batch normalisation then sees microbatches. `None` embeds the
                batch at once. Defaults to `None`.
            remat: bool. Whether the blocks of the encoders recompute their
                activations in the backward pass instead of keeping them.
                Saves memory and takes about a third more time. Defaults to
                `False`.
            skip_nonfinite: bool. Whether to skip a step on all replicas if
                its loss or gradient is not finite, and to count it in the
                metric `nonfinite_steps`. Defaults to `False`.
            gradient_norms: bool. Whether to report the norm of each tower's
                gradient over the global batch, before clipping, as
                `image_gradient_norm` and `text_gradient_norm`. The gradient
                of a tower includes that of its projection. Defaults to
                `False`.
            **kwargs: Other arguments of `keras.Model.compile`.
        """
        for name in ("weighted_metrics", "loss_weights"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    "There is one loss, and there are no labels to compare "
                    f"with, so `{name}` must be None. Recall within the batch "
                    f"is reported anyway. Received: {name}={kwargs[name]}"
                )
        metrics = [] if metrics is None else metrics
        if not isinstance(metrics, (list, tuple)) or not all(
            isinstance(m, keras.metrics.Metric) for m in metrics
        ):
            raise ValueError(
                "`metrics` must be a list of `keras.metrics.Metric` objects "
                "that are updated with image and text embeddings, such as "
                "`PairRecall(k=5)`, since there are no labels. Received: "
                f"metrics={metrics}"
            )
        loss = loss or ContrastiveLoss()
        own = {}
        if hasattr(loss, "score"):
            own |= {"image_recall": IMAGE_RECALL, "text_recall": TEXT_RECALL}
        if skip_nonfinite:
            own["nonfinite_steps"] = "nonfinite_steps"
        if gradient_norms:
            own["image_norm"] = "image_gradient_norm"
            own["text_norm"] = "text_gradient_norm"
        names = [*own.values(), "loss", *(m.name for m in metrics)]
        if len(set(names)) < len(names):
            raise ValueError(
                "Metrics must have unique names: of two with the same name, "
                f"one would be lost. Received, with ours: {names}"
            )
        if not _compares_pairs(loss):
            raise ValueError(
                "`loss` must be `ContrastiveLoss()`, `SigmoidLoss()` or "
                "another callable of `(image_embeddings, text_embeddings, "
                "sample_weight, temperature)` that returns a scalar. "
                f"Received: loss={loss!r}"
            )
        if getattr(loss, "takes_bias", False) and self.initial_bias is None:
            raise ValueError(
                f"`{type(loss).__name__}` learns a bias, which this model "
                "lacks. Create the model with `initial_bias=-10.0`. "
                "Received: initial_bias=None"
            )
        is_size = type(microbatch_size) is int and microbatch_size > 0
        if not (is_size or microbatch_size is None):
            raise ValueError(
                "`microbatch_size` must be an int of at least 1, or None. "
                f"Received: microbatch_size={microbatch_size}"
            )
        steps = kwargs.get("steps_per_execution", 1)
        if not isinstance(steps, numbers.Integral) or steps < 1:
            raise ValueError(
                "`steps_per_execution` must be an int of at least 1. "
                f"Received: steps_per_execution={steps!r}"
            )
        # Keras locks a model when it quantises it.
        self._tracker.unlock()
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        # Keras only stores what "auto" resolves to on this backend.
        self._jit_compile_argument = kwargs.get("jit_compile", "auto")
        self.microbatch_size = microbatch_size
        self.remat = remat
        self.skip_nonfinite = skip_nonfinite
        self.gradient_norms = gradient_norms
        if skip_nonfinite:
            self._refuse_loss_scaling()
        for metric in self.pair_metrics:
            self._tracker.untrack(metric)
        self.pair_metrics = list(metrics)
        for attribute, kind in _OWN_METRICS.items():
            self._tracker.untrack(getattr(self, attribute))
            name = own.get(attribute)
            setattr(self, attribute, kind(name=name) if name else None)

    def enable_lora(self, rank, target_layer_names=None):
        """Train low-rank updates (LoRA) of layers instead of the towers.

        In the towers, everything is frozen except for the updates and the
        biases of the updated layers. The projections and the temperature
        belong to no tower and are trained as before. The result is the same
        as calling `enable_lora` on both towers. Call `compile` afterwards.

        Args:
            rank: int. The rank of the updates.
            target_layer_names: list of strings. Names of the layers to
                update. Defaults to `None`, the layers that KerasHub's
                backbones choose: the queries and values of attention.

        Raises:
            ValueError: A name matches no layer that can be updated (Keras
                would silently freeze the towers), or a tower already has
                low-rank updates.
        """
        own = [
            layer
            for layer in (
                self.image_projection,
                self.text_projection,
                self.contrastive_head,
            )
            if layer is not None and layer.trainable
        ]
        super().enable_lora(rank, target_layer_names)
        for layer in own:
            if not getattr(layer, "lora_enabled", False):
                layer.trainable = True

    def _refuse_loss_scaling(self):
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "The optimizer of mixed_float16 skips steps with non-finite "
                "gradients by itself, and must see them to choose its scale: "
                "leave `skip_nonfinite` out."
            )

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:
            config["metrics"] = [
                keras.saving.serialize_keras_object(metric)
                for metric in self.pair_metrics
            ]
            config["jit_compile"] = self._jit_compile_argument
            config["microbatch_size"] = self.microbatch_size
            config["remat"] = self.remat
            config["skip_nonfinite"] = self.skip_nonfinite
            config["gradient_norms"] = self.gradient_norms
        return config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    # === One step ===

    def _symbolic_build(self, iterator=None, data_batch=None):
        # Only the optimizer is not built yet, and it needs no batch.
        optimizer = getattr(self, "optimizer", None)
        if optimizer is not None and not optimizer.built:
            optimizer.build(self.trainable_variables)

    def take_gradients(self, data, parameters, state, scale_loss):
        """Compute the loss and gradients of a batch without side effects.

        Args:
            data: An element of a data set, see `backend.padding.unpack`.
            parameters: list of tensors. Values of `trainable_variables`.
            state: list of tensors. Values of `non_trainable_variables`.
            scale_loss: callable. Scales the loss before it is differentiated.

        Returns:
            A pair of `Batch` and `Step`, see `align_keras.models.gradients`.
        """
        batch = gradients.Batch.of(data)
        arguments = self, batch, parameters, state, scale_loss
        if self.microbatch_size is None:
            return batch, gradients.in_one_pass(*arguments)
        self._refuse_exchange_in_microbatches()
        return batch, gradients.in_microbatches(
            *arguments, self.microbatch_size
        )

    def _batch_normalizations(self):
        for layer in self._flatten_layers():
            kind = keras.layers.BatchNormalization
            if isinstance(layer, kind) and layer.trainable:
                yield layer

    def layer_that_minds_padding(self):
        """Return the path of a layer whose statistics would include padding.

        Returns:
            A string, or `None` if there is no such layer.
        """
        for layer in self._batch_normalizations():
            if not isinstance(layer, BatchNormalization):
                return layer.path
        return None

    def _refuse_exchange_in_microbatches(self):
        for layer in self._batch_normalizations():
            if layer.synchronized and backend.num_replicas() > 1:
                raise ValueError(
                    "With `microbatch_size`, each replica normalises its own "
                    f"microbatches, but the layer `{layer.path}` is "
                    "synchronized. Build the image encoder with "
                    "batch_norm='local' or 'ghost'; the moving statistics of "
                    "all replicas are averaged in any case."
                )

    def score(self, embeddings, batch):
        """Compare embeddings and return this replica's loss and the hits."""
        images, texts = (embeddings[name] for name in gradients.EMBEDDINGS)
        temperature = self.contrastive_head.temperature
        if not hasattr(self.loss, "score"):
            if batch.mask is not None:
                raise ValueError(
                    "The last batch is smaller and must be padded, but the "
                    "loss has no method `score` that takes a mask. Drop the "
                    f"last batch. Received: loss={self.loss}"
                )
            return (
                self.loss(images, texts, batch.sample_weight, temperature),
                [],
            )
        optional = {}
        if getattr(self.loss, "takes_bias", False):
            optional["bias"] = self.contrastive_head.bias
        if batch.mask is not None:
            optional["mask"] = batch.mask
        losses, *hits = self.loss.score(images, texts, temperature, **optional)
        mask = (batch.mask,) if batch.mask is not None else ()
        return self.loss.reduce(losses, batch.sample_weight, *mask), hits

    # Keras does not implement it for functional models, but our `call` runs
    # as that of any layer does.
    add_loss = keras.layers.Layer.add_loss

    def extra_loss(self):
        """Return this replica's share of the losses that layers add."""
        total = 0.0
        for loss in self.losses:
            # The losses of the replicas are summed, and every replica computes
            # all of this one.
            total = total + ops.sum(loss) / backend.num_replicas()
        return total

    def loss_and_hits(self, batch, embeddings, training=True):
        """Return the result of `compute_loss` and the hits found on the way."""
        x, y, y_pred, sample_weight = batch.compared(embeddings)
        with listening_for_hits() as hits:
            # Also supports a subclass whose `compute_loss` has no argument
            # `training`.
            loss = self._compute_loss(x, y, y_pred, sample_weight, training)
        return loss, list(hits)

    def evaluate_batch(self, data):
        """Embed and score a batch; return the arguments of `update_metrics`."""
        batch = gradients.Batch.of(data)
        embeddings = self(batch.inputs, training=False)
        loss, hits = self.loss_and_hits(batch, embeddings, training=False)
        return self.to_count(batch, loss, hits, embeddings)

    def to_count(self, batch, loss, hits, embeddings):
        """Return the arguments of `update_metrics`."""
        compared = batch.compared(embeddings)
        return loss, hits, batch.examples, batch.weights(), compared

    def update_metrics(self, loss, hits, examples, weights, compared):
        """Update the mean loss, recall and the other metrics with a batch.

        Args:
            loss: scalar tensor. This replica's share of the loss.
            hits: list of tensors of shape `(batch,)`.
            examples: scalar tensor. Number of examples on all replicas.
            weights: tensor of shape `(batch,)` or `None`.
            compared: tuple. The arguments of `compute_metrics`.

        Returns:
            A dict from the name of each metric to its value so far.
        """
        replicas = backend.num_replicas()
        self._loss_tracker.update_state(
            loss * replicas, sample_weight=examples / replicas
        )
        self._update_recall(hits, weights)
        return self.compute_metrics(*compared)

    def update_norms(self, gradients):
        """Update the gradient norm of each tower, if it is finite.

        Args:
            gradients: list of tensors, one for each trainable variable: the
                gradient of the global batch.
        """
        image = (self.image_encoder, self.image_projection)
        text = (self.text_encoder, self.text_projection)
        for tracker, layers in (
            (self.image_norm, image),
            (self.text_norm, text),
        ):
            norm = self._norm_of(layers, gradients)
            finite = ops.isfinite(norm)
            tracker.update_state(
                ops.where(finite, norm, 0.0), ops.cast(finite, "float32")
            )

    def _norm_of(self, layers, gradients):
        own = {id(v) for layer in layers if layer for v in layer.variables}
        pairs = zip(gradients, self.trainable_variables, strict=True)
        squares = [
            ops.cast(backend.sum_of_squares(gradient), "float32")
            for gradient, variable in pairs
            if id(variable) in own
        ]
        return ops.sqrt(sum(squares, ops.zeros((), "float32")))

    def _update_recall(self, hits, weights):
        # A loss without the method `score` returns no hits.
        metrics = (self.image_recall, self.text_recall)
        for metric, hit in zip(metrics, hits, strict=False):
            metric.update_state(hit, weights)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Compute this replica's share of the loss, and count recall.

        A subclass may override this method and add to the loss. `fit` and
        `evaluate` call it once per batch, even with `microbatch_size`:
        `y_pred` always holds the embeddings of the whole batch. It must not
        rely on side effects.

        Args:
            x: dict of tensors. The inputs of the model.
            y: dict with the mask and weights of the rows, or `None`. There
                are no labels.
            y_pred: dict of tensors. The outputs of the model.
            sample_weight: Optional tensor of shape `(batch,)`.
            training: bool. Ignored.

        Returns:
            A scalar tensor.
        """
        batch = gradients.Batch.of((x, y, sample_weight))
        loss, hits = self.score(y_pred, batch)
        if not note_hits(hits):
            self._update_recall(hits, batch.weights())
        return loss + self.extra_loss()

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Update the metrics that were passed to `compile`.

        Args:
            x: see `compute_loss`, also for the other arguments.

        Returns:
            A dict from the name of each metric of the model to its value.
        """
        # Recall was already updated with the loss, which has the scores.
        if self.pair_metrics:
            batch = gradients.Batch.of((x, y, sample_weight))
            rows = [y_pred[name] for name in gradients.EMBEDDINGS]
            for metric in self.pair_metrics:
                mask = {}
                if getattr(metric, "takes_mask", False):
                    mask = {"mask": batch.mask}
                metric.update_state(
                    *rows, sample_weight=batch.weights(), **mask
                )
        return self.get_metrics_result()

    # === Subclasses ===

    def make_train_function(self, force=False):
        self.logs_of_step("train_step")
        super().make_train_function(force)

    def make_test_function(self, force=False):
        self.logs_of_step("test_step")
        super().make_test_function(force)

    def overrides(self, *names):
        """Whether a user's subclass overrides one of these methods."""
        own = (m for m in type(self).__mro__ if m.__module__ in _MODULES)
        known = next(own)
        return any(
            getattr(type(self), name) is not getattr(known, name)
            for name in names
        )

    def logs_of_step(self, step):
        """Whether `fit` reports the logs that a step returns, not the metrics.

        Raises:
            ValueError: The logs of a subclass would be lost.
        """
        if not self.overrides(step, "compute_metrics"):
            return False
        strategy = getattr(self, "distribute_strategy", None)
        replicas = getattr(strategy, "num_replicas_in_sync", 1)
        lost = {
            "several replicas": replicas > 1,
            "`steps_per_execution` above 1": self.steps_per_execution > 1,
            "`skip_nonfinite`": self.skip_nonfinite,
        }
        for reason, holds in lost.items():
            if holds:
                raise ValueError(
                    f"With {reason}, what `{type(self).__name__}.{step}` or "
                    "its `compute_metrics` returns would be lost. Pass "
                    "`metrics` to `compile`, or override `compute_loss` or "
                    "`call` instead."
                )
        return True
