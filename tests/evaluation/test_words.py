import numpy as np
import pytest
from seer import Seer
from seer import write_root

from align_keras.evaluation.words import measure_words


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp("root"))


def test_words(root):
    path = root / "simlex999" / "SimLex-999.txt"
    result = measure_words(Seer().embedder(), path, False, 50)
    assert result["pairs"]["nouns"] == 2 and result["pairs"]["hard"] == 2
    assert result["hard"] == pytest.approx(1.0)
    assert np.isnan(result["adjectives"])  # One pair has no order.
    assert result["dataset"] == "simlex999"
