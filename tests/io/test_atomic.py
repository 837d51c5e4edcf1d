"""Files and directories that appear whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from align_keras.io import atomic
from align_keras.io.atomic import atomic_directory
from align_keras.io.atomic import atomic_file
from align_keras.io.mirrors import stored
from align_keras.io.stores import Store


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def mode(path):
    return path.stat().st_mode & 0o777


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "data.weights.h5"
    with atomic_file(path, ".weights.h5") as temporary:
        temporary.write_text("all of it")
        assert not path.exists()
        # The same directory, so that the last step is a rename, and the suffix
        # that tells the writer the format.
        assert temporary.parent == path.parent
        assert temporary.name.endswith(".weights.h5")
    assert path.read_text() == "all of it"
    assert names(path.parent) == ["data.weights.h5"]


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("old")
    with open(path) as reader:
        with atomic_file(str(path)) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        # Who reads the old one goes on reading it.
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["manifest.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "manifest.json"
    path.write_text("old")
    with pytest.raises(error):
        with atomic_file(path) as temporary:
            temporary.write_text("half of")
            raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["manifest.json"]


def test_a_failure_leaves_no_new_file(tmp_path):
    with pytest.raises(OSError):
        with atomic_file(tmp_path / "manifest.json") as temporary:
            temporary.write_text("half of")
            raise OSError("disk full")
    assert names(tmp_path) == []


def test_a_writer_may_replace_the_temporary_file(tmp_path):
    """Some libraries delete a file before they write it."""
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.unlink()
        temporary.write_text("anew")
    assert (tmp_path / "a.txt").read_text() == "anew"


def test_permissions_follow_the_umask(tmp_path, umask):
    with atomic_file(tmp_path / "file.txt") as temporary:
        temporary.write_text("public")
    with atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "inner.txt").write_text("public")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "plain.txt").touch()
    assert mode(tmp_path / "file.txt") == mode(plain / "plain.txt")
    assert mode(tmp_path / "folder") == mode(plain)
    assert os.umask(umask) == umask


def test_a_directory_appears_at_the_end(tmp_path):
    path = tmp_path / "new" / "preset"
    with atomic_directory(path) as temporary:
        (temporary / "assets").mkdir()
        (temporary / "assets" / "words.txt").write_text("a b")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert (path / "assets" / "words.txt").read_text() == "a b"
    assert names(path.parent) == ["preset"]


def test_an_existing_directory_keeps_its_other_files(tmp_path):
    path = tmp_path / "preset"
    (path / "assets").mkdir(parents=True)
    (path / "config.json").write_text("old")
    (path / "notes.txt").write_text("mine")
    (path / "assets" / "more.txt").write_text("mine too")
    with atomic_directory(path) as temporary:
        # It starts empty: nothing old is mistaken for new.
        assert names(temporary) == []
        (temporary / "config.json").write_text("new")
        (temporary / "assets").mkdir()
        (temporary / "assets" / "words.txt").write_text("a b")
        assert (path / "config.json").read_text() == "old"
    assert (path / "config.json").read_text() == "new"
    assert (path / "notes.txt").read_text() == "mine"
    assert names(path / "assets") == ["more.txt", "words.txt"]
    assert names(tmp_path) == ["preset"]


@pytest.mark.parametrize("is_store", [False, True])
def test_files_of_the_writer_that_are_not_written_again_go(tmp_path, is_store):
    path = tmp_path / "export"
    if is_store:
        pytest.importorskip("fsspec")
        path = f"memory://{tmp_path.name}/export"

    @stored("output")
    def write(output, *files):
        owned = ("model.pb", "extra/requests", "words.txt")
        with atomic_directory(output, owned) as temporary:
            for name in files:
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_text(f"one of {len(files)}")

    def held():
        if is_store:
            store = Store(path)
            found = {name: store.read(name).decode() for name in store.sizes()}
        else:
            found = {
                file.relative_to(path).as_posix(): file.read_text()
                for file in path.rglob("*")
                if file.is_file()
            }
        return {n: v for n, v in found.items() if not n.startswith(".align")}

    write(path, "model.pb", "extra/requests", "notes.txt")
    write(path, "model.pb", "words.txt")
    assert held() == {
        "model.pb": "one of 2",
        "words.txt": "one of 2",
        "notes.txt": "one of 3",
    }


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_the_directory_as_it_was(tmp_path, exists):
    path = tmp_path / "preset"
    if exists:
        path.mkdir()
        (path / "config.json").write_text("old")
    with pytest.raises(ValueError):
        with atomic_directory(path) as temporary:
            (temporary / "config.json").write_text("half of")
            raise ValueError
    assert names(tmp_path) == (["preset"] if exists else [])
    if exists:
        assert (path / "config.json").read_text() == "old"
        assert names(path) == ["config.json"]


def test_a_file_is_not_taken_for_a_directory(tmp_path):
    path = tmp_path / "preset"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="is a file") as caught:
        with atomic_directory(path):
            raise AssertionError("the block must not run")
    assert str(path) in str(caught.value)
    assert path.read_text() == "mine"


# === Of a killed process ===

KILLED = """
import os, sys
from pathlib import Path
from align_keras.io.atomic import atomic_directory, atomic_file

