"""What is logged reaches the terminal once, and whom it concerns."""

import logging

import pytest

from align_keras.io.messages import logger
from align_keras.io.messages import messages_shown


def speak():
    logger.info("step %d", 3)
    logger.warning("too hot")


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_output_and_warnings_are_errors(capsys, progress):
    level = logger.level
    with messages_shown(progress):
        speak()
    said = capsys.readouterr()
    assert said.out == ("step 3\n" if progress else "")
    assert said.err == "too hot\n"
    # Nothing stays behind.
    speak()
    assert "step" not in capsys.readouterr().out
    assert logger.level == level and not logger.handlers


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_within_itself_it_shows_each_message_once(capsys, outer, inner):
    with messages_shown(outer):
        with messages_shown(inner):
            speak()
        within = capsys.readouterr()
        speak()
    after = capsys.readouterr()
    assert within.out == "step 3\n" * inner and within.err == "too hot\n"
    assert after.out == "step 3\n" * outer and after.err == "too hot\n"


def test_a_library_that_sets_up_logging_adds_nothing(capsys):
    root, level = logging.getLogger(), logging.getLogger().level
    with messages_shown():
        handler = logging.StreamHandler()
        root.addHandler(handler)
        try:
            root.setLevel(logging.INFO)
            speak()
            logging.getLogger("other").warning("from elsewhere")
        finally:
            root.setLevel(level)
    said = capsys.readouterr()
    assert said.out == "step 3\n"
    assert said.err == "too hot\nfrom elsewhere\n"
    try:
        logger.warning("too cold")
        assert capsys.readouterr().err == "too cold\n"
    finally:
        root.removeHandler(handler)


def test_a_program_that_logs_keeps_its_way(capsys, caplog):
    with caplog.at_level(logging.INFO, logger="align_keras"):
        with messages_shown():
            speak()
        with messages_shown(progress=False):
            speak()
    said = capsys.readouterr()
    assert said.out == said.err == ""
    found = [record.getMessage() for record in caplog.records]
    assert found == ["step 3", "too hot", "too hot"]
