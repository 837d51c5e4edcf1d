"""The training loop under `tf.distribute`."""

import contextlib
import functools

import tensorflow as tf

from align_keras.backend.lengths import any_length
from align_keras.backend.padding import IS_EXAMPLE
from align_keras.backend.padding import PaddingMixin
from align_keras.backend.padding import unpack
from align_keras.backend.tensorflow.functional import values
from align_keras.backend.tensorflow.optimizer import ReplicaClipping
from align_keras.backend.tensorflow.replicas import all_reduce_sum
from align_keras.backend.tensorflow.replicas import apply_where
from align_keras.backend.tensorflow.replicas import num_replicas
from align_keras.backend.tensorflow.replicas import replica_index


class Trainer(PaddingMixin):
    """Training steps and loops for any number of replicas.

    With several replicas, Keras 3.15 fails if it runs several steps per
    execution, on several workers, and if the last batch leaves a replica
    empty. It also clips gradients before it sums them, and averages the
    replicas' means without weighting them by the number of examples.
    """

    # === Steps of one replica ===

    def train_step(self, data):
        before = self._read_state()
        batch, step = self.take_gradients(
            data,
            values(self.trainable_variables),
            before,
            self.optimizer.scale_loss,
        )
        arguments = (
            _before_clipping(self.optimizer, step.gradients),
            self._merge_state(before, step.state, batch),
            self.to_count(batch, step.loss, step.hits, step.embeddings),
        )
        if not self.skip_nonfinite:
            return self._take_step(*arguments)
        norm = tf.linalg.global_norm(step.gradients)
        finite = [tf.math.is_finite(value) for value in (step.loss, norm)]
        finite = tf.cast(tf.reduce_all(finite), "float32")
        (finite,) = all_reduce_sum([finite])
        finite = tf.cast(finite == num_replicas(), "float32")
        apply_where(finite > 0, self._take_step, arguments)
        self.nonfinite_steps.update_state((1.0 - finite) / num_replicas())
        return self.get_metrics_result()

    def _take_step(self, gradients, changed, metrics):
        # Undo the loss scale, if any, before the optimizer changes it.
        norms_of = self._unscaled(gradients) if self.gradient_norms else None
        self.optimizer.apply(gradients, self.trainable_variables)
        for position, value in changed.items():
            self.non_trainable_variables[position].assign(value)
        # `update_metrics` returns the logs of all metrics, so the norms must
        # be updated first.
        if self.gradient_norms:
            self.update_norms(norms_of or self._summed(gradients))
        return self.update_metrics(*metrics)

    def _unscaled(self, gradients):
        """Undo the loss scale of mixed_float16; `None` where there is none."""
        if not hasattr(self.optimizer, "inner_optimizer"):
            return None
        # Each replica holds an equal part of the sum over the replicas.
        scale = self.optimizer.scale_loss(1.0) / num_replicas()
        return [tf.cast(gradient, "float32") / scale for gradient in gradients]

    def _summed(self, gradients):
        """Sum over the replicas, or reuse the optimizer's sums.

        Summing them again would double what the replicas exchange.
        """
        if num_replicas() > 1 and isinstance(self.optimizer, ReplicaClipping):
            return self.optimizer.take_sums()
        return all_reduce_sum(gradients)

    def test_step(self, data):
        return self.update_metrics(*self.evaluate_batch(data))

    def predict_step(self, data):
        inputs, mask, _ = unpack(data)
        with self._lengths_of_steps():
            outputs = self(inputs, training=False)
        if mask is None:
            return outputs
        # Workers can only exchange numbers.
        return {**outputs, IS_EXAMPLE: tf.cast(mask, "int32")}

    # === State ===

    def _read_state(self):
        """Read the non-trainable state, with a different seed per replica."""
        state = values(self.non_trainable_variables)
        return [
            value + _own_seed(value) if _is_seed(variable) else value
            for variable, value in zip(
                self.non_trainable_variables, state, strict=True
            )
        ]

    def _merge_state(self, before, after, batch):
        """Collect the state that a step changed, equal on all replicas.

        Moving statistics are averaged over the examples of all replicas, so it
        does not matter which replica's are saved.

        Returns:
            A dict from positions in `non_trainable_variables` to values.
        """
        changed, averages = {}, {}
        for i, variable in enumerate(self.non_trainable_variables):
            if after[i] is before[i]:
                continue
            if _is_seed(variable):
                changed[i] = after[i] - _own_seed(after[i])
            elif variable.dtype.startswith("float") and num_replicas() > 1:
                averages[i] = after[i] * tf.cast(batch.share(), after[i].dtype)
            else:
                changed[i] = after[i]
        sums = all_reduce_sum(list(averages.values()))
        return {**changed, **dict(zip(averages, sums, strict=True))}

    # === Loops over batches ===

    def batch_multiple(self):
        return self.distribute_strategy.num_replicas_in_sync

    def masks_full_batches(self):
        return True

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        with self.distribute_strategy.scope():
            self._symbolic_build()

    def _lengths_of_steps(self):
        """Return a scope in which steps are traced, see `any_length`."""
        strategy = self.distribute_strategy
        is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        if self.jit_compile or is_tpu:
            return contextlib.nullcontext()
        return any_length()

    def _refuse_compiled_collectives(self):
        strategy = self.distribute_strategy
        is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        if strategy.num_replicas_in_sync > 1 and not is_tpu:
            raise ValueError(
                "TensorFlow cannot compile collectives on these devices: leave "
                f"out `jit_compile` under `{type(strategy).__name__}`. "
                "Received: jit_compile=True"
            )

    def _make_function(self, step_function):
        strategy = self.distribute_strategy
        compiled = not self.run_eagerly
        own_logs = self.logs_of_step(step_function.__name__)

        def step(data):
            with self._lengths_of_steps():
                return step_function(data)

        if self.jit_compile:
            self._refuse_compiled_collectives()
            step = tf.function(step, jit_compile=True, autograph=False)

        # The step stays a plain function: TensorFlow cannot call a replicated
        # graph from within a branch of another graph.
        def one_step(data):
            logs = strategy.run(step, args=(data,))
            return logs if own_logs else None

        def next_step(iterator):
            logs = one_step(next(iterator))
            return logs if own_logs else self.get_metrics_result()

        def next_steps(iterator):
            count = _repeat(one_step, iterator, self.steps_per_execution)
            return count, self.get_metrics_result()

        if compiled:
            one_step_on_data, next_step, next_steps = (
                tf.function(function, reduce_retracing=True, autograph=False)
                for function in (one_step, next_step, next_steps)
            )
        else:
            one_step_on_data = one_step

        def function(iterator):
            if not _is_distributed(iterator):
                return self._run_on_host(one_step_on_data, iterator)
            if self.steps_per_execution == 1:
                return next_step(iterator)
            count, logs = next_steps(iterator)
            if count == 0:
                raise StopIteration
            return logs

        if step_function.__name__ == "train_step" and _has_only_cpus():
            return _without_rewriting(function)
        return function

    def _run_on_host(self, one_step, batches):
        """Run steps on batches in memory, as `train_on_batch` does."""
        if self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "A single batch cannot be spread over several replicas: call "
                "`fit` or `evaluate` on a data set instead."
            )
        for _, data in zip(
            range(self.steps_per_execution), batches, strict=False
        ):
            logs = one_step(data)
        return self.get_metrics_result() if logs is None else logs


