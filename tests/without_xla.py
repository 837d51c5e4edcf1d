"""Training that is not compiled by XLA, which takes longer than a few steps."""

from align_keras import AlignDualEncoder


def disable_xla(monkeypatch):
    """Let every model that is compiled from now on run as a plain graph."""
    compile_model = AlignDualEncoder.compile

    def compile_plainly(self, *args, **kwargs):
        compile_model(self, *args, **{**kwargs, "jit_compile": False})

    monkeypatch.setattr(AlignDualEncoder, "compile", compile_plainly)
