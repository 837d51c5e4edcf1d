"""Run commands on a disk that is nearly full, and say how they end.

    python fill_disks.py FOLDER

FOLDER holds `disk`, an empty directory, and what the commands read. Prints a
line of JSON for each try, or `refused` where nothing can be mounted.
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
DISK = FOLDER / "disk"
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import small_disk

if not small_disk.mount(DISK, "24m"):
    print("refused")
    raise SystemExit

from align_keras.cli import main

OUT = DISK / "out"
COMMANDS = {
    "pack": ["pack", FOLDER / "photos", "--output", OUT],
    "embed": [
        *("embed", FOLDER / "photos", "--model", FOLDER / "preset"),
        *("--output", OUT),
    ],
    "score": [
        *("score", FOLDER / "photos", "--model", FOLDER / "preset"),
        *("--output", OUT),
    ],
    "index": [
        *("index", FOLDER / "vectors", "--model", FOLDER / "preset"),
        *("--output", OUT),
    ],
    "curate": [
        *("curate", FOLDER / "pairs", "--output", OUT),
        *("--config", FOLDER / "rules.yaml"),
    ],
}


# Free pages: enough for some of the files, or for most of them.
PAGES = {
    "pack": (3,),
    "embed": (3,),
    "score": (1,),
    "index": (8, 60),
    "curate": (8, 150),
}


def attempt(command):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = main([str(word) for word in COMMANDS[command]])
    lines = said.getvalue().splitlines()
    return status, [line for line in lines if "align-keras: error" in line]


def left():
    return sorted(
        path.relative_to(DISK).as_posix()
        for path in DISK.rglob("*")
        if "unfinished" in path.name or "lock" in path.name
    )


for name in COMMANDS:
    for free in PAGES[name]:
        with small_disk.filled(DISK, free * 4096):
            status, errors = attempt(name)
            hidden = left()
        again = attempt(name)[0] if status else 0
        print(json.dumps([name, free, status, errors, hidden, again]))
        for path in DISK.iterdir():
            shutil.rmtree(path)
