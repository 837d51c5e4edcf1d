"""What tests of several evaluations share."""

import pytest
from dark_and_bright import folders  # noqa: F401

from align_keras.cli import options


@pytest.fixture
def any_model(monkeypatch):
    """Let commands take any name for that of a model."""
    monkeypatch.setattr(options, "may_be_preset", lambda name: True)
