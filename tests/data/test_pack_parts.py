"""A data set that several machines pack, part by part."""

import json
import shutil
from pathlib import Path

import pytest
from stores import new_address
from test_pack import _archive
from test_pack import _bytes

from align_keras.cli import main
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data.find_source import find_source
from align_keras.data.find_source import find_streams
from align_keras.data.parts import Part
from align_keras.io.mirrors import mirror
from align_keras.io.stores import Store


@pytest.fixture
def photos(tmp_path):
    """Images that can be used, and some that cannot."""
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = ["image,caption"]
    for number in range(20):
        (folder / f"{number}.jpg").write_bytes(_bytes(number))
        lines.append(f"{number}.jpg,caption {number}")
    (folder / "19.jpg").write_text("no image")
    lines += ["gone.jpg,not there", "silent.jpg,"]
    (folder / "captions.csv").write_text("\n".join(lines))
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"caption {number}")
    (folder / "alone.txt").write_text("no image of that name")
    return folder


def read(output):
    return [(r["key"], r["image"], r["captions"]) for r in open_records(output)]


@pytest.mark.parametrize("kind", ["listed", "beside"])
def test_parts_in_turn_are_a_single_run(photos, tmp_path, kind):
    """The same records in the same order; what is left out is counted once."""
    if kind == "beside":
        (photos / "captions.csv").unlink()
    whole = pack(photos, tmp_path / "whole", records_per_shard=3)
    output = tmp_path / "parts"
    for number, missing in ((3, [1, 2, 4]), (1, [2, 4]), (4, [2])):
        found = pack(photos, output, records_per_shard=3, part=(number, 4))
        assert found["missing_parts"] == missing
        with pytest.raises(FileNotFoundError, match="missing: .*2"):
            open_records(output)
    last = pack(photos, output, records_per_shard=3, part="2/4")
    assert "missing_parts" not in last and last["parts"] == 4
    assert read(output) == read(tmp_path / "whole")
    same = "records", "captions", "skipped_count", "skipped_reasons", "images"
    for name in (*same, "order"):
        assert last[name] == whole[name], name
    assert open_records(output).counts == {
        str(output / shard["file"]): shard["records"]
        for shard in last["shards"]
    }
    assert open_records(output).in_random_order
    # A repetition of any part finds all done, and says what is missing.
    (output / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="All 4 .* pack any part again"):
        open_records(output)
    assert pack(photos, output, records_per_shard=3, part=(1, 4)) == last
    assert json.loads((output / "manifest.json").read_text()) == last
    shutil.rmtree(output / Part(3, 4).folder)
    (output / "manifest.json").unlink()
    again = pack(photos, output, records_per_shard=3, part="4/4")
    assert again["missing_parts"] == [3]


def test_streams_are_divided_by_files(tmp_path):
    (tmp_path / "tars").mkdir()
    for number in range(5):
        samples = []
        for place in range(3):
            key = f"{number}-{place}"
            samples.append((f"{key}.jpg", _bytes(3 * number + place)))
            samples.append((f"{key}.txt", f"caption {key}".encode()))
        _archive(tmp_path / "tars" / f"{number}.tar", samples)
    pack(tmp_path / "tars", tmp_path / "whole")
    for number in (1, 2):
        found = pack(tmp_path / "tars", tmp_path / "parts", part=(number, 2))
    assert found["order"] == "random within parts"
    assert not open_records(tmp_path / "parts").in_random_order
    assert sorted(read(tmp_path / "parts")) == sorted(read(tmp_path / "whole"))
    second = open_records(tmp_path / "parts" / Part(2, 2).folder)
    assert {r["key"].partition("-")[0] for r in second} == {"1", "3"}
    with pytest.raises(ValueError, match="at most 5 parts"):
        pack(tmp_path / "tars", tmp_path / "many", part="1/6")


