"""Files of object stores, and writers that exclude each other."""

import glob
import os

import pytest
from stores import new_address
from stores import s3_server

from align_keras.io import stores
from align_keras.io.atomic import atomic_file
from align_keras.io.stores import StaleWriter
from align_keras.io.stores import Store
from align_keras.io.stores import file_states

SCHEMES = ["s3", "memory", "ram"]


@pytest.fixture(scope="module", autouse=True)
def server():
    with s3_server():
        yield


@pytest.fixture(params=SCHEMES)
def store(request):
    return Store(new_address(request.param))


def test_what_is_put_is_found_and_read(store, tmp_path):
    assert store.sizes() == {}
    (tmp_path / "local").write_bytes(b"0123456789")
    store.put(tmp_path / "local", "a/b.txt")
    store.put(tmp_path / "local", "c.txt")
    store.copy("c.txt", "a/d.txt")
    assert store.sizes() == {"a/b.txt": 10, "a/d.txt": 10, "c.txt": 10}
    assert store.is_file("a/b.txt") and not store.is_file("a")
    assert store.read("c.txt") == b"0123456789"
    assert store.read("c.txt", 2, 5) == b"234"
    store.get("a/d.txt", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"0123456789"
    # A shorter file takes the place of a longer one.
    (tmp_path / "local").write_bytes(b"short")
    store.put(tmp_path / "local", "c.txt")
    assert store.read("c.txt") == b"short"
    store.remove("c.txt", "a/b.txt", "was/never.there")
    assert set(store.sizes()) == {"a/d.txt"}
    with pytest.raises(FileNotFoundError, match=f"{store.address}/nowhere"):
        store.read("nowhere")


def test_an_overwritten_file_is_another(store, tmp_path):
    names = [f"{store}/{name}" for name in ("a", "b", "folder/c")]
    states = []
    for contents in ("one", "two"):
        for name in ("b", "folder/c") if states else ("a", "b", "folder/c"):
            (tmp_path / "local").write_text(contents)
            store.put(tmp_path / "local", name)
        states.append(file_states([*names, f"{store}/nothing"]))
        assert list(states[-1]) == [*names, f"{store}/nothing"]
        assert states[-1][f"{store}/nothing"] == []
    before, after = states
    assert before[names[0]] == after[names[0]]
    for name in names[1:]:
        # Sizes agree, so a tag or time tells; `ram://` has neither.
        assert before[name][0] == after[name][0] == "3"
        assert (before[name] != after[name]) == ("ram:" not in name)


def test_only_the_first_of_two_writers_wins(store):
    first = store.replace("file", b"first", None)
    for tag in (None, "of another"):
        with pytest.raises(StaleWriter, match=f"{store.address}/file"):
            store.replace("file", b"second", tag)
    assert store.read_with_tag("file") == (b"first", first)
    second = store.replace("file", b"second", first)
    with pytest.raises(StaleWriter):
        store.replace("file", b"third", first)
    assert store.read_with_tag("file") == (b"second", second)
    # What was removed is not what it was.
    store.remove("file")
    with pytest.raises(StaleWriter):
        store.replace("file", b"third", second)
    assert store.read_with_tag("file") == (None, None)


def test_a_writer_that_asks_again_is_not_another(store, monkeypatch):
    """A client repeats a request whose answer was lost."""
    put_if = store.files.put_if

    def put_twice(*request):
        put_if(*request)
        return put_if(*request)

    monkeypatch.setattr(store.files, "put_if", put_twice)
    tag = store.replace("file", b"first", None)
    assert store.read_with_tag("file") == (b"first", tag)
    tag = store.replace("file", b"second", tag)
    assert store.read_with_tag("file") == (b"second", tag)


def test_paths_and_addresses_are_listed_alike(store, tmp_path):
    for name in ("b.txt", "a.txt", "c.csv", "deep/d.txt"):
        path = tmp_path / "there" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        store.put(path, name)
    for root in (str(tmp_path / "there"), store.address):
        assert stores.find_files(f"{root}/*.txt") == [
            f"{root}/a.txt",
            f"{root}/b.txt",
        ]
        assert stores.find_files(f"{root}/*.png") == []
        assert stores.is_directory(root)
        assert not stores.is_directory(f"{root}/nothing")
        assert stores.file_size(f"{root}/c.csv") == 5
        assert stores.read_range(f"{root}/c.csv", 2) == b"csv"
        with pytest.raises(FileNotFoundError, match=glob.escape(root)):
            stores.read_range(f"{root}/nothing")


def test_a_file_appears_when_it_is_whole(store):
    path = f"{store.address}/x/vocab.txt"
    with pytest.raises(KeyError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert store.sizes() == {}
    with atomic_file(path, ".txt") as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("whole")
    assert store.read("x/vocab.txt") == b"whole"


@pytest.mark.parametrize(
    "path",
    ["gs://b/x", "s3://b", "hdfs://host:8020/x", "memory://x", "ram://x"],
)
def test_addresses_of_stores(path):
    assert stores.is_store(path)
    assert stores.absolute(path) == path


@pytest.mark.parametrize(
    "path",
    [
        *("nowhere9://x", "file:///x", "https://x/y", "hf://kakaobrain/align"),
        *("kaggle://x", "run", "c:/run", "s3", "./s3:/x", "/tmp/gs://x"),
    ],
)
def test_other_names_are_none(path):
    assert not stores.is_store(path)
    assert stores.absolute(path) == os.path.abspath(path)
    with pytest.raises(ValueError, match="is not the address of a store"):
        Store(path)


def test_a_missing_package_is_named(monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("Install ocifs to access it")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ImportError, match=r"ocifs.*align-keras\[stores\]"):
        Store("oci://bucket/x")
