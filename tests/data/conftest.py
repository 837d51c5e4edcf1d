"""A decoder that reading can be tested with in less time."""

import pytest
import tensorflow as tf

from align_keras.preprocessing import decode


@pytest.fixture(scope="module")
def plain_decoder():
    """Decode by one operation, where order is tested and not images.

    Each iterator instantiates the three thousand operations that read every
    kind of file, which takes seconds.
    """

    def traced():
        return lambda contents: tf.io.decode_png(contents, channels=3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "_traced", traced)
        yield
