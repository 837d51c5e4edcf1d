"""A directory of a run, wherever it lies: what stages are made of."""

import pytest
from stores import new_address
from stores import s3_server

pytest.importorskip("pyarrow", reason="needs the extra `curation`")

from align_keras.curation.storage import Storage


@pytest.fixture(params=["local", "s3", "memory", "ram"])
def storage(request, tmp_path):
    if request.param == "s3":
        with s3_server():
            yield Storage(new_address("s3"))
    elif request.param == "local":
        yield Storage(tmp_path / "within")
    else:
        yield Storage(new_address(request.param))


def test_files_are_written_listed_and_removed(storage):
    assert not storage.exists() and storage.list("stage") == []
    assert storage.read_object("a.json", {}, "note", "Remove it.") is None
    with storage.lock():
        storage.make_directory("stage")
        with storage.whole_file("stage/0.stage") as file:
            file.write(b"rows")
            assert storage.data_files("stage") == []
        with pytest.raises(RuntimeError), storage.whole_file("stage/1") as file:
            file.write(b"half")
            raise RuntimeError
        # Again, as a second attempt at the same does.
        with storage.whole_file("stage/0.stage") as file:
            file.write(b"row")
        storage.write_json("a.json", {"files": ["0.stage"]})
    assert storage.data_files("stage") == ["0.stage"]
    assert storage.list() == ["a.json", "stage"]
    found = storage.read_object("a.json", {"files": [str]}, "note", "")
    assert found == {"files": ["0.stage"]}
    storage.make_directory("kept")
    storage.copy(storage, "stage/0.stage", "kept/data.parquet")
    storage.remove("stage")
    assert storage.list("stage") == [] and not storage.exists("stage/0.stage")
    with storage.open_input("kept/data.parquet") as file:
        assert file.read() == b"row"
    storage.remove("nothing")


def test_a_text_on_hdfs_appears_when_it_is_complete(tmp_path, monkeypatch):
    storage = Storage(tmp_path / "as_on_hdfs")
    storage.make_directory()
    # There are only renames, as on HDFS.
    storage.local = False
    opened, whole = [], storage.open_output
    monkeypatch.setattr(
        storage, "open_output", lambda name: opened.append(name) or whole(name)
    )
    for text in ("one", "two"):
        storage.write_text("manifest.json", text)
        assert (tmp_path / "as_on_hdfs" / "manifest.json").read_text() == text
    assert len(opened) == 2 and all(name[0] == "." for name in opened)
    assert storage.list() == ["manifest.json"]


def test_rows_move_from_one_place_to_another(storage, tmp_path):
    other = Storage(tmp_path / "elsewhere")
    other.make_directory("stage")
    with other.whole_file("stage/0.stage") as file:
        file.write(b"rows")
    storage.make_directory("kept")
    storage.copy(other, "stage/0.stage", "kept/0")
    other.copy(storage, "kept/0", "stage/again")
    with other.open_input("stage/again") as file:
        assert file.read() == b"rows"
