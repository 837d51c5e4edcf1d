"""Archives, records, tables and classes that are links out of the folder."""

import json

import hostile
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from curated import LENGTH
from curated import audit
from curated import kept
from tiny_align import image_file
from tiny_align import tiny_align

from align_keras import curation
from align_keras.cli import main
from align_keras.curation.config import parse_config
from align_keras.curation.evaluation_images import hash_evaluation_images
from align_keras.curation.perceptual_hash import measure_images
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data.records import encode_record
from align_keras.embedding.image_sources import plan_sources
from align_keras.embedding.image_sources import read_source
from align_keras.evaluation import datasets
from align_keras.io.folders import OutsideFolder
from align_keras.training.inputs import find_records


def _image(path):
    return image_file(1 if path.name.startswith("x") else 2, form="PNG")


def write_archive(path):
    image, name = _image(path), path.stem
    hostile.write_tar(
        path,
        [
            (f"{name}.png", b"0", len(image), image),
            (f"{name}.txt", b"0", 5, b"words"),
        ],
    )


def write_records(path):
    with tf.io.TFRecordWriter(str(path)) as file:
        record = encode_record(path.stem, _image(path), ["words"], 60, 45)
        file.write(record)


def write_table(path):
    image = {"bytes": _image(path), "path": f"{path.stem}.png"}
    rows = {"image": [image], "caption": ["words"]}
    pq.write_table(pa.table(rows), path)


MEMBERS = {
    "a.tar": write_archive,
    "a.tfrecord": write_records,
    "a.parquet": write_table,
}


@pytest.fixture(params=MEMBERS)
def members(request, tmp_path):
    write = MEMBERS[request.param]
    return hostile.folder_of_members_outside(tmp_path, request.param, write)


