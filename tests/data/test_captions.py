"""Captions in every command that reads them, and texts of every origin."""

import argparse
import bz2
import csv
import gzip
import io
import json
import lzma
import re
import shutil
import tarfile

import pytest
import tensorflow as tf
from archive_files import write_archive
from PIL import Image

from align_keras.cli import main
from align_keras.cli.evaluate import retrieval
from align_keras.cli.evaluate import shared_options
from align_keras.curation import curate
from align_keras.curation.config import parse_config
from align_keras.curation.ingest import find_columns
from align_keras.curation.ingest import read_strings
from align_keras.curation.input_files import read_batches
from align_keras.data import archives
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data import read_captions
from align_keras.data.archives import from_archive
from align_keras.data.records import encode_record
from align_keras.data.sources import from_folder
from align_keras.data.tally import Tally
from align_keras.embedding.image_sources import plan_sources
from align_keras.embedding.image_sources import read_source
from align_keras.evaluation.datasets import captioned
from align_keras.evaluation.datasets import class_folders
from align_keras.evaluation.datasets import karpathy
from align_keras.io.text import decode_text
from align_keras.io.text import split_lines
from align_keras.training.inputs import find_records

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("ibis", reason="needs the extra `curation`")

COLUMNS = {"rules": [{"token_count": {"at_least": 0}}]}


def image(seed=0, form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (seed, 2 * seed, 99)).save(file, form)
    return file.getvalue()


def captions_of(output):
    return {r["key"]: r["captions"] for r in open_records(output)}


def embedded(source):
    """Keys and first captions as `embed` reads them."""
    reasons = []

    def skip(key, reason):
        reasons.append((key, reason))

    rows = []
    for part in plan_sources(source):
        rows += [
            (key, read(), text) for key, read, text in read_source(part, skip)
        ]
    assert not reasons
    return {key: text for key, contents, text in rows if contents}


@pytest.mark.parametrize(
    "header",
    ["image,sentence", "Image,Caption", " FILE_NAME , Alt_Text ", "Path,TXT"],
)
def test_columns_have_the_same_names_in_every_command(tmp_path, header):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(image())
    captions = photos / "captions.csv"
    captions.write_text(f"{header}\na.png,a red bus\n")
    expected = {"a": ["a red bus"]}
    pack(photos, tmp_path / "packed", captions)
    assert captions_of(tmp_path / "packed") == expected
    trained, _ = find_records(photos, tmp_path / "trained")
    assert captions_of(trained) == expected
    assert embedded(photos) == {"a.png": "a red bus"}
    for given in ([], ["--captions", str(captions)]):
        arguments = ["--model", "m", "--data", str(photos), *given]
        parser = argparse.ArgumentParser()
        retrieval.add_arguments(parser)
        data = shared_options.captioned(parser.parse_args(arguments))
        assert [texts for _, _, texts in data.examples()] == [["a red bus"]]
    curate([captions], tmp_path / "clean", parse_config(COLUMNS))
    (row,) = pq.read_table(tmp_path / "clean" / "kept").to_pylist()
    assert (row["url"], row["text"]) == ("a.png", "a red bus")
    vocabulary = tmp_path / "vocabulary.txt"
    main(["vocab", str(captions), "--output", str(vocabulary), "--json"])
    assert {"a", "b", "r"} <= set(vocabulary.read_text().split())


def test_a_folder_is_read_the_same_by_every_command(tmp_path):
    """`pack` without `--captions`, and `embed`, find what `train` finds."""
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.JPE", "c.other"):
        (photos / name).write_bytes(image())
    rows = [
        {"image": "a.png", "caption": ["one", "two"]},
        {"image": "sub/b.JPE", "caption": "three"},
        {"image": "c.other", "caption": "four"},
    ]
    (photos / "captions.json").write_text(json.dumps(rows), "utf-8-sig")
    # Not read where there is a table.
    (photos / "a.txt").write_text("beside")
    manifest = pack(photos, tmp_path / "packed")
    assert manifest["images"] == manifest["records"] == 3
    assert captions_of(tmp_path / "packed") == {
        "a": ["one", "two"],
        "sub/b": ["three"],
        "c": ["four"],
    }
    assert embedded(photos) == {
        "a.png": "one",
        "c.other": "four",
        "sub/b.JPE": "three",
    }
    curate([photos], tmp_path / "clean", parse_config(COLUMNS))
    kept = pq.read_table(tmp_path / "clean" / "kept").to_pylist()
    assert sorted(row["text"] for row in kept) == [
        "four",
        "one",
        "three",
        "two",
    ]


# === Text ===