def test_parts_in_a_store(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_KERAS_CACHE", str(tmp_path / "cache"))
    address = new_address("memory")
    pack(photos, tmp_path / "whole")
    assert pack(photos, address, part=(2, 2))["missing_parts"] == [1]
    with pytest.raises(FileNotFoundError, match="1 of 2 parts are packed"):
        open_records(address)
    # Of a part that is being stored, the manifest comes last.
    store = Store(address)
    shard = f"{Part(1, 2).folder}/data-00000-of-00001.tfrecord"
    store.files.pipe_file(store._path(shard), b"")
    with pytest.raises(FileNotFoundError, match="1 of 2.*missing: 1"):
        open_records(address)
    store.remove(shard)
    pack(photos, address, part=(1, 2))
    assert read(address) == read(tmp_path / "whole")
    store.remove("manifest.json")
    with pytest.raises(FileNotFoundError, match="All 2 .* pack any part again"):
        open_records(address)
    pack(photos, address, part=(2, 2))
    assert read(address) == read(tmp_path / "whole")


def test_archives_in_a_store(tmp_path, monkeypatch):
    """As img2dataset writes them, and some that no part reads."""
    monkeypatch.setenv("ALIGN_KERAS_CACHE", str(tmp_path / "cache"))
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder, address = tmp_path / "tars", new_address("memory")
    names = [f"{n:05d}" for n in range(4)] + ["deep/00000", "deep/00001"]
    for number, name in enumerate(names):
        path = folder / f"{name}.tar"
        path.parent.mkdir(exist_ok=True, parents=True)
        samples = [(f"{number}.jpg", _bytes(number)), (f"{number}.txt", b"x")]
        _archive(path, samples)
        table = pyarrow.table({"url": ["http://a/b"], "caption": ["x"]})
        parquet.write_table(table, path.with_suffix(".parquet"))
        (folder / f"{name}_stats.json").write_text("{}")
    (folder / "00009.zip").write_text("of a kind that is not read")
    pack(folder, tmp_path / "whole")
    with mirror(address) as path:
        shutil.copytree(folder, path)
    for source, count in ((address, 2), (f"{address}/*.tar", 4)):
        output = tmp_path / f"parts-{count}"
        for number in range(1, count + 1):
            found = pack(source, output, part=(number, count))
            assert open_records(output / Part(number, count).folder).counts
        assert sorted(read(output)) == sorted(read(tmp_path / "whole"))
    whole = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    found = json.loads((tmp_path / "parts-2" / "manifest.json").read_text())
    assert whole["skipped_count"] == 3
    for name in ("records", "images", "skipped_count", "skipped_reasons"):
        assert found[name] == whole[name], name
    # The archive of the fourth part is not copied for others.
    assert len(list((tmp_path / "cache").rglob("00003.tar"))) == 2
    with pytest.raises(ValueError, match="at most 4 parts"):
        pack(address, tmp_path / "many", part="1/5")


@pytest.mark.parametrize(
    "names",
    [
        ["a.tar", "a.parquet", "b.tfrecord", "c.jpg", "deep/d.tar"],
        ["a.tfrecord-00000-of-00001", "a.parquet", "._b.tar"],
        ["a.parquet", "deep/c.tar", "b.txt"],
        ["a.parquet", "deep/c.jpg"],
        ["a.parquet", ".deep/c.jpg"],
        ["captions.csv", "a.tar"],
        ["captions.CSV", "deep/a.tar"],
        ["deep/captions.csv", "a.tar"],
        ["deep/a.tar", "b.txt"],
        ["a.jpg"],
    ],
)
def test_streams_are_those_that_are_read(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = find_source(tmp_path)
    streams = {"archive", "records", "table"}
    paths = found.files if found.kind in streams else []
    assert find_streams(names, True) == [Path(path).name for path in paths]


@pytest.mark.parametrize("part", ["0/4", "5/4", "3", "a/b", (1, 2, 3), 7])
def test_what_is_no_part_is_refused(photos, tmp_path, part):
    with pytest.raises(ValueError, match="such as 3/64.*Received"):
        pack(photos, tmp_path / "parts", part=part)
    assert not (tmp_path / "parts").exists()


def test_parts_that_do_not_belong_together(photos, tmp_path):
    output = tmp_path / "parts"
    with pytest.raises(ValueError, match="`hold_out`.*part=1/2"):
        pack(photos, output, part="1/2", hold_out=0.1)
    pack(photos, output, part="1/2")
    with pytest.raises(FileExistsError, match="another number of parts than 3"):
        pack(photos, output, part="1/3")
    with pytest.raises(ValueError, match="different arguments.*seed"):
        pack(photos, output, part="2/2", seed=1)
    assert not (output / "manifest.json").exists()


def test_the_command_names_what_is_missing(photos, tmp_path, capsys):
    words = ["pack", str(photos), "--output", str(tmp_path / "parts")]
    assert main([*words, "--part", "2/3"]) == 0
    assert "1 of 3 parts are packed" in capsys.readouterr().out
    assert main([*words, "--part", "4/3"]) == 2
    assert "3/64" in capsys.readouterr().err