@pytest.mark.parametrize("as_glob", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
def test_pack_counts_members_that_lead_out(members, tmp_path, allowed, as_glob):
    source = members.data
    if as_glob:
        source = f"{source}/*{members.mine.suffix}"
    manifest = pack(source, tmp_path / "out", allow_outside=allowed)
    found = {r["key"] for r in open_records(str(tmp_path / "out"))}
    assert found == ({"a", "xa"} if allowed else {"a"})
    # The folder behind a link, too, is named.
    reasons = {} if allowed else {"outside the folder": 2 - as_glob}
    assert manifest["skipped_reasons"] == reasons
    for entry in manifest["skipped"]:
        assert entry["file"] in (str(members.data / members.link), "behind")
        assert "--allow-outside" in entry["detail"]
    # A file that is named alone is meant.
    named = members.data / members.link
    assert pack(named, tmp_path / "named")["records"] == 1


@pytest.mark.parametrize("allowed", [False, True])
def test_embed_counts_members_that_lead_out(members, allowed):
    skipped, found = {}, set()
    for part in plan_sources(members.data, allow_outside=allowed):
        # Executors elsewhere get them as text.
        part = json.loads(json.dumps(part))
        pairs = read_source(part, skipped.__setitem__)
        found |= {read() for _, read, _ in pairs}
    assert len(found) == 1 + allowed
    link = str(members.data / members.link)
    assert [*skipped] == ([] if allowed else ["behind", link])


@pytest.mark.parametrize("allowed", [False, True])
def test_retrieval_leaves_members_out_that_lead_out(members, caplog, allowed):
    if members.mine.suffix == ".tfrecord":
        if not allowed:
            with pytest.raises(OutsideFolder, match="linka.tfrecord"):
                datasets.captioned(members.data)
            return
    data = datasets.captioned(members.data, allow_outside=allowed)
    assert len(list(data.examples())) == 1 + allowed
    assert (str(members.data / members.link) in caplog.text) != allowed


def test_training_refuses_records_that_lead_out(tmp_path):
    found = hostile.folder_of_members_outside(
        tmp_path, "a.tfrecord", write_records
    )
    for source in (found.data, f"{found.data}/*.tf*", [found.data]):
        with pytest.raises(OutsideFolder, match="linka.tfrecord.*`--allow"):
            find_records(source, tmp_path / "packed")
        records, _ = find_records(source, tmp_path / "packed", 0, True)
        assert records.total == 2
    assert open_records(found.data / found.link).total == 1


def test_measuring_follows_what_training_was_allowed(tmp_path):
    found = hostile.folder_of_members_outside(
        tmp_path, "a.tfrecord", write_records
    )
    records, _ = find_records(found.data, tmp_path / "packed", 0, True)
    data = datasets.captioned(records)
    assert data.name == str(found.data)
    assert len(list(data.examples())) == 2


# === Classes ===


@pytest.fixture
def classes(tmp_path):
    def write(path):
        path.mkdir()
        (path / "1.png").write_bytes(_image(path))

    return hostile.folder_of_members_outside(tmp_path, "a", write)


def test_classes_that_lead_out_are_refused(classes, tmp_path):
    (classes.data / "a" / "again").symlink_to(classes.data / "a")
    inner = classes.data / "b"
    inner.symlink_to("a")
    for name in ("behind", classes.link):
        with pytest.raises(OutsideFolder, match=f"/{name}` leads out"):
            datasets.class_folders(classes.data)
        (classes.data / name).rename(tmp_path / name)
    data = datasets.class_folders(classes.data)
    assert [(name, label) for name, _, label in data.examples()] == [
        ("a/1.png", 0),
        ("b/1.png", 1),
    ]
    # An image, and a folder within one of the classes.
    for target in (tmp_path / "data-elsewhere" / "xa", None):
        way = classes.data / "a" / "2.png"
        way.symlink_to(target or tmp_path / "data-elsewhere" / "xa" / "1.png")
        with pytest.raises(OutsideFolder, match="a/2.png` leads out"):
            datasets.class_folders(classes.data)
        allowed = datasets.class_folders(classes.data, allow_outside=True)
        assert allowed.total == 4
        way.unlink()


@pytest.mark.parametrize("allowed", [False, True])
def test_the_commands_have_the_option(classes, tmp_path, capsys, allowed):
    """Each that reads a folder; what it refuses is named."""
    preset = tmp_path / "preset"
    tiny_align().save_to_preset(str(preset))
    option = ["--allow-outside"] if allowed else []
    folder, model = str(classes.data), ["--model", str(preset)]
    (classes.data / "behind").unlink()
    names = tmp_path / "names.json"
    names.write_text('{"a": "a red bus", "linka": "a blue dog"}')
    command = ["evaluate", "zero-shot", *model, "--data", folder]
    command += ["--classes", str(names), "--bootstrap", "0"]
    assert main([*command, *option]) == (0 if allowed else 2)
    assert ("linka` leads out of" in capsys.readouterr().err) != allowed
    command = ["classify", folder, "a red bus", "a dog", *model, "--json"]
    assert main([*command, *option]) == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 1 + allowed
    assert ("linka` leads out of" in said.err) != allowed


def test_images_of_captions_are_read_where_that_is_meant(tmp_path):
    ways = hostile.folder_with_ways_out(tmp_path)
    captions = hostile.write_captions(tmp_path / "c.csv", ways.outside)
    with pytest.raises(OutsideFolder, match="--allow-outside"):
        list(datasets.captioned(ways.data, captions).examples())
    data = datasets.captioned(ways.data, captions, allow_outside=True)
    found = {path.read_bytes() for _, path, _ in data.examples()}
    assert found == {ways.secret.read_bytes()}


# === Curation ===


@pytest.mark.parametrize("allowed", [False, True])
def test_curate_counts_inputs_that_lead_out(tmp_path, allowed):

    def write(path):
        path.write_text(f"url,text\nhttp://a.b/{path.stem},a red bus\n")

    found = hostile.folder_of_members_outside(tmp_path, "a.csv", write)
    curation.curate(
        [found.data],
        tmp_path / "out",
        parse_config(LENGTH),
        allow_outside=allowed,
    )
    urls = {row["url"] for row in kept(tmp_path / "out")}
    mine = {"http://a.b/a"}
    assert urls == (mine | {"http://a.b/xa"} if allowed else mine)
    reading = audit(tmp_path / "out")["reading"]
    refused = {e["file"]: e["reason"] for e in reading["damaged_files"]}
    names = [str(found.data / name) for name in (found.behind, found.link)]
    assert sorted(refused) == ([] if allowed else names)
    assert all("--allow-outside" in reason for reason in refused.values())
    assert reading["files"] == 3


def test_curate_counts_what_it_does_not_read(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    text = "url,text\nhttp://a.b/c,a red bus\n"
    (folder / "a.csv").write_text(text)
    (folder / "sub" / "00000.csv").write_text(text)
    others = ["b.tar", "sub/c.tar.zst", "d.zip", "e.csv.xz", "f.tfrecord"]
    others += ["h.png.gz"]
    # The third is what the table of its name tells of.
    passed = ["a.png", "notes.txt", "sub/00000.tar", ".g.tar"]
    for name in others + passed:
        (folder / name).write_bytes(b"anything")
    curation.curate([folder], tmp_path / "out", parse_config(LENGTH))
    reading = audit(tmp_path / "out")["reading"]
    told = {e["file"]: e["reason"] for e in reading["damaged_files"]}
    assert sorted(told) == sorted(str(folder / name) for name in others)
    assert all("not read here" in reason for reason in told.values())
    assert reading["files"] == 2 + len(others)
    counts = curation.learn_vocabulary([folder], tmp_path / "v.txt")
    # Which can read texts, but not beside tables.
    others += ["notes.txt"]
    assert len(counts["damaged_files"]) == len(others)
    # One that names nothing else is refused.
    (folder / "only").mkdir()
    (folder / "only" / "x.zip").write_bytes(b"anything")
    with pytest.raises(FileNotFoundError, match=r"x\.zip` is not read"):
        curation.curate([folder / "only"], tmp_path / "none")


def test_curate_refuses_what_holds_nothing_of_its_own(tmp_path):
    found = hostile.folder_of_members_outside(
        tmp_path, "a.csv", lambda path: path.write_text("url,text\nu,words\n")
    )
    found.mine.unlink()
    for read in (
        lambda: curation.curate([found.data], tmp_path / "out"),
        lambda: curation.learn_vocabulary([found.data], tmp_path / "v.txt"),
    ):
        with pytest.raises(OutsideFolder, match="leads out of"):
            read()


def test_vocabulary_counts_inputs_that_lead_out(tmp_path):
    found = hostile.folder_of_members_outside(
        tmp_path,
        "a.jsonl",
        lambda path: path.write_text(f'{{"text": "{path.stem} bus"}}\n'),
    )
    for allowed in (False, True):
        result = curation.learn_vocabulary(
            [found.data], tmp_path / "v.txt", allow_outside=allowed
        )
        assert result["texts"] == (3 if allowed else 1)
        assert len(result["damaged_files"]) == (0 if allowed else 2)


def test_curate_measures_images_outside_where_that_is_meant(tmp_path, caplog):
    ways = hostile.folder_with_ways_out(tmp_path)
    refused = measure_images(str(ways.data), ways.outside)
    assert {type(one) for one in refused} == {str}
    measured = measure_images(str(ways.data), ways.outside, True)
    assert {(one.width, one.height) for one in measured} == {(60, 45)}
    # Test images follow the same rule; `a.png`, `b.png` and links to them.
    mine = hash_evaluation_images([ways.data], False)
    assert str(ways.secret) in caplog.text
    both = hash_evaluation_images([ways.data], False, True)
    assert len(both) == len(mine) + 1


@pytest.mark.parametrize("linked", ["kept", "kept/0.parquet"])
def test_kept_rows_that_lead_out_are_refused(tmp_path, linked):
    images, output = tmp_path / "images", tmp_path / "curated"
    for folder in (images, output / "kept", output / "dropped"):
        folder.mkdir(parents=True)
    (images / "a.png").write_bytes(image_file(1, form="PNG"))
    (output / "manifest.json").write_text("{}")
    rows = pa.table({"url": ["a.png"], "text": ["a secret"]})
    pq.write_table(rows, output / "kept" / "0.parquet")
    assert pack(images, tmp_path / "good", output)["records"] == 1
    target = (output / linked).rename(tmp_path / "elsewhere")
    (output / linked).symlink_to(target)
    with pytest.raises(OutsideFolder, match=linked):
        pack(images, tmp_path / "out", output)
