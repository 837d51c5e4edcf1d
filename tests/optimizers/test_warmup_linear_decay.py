import keras
import pytest

from align_keras import WarmupLinearDecay


def test_papers_schedule_at_its_corners():
    schedule = WarmupLinearDecay(1e-3, 10_000, 1_200_000)
    expected = {
        0: 0.0,
        1: 1e-7,
        5_000: 5e-4,
        10_000: 1e-3,
        605_000: 5e-4,
        1_200_000: 0.0,
        1_300_000: 0.0,
    }
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-4), step


def test_no_warmup_starts_at_the_peak():
    assert float(WarmupLinearDecay(0.5, 0, 10)(0)) == pytest.approx(0.5)


def test_a_second_optimizer_warms_up_to_the_same_line():
    whole = WarmupLinearDecay(0.8, 4, 44)
    later = WarmupLinearDecay(0.8, 4, 44, first_step=14)
    for step, share in ((0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (20, 1.0)):
        expected = share * 0.8 * (44 - 14 - step) / 40
        assert float(later(step)) == pytest.approx(expected, abs=1e-7)
        assert float(whole(14 + step)) == pytest.approx(
            0.8 * (30 - step) / 40, abs=1e-7
        )
    # Without a warm-up there is none the second time.
    later = WarmupLinearDecay(0.8, 0, 44, first_step=22)
    assert float(later(0)) == pytest.approx(0.4)


def test_config_round_trip():
    schedule = WarmupLinearDecay(0.5, 3, 10, first_step=2, name="mine")
    optimizer = keras.optimizers.SGD(schedule)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again._learning_rate.get_config() == schedule.get_config()


def test_refuses_a_warmup_that_never_ends():
    with pytest.raises(ValueError, match="warmup_steps=10, total_steps=10"):
        WarmupLinearDecay(1.0, 10, 10)