with atomic_file(sys.argv[1]) as file, atomic_directory(sys.argv[2]) as folder:
    file.write_text("half")
    (folder / "half.parquet").write_text("half")
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def killed(tmp_path):
    """A directory with what a killed process left in it."""
    target = tmp_path / "vectors"
    target.mkdir()
    (target / "other.parquet").write_text("whole")
    code = [sys.executable, "-c", KILLED]
    names = [target / "a.parquet", target / "model.tfrecord"]
    assert subprocess.run([*code, *names]).returncode == -9
    return target


def test_no_pattern_takes_what_a_killed_process_left(killed):
    left = [path for path in killed.iterdir() if path.name[0] == "."]
    # A file, a directory, and the lock on the latter.
    assert len(left) == 3
    assert [path.name for path in killed.glob("*.parquet")] == ["other.parquet"]
    assert [p for p in killed.rglob("*.tfrecord")] == []
    files = [path for path in left if path.is_file()]
    assert not any(path.match("*.parquet") for path in files)


@pytest.mark.parametrize("write", [atomic_file, atomic_directory])
def test_the_next_writer_removes_what_a_killed_process_left(killed, write):
    with write(killed / "b") as temporary:
        hidden = {path for path in killed.iterdir() if path.name[0] == "."}
        assert hidden - {killed / ".b.align_keras.lock"} == {temporary}


def test_what_is_being_written_stays(tmp_path):
    """By this process, by a living one, by another host, or by the user."""
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
    host = atomic._HOST
    kept = [
        f".a.{host}.{alive.pid}.abc.unfinished",
        ".a.elsewhere.1.abc.unfinished",
        ".notes.unfinished",
        ".a.parquet.abc",
    ]
    for name in kept:
        (tmp_path / name).touch()
    with atomic_file(tmp_path / "c") as own:
        atomic.remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted([*kept, own.name])
        own.touch()
    alive.communicate(b"\n")
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*kept[1:], "c"])


@pytest.mark.parametrize("write", [atomic_file, atomic_directory])
def test_what_this_process_writes_stays_whatever_its_folder_is_called(
    tmp_path, monkeypatch, write
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", tmp_path / "folder", "link"):
        with write(Path(folder, "a")) as own:
            for name in ("folder", tmp_path / "folder", "link/"):
                atomic.remove_leftovers(name)
                assert own.exists()


def test_a_name_of_any_length_and_of_any_bytes_is_written(tmp_path):
    for name in ("n" * 250, "\udce9" * 100, "一" * 80):
        with atomic_file(tmp_path / name) as temporary:
            temporary.write_text(name[0], "utf-8", "surrogateescape")
    assert len(names(tmp_path)) == 3