def _has_only_cpus():
    devices = tf.config.list_logical_devices()
    return all(device.device_type == "CPU" for device in devices)


def _without_rewriting(function):
    """Run a function without TensorFlow's rewriting of graphs.

    On a CPU, rewriting delays the first step by 5 to 10 seconds, and later
    steps are no faster for it. It stays on if the user has chosen what it does.
    """

    @functools.wraps(function)
    def run(*args):
        options = tf.config.optimizer.get_experimental_options()
        name = "disable_meta_optimizer"
        if any(not option.startswith("disable_") for option in options):
            return function(*args)
        tf.config.optimizer.set_experimental_options({name: True})
        try:
            return function(*args)
        finally:
            tf.config.optimizer.set_experimental_options(
                {name: options.get(name, False)}
            )

    return run


def _is_distributed(iterator):
    kinds = tf.data.Iterator, tf.distribute.DistributedIterator
    return isinstance(iterator, kinds)


def _repeat(one_step, iterator, times):
    """Run up to `times` steps in the graph and return how many were run."""

    def body(step, _):
        data = iterator.get_next_as_optional()

        def run():
            one_step(data.get_value())
            return step + 1, True

        return tf.cond(data.has_value(), run, lambda: (step, False))

    count, _ = tf.while_loop(
        lambda step, more: tf.logical_and(step < times, more),
        body,
        (0, True),
        parallel_iterations=1,
    )
    return count


def _before_clipping(optimizer, gradients):
    """Sum gradients over the replicas, if this must precede clipping.

    Keras sums them itself, but only after it has clipped the gradients of each
    replica, or checked those of the first one for overflow. The sum is divided
    into equal parts, which Keras then adds up.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    clips = inner.clipnorm or inner.global_clipnorm or inner.clipvalue
    early = clips and not isinstance(inner, ReplicaClipping)
    if num_replicas() == 1 or not (early or inner is not optimizer):
        return gradients
    if early and inner is not optimizer:
        raise ValueError(
            "With mixed_float16 and several replicas, Keras would clip the "
            "gradient of each replica. Use an optimizer from "
            f"`align_keras.optimizers`. Received: optimizer={inner}"
        )
    gradients = all_reduce_sum(gradients)
    if early:
        # An equal part of a clipped gradient is not clipped again.
        gradients = inner._clip_gradients(gradients)
    return [gradient / num_replicas() for gradient in gradients]


def _is_seed(variable):
    return variable.path.endswith("seed_generator_state")


def _own_seed(state):
    """Return the offset that makes the seed of each replica different."""
    step = tf.cast(replica_index() * 104_729, state.dtype)
    return tf.stack([step, tf.zeros_like(step)])
