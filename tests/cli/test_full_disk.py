"""A disk that is full: one sentence, nothing left, and it goes on later."""

import json
from pathlib import Path

import pytest
from command_inputs import write_command_inputs

SCRIPT = Path(__file__).with_name("fill_disks.py")


@pytest.fixture
def folder(tmp_path):
    write_command_inputs(tmp_path, rows=5000)
    (tmp_path / "disk").mkdir()
    return tmp_path


@pytest.mark.multiprocess
def test_a_full_disk_ends_a_command_and_not_what_was_there(folder, run_script):
    result = run_script(SCRIPT, folder)
    lines = result.stdout.splitlines()
    if lines == ["refused"]:
        pytest.skip("no rights to mount a file system")
    tries = list(map(json.loads, lines))
    commands = {"pack", "embed", "score", "index", "curate"}
    assert {name for name, *_ in tries} == commands
    for name, free, status, errors, hidden, again in tries:
        where = f"{name} with {free} pages: {errors}"
        assert again == 0, where
        assert hidden == [], where
        assert status in (0, 2), where
        assert len(errors) == (status == 2), where
        if errors:
            assert "No space left" in errors[0], where
            assert "Traceback" not in errors[0] and "/out" in errors[0], where
    failed = {name for name, _, status, *_ in tries if status}
    assert failed == commands
