"""Nothing depends on what a clock says that somebody may set."""

import os
import time

import jumping_clock
import keras
import pytest
from tiny_align import tiny_align

from align_keras.io.locks import directory_lock
from align_keras.search.web.limits import RateLimit
from align_keras.serving import saved_model


@pytest.fixture
def jumping(monkeypatch):
    jumping_clock.begin(monkeypatch.setattr)
    said = [time.time() for _ in range(50)]
    assert min(said) < max(said) - jumping_clock.DAY


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="It exports nothing itself"
)
@pytest.mark.parametrize("set_back", [False, True])
def test_a_saved_model_is_that_of_its_preset(tmp_path, monkeypatch, set_back):
    """Weights that are newer, on a clock that was set back, look older."""
    preset, output = tmp_path / "preset", tmp_path / "saved_model"
    weights, written = preset / "model.weights.h5", output / "saved_model.pb"

    def export(model, path):
        output.mkdir(exist_ok=True)
        written.write_text("a model")

    monkeypatch.setattr(saved_model, "export_saved_model", export)
    tiny_align().save_to_preset(str(preset))
    # Copied afterwards, it looks newer than what was made of it.
    os.utime(weights, (time.time() + jumping_clock.DAY,) * 2)
    assert saved_model.update_saved_model(preset, output)
    assert not saved_model.update_saved_model(preset, output)
    tiny_align(seed=1).save_to_preset(str(preset))
    shift = -jumping_clock.DAY if set_back else jumping_clock.DAY
    os.utime(weights, (time.time() + shift,) * 2)
    assert saved_model.update_saved_model(preset, output)
    assert not saved_model.update_saved_model(preset, output)

    def fail(model, path):
        written.write_text("half")
        raise OSError("no room")

    monkeypatch.setattr(saved_model, "export_saved_model", fail)
    tiny_align(seed=2).save_to_preset(str(preset))
    with pytest.raises(OSError, match="no room"):
        saved_model.update_saved_model(preset, output)
    # What is half replaced is not taken for the one before it.
    monkeypatch.setattr(saved_model, "export_saved_model", export)
    tiny_align(seed=1).save_to_preset(str(preset))
    assert saved_model.update_saved_model(preset, output)


def test_limits_of_the_page_do_not_jump(jumping):
    limit = RateLimit(rate=0.001, burst=5)
    waits = [limit.take("192.0.2.1") for _ in range(100)]
    assert waits[:5] == [0.0] * 5
    assert all(0 < wait <= 1000 for wait in waits[5:])


def test_locks_do_not_age(jumping, tmp_path):
    with directory_lock(tmp_path / "a"):
        for _ in range(5):
            with pytest.raises(BlockingIOError, match="Another process"):
                with directory_lock(tmp_path / "a"):
                    pass
