"""What is written to a store is there as a whole, or as it was before."""

import glob
import json
import os
import threading
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from stores import new_address
from stores import s3_server

from align_keras.io import leases
from align_keras.io import mirrors
from align_keras.io.locks import LOCK_NAME
from align_keras.io.mirrors import LISTING
from align_keras.io.mirrors import STAGED
from align_keras.io.mirrors import Mirror
from align_keras.io.mirrors import local_copy
from align_keras.io.mirrors import mirror
from align_keras.io.mirrors import publish
from align_keras.io.mirrors import reads
from align_keras.io.mirrors import stored
from align_keras.io.stores import StaleWriter
from align_keras.io.stores import Store


@pytest.fixture(scope="module", autouse=True)
def server():
    with s3_server():
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_KERAS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["s3", "memory"])
def address(request):
    return new_address(request.param)


def contents(folder):
    """Files of a directory of a store, as a reader finds them."""
    copy = Path(local_copy(folder))
    return {
        p.relative_to(copy).as_posix(): p.read_text()
        for p in copy.rglob("*")
        if p.is_file()
    }


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_what_is_written_is_stored_and_found_again(address):
    with mirror(address) as path:
        assert not path.exists()
        write(path, {"a.txt": "a", "deep/b.txt": "b"})
    assert contents(address) == {"a.txt": "a", "deep/b.txt": "b"}
    with mirror(address) as path:
        assert (path / "deep" / "b.txt").read_text() == "b"
        write(path, {"a.txt": "other", "c.txt": "c"})
        (path / "deep" / "b.txt").unlink()
        # What was never written by us stays.
        write(path, {".align_keras.lock": "of this machine"})
    assert contents(address) == {"a.txt": "other", "c.txt": "c"}
    assert set(Store(address).sizes()) == {"a.txt", "c.txt", LISTING}


def test_nothing_changes_when_the_work_fails(address):
    with mirror(address) as path:
        write(path, {"a.txt": "a"})
    with pytest.raises(KeyError), mirror(address) as path:
        write(path, {"a.txt": "other", "b.txt": "b"})
        raise KeyError
    assert contents(address) == {"a.txt": "a"}


def test_errors_name_the_address():
    address = new_address("memory")
    with pytest.raises(FileNotFoundError) as caught, mirror(address) as path:
        (path / "gone.txt").read_text()
    assert str(caught.value).endswith(f"directory: '{address}/gone.txt'")
    with pytest.raises(FileNotFoundError) as caught, mirror(address) as path:
        (path / "gone.txt").rename(path / "there.txt")
    renamed = f"'{address}/gone.txt' -> '{address}/there.txt'"
    assert str(caught.value).endswith(renamed)
    with pytest.raises(OSError, match="^no file$"), mirror(address):
        raise OSError("no file")


def test_what_is_published_stays_when_the_work_fails(address):
    with pytest.raises(KeyError), mirror(address) as path:
        write(path, {"a.txt": "a"})
        publish(path / "deeper")
        write(path, {"a.txt": "other"})
        raise KeyError
    assert contents(address) == {"a.txt": "a"}


def test_a_file_may_grow_while_it_is_stored(address, monkeypatch):
    """What is stored is what was there at some moment, and verifies."""
    put = Store.put

    def add_and_put(store, path, name):
        if name.endswith("log") and Path(path).name == "log":
            with open(path, "a") as file:
                file.write("line\n")
        put(store, path, name)
        if Path(path).name == "log":
            with open(path, "a") as file:
                file.write("line\n")

    monkeypatch.setattr(Store, "put", add_and_put)
    with mirror(address) as path:
        for _ in range(2):
            write(path, {"log": "line\n" * 3, "other": "there"})
            begun = path / "folder" / ".other.host.1.ab.unfinished.h5"
            begun.parent.mkdir(exist_ok=True)
            begun.write_text("half")
            publish(path)
            assert set(Store(address).read("log").decode().split()) == {"line"}
    with mirror(address) as path:
        assert "line" in (path / "log").read_text()
        assert not (path / "folder").exists()


