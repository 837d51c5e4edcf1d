"""Commands that are interrupted, started again, and compared."""

import collections
import json
from pathlib import Path

import pytest
from command_inputs import write_command_inputs

SCRIPT = Path(__file__).with_name("interrupt_commands.py")
TRIES = 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_command_inputs(folder, rows=500)
    return folder


def run_all(run_script, inputs, tmp_path, tries, commands, **environment):
    for path in inputs.iterdir():
        (tmp_path / path.name).symlink_to(path)
    script = run_script(SCRIPT, tmp_path, tries, *commands, **environment)
    tries_of = list(map(json.loads, script.stdout.splitlines()))
    counts = collections.Counter(command for command, *_ in tries_of)
    assert counts == dict.fromkeys(commands, tries)
    return tries_of


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "commands",
    [
        ("pack", "index", "curate"),
        pytest.param(("embed", "score"), marks=pytest.mark.thorough),
        pytest.param(("train",), marks=pytest.mark.thorough),
    ],
    ids=" ".join,
)
def test_interrupted_commands_end_as_if_nothing_had_been(
    inputs, tmp_path, run_script, commands
):
    tries = run_all(run_script, inputs, tmp_path, TRIES, commands)
    for command, name, status, finished, again, same in tries:
        assert again == 0 and same, (command, name, status, finished)
        # 130 says that it was interrupted, where it had begun, and 75 that a
        # run has saved a checkpoint.
        expected = {"SIGINT": (130, -2), "SIGTERM": (-15,), "SIGKILL": (-9,)}
        if command == "train":
            expected["SIGTERM"] = (-15, 75)
        assert status in (0, *expected[name]), (command, name, finished)
    assert any(status for _, _, status, *_ in tries)


@pytest.mark.thorough
@pytest.mark.multiprocess
def test_clocks_that_jump_change_nothing(inputs, tmp_path, run_script):
    commands = ("pack", "embed", "score", "index", "curate", "train")
    tries = run_all(
        run_script, inputs, tmp_path, 1, commands, JUMPING_CLOCK="1"
    )
    for command, _, status, finished, again, same in tries:
        assert (status, finished, again, same) == (0, True, 0, True), command
