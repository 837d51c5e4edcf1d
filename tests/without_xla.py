"""Training that is not compiled by XLA, which takes longer than a few steps."""

import keras

from align_keras import AlignDualEncoder

# As a plain graph on TensorFlow. JAX has nothing between XLA and no graph.
PLAIN = False if keras.config.backend() == "tensorflow" else "auto"


def disable_xla(monkeypatch):
    """Let every model that is compiled from now on run as a plain graph."""
    compile_model = AlignDualEncoder.compile

    def compile_plainly(self, *args, **kwargs):
        compile_model(self, *args, **{**kwargs, "jit_compile": PLAIN})

    monkeypatch.setattr(AlignDualEncoder, "compile", compile_plainly)
