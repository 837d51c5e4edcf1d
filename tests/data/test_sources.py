"""Caption files, folders and archives."""

import io
import json
import tarfile

import pytest

from align_keras.data import archives
from align_keras.data import read_captions
from align_keras.data import sources
from align_keras.io import rows
from align_keras.io.optional import OptionalModule

EXPECTED = {"a.jpg": ["a red bus", "ein Büs"], "sub/b.png": ["two, dogs"]}


def _write(path, form):
    rows = [(name, c) for name, all_of in EXPECTED.items() for c in all_of]
    if form in ("csv", "tsv"):
        quoted = [f'"{c}"' if form == "csv" else c for _, c in rows]
        mark = "," if form == "csv" else "\t"
        lines = [f"id{mark}image{mark}caption"]
        lines += [
            f"1{mark}{name}{mark}{c}"
            for (name, _), c in zip(rows, quoted, strict=True)
        ]
        path.write_text("\n".join(lines), "utf-8")
    elif form == "jsonl":
        lines = [json.dumps({"image": n, "caption": c}) for n, c in rows]
        path.write_text("\n\n".join(lines) + "\n", "utf-8")
    elif form == "json":
        images = [
            {
                "filename": name.split("/")[-1],
                "filepath": "sub" if "/" in name else "",
                "sentences": [{"raw": c} for c in all_of],
                "split": "train",
            }
            for name, all_of in EXPECTED.items()
        ]
        path.write_text(json.dumps({"images": images, "dataset": "x"}))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table(
            {"image": [n for n, _ in rows], "caption": [c for _, c in rows]}
        )
        parquet.write_table(table, path)


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_form_gives_the_same(tmp_path, form):
    path = tmp_path / f"captions.{form}"
    _write(path, form)
    captions = read_captions(path)
    assert captions == EXPECTED
    assert list(captions) == list(EXPECTED)


def test_list_of_objects_with_lists_of_captions(tmp_path):
    path = tmp_path / "captions.json"
    rows = [
        {"file_name": "./a.jpg", "captions": [" x ", "", None]},
        {"file_name": "a.jpg", "captions": ["y"]},
    ]
    path.write_text(json.dumps(rows))
    assert read_captions(path) == {"a.jpg": ["x", "y"]}


def test_byte_order_mark_blank_rows_and_long_captions(tmp_path):
    path = tmp_path / "captions.csv"
    long = "word " * 30_000
    path.write_text(
        f"image,caption\na.jpg,\nb.jpg\nc.jpg,{long}\n", "utf-8-sig"
    )
    assert read_captions(path) == {
        "a.jpg": [],
        "b.jpg": [],
        "c.jpg": [long.strip()],
    }


def test_named_columns(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("image,url,caption,alt\na,b.jpg,c,d\n")
    found = read_captions(path, image_column="url", caption_column="alt")
    assert found == {"b.jpg": ["d"]}


def test_splits(tmp_path):
    path = tmp_path / "captions.csv"
    rows = ["a,x,train", "b,y,restval", "c,z,test"]
    path.write_text("image,caption,split\n" + "\n".join(rows))
    assert list(read_captions(path, split="train,restval")) == ["a", "b"]
    assert list(read_captions(path)) == ["a", "b", "c"]
    path.write_text("image,caption\na,x\n")
    with pytest.raises(ValueError, match="no column split"):
        read_captions(path, split="train")


@pytest.mark.parametrize(
    "name, contents, words",
    [
        ("c.csv", "picture,caption\na,b\n", "image or file_name.*picture, cap"),
        ("c.csv", "image,title\na,b\n", "caption or captions.*image, title"),
        ("c.jsonl", '{"image": "a"}\n', "caption or captions.*: image"),
        ("c.jsonl", '{"image": \n', "row 1, not valid JSON"),
        ("c.jsonl", "[1]\n", "row 1, not a JSON object"),
        ("c.json", '{"a": 1}', "Karpathy.*: a"),
        ("c.json", '{"images": [{"filename": "a"}]}', "row 1, .*sentences"),
        ("c.json", "{", "not valid JSON"),
        ("c.xlsx", "", "unknown suffix"),
    ],
)
def test_wrong_files_are_explained(tmp_path, name, contents, words):
    path = tmp_path / name
    path.write_text(contents)
    with pytest.raises(ValueError, match=words) as error:
        read_captions(path)
    assert str(path) in str(error.value)


def test_file_that_is_not_utf8(tmp_path):
    for name in ("c.csv", "c.jsonl", "c.json"):
        path = tmp_path / name
        path.write_bytes('image,caption\na.jpg,"café"\n'.encode("latin-1"))
        with pytest.raises(ValueError, match="not UTF-8.*0xe9"):
            read_captions(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.csv"):
        read_captions(tmp_path / "absent.csv")


def test_parquet_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    # The one of the module remembers what other tests have used.
    absent = OptionalModule("pyarrow.parquet", extra="parquet")
    monkeypatch.setattr(rows, "parquet", absent)
    path = tmp_path / "c.parquet"
    path.write_bytes(b"")
    with pytest.raises(ImportError, match=r"align-keras\[parquet\]"):
        read_captions(path)


def test_folder_with_text_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.JPG").write_bytes(b"1")
    (tmp_path / "b.txt").write_text("one\n\n two \n")
    (tmp_path / "sub" / "a.png").write_bytes(b"2")
    (tmp_path / "notes.md").write_text("no image")
    found = [(n, read(), t) for n, read, t in sources.from_folder(tmp_path)]
    assert found == [("b.JPG", b"1", ["one", "two"]), ("sub/a.png", b"2", [])]


def _archive(path, files):
    with tarfile.open(path, "w") as tar:
        for name, contents in files:
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))


def test_archive(tmp_path):
    path = tmp_path / "0.tar"
    files = [
        ("d/0.jpg", b"1"),
        ("d/0.txt", "first\nÿ".encode()),
        ("d/0.json", b'{"caption": "not used"}'),
        ("d/1.json", b'{"caption": "second"}'),
        ("d/1.seg.png", b"a mask, not the image"),
        ("d/1.png", b"2"),
        ("2.txt", b"no image"),
        ("3.webp", b"4"),
        ("3.json", b"[]"),
    ]
    _archive(path, files)
    found = [(n, read(), t) for n, read, t in archives.from_archive(path)]
    assert found == [
        ("d/0.jpg", b"1", ["first", "ÿ"]),
        ("d/1.png", b"2", ["second"]),
        ("3.webp", b"4", []),
    ]


def test_damaged_archive_gives_what_came_before(tmp_path):
    path = tmp_path / "0.tar"
    _archive(path, [("0.jpg", b"1"), ("1.jpg", b"2"), ("2.jpg", b"3" * 9999)])
    path.write_bytes(path.read_bytes()[:3000])
    samples = archives.from_archive(path)
    assert next(samples)[0] == "0.jpg"
    with pytest.raises((tarfile.TarError, OSError)):
        list(samples)
