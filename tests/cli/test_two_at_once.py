"""Two processes that write one directory: the second is refused by name."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from colors import FIELDS
from colors import write_images
from colors import write_vocabulary
from tiny_align import tiny_align

from align_keras.cli import COMMANDS
from align_keras.cli import main
from align_keras.data import open_records
from align_keras.io.locks import LOCK_NAME
from align_keras.io.locks import directory_lock
from align_keras.quickstart.scenes import write_scenes

HOLD = """
import sys
from align_keras.io.locks import directory_lock

with directory_lock(sys.argv[1], beside=sys.argv[2] == "beside"):
    print("held", flush=True)
    input()
"""
# Each writes OUT. Those with "beside" replace it as a whole, so that it need
# not exist while it is written.
WRITERS = {
    "pack": ("beside", "pack PHOTOS --output OUT"),
    "pack into it": ("within", "pack PHOTOS --output OUT"),
    "train": (
        "within",
        "train --preset PRESET --recipe RECIPE --data PACKED --workdir OUT",
    ),
    "average": ("beside", "average PRESET PRESET --weight 0.5 --output OUT"),
    "average --sweep": (
        "within",
        "average PRESET PRESET --sweep --old-data PACKED --new-data PACKED "
        "--output OUT",
    ),
    "export": ("beside", "export --model PRESET --output OUT"),
    "export into it": ("within", "export --model PRESET --output OUT"),
    "convert": ("beside", "convert PRESET OUT --to huggingface"),
    "embed": ("within", "embed PHOTOS --model PRESET --output OUT"),
    "score": ("within", "score PHOTOS --model PRESET --output OUT"),
    "index": ("beside", "index VECTORS --model PRESET --output OUT"),
    "curate": ("within", "curate PAIRS --output OUT"),
    "download": ("within", "download KEPT --output OUT"),
    "ablate": ("within", "ablate ABLATION --workdir OUT"),
    "quickstart": ("within", "quickstart --workdir OUT"),
    "plan": ("within", "plan --preset align_b0_bert_tiny --output OUT"),
    "plan --search": (
        "within",
        "plan --preset align_b0_bert_tiny --search --output OUT",
    ),
    "plan --compare": (
        "within",
        "plan --preset align_b0_bert_tiny --compare v5e:2x2 --output OUT",
    ),
    "evaluate all": (
        "within",
        "evaluate all --model PRESET --data-root ROOT --output OUT",
    ),
    "diagnose": (
        "within",
        "diagnose --model PRESET --data PACKED --output OUT",
    ),
    "evaluate finetune": (
        "within",
        "evaluate finetune --model PRESET --train CLASSES --data CLASSES "
        "--workdir OUT",
    ),
    "evaluate vtab": ("within", "evaluate vtab --model PRESET --workdir OUT"),
}
# Those that write FILE.
FILES = {
    "vocab": "vocab PAIRS --output FILE",
    "search": "search INDEX --text bus --contact-sheet FILE",
    "evaluate": "evaluate words --model PRESET --data PAIRS --output FILE",
}
NO_DIRECTORY = {
    "presets",
    "recipes",
    "vocab",
    "search",
    "serve",
    "classify",
    "upload",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    paths = {
        name: folder / name.lower()
        for name in "PHOTOS PACKED PRESET VECTORS KEPT ROOT CLASSES".split()
    }
    write_images(paths["PHOTOS"])
    for name in ("KEPT", "ROOT"):
        paths[name].mkdir()
    write_images(paths["CLASSES"] / "colors")
    tiny_align().save_to_preset(str(paths["PRESET"]))
    paths["RECIPE"] = folder / "recipe.yaml"
    paths["RECIPE"].write_text(yaml.safe_dump(FIELDS))
    paths["ABLATION"] = folder / "ablation.yaml"
    paths["ABLATION"].write_text("data: {scenes: 8}\nvariants: {}\n")
    # What it holds is looked at once the file is locked.
    paths["INDEX"] = paths["PRESET"]
    paths["PAIRS"] = folder / "pairs.csv"
    paths["PAIRS"].write_text("url,text\nhttp://a.b/c.jpg,a red bus\n")
    paths["WORDS"] = write_vocabulary(folder / "words.txt")
    call(paths, "pack PHOTOS --output PACKED")
    call(paths, "embed PHOTOS --model PRESET --output VECTORS")
    return paths


def words(paths, command, **more):
    known = {name: str(path) for name, path in {**paths, **more}.items()}
    return [known.get(word, word) for word in command.split()]


def call(paths, command, **more):
    assert main(words(paths, command, **more)) == 0


@pytest.fixture
def hold(tmp_path):
    """A process that holds the directory `tmp_path / "out"`."""
    processes = []

    def start(way, path=tmp_path / "out"):
        command = [sys.executable, "-c", HOLD, path, way]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, **pipes, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", WRITERS)
def test_the_second_writer_is_told_of_the_first(
    inputs, hold, tmp_path, capsys, monkeypatch, name
):
    # `plan` chooses one.
    monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", ""))
    monkeypatch.setenv("IMG2DATASET", sys.executable)
    way, command = WRITERS[name]
    holder = hold(way)
    before = sorted(tmp_path.rglob("*"))
    assert main(words(inputs, command, OUT=tmp_path / "out")) == 2
    (line,) = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("align-keras: error: ")
    ]
    assert f"Another process is writing to `{tmp_path / 'out'}`" in line
    assert f"process {holder.pid} on {os.uname().nodename}, since 2" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", FILES)
def test_the_second_writer_of_a_file_is_told_of_the_first(
    inputs, hold, tmp_path, capsys, name
):
    file = tmp_path / "out.json"
    holder = hold("beside", file)
    assert main(words(inputs, FILES[name], FILE=file)) == 2
    said = capsys.readouterr().err
    assert f"process is writing to `{file}`: process {holder.pid} " in said
    assert not file.exists()


def test_every_command_that_writes_a_directory_is_tried():
    tried = {command.split()[0] for _, command in WRITERS.values()}
    assert tried | NO_DIRECTORY == set(COMMANDS)
    assert not tried & NO_DIRECTORY


def test_scenes_are_drawn_by_one(hold, tmp_path):
    hold("within")
    with pytest.raises(BlockingIOError, match="Another process"):
        write_scenes(tmp_path / "out", 1)


# === Real ones ===


def start(*command):
    return subprocess.Popen(
        [sys.executable, "-m", "align_keras", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped(lock, *command):
    """Start a process, and stop it when it has the lock."""
    process = start(*command)
    while not (lock.exists() and lock.stat().st_size):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    return process


def refused(process, by):
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2, said
    assert f": process {by.pid} on " in said
    assert said.count("align-keras: error: ") == 1


@pytest.mark.multiprocess
def test_two_packs_at_once(inputs, tmp_path):
    """Of other sizes, whose shards would lie side by side."""
    output = tmp_path / "out"
    command = ["pack", inputs["PHOTOS"], "--output", output]
    first = stopped(tmp_path / f".out{LOCK_NAME}", *command)
    refused(start(*command, "--records-per-shard", 5), first)
    first.send_signal(signal.SIGCONT)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 0, said
    assert len(list(open_records(output))) == 16
    assert list(tmp_path.iterdir()) == [output]
    # It is finished, and what it wrote belongs to its arguments.
    second = start(*command, "--records-per-shard", 5)
    assert "other arguments" in second.communicate(timeout=120)[1]


@pytest.mark.multiprocess
def test_two_runs_in_one_directory(inputs, tmp_path):
    workdir = tmp_path / "run"
    command = words(
        {**inputs, "OUT": workdir},
        "train --preset PRESET --recipe RECIPE --data PACKED --workdir OUT "
        "--set steps=2 --set warmup_steps=1 --strategy one-device",
    )
    first = stopped(workdir / LOCK_NAME, *command)
    refused(start(*command), first)
    first.kill()
    first.communicate()
    # Of a killed holder nothing is left that holds up the next.
    assert (workdir / LOCK_NAME).exists()
    with directory_lock(workdir):
        pass
    assert list(tmp_path.rglob("*")) == [workdir]
