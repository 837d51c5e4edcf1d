"""One writer at a time, also when the holder is killed."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from align_keras.io.locks import LOCK_NAME
from align_keras.io.locks import directory_lock

HOLD = """
import sys
from align_keras.io.locks import directory_lock

with directory_lock(sys.argv[1]):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the directory `tmp_path / "run"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_the_first_is(tmp_path, holder):
    with pytest.raises(BlockingIOError) as caught:
        with directory_lock(tmp_path / "run"):
            pass
    message = str(caught.value)
    assert f"`{tmp_path / 'run'}`" in message
    assert f"process {holder.pid} on {os.uname().nodename}, since 20" in message
    # Other directories are free, those inside it too.
    with directory_lock(tmp_path), directory_lock(tmp_path / "run" / "part"):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_lock_ends_with_its_holder(tmp_path, holder, end):
    if end is None:
        holder.communicate("\n")
    else:
        holder.send_signal(end)
        holder.wait()
    with directory_lock(tmp_path / "run"):
        text = (tmp_path / "run" / LOCK_NAME).read_text()
        assert f'"pid": {os.getpid()}' in text


def test_a_lock_ends_with_an_error(tmp_path):
    with pytest.raises(KeyError):
        with directory_lock(tmp_path):
            raise KeyError
    with directory_lock(tmp_path):
        pass


def _count(path):
    for _ in range(20):
        try:
            with directory_lock(path):
                number = int((path / "number").read_text())
                (path / "number").write_text(str(number + 1))
                (path / "log").open("a").write("x")
        except BlockingIOError:
            continue


def test_no_two_are_inside_at_once(tmp_path):
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count, args=(tmp_path,)) for _ in "123"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    entered = len((tmp_path / "log").read_text())
    assert int((tmp_path / "number").read_text()) == entered > 19


def test_an_unsigned_lock_file_is_taken(tmp_path):
    for contents in (b"", b"\xff\x00", b"[]", b'{"pid": 1}'):
        (tmp_path / LOCK_NAME).write_bytes(contents)
        with directory_lock(tmp_path):
            with pytest.raises(BlockingIOError, match="Another process"):
                # A second descriptor of the same process is a second holder.
                with directory_lock(tmp_path):
                    pass