def test_a_directory_of_this_machine_stands_for_itself(tmp_path):
    publish(tmp_path)
    assert local_copy(tmp_path) == tmp_path
    assert local_copy(None) is None

    @stored("output")
    def make(output):
        write(output, {"a.txt": "a"})
        return output

    assert make(tmp_path / "out") == tmp_path / "out"
    assert (tmp_path / "out" / "a.txt").read_text() == "a"


# === Killed writers ===


class Killed(BaseException):
    pass


class Dying(Store):
    """A store whose writer is killed at one of its requests."""

    def __init__(self, address, last):
        super().__init__(address)
        self.left = last

    def _request(self):
        self.left -= 1
        if self.left < 0:
            raise Killed

    def put(self, path, name):
        self._request()
        super().put(path, name)

    def copy(self, name, to):
        self._request()
        super().copy(name, to)

    def remove(self, *names):
        for name in names:
            self._request()
            super().remove(name)

    def replace(self, name, contents, tag):
        self._request()
        return super().replace(name, contents, tag)


OLD = {"same.txt": "s", "manifest.json": "1", "a.txt": "a", "gone.txt": "g"}
NEW = {"same.txt": "s", "manifest.json": "2", "a.txt": "b", "new/c.txt": "c"}


def rewritten(address, tmp_path, last):
    """Write `NEW` over `OLD`; tells whether it was killed."""
    folder = tmp_path / f"writer-{last}"
    dying = Mirror(Dying(address, last), folder)
    dying.pull()
    for name in OLD:
        (folder / name).unlink()
    write(folder, NEW)
    try:
        dying.push()
    except Killed:
        return True
    return False


@pytest.mark.parametrize("scheme", ["s3", "memory"])
def test_a_killed_writer_leaves_the_old_files_or_the_new_ones(scheme, tmp_path):
    seen, last, killed = [], 0, True
    while killed:
        address = new_address(scheme)
        with mirror(address) as path:
            write(path, OLD)
        killed = rewritten(address, tmp_path, last)
        before = contents(address)
        seen.append(before)
        known = {k: v for k, v in before.items() if k in {**OLD, **NEW}}
        if "new/c.txt" in known and known["a.txt"] == "a":
            # Not committed yet: it is as if it were not there for a writer.
            del known["new/c.txt"]
        if "gone.txt" in known and known["a.txt"] == "b":
            del known["gone.txt"]
        assert known in (OLD, NEW) or known == {
            k: v for k, v in OLD.items() if k != "gone.txt"
        }
        # The next writer finishes what was committed.
        with mirror(address) as path:
            found = (path / "a.txt").read_text()
            assert found == (path / "manifest.json").read_text().translate(
                str.maketrans("12", "ab")
            )
        left = set(Store(address).sizes())
        if found == "b":
            assert left == {*NEW, LISTING}
        assert contents(address)["a.txt"] == found
        last += 1
    assert last > 8
    assert seen[0]["a.txt"] == "a" and seen[-1] == NEW


def test_a_stale_writer_is_refused(address, tmp_path):
    first = Mirror(Store(address), tmp_path / "first")
    second = Mirror(Store(address), tmp_path / "second")
    for one in (first, second):
        one.pull()
        one.path.mkdir()
        write(one.path, {"a.txt": one.path.name})
    first.push()
    with pytest.raises(StaleWriter, match=address):
        second.push()
    assert json.loads(Store(address).read(LISTING))["files"].keys() == {"a.txt"}


def test_damage_is_named(address):
    with mirror(address) as path:
        write(path, {"a.txt": "a", "b.txt": "b"})
    store = Store(address)
    store.files.pipe_file(store._path("a.txt"), b"z")
    for read in (local_copy, lambda a: mirror(a).__enter__()):
        with pytest.raises(ValueError, match=f"{address}/a.txt` is damaged"):
            read(address)
    store.remove("a.txt")
    with pytest.raises(FileNotFoundError, match=r"1 files.*a\.txt"):
        mirror(address).__enter__()
    store.files.pipe_file(store._path(LISTING), b'{"files": 3}')
    with pytest.raises(ValueError, match=f"{LISTING}` is damaged"):
        mirror(address).__enter__()


# === Two at once ===


