"""Commands that are interrupted, started again, and compared."""

import collections
import json
from pathlib import Path

import pytest
from command_inputs import write_command_inputs

SCRIPT = Path(__file__).with_name("interrupt_commands.py")
TRIES = 3


@pytest.mark.multiprocess
def test_interrupted_commands_end_as_if_nothing_had_been(tmp_path, run_script):
    write_command_inputs(tmp_path, rows=500)
    lines = run_script(SCRIPT, tmp_path, TRIES).stdout.splitlines()
    tries = list(map(json.loads, lines))
    counts = collections.Counter(command for command, *_ in tries)
    assert counts == {"pack": TRIES, "index": TRIES, "curate": TRIES}
    for command, name, status, finished, again, same in tries:
        assert again == 0 and same, (command, name, status, finished)
        # 130 says that it was interrupted, where it had begun.
        expected = {"SIGINT": (130, -2), "SIGTERM": (-15,), "SIGKILL": (-9,)}
        assert status in (0, *expected[name]), (command, name, finished)
    assert any(status for _, _, status, *_ in tries)
