"""One writer at a time, also when the holder is killed."""

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from align_keras.io.atomic import atomic_directory
from align_keras.io.atomic import atomic_file
from align_keras.io.locks import LOCK_NAME
from align_keras.io.locks import directory_lock
from align_keras.io.mirrors import locked

HOLD = """
import sys
from align_keras.io.locks import directory_lock

with directory_lock(sys.argv[1]):
    print("held", flush=True)
    input()
"""


@contextlib.contextmanager
def holding(path):
    """A process that holds a directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def holder(tmp_path):
    with holding(tmp_path / "run") as process:
        yield process


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


def test_nothing_is_left_where_nothing_was_written(tmp_path):
    with directory_lock(tmp_path / "new"):
        pass
    with pytest.raises(KeyError), directory_lock(tmp_path / "other"):
        raise KeyError
    with directory_lock(tmp_path / "third" / "run", beside=True):
        (tmp_path / "third" / "run").mkdir()
    assert sorted(tmp_path.rglob("*")) == [
        tmp_path / "third",
        tmp_path / "third" / "run",
    ]


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("write", [atomic_file, atomic_directory])
def test_a_lock_is_checked_at_every_commit(tmp_path, write, taken):
    """Somebody removes the directory, and another run takes its name."""
    run = tmp_path / "run"
    with pytest.raises(BlockingIOError, match="removed, or taken") as caught:
        with directory_lock(run):
            with write(run / "first"):
                pass
            shutil.rmtree(run)
            if taken:
                run.mkdir()
                (run / LOCK_NAME).write_text(
                    '{"host": "other", "pid": 1, "start": "2026"}'
                )
            with write(run / "second"):
                pass
    assert ("process 1 on other" in str(caught.value)) == taken
    assert not (run / "second").exists()
    # What is not ours to remove stays.
    assert (run / LOCK_NAME).exists() == taken


def test_a_directory_that_appears_meanwhile_is_not_mixed_with(tmp_path):
    with contextlib.ExitStack() as stack:
        with pytest.raises(BlockingIOError, match="Another process"):
            with atomic_directory(tmp_path / "run") as temporary:
                (temporary / "mine").touch()
                stack.enter_context(holding(tmp_path / "run"))
        assert list(tmp_path.rglob("*")) == [
            tmp_path / "run",
            tmp_path / "run" / LOCK_NAME,
        ]


def test_two_that_replace_one_directory(tmp_path):
    with atomic_directory(tmp_path / "out"):
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()} on"):
            with atomic_directory(tmp_path / "out"):
                raise AssertionError("the block must not run")
        with atomic_directory(tmp_path / "other"):
            pass


def test_names_of_any_length_are_told_apart(tmp_path):
    one, other = ("\u4e00" * 80 + end for end in "ab")
    with directory_lock(tmp_path / one, beside=True):
        with directory_lock(tmp_path / other, beside=True):
            pass
        with pytest.raises(BlockingIOError):
            with directory_lock(tmp_path / one, beside=True):
                pass


def test_a_function_holds_the_directory_that_it_is_told(tmp_path):
    @locked("output")
    def write(rows, output="out", again=None):
        """Write."""
        assert Path(output, LOCK_NAME).exists()
        if again:
            with pytest.raises(BlockingIOError):
                again(rows, output)
        return rows

    assert write(3, tmp_path, again=write) == 3
    assert write(4, output=str(tmp_path / "new")) == 4
    assert (write.__name__, write.__doc__) == ("write", "Write.")


def test_where_nothing_can_be_locked_it_is_said(tmp_path, monkeypatch, caplog):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with directory_lock(tmp_path):
        pass
    assert "no two processes write there" in caplog.text
