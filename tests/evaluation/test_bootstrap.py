"""Intervals, p-values and correlations, against SciPy."""

import numpy as np
import pytest
import scipy.stats

from align_keras.evaluation.bootstrap import interval
from align_keras.evaluation.bootstrap import p_value
from align_keras.evaluation.bootstrap import resample
from align_keras.evaluation.correlation import spearman


@pytest.mark.parametrize("levels", [3, 1000])
def test_spearman_matches_scipy(levels):
    rng = np.random.default_rng(levels)
    first = rng.integers(0, levels, 200)
    second = first + rng.integers(0, levels, 200)
    expected = scipy.stats.spearmanr(first, second).statistic
    assert spearman(first, second) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(spearman(np.ones(5), np.arange(5)))
    with pytest.raises(ValueError, match="NaN"):
        spearman([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="same length"):
        spearman([1.0], [1.0, 2.0])


def test_interval_has_the_width_of_the_normal_one():
    rng = np.random.default_rng(0)
    hits = rng.random(2000) < 0.3
    draws = resample(lambda w: {"hits": w @ hits / w.sum()}, 2000)["hits"]
    low, high = interval(draws)
    error = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 2000)
    assert low == pytest.approx(hits.mean() - error, abs=0.003)
    assert high == pytest.approx(hits.mean() + error, abs=0.003)
    assert interval([np.nan, 1.0]) == [1.0, 1.0]
    with pytest.raises(ValueError, match="confidence=2"):
        interval(draws, 2)


def test_p_value():
    assert p_value(np.ones(999)) == 2 / 1000
    assert p_value(np.array([-1.0, 1.0] * 50)) == 1.0
