"""Sources with odd files: each is read, or counted, or one clear error."""

import argparse
import io
import json
import os

import pytest
from archive_files import write_archive
from PIL import Image
from tiny_align import image_file

from align_keras.cli import main
from align_keras.cli.evaluate import retrieval
from align_keras.cli.evaluate import shared_options
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data import sources
from align_keras.data.archives import from_archive
from align_keras.data.records import encode_record
from align_keras.data.records import record_offsets
from align_keras.embedding import image_sources
from align_keras.embedding.image_sources import plan_sources
from align_keras.embedding.image_sources import read_source
from align_keras.evaluation.datasets import captioned
from align_keras.io.file_names import UNREAD_SUFFIXES
from align_keras.io.file_names import list_images
from align_keras.training.inputs import find_records

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PNG = image_file(0, form="PNG")


@pytest.fixture
def folder(tmp_path):
    """A folder of one good image with its text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    (folder / "a.txt").write_text("a text")
    return folder


def packed(source, output, *arguments):
    """Captions by keys, and reasons by names of what is left out."""
    manifest = pack(source, output, *arguments)
    captions = {r["key"]: r["captions"] for r in open_records(output)}
    return captions, {e["file"]: e["reason"] for e in manifest["skipped"]}


def embedded(source):
    """Texts by names as `embed` reads them, and reasons."""
    reasons, texts = {}, {}
    for part in plan_sources(source):
        for key, read, text in read_source(part, reasons.__setitem__):
            texts[key] = text, read
    return texts, reasons


# === Images that are not read ===


@pytest.mark.parametrize("suffix", UNREAD_SUFFIXES)
def test_images_of_other_formats_are_named(tmp_path, folder, suffix):
    files = {"b": f"b{suffix}", "c": f"c{suffix.upper()}"}
    for name in files.values():
        (folder / name).write_bytes(b"not read")
    (folder / "c.txt").write_text("another text")
    expected = {files["b"]: "no caption", files["c"]: "not an image"}
    captions, left_out = packed(folder, tmp_path / "1")
    assert captions == {"a": ["a text"]} and left_out == expected
    assert embedded(folder)[0].keys() == {"a.png", *files.values()}
    members = {f.name: f.read_bytes() for f in sorted(folder.iterdir())}
    write_archive(tmp_path / "0.tar", members)
    captions, left_out = packed(tmp_path / "0.tar", tmp_path / "2")
    assert captions == {"a": ["a text"]} and left_out == expected


@pytest.mark.parametrize("behind", ["?w=100", "_large", ":large", "~", " "])
def test_what_stands_behind_a_suffix_hides_no_image(tmp_path, folder, behind):
    (folder / f"b.PNG{behind}").write_bytes(PNG)
    (folder / "b.txt").write_text("another")
    (folder / f"c.jpg{behind}").write_bytes(b"not one")
    texts, _ = embedded(folder)
    assert texts.keys() == {"a.png", f"b.PNG{behind}", f"c.jpg{behind}"}
    expected = {"a": ["a text"], "b": ["another"]}
    left_out = {f"c.jpg{behind}": "no caption"}
    assert packed(folder, tmp_path / "1") == (expected, left_out)
    members = {f.name: f.read_bytes() for f in sorted(folder.iterdir())}
    write_archive(tmp_path / "0.tar", members)
    assert packed(tmp_path / "0.tar", tmp_path / "2") == (expected, left_out)


def pictures():
    """An image of each format that begins as no other file does."""
    image = Image.new("RGB", (8, 8))
    Image.init()
    for kind in (
        "JPEG",
        "PNG",
        "GIF",
        "WEBP",
        "TIFF",
        "BMP",
        "JPEG2000",
        "AVIF",
    ):
        if kind in Image.SAVE:
            body = io.BytesIO()
            image.save(body, kind)
            yield kind, body.getvalue()


@pytest.mark.parametrize("name", ["0001", "b.1", "b.png.bak", "b.thm"])
def test_images_without_their_suffix_are_named(tmp_path, folder, name):
    reason = "image without its suffix"
    named = dict(pictures())
    assert len(named) >= 7
    for kind, body in named.items():
        (folder / kind).mkdir()
        (folder / kind / name).write_bytes(body)
    (folder / "nothing").mkdir()
    (folder / "nothing" / name).write_bytes(b"MMII RIFF no image at all")
    expected = {f"{kind}/{name}": reason for kind in named}
    captions, left_out = packed(folder, tmp_path / "1")
    assert captions == {"a": ["a text"]} and left_out == expected
    assert embedded(folder)[1].keys() == expected.keys()
    members = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_archive(tmp_path / "0.tar", members)
    # Samples have the names of their files up to the first dot.
    samples = [f"{kind}/{name.split('.')[0]}" for kind in (*named, "nothing")]
    left_out = dict.fromkeys(samples, "no image")
    assert packed(tmp_path / "0.tar", tmp_path / "2") == (captions, left_out)


# === Links that lead nowhere ===


def test_links_that_lead_nowhere_are_named(tmp_path, folder):
    links = ["b.png", "c.txt", "d", "e.heic", "sub/f", "g.jpg"]
    (folder / "sub").mkdir()
    for name in links:
        (folder / name).symlink_to("nowhere")
    (folder / "g.txt").write_text("of an image that is gone")
    (folder / "h").symlink_to("h")
    (folder / ".#lock").symlink_to("user@host")
    expected = dict.fromkeys([*links, "h"], "missing file")
    # Of the link, whose text it is.
    captions, left_out = packed(folder, tmp_path / "1")
    assert captions == {"a": ["a text"]} and left_out == expected
    texts, reasons = embedded(folder)
    assert texts.keys() == {"a.png"} and reasons.keys() == expected.keys()


@pytest.mark.parametrize("form", ["tar", "tfrecord", "parquet"])
def test_files_behind_links_that_lead_nowhere_are_named(tmp_path, form):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    (folder / "a.txt").write_text("a text")
    if form == "tfrecord":
        pack(folder, tmp_path / "records")
        (shard,) = (tmp_path / "records").glob("*.tfrecord")
        shard.rename(folder / "0.tfrecord")
    elif form == "tar":
        files = {"a.png": PNG, "a.txt": b"a text"}
        write_archive(folder / "0.tar", files)
    else:
        images = [{"bytes": PNG, "path": "a.png"}]
        table = pa.table({"image": images, "text": ["a text"]})
        pq.write_table(table, folder / "0.parquet")
    for name in ("a.png", "a.txt"):
        (folder / name).unlink()
    link = folder / f"1.{form}"
    link.symlink_to("nowhere")
    captions, left_out = packed(folder, tmp_path / "out")
    assert captions == {"a": ["a text"]}
    assert left_out == {str(link): "missing file"}
    texts, reasons = embedded(folder)
    assert len(texts) == 1 and reasons.keys() == {str(link)}


def test_a_caption_file_behind_a_link_that_leads_nowhere(tmp_path, folder):
    (folder / "captions.csv").symlink_to("nowhere.csv")
    for read in (
        lambda: pack(folder, tmp_path / "out"),
        lambda: plan_sources(folder),
        lambda: captioned(folder),
        lambda: find_records(folder, tmp_path / "packed"),
    ):
        with pytest.raises(FileNotFoundError, match=r"file `.*captions\.csv`"):
            read()


# === Texts of an archive that differ in case alone ===


def test_texts_that_differ_in_case_alone_are_both_captions(tmp_path, folder):
    json_of = '{{"caption": "{}"}}'.format
    files = {
        "a.png": PNG,
        "a.txt": b"low",
        "a.TXT": b"up\nmore",
        "b.png": PNG,
        "b.json": json_of("low").encode(),
        "b.JSON": json_of("up").encode(),
        "c.png": PNG,
        "c.txt": b"one",
        "c.TXT": b"two",
        "c.json": json_of("one").encode(),
        "c.JSON": json_of("two").encode(),
        "d.png": PNG,
        "d.PNG": PNG,
        "d.txt": b"of both",
    }
    write_archive(tmp_path / "0.tar", files)
    found = {n: t for n, _, t in from_archive(tmp_path / "0.tar")}
    assert found == {
        "a.png": ["low", "up", "more"],
        "b.png": ["low", "up"],
        "c.png": ["one", "two"],
        "d.png": ["of both"],
        "d.PNG": ["of both"],
    }
    (folder / "a.TXT").write_text("more")
    captions, _ = packed(folder, tmp_path / "out")
    assert captions == {"a": ["more", "a text"]}


# === Sources of another kind ===

OTHERS = {
    "x.zip": "unpack it",
    "x.tar.zst": "unpack it",
    "x.TAR.ZST": "unpack it",
    "x.7z": "unpack it",
    "captions.csv": "--captions",
    "captions.JSONL": "--captions",
    "x.json": "--captions",
    "x.png": "one image",
    "x.heic": "one image",
    "x.txt": "a text",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_source_of_another_kind_says_what_to_do(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"anything")
    for read in (
        lambda: pack(path, tmp_path / "out"),
        lambda: plan_sources(path),
        lambda: captioned(path),
        lambda: find_records(path, tmp_path / "packed"),
        lambda: open_records([path]),
        lambda: pack(tmp_path / f"*{path.suffix}", tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=OTHERS[name]) as error:
            read()
        assert f"`{path}` is " in str(error.value)


def test_a_source_that_is_not_there(tmp_path):
    (tmp_path / "link.tfrecord").symlink_to("nowhere")
    for source in ("x.zip", "*.zip", "nowhere", "link.tfrecord"):
        for read in (
            lambda source: pack(source, tmp_path / "out"),
            captioned,
            lambda source: embedded(source)[0]["x"],
        ):
            with pytest.raises((FileNotFoundError, ValueError, KeyError)):
                read(tmp_path / source)


def test_a_damaged_table_among_others_is_counted(tmp_path):
    out, tmp_path = tmp_path / "out", tmp_path / "in"
    tmp_path.mkdir()
    images = [{"bytes": PNG, "path": "a.png"}]
    table = pa.table({"image": images, "text": ["a text"]})
    pq.write_table(table, tmp_path / "0.parquet")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "1.parquet")
    (tmp_path / "2.parquet").write_bytes(b"PAR1")
    unfit = pa.table({"image": images, "text": [1.5]})
    pq.write_table(unfit, tmp_path / "3.parquet")
    lists = pa.table({"image": pa.array([None], "string"), "text": ["a"]})
    pq.write_table(lists, tmp_path / "4.parquet")
    captions, left_out = packed(tmp_path, out)
    assert captions == {"a": ["a text"]}
    reasons = ["unfit column", "damaged archive", "unfit column"]
    names = [str(tmp_path / f"{n}.parquet") for n in (1, 2, 3)]
    row = {f"{tmp_path}/4.parquet, row 1": "no image"}
    assert left_out == dict(zip(names, reasons, strict=True)) | row
    assert embedded(tmp_path)[1].keys() == left_out.keys()
    (tmp_path / "0.parquet").unlink()
    with pytest.raises(ValueError, match=r"first is .*1\.parquet: .*no column"):
        pack(tmp_path, out.with_name("none"))


# === What `evaluate` reads ===


def options(*words):
    parser = argparse.ArgumentParser()
    retrieval.add_arguments(parser)
    return parser.parse_args(["--model", "m", *map(str, words)])


def examples(*words):
    data = shared_options.captioned(options("--data", *words))
    found = [*data.examples()]
    # They are read more than once.
    assert [*data.examples()] == found
    return {key: texts for key, _, texts in found}


def test_evaluation_reads_a_folder_as_packing_does(tmp_path, folder):
    expected = {"a.png": ["a text"]}
    assert examples(folder) == expected
    files = {"a.png": PNG, "a.txt": b"a text"}
    write_archive(tmp_path / "0.tar", files)
    assert examples(tmp_path / "0.tar") == examples(tmp_path) == expected
    rows = [{"image": "a.png", "caption": [f"text {n}" for n in range(7)]}]
    first = {"a.png": rows[0]["caption"][:5]}
    for form in ("json", "jsonl"):
        path = folder / f"captions.{form}"
        path.write_text(json.dumps(rows if form == "json" else rows[0]))
        assert examples(folder) == first
        assert len(examples(folder, "--captions-per-image", 2)["a.png"]) == 2
        path.unlink()
    rows[0]["split"] = "train"
    (folder / "captions.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="no image of the split 'test'"):
        examples(folder)
    assert examples(folder, "--split", "train") == first


@pytest.mark.parametrize("beside", [False, True])
def test_evaluation_reads_images_within_parquet(tmp_path, folder, beside):
    paths = [None, "a.png"]
    images = [{"bytes": PNG, "path": path} for path in paths]
    if beside:
        images[1]["bytes"] = None
    texts = [[f"text {n}" for n in range(7)], ["one"]]
    table = pa.table({"image": images, "text": texts})
    pq.write_table(table, folder / "captions.parquet")
    expected = {"captions-00000001": texts[0][:5], "a.png": ["one"]}
    assert examples(folder) == expected
    path = folder / "captions.parquet"
    assert examples(folder, "--captions", path) == expected
    if not beside:
        assert examples(path) == expected
    data = captioned(folder)
    assert [image for _, image, _ in data.examples()] == [PNG, PNG]


@pytest.mark.parametrize("option", ["--split", "--captions-per-image"])
def test_options_of_caption_files_are_refused_elsewhere(
    folder, option, capsys, any_model
):
    command = ["evaluate", "retrieval", "--model", "m", "--data", str(folder)]
    assert main([*command, option, "1"]) == 2
    name = option.strip("-").replace("-", "_")
    assert f"`{name}` is for a caption file" in capsys.readouterr().err


def test_what_evaluation_leaves_out_is_named(tmp_path, folder, caplog):
    (folder / "b.png").symlink_to("nowhere")
    os.mkdir(folder / "sub")
    (folder / "sub" / "c.txt").write_text("of no image")
    for name in ("d.png.part", "D.JPG.crdownload"):
        (folder / "sub" / name).write_bytes(PNG[:90])
    (folder / "sub" / "notes.part").write_text("no image")
    assert examples(folder) == {"a.png": ["a text"]}
    assert "Left out b.png: missing file" in caplog.text
    assert "Left out sub/c.txt: no image of that name" in caplog.text
    for name in ("d.png.part", "D.JPG.crdownload"):
        assert f"Left out sub/{name}: unfinished download" in caplog.text
    assert "notes.part" not in caplog.text


# === Names ===


def test_records_whose_path_is_not_utf8(tmp_path, folder):
    pack(folder, tmp_path / "records")
    latin = tmp_path / os.fsdecode(b"caf\xe9")
    (tmp_path / "records").rename(latin)
    captions, _ = packed(folder, tmp_path / "records")
    manifest = pack(latin, tmp_path / "again")
    assert manifest["records"] == len(captions) == 1
    assert embedded(latin)[0].keys() == {"a"}
    for read in (captioned, lambda source: find_records(source, tmp_path)):
        with pytest.raises(ValueError, match="not UTF-8; rename .*caf\ufffd"):
            read(latin)


@pytest.mark.parametrize("read", [captioned, plan_sources])
def test_several_caption_files_are_refused(tmp_path, folder, read):
    for suffix in ("csv", "TSV", "txt"):
        (folder / f"captions.{suffix}").write_text("image,caption\n")
    with pytest.raises(ValueError, match=r"several .*: keep only one") as error:
        read(folder)
    assert "captions.TSV, captions.csv:" in str(error.value)


def test_a_table_of_another_name_is_mentioned(tmp_path, folder):
    (folder / "a.txt").unlink()
    (folder / "metadata.csv").write_text("file_name,text\na.png,a text\n")
    with pytest.raises(ValueError, match=r"metadata\.csv` holds .*--captions"):
        pack(folder, tmp_path / "out")
    captions, _ = packed(folder, tmp_path / "out", folder / "metadata.csv")
    assert captions == {"a": ["a text"]}


@pytest.mark.parametrize("name", ["captions.txt", "captions.csv.gz"])
def test_a_table_of_another_suffix_is_mentioned(tmp_path, folder, name):
    (folder / "a.txt").unlink()
    (folder / name).write_text("image,caption\na.png,a text\n")
    with pytest.raises(ValueError, match=rf"{name}` is a table .* \.csv"):
        pack(folder, tmp_path / "out")


def test_the_folder_itself_is_not_mentioned(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged archive.*empty file.$"):
        pack(tmp_path, tmp_path / "out")


def test_a_table_whose_suffix_is_in_upper_case_is_mentioned(tmp_path, folder):
    (folder / "a.txt").unlink()
    (folder / "Captions.TSV").write_text("image\tcaption\na.png\ta text\n")
    with pytest.raises(ValueError, match=r"Captions\.TSV` holds .*--captions"):
        pack(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["0.tar", "0.tfrecord", "0.parquet"])
def test_files_in_a_folder_within_are_mentioned(tmp_path, name):
    # As Hugging Face's repositories are, with tables of other things above.
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / name).write_bytes(b"")
    (tmp_path / "set" / "infos.json").write_text("{}")
    with pytest.raises(ValueError, match=r"records in `.*data`: give that"):
        pack(tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize("form", ["tar", "tfrecord"])
def test_images_beside_archives_and_records_are_counted(tmp_path, folder, form):
    (folder / "sub").mkdir()
    (folder / "sub" / "c.jpg").write_bytes(PNG)
    archive = tmp_path / "0.tar"
    write_archive(archive, {"b.png": PNG, "b.txt": b"b text"})
    if form == "tar":
        archive.rename(folder / "0.tar")
    else:
        pack(archive, tmp_path / "records")
        (record,) = (tmp_path / "records").glob("*.tfrecord")
        record.rename(folder / "0.tfrecord")
    captions, reasons = packed(folder, tmp_path / "out")
    assert captions == {"b": ["b text"]}
    beside = "beside archives or records"
    assert reasons == {"a.png": beside, "sub/c.jpg": beside}


@pytest.mark.parametrize("form", ["tar", "tfrecord"])
def test_other_commands_name_images_beside_archives_and_records(
    tmp_path, folder, form, caplog
):
    archive = tmp_path / "0.tar"
    write_archive(archive, {"b.png": PNG, "b.txt": b"b text"})
    if form == "tar":
        archive.rename(folder / "0.tar")
    else:
        pack(archive, tmp_path / "records")
        (record,) = (tmp_path / "records").glob("*.tfrecord")
        record.rename(folder / "0.tfrecord")
    (part,) = plan_sources(folder)
    skipped = []
    keys = [
        k for k, *_ in read_source(part, lambda *told: skipped.append(told))
    ]
    assert keys == ["b.png" if form == "tar" else "b"]
    assert skipped == [("a.png", "beside archives or records")]
    assert len(list(captioned(folder).examples())) == 1
    assert "Left out a.png: beside archives or records" in caplog.text
    if form == "tfrecord":
        find_records(str(folder), tmp_path / "packed")
        assert f"1 images or files of images in `{folder}`" in caplog.text


# === What a folder or a glob holds beside what is read ===


def fill(folder):
    """Files of every form that a folder may hold, and how each is called."""
    for place in ("sub", "closed"):
        (folder / place).mkdir()
    (folder / "away").symlink_to("nowhere")
    parquet = {"image": [{"bytes": PNG, "path": "p.png"}], "text": ["p"]}
    pq.write_table(pa.table(parquet), folder / "sub" / "p.parquet")
    # As img2dataset writes beside its archives: it holds no image.
    about = pa.table({"url": ["http://a/b.jpg"], "caption": ["b"]})
    pq.write_table(about, folder / "sub" / "00000.parquet")
    write_archive(folder / "sub" / "b.tar", {"b.png": PNG, "b.txt": b"b"})
    for name in (
        "c.tar.zst",
        "sub/d.zip",
        "sub/e.tar.gz",
        "f.png.gz",
        "sub/g.tfrecord-00000-of-00002",
    ):
        (folder / name).write_bytes(b"anything")
    for name in ("notes.csv.gz", "notes.md", "sub/.h.tar", "0_stats.json"):
        (folder / name).write_bytes(b"nothing of ours")
    # Whether they are images, their contents tell.
    unnamed = ("scan", "sub/0001", "i.png.1", "sub/i.png.bak", "j.part")
    for name in (*unnamed, "k.png.part"):
        (folder / name).write_bytes(PNG)
    packed = "archive of a kind that is not read"
    within = "archive or records in a folder within"
    return {
        "away": "missing file",
        "c.tar.zst": packed,
        "f.png.gz": packed,
        "sub/b.tar": within,
        "sub/d.zip": packed,
        "sub/e.tar.gz": within,
        "sub/g.tfrecord-00000-of-00002": within,
        "sub/p.parquet": within,
        **dict.fromkeys(unnamed, "image without its suffix"),
        "k.png.part": "unfinished download",
    }


@pytest.mark.parametrize("form", ["images", "csv", "tar", "tfrecord"])
def test_what_a_folder_holds_is_read_or_named(tmp_path, folder, form, caplog):
    if form == "csv":
        (folder / "captions.csv").write_text("image,caption\na.png,a text\n")
        (folder / "a.txt").unlink()
    elif form != "images":
        members = {"a.png": PNG, "a.txt": b"a text"}
        write_archive(tmp_path / "0.tar", members)
        pack(tmp_path / "0.tar", tmp_path / "records")
        for path in (*tmp_path.glob(f"0.{form}"), *tmp_path.glob("records/*")):
            if path.suffix == f".{form}":
                path.rename(folder / f"0.{form}")
        for name in ("a.png", "a.txt"):
            (folder / name).unlink()
    expected = fill(folder)
    captions, left_out = packed(folder, tmp_path / "out")
    assert captions == {"a": ["a text"]} and left_out == expected
    texts, left_out = embedded(folder)
    # What a table lists may be missing, which shows when it is read.
    assert [*texts][:1] in (["a.png"], ["a"])
    assert {*texts, *left_out} - {[*texts][0]} == expected.keys()
    assert len(examples(folder)) == 1
    for name, reason in expected.items():
        assert f"Left out {name}: {reason}" in caplog.text
    if form == "tfrecord":
        find_records(folder, tmp_path / "packed")
        assert f"{len(expected)} images or files of images" in caplog.text


def test_images_that_a_caption_file_does_not_list_are_counted(
    tmp_path, folder, caplog
):
    rows = "image,caption,split\na.png,a text,test\nb.png,b text,train\n"
    (folder / "captions.csv").write_text(rows)
    (folder / "sub").mkdir()
    for name in ("b.png", "c.png", "sub/d.png"):
        (folder / name).write_bytes(PNG)
    # Another name of what is listed is not another image.
    (folder / "link.png").symlink_to("a.png")
    manifest = pack(folder, tmp_path / "out", split="test")
    assert manifest["records"] == 1 and manifest["images"] == 3
    assert {e["file"]: e["reason"] for e in manifest["skipped"]} == {
        name: "no usable row in the caption file"
        for name in ("c.png", "sub/d.png")
    }
    assert examples(folder, "--split", "test") == {"a.png": ["a text"]}
    assert (
        "2 images, first c.png: no usable row in the caption file"
        in caplog.text
    )


def test_archives_in_an_archive_are_counted(tmp_path):
    names = ["b.tar", "c/d.zip", "e.tfrecord", "f.parquet", "g.tar.zst"]
    files = {name: b"anything" for name in names}
    # One of these is of the sample of an image.
    files |= {"a.png": PNG, "a.txt": b"a text", "a.tar.gz": b"anything"}
    names.append("a.tar.gz")
    write_archive(tmp_path / "0.tar", files)
    captions, left_out = packed(tmp_path / "0.tar", tmp_path / "out")
    assert captions == {"a": ["a text"]}
    assert left_out == dict.fromkeys(names, "archive in an archive")
    assert embedded(tmp_path / "0.tar")[1] == left_out


def test_tables_of_what_records_hold_are_not_opened(tmp_path, folder):
    pack(folder, tmp_path / "records")
    (record,) = (tmp_path / "records").glob("*.tfrecord")
    (tmp_path / "in").mkdir()
    record.rename(tmp_path / "in" / "00000.tfrecord")
    (tmp_path / "in" / "00000.parquet").write_bytes(b"none of ours")
    assert packed(tmp_path / "in", tmp_path / "out")[1] == {}


def test_an_image_that_no_reader_sees_is_noticed(tmp_path, folder, monkeypatch):
    for name in ("b.png", "c.png"):
        (folder / name).write_bytes(PNG)

    def lose_one(*arguments):
        return [n for n in list_images(*arguments) if n != "c.png"]

    monkeypatch.setattr(sources, "list_images", lose_one)
    monkeypatch.setattr(image_sources, "list_images", lose_one)
    with pytest.raises(RuntimeError, match=r"c\.png` was neither read nor"):
        pack(folder, tmp_path / "out")
    with pytest.raises(RuntimeError, match=r"c\.png` was neither read nor"):
        plan_sources(folder)
    with pytest.raises(RuntimeError, match=r"c\.png` was neither read nor"):
        examples(folder)


def test_what_a_glob_names_is_read_or_named(tmp_path, folder):
    fill(folder)
    write_archive(folder / "0.tar", {"b.png": PNG, "b.txt": b"b text"})
    captions, left_out = packed(folder / "*", tmp_path / "out")
    assert captions == {"b": ["b text"]}
    packed_up = "archive of a kind that is not read"
    among = "folder among files"
    reasons = {
        "a.png": "beside archives or records",
        "away": "missing file",
        "c.tar.zst": packed_up,
        "closed": among,
        "f.png.gz": packed_up,
        "sub": among,
    }
    expected = {str(folder / name): told for name, told in reasons.items()}
    del expected[str(folder / "away")]
    assert left_out == expected
    assert embedded(folder / "*")[1].keys() == expected.keys()


def test_a_folder_of_nothing_that_is_read_says_what_it_holds(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.zip").write_bytes(b"anything")
    with pytest.raises(ValueError, match=r"kind that is not read.*x\.zip"):
        pack(tmp_path / "in", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"x\.zip: .*\(unpack it"):
        plan_sources(tmp_path / "in")
    with pytest.raises(FileNotFoundError, match=r"`x\.zip` in it is not read"):
        find_records(tmp_path / "in", tmp_path / "packed")


def test_numbered_records_have_keys_and_counts_of_their_own(tmp_path):
    import tensorflow as tf

    names = [f"x.tfrecord-0000{n}-of-00002" for n in range(2)]
    for number, name in enumerate(names):
        with tf.io.TFRecordWriter(str(tmp_path / name)) as file:
            for text in "abc"[: 2 + number]:
                file.write(encode_record("", PNG, [text], 1, 1))
    offsets = record_offsets(str(tmp_path / names[0]))
    pairs = zip(offsets[:-1], offsets[1:], strict=True)
    lines = [f"{begin} {end - begin}\n" for begin, end in pairs]
    (tmp_path / "x-00000-of-00002.idx").write_text("".join(lines))
    stats = '{"successes": 3}'
    (tmp_path / "x-00001-of-00002_stats.json").write_text(stats)
    assert [*open_records(tmp_path).counts.values()] == [2, 3]
    captions, left_out = packed(tmp_path, tmp_path.with_name("packed-records"))
    assert captions == {
        "x-00000-of-00002[0]": ["a"],
        "x-00000-of-00002[1]": ["b"],
        "x-00001-of-00002[0]": ["a"],
        "x-00001-of-00002[1]": ["b"],
        "x-00001-of-00002[2]": ["c"],
    }
    assert not left_out


@pytest.mark.parametrize(
    "name", ["0.tfrecords", "0.TFRec", "x.tfrecord-00000-of-00001"]
)
def test_records_of_other_names(tmp_path, folder, name):
    pack(folder, tmp_path / "records")
    (record,) = (tmp_path / "records").glob("*.tfrecord")
    (tmp_path / "in").mkdir()
    record.rename(tmp_path / "in" / name)
    source = tmp_path / "in"
    assert packed(source, tmp_path / "out")[0] == {"a": ["a text"]}
    assert embedded(source)[0]["a"][0] == "a text"
    assert examples(source) == {"a": ["a text"]}
    assert find_records(source, tmp_path / "packed")[0].total == 1
    assert len(open_records(source).paths) == 1
    (folder / "sub").mkdir()
    (source / name).rename(folder / "sub" / name)
    left_out = packed(folder, tmp_path / "other")[1]
    assert [*left_out] == [f"sub/{name}"]
