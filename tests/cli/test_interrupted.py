"""Commands that are interrupted, started again, and compared."""

import collections
import json
from pathlib import Path

import pytest
from colors import write_images
from tiny_align import tiny_align

from align_keras.cli import main

SCRIPT = Path(__file__).with_name("interrupt_commands.py")
TRIES = 3


@pytest.mark.multiprocess
def test_interrupted_commands_end_as_if_nothing_had_been(tmp_path, run_script):
    write_images(tmp_path / "photos")
    tiny_align().save_to_preset(str(tmp_path / "preset"))
    command = ["embed", tmp_path / "photos", "--model", tmp_path / "preset"]
    command += ["--output", tmp_path / "vectors"]
    assert main([str(word) for word in command]) == 0
    (tmp_path / "pairs").mkdir()
    for name in "ab":
        rows = [f"http://{name}/{n}.jpg,a text of {n}" for n in range(500)]
        table = tmp_path / "pairs" / f"{name}.csv"
        table.write_text("\n".join(["url,text", *rows]))
    rules = "rules: [{token_count: {at_least: 3, at_most: 20}}]\n"
    (tmp_path / "rules.yaml").write_text(rules)
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