def test_the_second_writer_is_refused_and_told_of_the_first(address):
    with mirror(address):
        with pytest.raises(BlockingIOError, match=f"{address}`: process"):
            mirror(address).__enter__()
    with mirror(address):
        pass


def foreign_lease(store, **fields):
    lease = {"host": "elsewhere", "pid": 1, "start": "then", "renewals": 1}
    store.files.pipe_file(
        store._path(LOCK_NAME), json.dumps({**lease, **fields}).encode()
    )


def test_a_lease_that_nobody_renews_is_taken(address, monkeypatch):
    monkeypatch.setattr(leases, "FREE", 2)
    store = Store(address)
    foreign_lease(store)
    with mirror(address) as path:
        write(path, {"a.txt": "a"})
    assert contents(address) == {"a.txt": "a"}


def test_a_lease_that_is_renewed_is_left(address, monkeypatch):
    monkeypatch.setattr(leases, "FREE", 3)
    store = Store(address)
    foreign_lease(store)
    timer = threading.Timer(1, foreign_lease, (store,), {"renewals": 2})
    timer.start()
    with pytest.raises(BlockingIOError, match="process 1 on elsewhere, since"):
        mirror(address).__enter__()
    timer.join()


def test_whoever_lost_its_lease_commits_nothing(address, monkeypatch):
    monkeypatch.setattr(leases, "RENEWED", 0.1)
    with pytest.raises(BlockingIOError, match="taken by another process"):
        with mirror(address) as path:
            write(path, {"a.txt": "a"})
            foreign_lease(Store(address))
            threading.Event().wait(1.5)
    assert "a.txt" not in Store(address).sizes()


def test_a_renewal_whose_answer_is_lost_is_no_taker(address, monkeypatch):
    monkeypatch.setattr(leases, "RENEWED", 0.05)
    replace, lost = Store.replace, []

    def lose_answers(store, name, contents, tag):
        answer = replace(store, name, contents, tag)
        if json.loads(contents).get("renewals") in (2, 3):
            lost.append(answer)
            raise TimeoutError
        return answer

    monkeypatch.setattr(Store, "replace", lose_answers)
    with mirror(address) as path:
        write(path, {"a.txt": "a"})
        while json.loads(Store(address).read(LOCK_NAME))["renewals"] < 4:
            threading.Event().wait(0.05)
    assert len(lost) == 2
    assert contents(address) == {"a.txt": "a"}
    # It is released, too.
    assert set(Store(address).sizes()) == {"a.txt", LISTING}


def test_a_lease_that_another_has_taken_over_is_left_to_it(address):
    """Its first holder was cut off, and has not noticed."""
    with mirror(address):
        foreign_lease(Store(address))
    left = json.loads(Store(address).read(LOCK_NAME))
    assert left["host"] == "elsewhere"


def test_the_lease_of_a_killed_process_of_this_host_is_free(address):
    import socket

    here = {"host": socket.gethostname(), "pid": 2**22 + 1}
    lease = {**here, "process_ids": leases._process_ids()}
    foreign_lease(Store(address), **lease)
    with mirror(address) as path:
        write(path, {"a.txt": "a"})


@pytest.mark.skipif(leases._process_ids() is None, reason="not on Linux")
def test_process_ids_of_another_container_tell_nothing(address, monkeypatch):
    """It may have the name of this host."""
    import socket

    monkeypatch.setattr(leases, "FREE", 3)
    here = {"host": socket.gethostname(), "pid": 2**22 + 1}
    other = {**here, "process_ids": f"{leases._process_ids()}0"}
    store = Store(address)
    foreign_lease(store, **other)
    timer = threading.Timer(
        1, foreign_lease, (store,), {**other, "renewals": 2}
    )
    timer.start()
    with pytest.raises(BlockingIOError, match="Another process is writing"):
        mirror(address).__enter__()
    timer.join()


# === Functions that read and write ===


