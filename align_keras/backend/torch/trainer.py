"""The training loop on one device."""

import torch

from align_keras.backend.padding import PaddingMixin
from align_keras.backend.torch.functional import values


class Trainer(PaddingMixin):
    """Training steps on one device, without graphs."""

    def compile(self, *args, jit_compile="auto", **kwargs):
        if jit_compile is True:
            raise ValueError(
                "`torch.compile` cannot compile the steps of this model: leave "
                "`jit_compile` out on this backend, and load a model that was "
                "saved with it with `compile=False`. Received: jit_compile=True"
            )
        super().compile(*args, jit_compile=jit_compile, **kwargs)

    def train_step(self, data):
        before = values(self.non_trainable_variables)
        batch, step = self.take_gradients(
            data,
            values(self.trainable_variables),
            before,
            self.optimizer.scale_loss,
        )
        with torch.no_grad():
            if self.skip_nonfinite:
                norms = [torch.sum(g.double() ** 2) for g in step.gradients]
                finite = bool(torch.isfinite(step.loss + sum(norms)))
                self.nonfinite_steps.update_state(0.0 if finite else 1.0)
                if not finite:
                    return self.get_metrics_result()
            if self.gradient_norms:
                self.update_norms(self._unscaled(step.gradients))
            self.optimizer.apply(step.gradients, self.trainable_variables)
            for variable, old, new in zip(
                self.non_trainable_variables, before, step.state, strict=True
            ):
                if new is not old:
                    variable.assign(new)
            return self.update_metrics(
                *self.to_count(batch, step.loss, step.hits, step.embeddings)
            )

    def _unscaled(self, gradients):
        """Undo the loss scale of mixed_float16, before it changes."""
        if not hasattr(self.optimizer, "inner_optimizer"):
            return gradients
        scale = self.optimizer.scale_loss(1.0)
        return [gradient.float() / scale for gradient in gradients]

    def test_step(self, data):
        return self.update_metrics(*self.evaluate_batch(data))

    def batch_multiple(self):
        return 1

    def masks_full_batches(self):
        return False
