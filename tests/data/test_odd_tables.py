"""Tables with odd rows, names, encodings and types, in `pack` and `curate`."""

import codecs
import datetime
import decimal
import gzip
import json
import os
import shutil

import pytest

pytest.importorskip("ibis", reason="needs the extra `curation`")

import pyarrow as pa
import pyarrow.parquet as pq
from curated import audit
from curated import kept
from tiny_align import image_file

from align_keras.curation import curate
from align_keras.curation import explain
from align_keras.curation import learn_vocabulary
from align_keras.curation.config import parse_config
from align_keras.curation.vocabulary import read_texts
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data import read_captions
from align_keras.embedding.image_sources import plan_sources
from align_keras.embedding.image_sources import read_source
from align_keras.evaluation.datasets import karpathy
from align_keras.io.rows import read_rows

EVERY_ROW = parse_config({"rules": [{"token_count": {"at_least": 0}}]})
LATIN = b"caf\xe9".decode("utf-8", "surrogateescape")


@pytest.fixture
def photos(tmp_path):
    """A folder of the images a.png, b.png and c.png."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate("abc"):
        (folder / f"{name}.png").write_bytes(image_file(number, form="PNG"))
    return folder


def packed(output):
    return {r["key"]: r["captions"] for r in open_records(output)}


def curated(path, output, **settings):
    """Paths and texts that are kept, and what reading has counted."""
    rules = [{"token_count": {"at_least": 0}}]
    curate([path], output, parse_config({"rules": rules, **settings}))
    rows = [(row["url"], row["text"]) for row in kept(output)]
    return rows, audit(output)["reading"]["counts"]


# === Rows ===

GOOD = [{"image": "a.png", "caption": "x"}, {"image": "c.png", "caption": "z"}]
# What stands between two good rows, and why it is left out.
ODD_ROWS = [
    ('{"image": "b.png"}', "no caption"),
    ('{"caption": "y"}', "no image"),
    ("{}", "no image"),
    ('{"image": null, "caption": "y"}', "no image"),
    ('{"image": ["b.png"], "caption": "y"}', "no path of an image"),
    ('{"image": {"uri": "b.png"}, "caption": "y"}', "no path of an image"),
    ('{"image": {"bytes": "iV", "path": null}, "caption": "y"}', None),
    ("[1]", "not a JSON object"),
    ("7", "not a JSON object"),
    ("null", "not a JSON object"),
    ('"b.png"', "not a JSON object"),
]
NOT_JSON = [('{"image": "b.p', "not valid JSON"), ("b.png,y", None)]


def write_json(path, lines):
    mark = "\n" if path.suffix == ".jsonl" else ","
    text = mark.join(lines)
    path.write_text(text if path.suffix == ".jsonl" else f"[{text}]")


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_an_odd_row_costs_itself_alone(tmp_path, photos, form):
    odd = ODD_ROWS + (NOT_JSON if form == "jsonl" else [])
    path = photos / f"captions.{form}"
    lines = [json.dumps(GOOD[0]), *(line for line, _ in odd)]
    write_json(path, [*lines, json.dumps(GOOD[1])])
    manifest = pack(photos, tmp_path / "out")
    assert packed(tmp_path / "out") == {"a": ["x"], "c": ["z"]}
    assert manifest["images"] == 2 + len(odd)
    for number, (entry, (_, reason)) in enumerate(
        zip(manifest["skipped"], odd, strict=True), start=2
    ):
        assert entry["file"] == f"{path}, row {number}"
        assert reason in (None, entry["reason"])
    assert read_captions(path) == {"a.png": ["x"], "c.png": ["z"]}
    (part,) = plan_sources(photos)
    texts = [text for _, _, text in read_source(part, pytest.fail)]
    assert texts == ["x", "", "z"]
    rows, counts = curated(path, tmp_path / "clean")
    assert ("a.png", "x") in rows and ("c.png", "z") in rows
    assert counts["rows"] + counts["unreadable_lines"] == 2 + len(odd)


def test_captions_that_are_no_texts_are_none(tmp_path, photos):
    values = [None, 7, ["y", None, "", True, {}], {"en": "y"}, False]
    rows = [{"image": "b.png", "caption": value} for value in values]
    write_json(photos / "captions.jsonl", map(json.dumps, [*GOOD, *rows]))
    pack(photos, tmp_path / "out")
    assert packed(tmp_path / "out")["b"] == ["7", "y"]


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_fields_too_many_and_too_few(tmp_path, photos, form):
    rows = [
        ["image", "caption", "note"],
        ["a.png", "x", ""],
        ["b.png"],
        ["c.png", "z", "", "more"],
    ]
    mark = "," if form == "csv" else "\t"
    path = photos / f"captions.{form}"
    path.write_text("\n".join(map(mark.join, rows)))
    manifest = pack(photos, tmp_path / "out")
    assert packed(tmp_path / "out") == {"a": ["x"]}
    skipped = {(e["file"], e["reason"]) for e in manifest["skipped"]}
    assert skipped == {
        (f"{path}, row 3", "too many fields"),
        ("b.png", "no caption"),
        ("c.png", "no usable row in the caption file"),
    }
    rows, counts = curated(path, tmp_path / "clean")
    # Every command takes a short row for one of missing fields.
    assert rows == [("a.png", "x")] and counts["rows"] == 2
    assert counts["unreadable_lines"] == counts["null_texts"] == 1
    texts = list(read_texts([str(path)]))
    assert texts == ["x"]
    assert {n: t for n, _, t in karpathy(path, photos, None).examples()} == {
        "a.png": ["x"],
        "b.png": [],
    }


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_empty_lines_before_that_of_the_columns(tmp_path, photos, form):
    mark = "," if form == "csv" else "\t"
    path = photos / f"captions.{form}"
    path.write_text(f"\n\nimage{mark}caption\na.png{mark}x\n")
    for name in ("b.png", "c.png"):
        (photos / name).unlink()
    assert pack(photos, tmp_path / "out")["skipped"] == []
    assert packed(tmp_path / "out") == {"a": ["x"]}
    assert curated(path, tmp_path / "clean")[0] == [("a.png", "x")]


def test_images_in_karpathys_form_that_are_not(tmp_path, photos):
    good = {"filename": "a.png", "sentences": [{"raw": "x"}]}
    images = [good, {"filename": "b.png"}, {"sentences": []}, 7]
    images += [{**good, "filename": "c.png", "sentences": [{"tokens": []}]}]
    path = photos / "captions.json"
    path.write_text(json.dumps({"images": images}))
    manifest = pack(photos, tmp_path / "out")
    assert packed(tmp_path / "out") == {"a": ["x"]}
    reasons = [entry["reason"] for entry in manifest["skipped"]]
    told = ["not in Karpathy's form"] * 4
    assert reasons == told + ["no usable row in the caption file"] * 2
    path.write_text('{"images": {"a.png": "x"}}')
    with pytest.raises(ValueError, match="nor in Karpathy's form"):
        read_captions(path)


@pytest.mark.parametrize(
    "lines, words",
    [
        (
            ['{"image": "a.png", "cap": "x"}', '{"image": "b.png"}'],
            "`caption_column`; its columns are: image, cap",
        ),
        (['{"caption": "x"}', "{}"], "`image_column`; .*: caption"),
        (["[1]", "7"], "first: row 1, not a JSON object: list"),
        (["image: a.png", "}"], "row 1, not valid JSON: Expecting"),
    ],
)
def test_what_no_row_has_is_one_error(photos, lines, words):
    path = photos / "captions.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=words) as error:
        read_captions(path)
    assert str(path) in str(error.value)


def test_a_row_that_tells_no_split_is_of_none(tmp_path):
    path = tmp_path / "captions.jsonl"
    rows = [{**GOOD[0], "split": "test"}, {**GOOD[1]}]
    write_json(path, map(json.dumps, rows))
    assert read_captions(path, split="test") == {"a.png": ["x"]}
    write_json(path, map(json.dumps, GOOD))
    with pytest.raises(ValueError, match="no column split"):
        read_captions(path, split="test")


# === Names and encodings ===


def write_table(path, form):
    rows = [{"image": "a.png", "caption": "a red é"}]
    rows += [{"image": "b.png", "caption": "two b"}]
    if form == "parquet":
        with open(path, "wb") as file:
            pq.write_table(pa.Table.from_pylist(rows), file)
        return
    if form in ("csv", "tsv"):
        mark = "," if form == "csv" else "\t"
        lines = [mark.join(rows[0]), *(mark.join(r.values()) for r in rows)]
        text = "\n".join(lines)
    else:
        text = "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
        text = text if form == "jsonl" else f"[{text.replace(chr(10), ',')}]"
    path.write_text(text, "utf-8")


TEXTS = [("a.png", "a red é"), ("b.png", "two b")]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_table_whose_name_is_not_utf8(tmp_path, photos, form):
    path = tmp_path / f"{LATIN}.{form}"
    write_table(path, form)
    rows, _ = curated(path, tmp_path / "clean")
    assert rows == TEXTS
    # A second time it is there, and its rows can be explained.
    manifest = curate([path], tmp_path / "clean", EVERY_ROW)
    assert manifest["inputs"] == [str(path)]
    assert explain(tmp_path / "clean", 1)
    assert list(read_texts([str(path)])) == [text for _, text in TEXTS]
    pack(photos, tmp_path / "out", path)
    assert packed(tmp_path / "out") == {n[0]: [text] for n, text in TEXTS}
    folder = tmp_path / LATIN
    folder.mkdir()
    shutil.move(path, folder / f"captions.{form}")
    assert curated(folder, tmp_path / "again")[0] == TEXTS
    with pytest.raises(ValueError, match="must be UTF-8.*caf\ufffd"):
        curate([folder], folder / "out", EVERY_ROW)


@pytest.mark.parametrize("form", ["jsonl", "json"])
@pytest.mark.parametrize("first", [0, 1])
def test_objects_of_one_file_under_several_names(tmp_path, photos, form, first):
    rows = [
        {"image": "a.png", "caption": "an x"},
        {"file_name": "b.png", "text": "a y"},
        {"URL": "c.png", "Alt": ["a z", "its w"]},
    ]
    rows = rows[first:] + rows[:first]
    path = tmp_path / f"pairs.{form}"
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if form == "jsonl" else json.dumps(rows))
    pack(photos, tmp_path / "out", path)
    expected = {"a": ["an x"], "b": ["a y"], "c": ["a z", "its w"]}
    assert packed(tmp_path / "out") == expected
    found, counts = curated(path, tmp_path / "clean")
    pairs = [(f"{n}.png", t) for n, texts in expected.items() for t in texts]
    assert sorted(found) == pairs and "null_texts" not in counts
    assert sorted(read_texts([str(path)])) == sorted(t for _, t in pairs)
    # A column that is named is the only one.
    counts = curated(path, tmp_path / "2", columns={"text": "caption"})[1]
    assert counts["rows"] == 3 and counts["null_texts"] == 2


MARKED = {
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-32": b"",
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json"])
@pytest.mark.parametrize("encoding", MARKED)
def test_a_byte_order_mark_tells_the_encoding_of_every_table(
    tmp_path, form, encoding
):
    path = tmp_path / f"captions.{form}"
    write_table(path, form)
    contents = MARKED[encoding] + path.read_text("utf-8").encode(encoding)
    path.write_bytes(contents)
    assert [*read_captions(path).items()] == [(n, [t]) for n, t in TEXTS]
    assert curated(path, tmp_path / "1")[0] == TEXTS
    assert list(read_texts([str(path)])) == [text for _, text in TEXTS]
    zipped = tmp_path / f"x.{form}.GZ"
    zipped.write_bytes(gzip.compress(contents))
    assert curated(zipped, tmp_path / "2")[0] == TEXTS


@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("name", ["x.txt", "X.TXT"])
def test_vocabulary_of_texts_in_any_encoding(tmp_path, encoding, name):
    contents = "a red é\ntwo b".encode(encoding)
    (tmp_path / name).write_bytes(MARKED[encoding] + contents)
    output = tmp_path / "vocabulary.txt"
    made = learn_vocabulary([tmp_path / name], output)
    assert made["texts"] == 2 and not made["damaged_files"]
    assert {"e", "t", "b"} <= set(output.read_text("utf-8").split())


@pytest.mark.parametrize("form", ["", "/*.txt", "/**"])
def test_vocabulary_of_a_folder_of_texts(tmp_path, form):
    (tmp_path / "in").mkdir()
    for name, text in {
        "a.txt": "one\ntwo",
        "b.TXT": "three",
        "._a.txt": "x",
    }.items():
        (tmp_path / "in" / name).write_text(text)
    made = learn_vocabulary([f"{tmp_path}/in{form}"], tmp_path / "v.txt")
    assert made["texts"] == (2 if form == "/*.txt" else 3)


def test_texts_beside_tables_are_told(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.csv").write_text("text\ntwo")
    made = learn_vocabulary([tmp_path], tmp_path / "v.txt")
    assert made["texts"] == 1
    assert made["damaged_files"] == [str(tmp_path / "a.txt")]
    assert "1 text files next to tables" in caplog.text
    made = learn_vocabulary([f"{tmp_path}/[ab].*"], tmp_path / "v.txt")
    assert made["texts"] == 2


def test_tables_that_begin_with_an_underscore_are_told(tmp_path):
    for name in ("a.csv", "_b.csv", "_c/d.jsonl.gz", "_SUCCESS", "._e.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\none two")
    made = learn_vocabulary([tmp_path], tmp_path / "v.txt")
    assert made["texts"] == 1
    names = ["_b.csv", "_c/d.jsonl.gz"]
    assert made["damaged_files"] == [str(tmp_path / name) for name in names]


def test_a_folder_and_a_dead_link_among_files_are_told(tmp_path):
    (tmp_path / "within").mkdir()
    (tmp_path / "a.csv").write_text("text\none two")
    (tmp_path / "b.csv").symlink_to("nowhere.csv")
    made = learn_vocabulary([f"{tmp_path}/*"], tmp_path / "v.txt")
    assert made["texts"] == 1
    names = ["within", "b.csv"]
    assert made["damaged_files"] == [str(tmp_path / name) for name in names]


# === Types of Parquet ===

DAY = datetime.date(2020, 1, 1)
UNFIT = {
    "bool": [True],
    "int64": [1],
    "double": [float("nan")],
    "date32": [DAY],
    "timestamp": [datetime.datetime(2020, 1, 1)],
    "decimal128": [decimal.Decimal("1.5")],
    "list<": [[1]],
    "list": [[["a"]]],
    "struct": [{"en": "a"}],
    "map": pa.array([[("en", "a")]], pa.map_(pa.string(), pa.string())),
}
FIT = {
    "dictionary": pa.array(["é"]).dictionary_encode(),
    "large_string": pa.array(["é"], pa.large_string()),
    "string_view": pa.array(["é"]).cast(pa.string_view()),
    "binary": ["é".encode()],
    "utf-16": pa.array(["é".encode("utf-16")]),
    "large_binary": pa.array(["é".encode("utf-8-sig")], pa.large_binary()),
    "fixed_size_binary": pa.array(["é".encode("utf-16")], pa.binary(4)),
    "list": pa.array([["é"]], pa.large_list(pa.large_string())),
    "list of bytes": [["é".encode("utf-16")]],
    "list of dictionary": pa.array(
        [["é"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))
    ),
    "list_view": pa.array([["é"]], pa.list_view(pa.string())),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_types_that_hold_no_captions_are_refused_alike(tmp_path, kind):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": ["a.png"], "text": UNFIT[kind]}), path)
    for read in (
        lambda: read_captions(path),
        lambda: curate([path], tmp_path / "clean", EVERY_ROW),
        lambda: list(read_texts([str(path)])),
    ):
        with pytest.raises(
            ValueError, match=f"`text` .*{kind}.* hold captions"
        ):
            read()
    # Among others it is left out with its reason.
    write_table(tmp_path / "good.parquet", "parquet")
    curate([tmp_path], tmp_path / "clean", EVERY_ROW)
    (damaged,) = audit(tmp_path / "clean")["reading"]["damaged_files"]
    assert damaged["file"] == str(path)
    assert "cannot hold captions" in damaged["reason"]


@pytest.mark.parametrize("kind", FIT)
def test_types_that_hold_captions_are_read_alike(tmp_path, kind):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": ["a.png"], "text": FIT[kind]}), path)
    assert read_captions(path) == {"a.png": ["é"]}
    assert curated(path, tmp_path / "clean")[0] == [("a.png", "é")]
    assert list(read_texts([str(path)])) == ["é"]


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_images_without_paths_are_refused_by_curation(tmp_path, kind):
    image = image_file(0)
    image = {"bytes": image, "path": None} if kind == "struct" else image
    path = tmp_path / "x.parquet"
    columns = {"image": [image] * 2, "text": ["one", "two"], "name": ["1", "2"]}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=r"x\.parquet.*`image` holds images"):
        curate([path], tmp_path / "clean", EVERY_ROW)
    # What the message says to do.
    rows, _ = curated(path, tmp_path / "1", columns={"url": "name"})
    assert rows == [("1", "one"), ("2", "two")]
    fields = {"image_identity": "name", "extra_columns": ["name"]}
    assert len(curated(path, tmp_path / "2", **fields)[0]) == 2


def test_a_folder_of_tables_is_read_without_what_systems_leave(tmp_path):
    folder = tmp_path / "in"
    junk = ["._{}", "__MACOSX/{}", "@eaDir/{}", ".ipynb_checkpoints/{}"]
    for name in ("{}", "sub/{}", *junk, "sub/.hidden/{}", "_tmp/{}"):
        for form in ("jsonl", "csv", "parquet"):
            path = folder / name.format(f"x.{form}")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(path, form)
    (folder / ".DS_Store").write_bytes(b"junk")
    manifest = curate([folder], tmp_path / "clean", EVERY_ROW)
    names = [os.path.relpath(file, folder) for file in manifest["inputs"]]
    forms = ("csv", "jsonl", "parquet")
    assert names == [f"{sub}x.{form}" for sub in ("sub/", "") for form in forms]


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path, form):
    path = tmp_path / f"x.{form}"
    columns = [["a.png"], ["one"], ["two"], [""], [""]]
    names = ["image", "caption", "caption", "", ""]
    if form == "parquet":
        pq.write_table(
            pa.Table.from_arrays([*map(pa.array, columns)], names), path
        )
    else:
        mark = "," if form == "csv" else "\t"
        rows = [names, [column[0] for column in columns]]
        path.write_text("\n".join(map(mark.join, rows)))
    for read in (
        lambda: read_captions(path),
        lambda: curate([path], tmp_path / "clean", EVERY_ROW),
        lambda: list(read_texts([str(path)])),
    ):
        with pytest.raises(ValueError, match="several columns .* `caption`"):
            read()
    if form != "parquet":
        # Without names they are of no use, and no harm.
        path.write_text(path.read_text().replace("caption", "note", 1))
        assert read_captions(path) == {"a.png": ["two"]}


def test_a_table_of_which_no_line_can_be_read_is_damaged(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps([{"image": "a.png", "caption": "x"}], indent=1))
    with pytest.raises(ValueError, match=r"x\.jsonl`: none of its 6 lines"):
        curate([path], tmp_path / "clean", EVERY_ROW)
    write_table(tmp_path / "y.jsonl", "jsonl")
    with open(tmp_path / "y.jsonl", "a") as file:
        file.write("\n{no JSON\n")
    made = learn_vocabulary([tmp_path], tmp_path / "vocabulary.txt")
    assert made["damaged_files"] == [str(path)]
    assert made["texts"] == 2 and made["unreadable_lines"] == 1
    assert "1 lines are unreadable" in caplog.text


def test_a_table_behind_a_link_that_leads_nowhere_is_named(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_table(folder / "b.csv", "csv")
    links = [folder / f"{name}.parquet" for name in "ac"]
    for link in links:
        link.symlink_to("nowhere")
    assert curated(folder, tmp_path / "clean")[0] == TEXTS
    damaged = audit(tmp_path / "clean")["reading"]["damaged_files"]
    assert [entry["file"] for entry in damaged] == [*map(str, links)]
    made = learn_vocabulary([folder], tmp_path / "vocabulary.txt")
    assert made["damaged_files"] == [*map(str, links)] and made["texts"] == 2


def test_a_table_that_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv"):
        with pytest.raises(
            FileNotFoundError, match=f"{name}` is not a file but"
        ):
            list(read_rows(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="no file `.*nowhere.csv`"):
        list(read_rows(tmp_path / "nowhere.csv"))