def test_functions_read_and_write_addresses(address, tmp_path):
    @reads("source")
    @stored("output")
    def double(source, output):
        output = Path(output)
        output.mkdir(exist_ok=True)
        text = Path(source).read_text()
        (output / "twice.txt").write_text(2 * text)
        return {"file": output / "twice.txt", "n": 2, "all": [str(output)]}

    write(tmp_path, {"a.txt": "ab"})
    for output in (f"{address}/one", Path(f"{address}/two")):
        found = double(tmp_path / "a.txt", output)
        name = str(output)[-3:]
        folder = f"{address}/{name}"
        assert found == {
            "file": f"{folder}/twice.txt",
            "n": 2,
            "all": [folder],
        }
        assert contents(folder) == {"twice.txt": "abab"}
    found = double(f"{address}/one/twice.txt", output=f"{address}/three")
    assert contents(f"{address}/three") == {"twice.txt": "abababab"}


def test_a_copy_is_made_again_when_the_store_has_changed(address):
    for text in "ab":
        with mirror(address) as path:
            write(path, {"a.txt": text, "deep/b.txt": "b"})
        assert Path(local_copy(f"{address}/a.txt")).read_text() == text
        assert Path(local_copy(f"{address}/deep/b.txt")).read_text() == "b"
        assert contents(address) == {"a.txt": text, "deep/b.txt": "b"}
    # The rest is not read again.
    before = local_copy(address)
    store = Store(address)
    get, got = type(store).get, []
    type(store).get = lambda self, name, path: got.append(name)
    try:
        assert local_copy(address) == before
    finally:
        type(store).get = get
    assert got == []
    with pytest.raises(FileNotFoundError, match=f"nothing at `{address}/x`"):
        local_copy(f"{address}/x")


def test_a_change_is_seen_without_reading(tmp_path, monkeypatch):
    """Where the store has no conditional writes, but tells of changes."""

    class Dated(LocalFileSystem):
        cachable = False

        def cat_file(self, path, start=None, end=None, **kwargs):
            if path.endswith(".tar"):
                raise AssertionError(f"{path} is read to see if it changed")
            return super().cat_file(path, start, end, **kwargs)

    def opened(address, **kwargs):
        return Dated(), address.removeprefix("hdfs://host")

    monkeypatch.setattr("fsspec.core.url_to_fs", opened)
    bucket = tmp_path / "bucket"
    write(bucket, {"a-0.tar": "0", "a-1.tar": "1"})
    for second, source in enumerate(("", "/a-*.tar", "/a-0.tar"), 1):
        address = f"hdfs://host{bucket}{source}"
        before = local_copy(address)
        assert local_copy(address) == before
        # Of the same size.
        write(bucket, {"a-0.tar": "abc"[second - 1]})
        os.utime(bucket / "a-0.tar", (second, second))
        copied = local_copy(address) + ("" if source else "/*")
        found = {Path(f).read_text() for f in glob.glob(copied)}
        assert found - {"1"} == {"abc"[second - 1]}


def test_a_name_may_look_like_a_glob(address):
    with mirror(address) as path:
        write(path, {"a[1].txt": "a"})
    copy = local_copy(f"{address}/a[1].txt")
    assert Path(copy).read_text() == "a"


def test_a_glob_is_copied_with_what_it_matches(address):
    files = {"a-0.tar": "0", "a-1.tar": "1", "b.tar": "b", "deep/c.tar": "c"}
    with mirror(address) as path:
        write(path, files)
    for pattern, names in (
        ("a-*.tar", {"a-0.tar", "a-1.tar"}),
        ("*/c.tar", {"deep/c.tar"}),
        ("a-[1-9].tar", {"a-1.tar"}),
    ):
        copied = local_copy(f"{address}/{pattern}")
        found = glob.glob(copied)
        assert {Path(f).name for f in found} == {Path(n).name for n in names}
        for name in names:
            text = Path(copied.removesuffix(pattern), name).read_text()
            assert text == files[name]
    with pytest.raises(FileNotFoundError, match="nothing at"):
        local_copy(f"{address}/x*.tar")


def test_names_that_we_keep_for_ourselves_are_not_copied(address):
    with mirror(address) as path:
        write(path, {"a.txt": "a"})
    store = Store(address)
    foreign_lease(store)
    store.files.pipe_file(store._path(f"{STAGED}/x"), b"left")
    assert contents(address) == {"a.txt": "a"}
    assert mirrors._is_content("deep/a.txt")