def test_kept_rows_go_into_every_command(tmp_path):
    """An extra column of a usual name takes nothing's place."""
    folder, output = tmp_path / "photos", tmp_path / "clean"
    (folder / "in").mkdir(parents=True)
    for seed, name in enumerate("abc"):
        (folder / "in" / f"{name}.jpg").write_bytes(image(seed))
    rows = [
        {"url": f"in/{name}.jpg", "text": text, "image": "x", "caption": "y"}
        for name, text in [
            ("a", "a red bus"),
            ("b", "bus"),
            ("a", "one more red bus"),
            ("c", "a house"),
            ("c", "a green house"),
        ]
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rule = {"token_count": {"at_least": 3, "at_most": 20}}
    fields = {"rules": [rule], "extra_columns": ["image", "caption"]}
    fields["columns"] = {"text": "text"}
    curate([tmp_path / "p.jsonl"], output, parse_config(fields))
    expected = {
        "in/a.jpg": ["a red bus", "one more red bus"],
        "in/c.jpg": ["a green house"],
    }
    assert read_captions(output) == expected
    assert read_captions(output / "kept") == expected
    manifest = pack(folder, tmp_path / "packed", output)
    assert (manifest["records"], manifest["captions"]) == (2, 3)
    assert manifest["skipped_reasons"] == {
        "no usable row in the caption file": 1
    }
    assert pack(folder, tmp_path / "packed", output) == manifest
    (part,) = plan_sources(folder, captions=output, listed_only=True)
    found = zip(part["names"], part["captions"], strict=True)
    assert dict(found) == expected
    examples = captioned(folder, output).examples()
    assert {key: texts for key, _, texts in examples} == expected
    # Another result is another data set.
    with pytest.raises(FileExistsError, match="other arguments or captions"):
        pack(folder, tmp_path / "packed", tmp_path / "p.jsonl")
    (output / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="has not finished"):
        pack(folder, tmp_path / "unfinished", output)
    with pytest.raises(FileNotFoundError, match="is not a file but a folder"):
        read_captions(folder)


def test_what_cannot_be_encoded_is_replaced_and_the_rest_is_kept(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (photos / name).write_bytes(image())
    rows = [
        {"image": "a.png", "caption": "a cat \ud83d"},
        {"image": "b.png", "caption": "\ud83d\ude3a is whole"},
        {"image": "gone\ud83d.png", "caption": "x"},
        {"image": "gone\u0000.png", "caption": "x"},
        {"image": "c.png", "caption": float("nan")},
    ]
    expected = {"a": ["a cat \ufffd"], "b": ["\U0001f63a is whole"]}
    sentences = [
        {"filename": r["image"], "sentences": [{"raw": r["caption"]}]}
        for r in rows
    ]
    forms = {
        "c.json": json.dumps(rows),
        "c.jsonl": "\n".join(map(json.dumps, rows)),
        "karpathy.json": json.dumps({"images": sentences}),
    }
    for name, text in forms.items():
        output = tmp_path / f"packed-{name}"
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            (tmp_path / name).write_text(text, encoding)
            manifest = pack(photos, f"{output}-{encoding}", tmp_path / name)
            assert captions_of(f"{output}-{encoding}") == expected
            assert manifest["skipped_reasons"] == {
                "missing file": 2,
                "no caption": 1,
            }
            listed = {entry["file"] for entry in manifest["skipped"]}
            assert listed == {"gone\ufffd.png", "gone\u0000.png", "c.png"}
    (tmp_path / "c.jsonl").write_text(forms["c.jsonl"], "utf-8-sig")
    curate([tmp_path / "c.jsonl"], tmp_path / "clean", parse_config(COLUMNS))
    kept = pq.read_table(tmp_path / "clean" / "kept").to_pylist()
    texts = [row["text"] for row in kept]
    assert sorted(texts) == sorted([*sum(expected.values(), []), "x", "x"])
    audit = json.loads((tmp_path / "clean" / "audit.json").read_text())
    assert audit["reading"]["counts"]["invalid_utf8_texts"] == 1
    assert audit["reading"]["counts"]["null_texts"] == 1


def test_names_of_bytes(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    (photos / name).write_bytes(image())
    (photos / name).with_suffix(".txt").write_text("a cup")
    other = b"\xe9.png".decode("utf-8", "surrogateescape")
    (photos / other).write_bytes(image())
    manifest = pack(photos, tmp_path / "packed")
    assert captions_of(tmp_path / "packed") == {"caf\ufffd": ["a cup"]}
    assert [entry["file"] for entry in manifest["skipped"]] == ["\ufffd.png"]
    # Python writes such names into JSON as it has them.
    row = json.dumps({"image": name, "caption": "a cup"})
    (tmp_path / "c.jsonl").write_text(row)
    pack(photos, tmp_path / "listed", tmp_path / "c.jsonl")
    assert captions_of(tmp_path / "listed") == {"caf\ufffd": ["a cup"]}
    archive = {name: image(), name[:-4] + ".txt": b"a cup"}
    write_archive(tmp_path / "0.tar", archive.items())
    pack(tmp_path / "0.tar", tmp_path / "from_tar")
    assert captions_of(tmp_path / "from_tar") == {"caf\ufffd": ["a cup"]}
    assert embedded(photos) == {"caf\ufffd.png": "a cup", "\ufffd.png": ""}
    # And the folder itself.
    moved = photos.rename(tmp_path / name)
    again = pack(moved, tmp_path / "moved")
    assert again["records"] == 1
    assert pack(moved, tmp_path / "moved") == again


def test_quotation_marks_are_text_in_tsv(tmp_path):
    rows = {
        "1.jpg": '"hello" said the sign',
        "2.jpg": '"an unfinished quotation',
        "3.jpg": 'a "b" c',
        "4.jpg": '"',
        "5.jpg": "plain",
    }
    path = tmp_path / "c.tsv"
    lines = ["image\tcaption", *("\t".join(row) for row in rows.items())]
    path.write_text("\n".join(lines))
    expected = {name: [text] for name, text in rows.items()}
    assert read_captions(path) == expected
    for name in rows:
        (tmp_path / name).write_bytes(image())
    data = karpathy(path, tmp_path, split=None)
    assert {key: texts for key, _, texts in data.examples()} == expected


def test_csv_that_would_lose_rows_is_refused(tmp_path):
    path = tmp_path / "c.csv"
    for row in ('2.jpg,"never closed', '2.jpg,"closed"? said the sign'):
        path.write_text(f"image,caption\n1.jpg,a\n{row}\n3.jpg,b\n4.jpg,c\n")
        with pytest.raises(ValueError, match=r"c\.csv` is not valid CSV"):
            read_captions(path)


def test_rows_of_too_many_fields_are_counted(tmp_path, caplog):
    path = tmp_path / "c.csv"
    path.write_text("image,caption\na,a red bus, on a road\nb,fine\n")
    assert read_captions(path) == {"b": ["fine"]}
    assert "1 too many fields" in caplog.text
    tally = Tally()
    read_captions(path, tally=tally)
    assert tally.seen == 2 and tally.listed[0]["file"].endswith("row 1")


@pytest.mark.parametrize("form", ["jsonl", "json"])
@pytest.mark.parametrize("column", ["caption", "TEXT"])
def test_what_is_no_text_is_no_caption_anywhere(tmp_path, form, column):
    """The same for `pack`, in tables and archives, as for `curate`."""
    infinite = float("inf")
    values = [infinite, -infinite, float("nan"), True, False, None, {}, 1.5]
    values += [10**400, "words"]
    texts = [None] * 7 + ["1.5", str(10**400), "words"]
    # Named as curation takes it.
    path = tmp_path / f"captions.{form}"
    write_table(
        path, [{"url": f"{n}", column: value} for n, value in enumerate(values)]
    )
    wanted = {str(n): [text] if text else [] for n, text in enumerate(texts)}
    assert read_captions(path) == wanted
    ((columns, bad),) = read_batches(str(path))
    found = read_strings(columns[find_columns(list(columns))["text"]])
    assert found == texts and not bad
    files = []
    for number, value in enumerate(values):
        files.append((f"{number}.jpg", image()))
        files.append((f"{number}.json", json.dumps({column: value}).encode()))
    write_archive(tmp_path / "0.tar", files)
    archived = {name[:-4]: t for name, _, t in from_archive(tmp_path / "0.tar")}
    assert archived == wanted


MISSING = {
    "csv": ["", "  ", "./", "."],
    "tsv": ["", " "],
    "jsonl": ["", None, float("nan"), "./", True],
    "json": ["", None, float("nan")],
    "parquet": ["", None],
}


@pytest.mark.parametrize("form", MISSING)
def test_rows_without_an_image_are_counted_each(tmp_path, form):
    out, tmp_path = tmp_path / "out", tmp_path / "in"
    tmp_path.mkdir()
    path = tmp_path / f"captions.{form}"
    (tmp_path / "0.png").write_bytes(image())
    rows = [
        {"image": name, "caption": f"text {n}"}
        for n, name in enumerate(["0.png", *MISSING[form], *MISSING[form]])
    ]
    write_table(path, rows)
    manifest = pack(tmp_path, out)
    assert captions_of(out) == {"0": ["text 0"]}
    assert manifest["skipped"] == [
        {"file": f"{path}, row {number}", "reason": "no image"}
        for number in range(2, len(rows) + 1)
    ]
    # Evaluation and `embed` pass over them, too.
    data = karpathy(path, tmp_path, split=None)
    assert [name for name, *_ in data.examples()] == ["0.png"]
    assert embedded(tmp_path) == {"0.png": "text 0"}


def test_rows_without_an_image_in_a_table_that_holds_images(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": image(), "path": None}, None]
    images.append({"bytes": None, "path": None})
    columns = {"image": pa.array(images, kind), "text": ["a", "b", "c"]}
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path)
    manifest = pack(path, tmp_path / "out")
    assert [(e["file"], e["reason"]) for e in manifest["skipped"]] == [
        (f"{path}, row 2", "no image"),
        (f"{path}, row 3", "no image"),
    ]


def write_table(path, rows):
    """Rows of an image and a caption in the form that the suffix tells."""
    form = path.suffix[1:]
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "json":
        path.write_text(json.dumps(rows))
    elif form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        mark = "," if form == "csv" else "\t"
        lines = [f"image{mark}caption"]
        lines += [f"{r['image']}{mark}{r['caption']}" for r in rows]
        path.write_text("\n".join(lines))


SEPARATORS = "\u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e"


def test_captions_end_at_line_ends_alone(tmp_path):
    text = f"one {SEPARATORS} line\r\nanother\rthird\n\n last"
    lines = [f"one {SEPARATORS} line", "another", "third", "last"]
    encodings = ("utf-8", "utf-8-sig", "utf-16", "utf-16-sig")
    for encoding in encodings[:3]:
        contents = text.encode(encoding)
        assert decode_text(contents) == text
        (tmp_path / "a.png").write_bytes(image())
        (tmp_path / "a.txt").write_bytes(contents)
        ((_, _, found),) = from_folder(tmp_path)
        assert found == lines
        files = [("0.png", image()), ("0.txt", contents)]
        write_archive(tmp_path / "0.tar", files)
        ((_, _, found),) = from_archive(tmp_path / "0.tar")
        assert found == lines
        (tmp_path / "0.tar").unlink()
    assert split_lines("a\n\nb") == ["a", "", "b"]


def test_the_same_caption_in_text_and_json_is_one(tmp_path):
    caption = "a red\nbus\u2028here"
    files = [
        ("0.json", json.dumps({"caption": caption, "key": "0"}).encode()),
        ("0.jpg", image()),
        ("0.txt", caption.encode()),
        ("1.jpg", image()),
        ("1.txt", b"one\ntwo"),
        ("1.json", b'{"caption": "another"}'),
        ("2.jpg", image()),
        ("2.json", '{"TEXT": "\\ud83d cat"}'.encode("utf-8-sig")),
    ]
    write_archive(tmp_path / "0.tar", files)
    found = [texts for _, _, texts in from_archive(tmp_path / "0.tar")]
    assert found == [[caption], ["one", "two"], ["\ufffd cat"]]


# === Containers ===


def test_what_systems_leave_behind_is_no_sample(tmp_path):
    junk = ["._{}", ".DS_Store", "__MACOSX/{}", "@eaDir/{}"]
    junk += [".ipynb_checkpoints/{}", "sub/.hidden/{}", "Thumbs.db"]
    files = []
    for number in range(3):
        for suffix, contents in ((".jpg", image()), (".txt", b"a text")):
            name = f"{number}{suffix}"
            files += [(f"./{j.format(name)}", b"junk") for j in junk]
            files.append((f"./{name}", contents))
    write_archive(tmp_path / "0.tar", files)
    manifest = pack(tmp_path / "0.tar", tmp_path / "packed")
    assert captions_of(tmp_path / "packed") == dict.fromkeys("012", ["a text"])
    assert manifest["skipped_count"] == 0 and manifest["images"] == 3
    for name, contents in files:
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    manifest = pack(tmp_path / "folder", tmp_path / "again")
    assert manifest["records"] == manifest["images"] == 3
    assert embedded(tmp_path / "folder") == dict.fromkeys(
        ["0.jpg", "1.jpg", "2.jpg"], "a text"
    )
    # A tar that the Finder hides beside the one that is meant.
    (tmp_path / "tars").mkdir()
    write_archive(tmp_path / "tars" / "0.tar", files)
    (tmp_path / "tars" / "._0.tar").write_bytes(b"junk")
    manifest = pack(tmp_path / "tars", tmp_path / "third")
    assert manifest["skipped_count"] == 0


def test_class_folders_are_in_natural_order(tmp_path):
    for name in ("1", "10", "2", ".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.AVIF").write_bytes(b"")
        (tmp_path / name / "._a.AVIF").write_bytes(b"")
    data = class_folders(tmp_path)
    assert data.class_names == ["1", "2", "10"] and data.total == 3
    (tmp_path / "background").mkdir()
    for number in (1, 2, 10):
        (tmp_path / str(number)).rename(tmp_path / f"class {number}")
    names = class_folders(tmp_path).class_names
    assert names == ["background", "class 1", "class 2", "class 10"]


SUFFIXES = {
    "AVIF": [".avif", ".AVIF"],
    "JPEG2000": [".jp2", ".j2k"],
    "BMP": [".bmp", ".dib"],
    "JPEG": [".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".JPE", ".Jpeg"],
    "PPM": [".ppm"],
    "PNG": [".PNG"],
    "TIFF": [".Tif"],
}


def test_every_suffix_of_an_image_in_folders_and_archives(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    files, expected = [], {}
    for form, suffixes in SUFFIXES.items():
        for suffix in suffixes:
            key = f"{len(expected)}"
            expected[key] = [f"a {form}"]
            (photos / f"{key}{suffix}").write_bytes(image(1, form))
            (photos / f"{key}.txt").write_text(f"a {form}")
            files.append((f"{key}{suffix}", image(1, form)))
            files.append((f"{key}.txt", f"a {form}".encode()))
    write_archive(tmp_path / "0.tar", files)
    for number, source in enumerate([photos, tmp_path / "0.tar"]):
        manifest = pack(source, tmp_path / f"packed-{number}")
        assert captions_of(tmp_path / f"packed-{number}") == expected
        assert manifest["images"] == len(expected)
    (photos / "x.heic").write_bytes(b"")
    (photos / "x.txt").write_text("of no image that is read")
    manifest = pack(photos, tmp_path / "more")
    (skipped,) = manifest["skipped"]
    assert (skipped["file"], skipped["reason"]) == ("x.heic", "not an image")


@pytest.mark.parametrize(
    "name",
    ["a.TXT", "captions.CSV", "captions.Jsonl", "Z.PARQUET", "t.TFRECORD"],
)
def test_suffixes_in_any_case(tmp_path, name):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.PNG").write_bytes(image())
    path = folder / name
    if path.stem == "captions":
        lower = path.with_suffix(path.suffix.lower())
        write_table(lower, [{"image": "a.PNG", "caption": "a text"}])
        lower.rename(path)
    elif path.stem == "a":
        path.write_text("a text")
    elif path.stem == "Z":
        (folder / "a.PNG").unlink()
        hugging_face_table(path, ["a text"])
    else:
        (folder / "a.txt").write_text("a text")
        pack(folder, tmp_path / "records")
        (shard,) = (tmp_path / "records").glob("*.tfrecord")
        shutil.rmtree(folder)
        folder.mkdir()
        shard.rename(path)
        assert find_records(folder, tmp_path / "no")[0].total == 1
    manifest = pack(folder, tmp_path / "packed")
    assert [*captions_of(tmp_path / "packed").values()] == [["a text"]]
    assert not manifest["skipped"]
    assert [*embedded(folder).values()] == ["a text"]


def test_every_sample_of_an_archive_is_packed_or_counted(tmp_path):
    files = [
        # With more dots than WebDataset's rule knows.
        ("s0.input.jpg", image(1)),
        ("s0.outputs.txt", b"dotted"),
        # One name up to the first dot, and many images.
        ("v1.2_0001.jpg", image(2)),
        ("v1.2_0001.txt", b"first"),
        ("v1.2_0002.jpg", image(3)),
        ("v1.2_0002.txt", b"second"),
        # A mask, which is not the image.
        ("m.seg.png", image(4)),
        ("m.png", image(5)),
        ("m.txt", b"with a mask"),
        ("twice.jpg", image(6)),
        ("twice.txt", b"the first"),
        ("twice.jpg", image(7)),
        ("twice.txt", b"the second"),
        ("link.jpg", "m.png"),
        ("link.txt", b"of a hard link"),
        ("lost.jpg", "elsewhere.png"),
        ("lost.txt", b"of a link that leads nowhere"),
        ("0.heic", b"unknown"),
        ("0.txt", b"of an unknown image"),
        ("both.png", image(8)),
        ("both.jpg", image(9)),
        ("both.txt", b"two images"),
        ("mute.jpg", image(10)),
    ]
    write_archive(tmp_path / "0.tar", files)
    tally = Tally()
    found = {
        n: read() for n, read, _ in from_archive(tmp_path / "0.tar", tally)
    }
    assert found["m.png"] == image(5) and "m.seg.png" not in found
    manifest = pack(tmp_path / "0.tar", tmp_path / "packed")
    packed = captions_of(tmp_path / "packed")
    # Other images of a name that was there have their digests in theirs.
    others = [key for key in packed if re.search("-[0-9a-f]{16}$", key)]
    assert {key.split("-")[0]: packed.pop(key) for key in others} == {
        "twice": ["the second"],
        "both": ["two images"],
    }
    assert packed == {
        "s0.input": ["dotted"],
        "v1.2_0001": ["first"],
        "v1.2_0002": ["second"],
        "m": ["with a mask"],
        "twice": ["the first"],
        "link": ["of a hard link"],
        "both": ["two images"],
    }
    reasons = {(e["file"], e["reason"]) for e in manifest["skipped"]}
    assert reasons == {
        ("lost.jpg", "link in an archive"),
        ("0.heic", "not an image"),
        ("mute.jpg", "no caption"),
    }
    assert manifest["images"] == manifest["records"] + 3 == 12


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_in_an_archive(tmp_path, kind, mode):
    path = tmp_path / "0.tar"
    with tarfile.open(path, mode) as tar:
        for name, contents in (("a/0.png", image()), ("a/0.txt", b"text")):
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
        for suffix in ("png", "txt"):
            member = tarfile.TarInfo(f"./b/1.{suffix}")
            member.type, member.linkname = kind, f"a/0.{suffix}"
            if kind == tarfile.SYMTYPE:
                member.linkname = f"../a/0.{suffix}"
            tar.addfile(member)
    manifest = pack(path, tmp_path / "packed")
    found = captions_of(tmp_path / "packed")
    if mode == "w":
        assert found == {"a/0": ["text"], "b/1": ["text"]}
        assert not manifest["skipped"]
    else:
        assert found == {"a/0": ["text"]}
        (skipped,) = manifest["skipped"]
        assert skipped["file"] == "b/1.png"
        assert skipped["reason"] == "link in an archive"
        assert skipped["detail"].endswith("a/0.png")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_to_files_of_any_name(tmp_path, kind):
    """As those of a cache of blobs, and a link to such a link."""
    path = tmp_path / "0.tar"
    links = {"mid/x": "blobs/abc", "s/0.jpg": "mid/x", "s/0.txt": "blobs/d.e"}
    links |= {"t/1.jpg": "s/0.jpg", "t/1.txt": "s/0.txt"}
    write_archive(path, [("blobs/abc", image()), ("blobs/d.e", b"text")])
    with tarfile.open(path, "a") as tar:
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            if kind == tarfile.SYMTYPE:
                member.linkname = f"../{target}"
            tar.addfile(member)
    pack(path, tmp_path / "packed")
    assert captions_of(tmp_path / "packed") == {
        "s/0": ["text"],
        "t/1": ["text"],
    }


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_compressed_archives(tmp_path, suffix):
    mode = {"tar.bz2": "w:bz2", "tar.xz": "w:xz"}.get(suffix, "w:gz")
    files = []
    for number in range(40):
        files += [(f"{number}.png", image(number)), (f"{number}.txt", b"text")]
    path = tmp_path / "tars" / f"x[1].{suffix}"
    path.parent.mkdir()
    write_archive(path, files, mode)
    for number, source in enumerate([path, path.parent]):
        manifest = pack(source, tmp_path / f"packed-{number}")
        assert manifest["records"] == 40
    assert len(embedded(path)) == 40
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    broken = tmp_path / "tars" / f"y.{suffix}"
    broken.write_bytes(b"not an archive")
    write_archive(tmp_path / "tars" / "z.tar", files[:2])
    manifest = pack(path.parent, tmp_path / "cut")
    assert manifest["skipped_reasons"]["damaged archive"] == 2
    assert manifest["images"] == manifest["records"] + sum(
        manifest["skipped_reasons"].values()
    )


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz"])
def test_archives_that_were_compressed_in_parts(tmp_path, suffix):
    # As bgzip, pbzip2 and pixz do.
    compress = {"tar.gz": gzip, "tar.bz2": bz2, "tar.xz": lzma}[suffix].compress
    files = []
    for number in range(9):
        files += [(f"{number}.png", image(number)), (f"{number}.txt", b"text")]
    write_archive(tmp_path / "x.tar", files)
    whole = (tmp_path / "x.tar").read_bytes()
    parts = [whole[n : n + 1000] for n in range(0, len(whole), 1000)]
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"".join(map(compress, parts)))
    manifest = pack(path, tmp_path / "packed")
    assert manifest["records"] == 9
    assert not manifest["skipped"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_what_follows_the_end_of_an_archive_is_told(tmp_path, compress):
    joined = b""
    for number in range(2):
        files = [(f"{number}.png", image(number)), (f"{number}.txt", b"text")]
        write_archive(tmp_path / "x.tar", files)
        joined += compress((tmp_path / "x.tar").read_bytes())
    (tmp_path / "joined.tar").write_bytes(joined)
    manifest = pack(tmp_path / "joined.tar", tmp_path / "packed")
    assert captions_of(tmp_path / "packed") == {"0": ["text"]}
    (skipped,) = manifest["skipped"]
    assert skipped["reason"] == "damaged archive"
    assert "follows its end" in skipped["detail"]


def test_captions_of_an_archive_that_are_not_read_have_a_reason(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(archives, "MAX_TEXT_BYTES", 100)
    files = [("0.png", image()), ("0.txt", "nowhere.txt")]
    files += [("1.txt", b"long " * 99), ("1.png", image(1))]
    files += [("2.png", image(2)), ("2.json", b"[" * 101), ("2.txt", b"two")]
    write_archive(tmp_path / "x.tar", files)
    tally = Tally()
    found = {
        n: texts for n, _, texts in from_archive(tmp_path / "x.tar", tally)
    }
    assert found == {"2.png": ["two"]}
    assert tally.seen == 3
    told = {one["file"]: (one["reason"], one["detail"]) for one in tally.listed}
    assert told == {
        "0.png": (
            "unreadable captions",
            "`0.txt`: link in an archive: nowhere.txt",
        ),
        "1.png": ("unreadable captions", "`1.txt`: file too large: 495 bytes"),
    }


def test_what_is_whole_before_the_damage_is_kept(tmp_path):
    files = [("0.png", image()), ("0.txt", b"text"), ("1.png", image(1))]
    write_archive(tmp_path / "0.tar", files)
    whole = (tmp_path / "0.tar").read_bytes()
    # Between the files, in the header of the second image, and in its bytes.
    for cut in (2048, 2300, 2600):
        (tmp_path / "0.tar").write_bytes(whole[:cut])
        manifest = pack(tmp_path / "0.tar", tmp_path / f"packed-{cut}")
        assert captions_of(tmp_path / f"packed-{cut}") == {"0": ["text"]}
        assert manifest["skipped_reasons"] == {"damaged archive": 1}


# === Parquet ===


def hugging_face_table(path, captions, **more):
    """A table as Hugging Face's `datasets` writes it."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [
        {"bytes": image(n), "path": f"{n}.png" if n % 2 else None}
        for n in range(len(captions))
    ]
    columns = {"image": pa.array(images, kind), "caption": captions, **more}
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    "captions",
    [
        ["zero", "one", "two"],
        pa.array([b"zero", b"one", b"two"], "binary"),
        pa.array([["zero"], ["one"], ["two"]], pa.large_list(pa.string())),
        pa.array(["zero", "one", "two"]).dictionary_encode(),
    ],
    ids=["strings", "binary", "lists", "dictionary"],
)
def test_images_within_parquet(tmp_path, captions):
    path = tmp_path / "data" / "train-00000.parquet"
    path.parent.mkdir()
    hugging_face_table(path, captions)
    expected = {
        "train-00000-00000001": ["zero"],
        "1": ["one"],
        "train-00000-00000003": ["two"],
    }
    # The file, its folder, and a caption file.
    pack(path, tmp_path / "1")
    pack(path.parent, tmp_path / "2")
    pack(tmp_path, tmp_path / "3", path)
    for number in "123":
        assert captions_of(tmp_path / number) == expected
    records = {r["key"]: r["image"] for r in open_records(tmp_path / "1")}
    assert records["1"] == image(1)
    names = {f"{k}.png" if k == "1" else k: v[0] for k, v in expected.items()}
    assert embedded(path) == embedded(path.parent) == names
    curate([path], tmp_path / "clean", parse_config(COLUMNS))
    kept = pq.read_table(tmp_path / "clean" / "kept").to_pylist()
    assert [(row["url"], row["text"]) for row in kept] == [("1.png", "one")]


@pytest.mark.parametrize("form", ["bytes", "binary", "beside"])
@pytest.mark.parametrize("named", [True, False])
def test_a_row_for_each_caption_of_an_image(tmp_path, form, named):
    # As Flickr30k and COCO are found: the image again in each of five rows.
    if form != "bytes" and named != (form == "beside"):
        pytest.skip("binary tells no name, and a path is one")
    (tmp_path / "in").mkdir()
    numbers = [n // 5 for n in range(20)]
    images = [
        {"bytes": image(n), "path": f"{n}.png" if named else None}
        for n in numbers
    ]
    if form == "binary":
        images = [one["bytes"] for one in images]
    elif form == "beside":
        for one in images:
            (tmp_path / "in" / one["path"]).write_bytes(one["bytes"])
        images = [{"bytes": None, "path": one["path"]} for one in images]
    texts = [f"text {n}" for n in range(20)]
    texts[7] = " "
    table = pa.table({"image": images, "caption": texts})
    path = tmp_path / "in" / "captions.parquet"
    pq.write_table(table, path, row_group_size=3)
    manifest = pack(tmp_path / "in", tmp_path / "out")
    found = sorted(captions_of(tmp_path / "out").values())
    wanted = [texts[n : n + 5] for n in range(0, 20, 5)]
    wanted[1].remove(" ")
    assert found == sorted(wanted)
    assert manifest["records"] == manifest["images"] == 4
    assert manifest["captions"] == 19 and not manifest["skipped"]
    data = captioned(tmp_path / "in")
    assert [texts for _, _, texts in data.examples()] == wanted
    assert len(embedded(tmp_path / "in")) == 4


def test_rows_of_an_image_that_are_no_neighbours(tmp_path):
    names = ["a.png", "b.png", "a.png", "b.png", "a.png"]
    bodies = [image(0), image(1), image(0), image(2), image(0)]
    images = [
        {"bytes": body, "path": name}
        for name, body in zip(names, bodies, strict=True)
    ]
    texts = ["one", "two", "three", "of another image", "one"]
    table = pa.table({"image": images, "caption": texts})
    pq.write_table(table, tmp_path / "x.parquet")
    manifest = pack(tmp_path / "x.parquet", tmp_path / "out")
    packed = captions_of(tmp_path / "out")
    assert packed.pop("a") == ["one", "three"]
    assert packed.pop("b") == ["two"]
    assert list(packed.values()) == [["of another image"]]
    assert manifest["captions"] == 4 and manifest["images"] == 4
    assert manifest["skipped_reasons"] == {"duplicate key": 1}


@pytest.mark.parametrize("form", ["table", "tables", "archives", "records"])
def test_names_that_repeat_are_no_names(tmp_path, form):
    """Twelve images of two names, as sorted classes come from elsewhere."""
    source = tmp_path / "in"
    source.mkdir()
    rows = [(f"{n % 2}.png", image(n), f"text {n}") for n in range(12)]
    parts = [rows] if form == "table" else [rows[:5], rows[5:]]
    for number, part in enumerate(parts):
        path = source / f"{number}.parquet"
        names, bodies, texts = zip(*part, strict=True)
        if "table" in form:
            images = [
                {"bytes": body, "path": name}
                for name, body in zip(names, bodies, strict=True)
            ]
            table = pa.table({"image": images, "caption": list(texts)})
            pq.write_table(table, path)
        elif form == "archives":
            files = []
            for name, body, text in part:
                files.append((name, body))
                files.append((name.replace("png", "txt"), text.encode()))
            write_archive(path.with_suffix(".tar"), files)
        else:
            shard = path.with_suffix(".tfrecord")
            with tf.io.TFRecordWriter(str(shard)) as writer:
                for name, body, text in part:
                    record = encode_record(name[0], body, [text], 40, 40)
                    writer.write(record)
    manifest = pack(source, tmp_path / "out")
    packed = captions_of(tmp_path / "out")
    assert sorted(packed.values()) == sorted([text] for _, _, text in rows)
    assert manifest["images"] == manifest["records"] == 12
    assert not manifest["skipped"] and {"0", "1"} < packed.keys()
    again = pack(source, tmp_path / "again")
    assert again["shards"] == manifest["shards"]


def test_images_within_parquet_are_held_out(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    texts = [f"text {n}" for n in range(40)]
    hugging_face_table(photos / "captions.parquet", texts)
    records, held_out = find_records(photos, tmp_path / "packed", hold_out=0.2)
    kept, aside = captions_of(records), captions_of(held_out)
    assert len(aside) == 8 and len(kept) == 32 and not set(kept) & set(aside)
    assert sorted(sum([*kept.values(), *aside.values()], [])) == sorted(texts)


def test_images_as_plain_binary_and_as_paths(tmp_path):
    columns = {"image": pa.array([image(1), image(2)]), "text": ["a", "b"]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    pack(tmp_path / "x.parquet", tmp_path / "1")
    assert list(captions_of(tmp_path / "1").values()) == [["a"], ["b"]]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(image())
    columns = {"image": pa.array([b"a.png"]), "text": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "y.parquet")
    pack(tmp_path / "photos", tmp_path / "2", tmp_path / "y.parquet")
    assert captions_of(tmp_path / "2") == {"a": ["a"]}


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"image": [1, 2], "text": ["a", "b"]}, "`image` .* int64.*images"),
        ({"image": [["a"]], "text": ["a"]}, "`image` .* list<"),
        ({"image": [{"uri": "a"}], "text": ["a"]}, "`image` .* struct<uri"),
        ({"image": ["a"], "text": [1.5]}, "`text` .* double.*captions"),
        ({"image": ["a"], "text": [{"en": "a"}]}, "`text` .* struct<en"),
        ({"image": ["a"], "text": [[1]]}, "`text` .* list<"),
    ],
)
def test_other_types_of_parquet_are_refused_by_name(tmp_path, columns, words):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=words) as error:
        read_captions(path)
    assert str(path) in str(error.value)


def test_other_values_of_json_are_refused_by_name(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"image": {"uri": "a"}, "caption": "a"}')
    with pytest.raises(ValueError, match="row 1, .*`image`.* dict"):
        read_captions(path)
    path.write_text('{"image": 7, "caption": [3, null, true, 1.5, {}]}')
    assert read_captions(path) == {"7": ["3", "1.5"]}


def test_damaged_parquet_is_named(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": ["a"] * 999, "text": ["b"] * 999}), path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="x.parquet` is not a complete"):
        read_captions(path)


def test_a_source_whose_images_do_not_add_up_is_an_error():
    tally = Tally()
    tally.seen += 3
    tally.skip("a", "no caption")
    tally.check(2)
    with pytest.raises(RuntimeError, match="3 images.*1 were used and 1 left"):
        tally.check(1)


def test_csv_of_the_module_comes_back(tmp_path):
    path = tmp_path / "c.csv"
    with open(path, "w", newline="", encoding="utf-16") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        writer.writerow(['a,"b".png', 'say "hi",\nyou'])
    assert read_captions(path) == {'a,"b".png': ['say "hi",\nyou']}


def test_a_byte_order_mark_is_no_part_of_what_a_file_holds(tmp_path):
    from align_keras.classes import read_classes
    from align_keras.evaluation.cxc_data import read_sentences
    from align_keras.evaluation.multilingual import multi30k
    from align_keras.io.word_pieces import SPECIAL_TOKENS
    from align_keras.models import presets

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8-sig")
        return path

    classes = write("classes.json", '["cat", "dog"]')
    assert read_classes(classes).names == [["cat"], ["dog"]]
    classes = write("classes.txt", "cat\u2028s\ndog\n")
    assert read_classes(classes).names == [["cat\u2028s"], ["dog"]]
    sentence = {"sentid": 7, "raw": "a red bus"}
    images = {"images": [{"sentences": [sentence]}]}
    sentences = write("dataset.json", json.dumps(images))
    assert read_sentences(sentences, ["x:7"]) == ["a red bus"]
    task = "data/task1"
    write(f"{task}/image_splits/test_2016_flickr.txt", "a.png\n")
    write(f"{task}/raw/test_2016_flickr.fr", "un bus rouge\n")
    (tmp_path / "a.png").write_bytes(image())
    (example,) = multi30k(tmp_path, tmp_path, ["fr"]).examples()
    assert example[0] == "a.png" and example[2] == {"fr": ["un bus rouge"]}
    write("config.json", '{"class_name": "X"}')
    assert presets.load_config(str(tmp_path)) == {"class_name": "X"}
    words = write("words.txt", "bus\n")
    pairs = write("pairs.csv", "url,text\na,a red bus\nb,two dogs\n")
    rules = [{"forbidden_words": {"words": [str(words)]}}]
    curate([pairs], tmp_path / "clean", parse_config({"rules": rules}))
    (row,) = pq.read_table(tmp_path / "clean" / "kept").to_pylist()
    assert row["text"] == "two dogs"
    vocabulary = tmp_path / "vocabulary.txt"
    main(["vocab", str(words), "--output", str(vocabulary), "--json"])
    pieces = vocabulary.read_text().split()[len(SPECIAL_TOKENS) :]
    assert set("".join(pieces)) == set("bus#")
