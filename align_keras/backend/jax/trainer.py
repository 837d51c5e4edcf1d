"""The training loop under `keras.distribution`."""

import contextlib

import jax
import keras

from align_keras.backend.jax.replicas import num_shards
from align_keras.backend.padding import IS_EXAMPLE
from align_keras.backend.padding import OwnRows
from align_keras.backend.padding import PaddingMixin
from align_keras.backend.padding import unpack
from align_keras.backend.sharded_state import gathered


def _is_shared_out(data):
    distribution = keras.distribution.distribution()
    automatic = getattr(distribution, "auto_shard_dataset", False)
    # Keras does not distribute arrays among processes.
    return automatic and hasattr(data, "element_spec")


class Trainer(PaddingMixin):
    """Training steps for any number of devices.

    The program sees the global batch, so little is needed besides the step
    itself.
    """

    def train_step(self, state, data):
        trainable, others, optimizer_state, metrics = state
        whole = gathered(trainable), gathered(others)

        def scale_loss(loss):
            pairs = zip(self.optimizer.variables, optimizer_state, strict=True)
            with keras.StatelessScope(pairs):
                return self.optimizer.scale_loss(loss)

        batch, step = self.take_gradients(data, *whole, scale_loss)
        new_trainable, new_optimizer_state = self.optimizer.stateless_apply(
            optimizer_state, step.gradients, trainable
        )
        arguments = self.to_count(batch, step.loss, step.hits, step.embeddings)
        norms_of = None
        if self.gradient_norms:
            norms_of = self._unscaled(step.gradients, optimizer_state)
        logs, new_metrics = self._count(metrics, *arguments, norms_of=norms_of)
        new = new_trainable, step.state, new_optimizer_state, new_metrics
        if not self.skip_nonfinite:
            return logs, new
        squares = [
            jax.numpy.sum(g.astype("float32") ** 2) for g in step.gradients
        ]
        finite = jax.numpy.isfinite(step.loss + sum(squares))
        taken = jax.tree.map(
            lambda after, before: jax.numpy.where(finite, after, before),
            new,
            tuple(state),
        )
        return self._count_missed(taken, finite)

    def _count_missed(self, state, finite):
        *rest, metrics = state
        mapping = zip(self.metrics_variables, metrics, strict=True)
        with keras.StatelessScope(mapping) as scope:
            self.nonfinite_steps.update_state(1.0 - finite.astype("float32"))
            logs = self.get_metrics_result()
        metrics = [scope.get_current_value(v) for v in self.metrics_variables]
        return logs, (*rest, metrics)

    def _unscaled(self, gradients, optimizer_state):
        """Undo the loss scale of mixed_float16."""
        if not hasattr(self.optimizer, "inner_optimizer"):
            return gradients
        pairs = zip(self.optimizer.variables, optimizer_state, strict=True)
        with keras.StatelessScope(pairs):
            scale = self.optimizer.scale_loss(1.0)
        return [gradient.astype("float32") / scale for gradient in gradients]

    def _count(self, metrics, *arguments, norms_of=None):
        mapping = zip(self.metrics_variables, metrics, strict=True)
        with keras.StatelessScope(mapping) as scope:
            # `update_metrics` returns the logs of all metrics, so the norms
            # must be updated first.
            if norms_of is not None:
                self.update_norms(norms_of)
            logs = self.update_metrics(*arguments)
        return logs, [
            scope.get_current_value(v) for v in self.metrics_variables
        ]

    def test_step(self, state, data):
        trainable, others, metrics = state
        mapping = [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, others, strict=True),
        ]
        with keras.StatelessScope(mapping, collect_losses=True):
            arguments = self.evaluate_batch(data)
        logs, metrics = self._count(metrics, *arguments)
        return logs, (trainable, others, metrics)

    def predict_step(self, state, data):
        outputs, others = super().predict_step(state, data)
        _, mask, _ = unpack(data)
        if mask is not None:
            outputs = {**outputs, IS_EXAMPLE: mask}
        return outputs, others

    def _padded(self, x, y, batch_size, microbatches=False, **kwargs):
        adapter = super()._padded(x, y, batch_size, microbatches, **kwargs)
        if jax.process_count() > 1 and _is_shared_out(x):
            if adapter.batch_size is None or adapter.has_partial_batch:
                # Keras would drop a smaller last batch, or wait for it.
                return self._own_rows(x, y, batch_size, **kwargs)
        return adapter

    def _own_rows(self, x, y, batch_size, **kwargs):
        """Return this process's rows of all batches of a data set."""
        distribution = keras.distribution.distribution()
        distribution.auto_shard_dataset = False
        try:
            whole = self._adapter(x, y, batch_size=batch_size, **kwargs)
        finally:
            distribution.auto_shard_dataset = True
        return OwnRows(
            whole, num_shards(), jax.process_index(), jax.process_count()
        )

    def fit(self, *args, **kwargs):
        with self._values_kept():
            return super().fit(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        with self._values_kept():
            return super().evaluate(*args, **kwargs)

    def predict(self, x, *args, **kwargs):
        if jax.process_count() > 1:
            raise ValueError(
                "`predict` would have to return rows that another process "
                "holds. Predict in one process, or call `model` on the rows "
                f"of each. Received: {jax.process_count()} processes"
            )
        with self._values_kept():
            return super().predict(x, *args, **kwargs)

    def _purge_model_variables(self, **kinds):
        # Variables hand their values over to the steps. Keras records the new
        # values only after the first step, and an error may occur before.
        self._jax_state = {
            kind: [variable.value for variable in self._variables_of(kind)]
            for kind, lent in kinds.items()
            if lent
        }
        super()._purge_model_variables(**kinds)

    def _variables_of(self, kind):
        if kind == "optimizer_variables":
            return self.optimizer.variables
        return getattr(self, kind)

    @contextlib.contextmanager
    def _values_kept(self):
        """Restore the values of the variables when an error ends the steps."""
        try:
            yield
        except BaseException:
            if not getattr(self, "_jax_state_synced", True):
                for kind, values in (self._jax_state or {}).items():
                    pairs = zip(self._variables_of(kind), values, strict=True)
                    for variable, value in pairs:
                        # A step that failed on the device has donated them.
                        if not value.is_deleted():
                            variable.assign(value)
                self._jax_state_synced = True
            raise

    def batch_multiple(self):
        # A process supplies the rows of its own devices.
        return max(1, num_shards() // jax.process_count())

    def masks_full_batches(self):
        # All processes run one program, and each sees only its own rows. Keras
        # lays out all batches like the first one, so all must have the same
        # structure.
        return jax.process_count() > 1 or num_shards() > 1
