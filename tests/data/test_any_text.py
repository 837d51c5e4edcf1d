"""Any captions and names, in every form that is read: back, or counted."""

import csv
import io
import json
import posixpath
import tarfile
import tempfile
import unicodedata
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from align_keras.curation.ingest import IngestTask
from align_keras.curation.ingest import ingest_file
from align_keras.curation.vocabulary import read_texts
from align_keras.data import read_captions
from align_keras.data.archives import from_archive
from align_keras.data.records import encode_record
from align_keras.data.records import parse_record
from align_keras.data.sources import from_caption_file
from align_keras.data.sources import from_folder
from align_keras.data.sources import from_records
from align_keras.data.sources import from_table
from align_keras.data.tally import Tally
from align_keras.evaluation.datasets import captioned
from align_keras.io.text import BLANKS

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

# What programs mistake for something else, and then anything at all.
AWKWARD = [
    *"\ud83d\udce9\x00\x01\x1f\x7f\x85\xa0\u2028\u2029\u200d\ufeff\ufffd\ufffe",
    *"\"'`,;\t\r\n\\|/ \x0b\x0c\x1c\x1e{}[]<>&%$#.éÉß日ก\U0001f63a",
    "\r\n",
    '""',
    "nan",
    "null",
    "\ud83d\ude3a",
]
texts = st.lists(
    st.one_of(
        st.sampled_from(AWKWARD),
        st.integers(0, 0x10FFFF).map(chr),
        st.text("ab c", max_size=8),
        st.just("long " * 200),
    ),
    max_size=6,
).map("".join)
# A name that a file on disk can have, wrong bytes among them.
names = (
    st.binary(min_size=1, max_size=12)
    .map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
    .filter(lambda name: not name.startswith(b".") and name[:1] != b"_")
    .map(lambda name: name.decode("utf-8", "surrogateescape"))
)
samples = st.dictionaries(names, texts, min_size=1, max_size=5)
quick = settings(
    max_examples=25,
    database=None,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def clean(text):
    """U+FFFD for each half of a character; a pair of halves is one."""
    text = text.encode("utf-16-le", "surrogatepass")
    halves = [text[n : n + 2] for n in range(0, len(text), 2)]
    units = [int.from_bytes(half, "little") for half in halves]
    out, place = [], 0
    while place < len(units):
        unit, *after = units[place : place + 2]
        if 0xD800 <= unit < 0xDC00 and after and 0xDC00 <= after[0] < 0xE000:
            out.append(b"".join(halves[place : place + 2]).decode("utf-16-le"))
            place += 1
        elif 0xD800 <= unit < 0xE000:
            out.append("\ufffd")
        else:
            out.append(halves[place].decode("utf-16-le"))
        place += 1
    return "".join(out)


def expected(pairs):
    """Normalised names to captions, as the README of the form says."""
    found = {}
    for name, text in pairs.items():
        if not names_image(name):
            continue
        kept = found.setdefault(posixpath.normpath(name), [])
        kept += [clean(text).strip(BLANKS)] if clean(text).strip(BLANKS) else []
    return found


def names_image(name):
    return posixpath.normpath(name).strip() not in ("", ".")


def one_line(text):
    """What can stand in TSV and in a line of a `.txt`."""
    for mark in "\t\r\n":
        text = text.replace(mark, " ")
    return text


def writable(text):
    """What UTF-8 can hold."""
    return clean(text)


FORMS = ["csv", "tsv", "jsonl", "json", "karpathy", "parquet", "struct"]
# What cannot hold half a character.
ENCODED = ("csv", "tsv", "parquet", "struct")


def table_of(folder, form):
    """Where to write a form of which the suffix is another's."""
    suffix = {"karpathy": "json", "struct": "parquet"}.get(form, form)
    return Path(folder, f"captions.{suffix}")


def write(path, form, pairs):
    form = f".{form}"
    if form == ".struct":
        images = [{"bytes": None, "path": name} for name in pairs]
        columns = {"image": images, "caption": list(pairs.values())}
        pq.write_table(pa.table(columns), path)
    elif form == ".karpathy":
        images = [
            {"filename": n, "sentences": [{"raw": t}]}
            if number % 2
            else {"filename": n, "filepath": "", "sentences": [{"raw": t}]}
            for number, (n, t) in enumerate(pairs.items())
        ]
        path.write_text(json.dumps({"images": images, "dataset": "any"}))
    elif form == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows([("image", "caption"), *pairs.items()])
    elif form == ".tsv":
        rows = [("image", "caption"), *pairs.items()]
        path.write_bytes("\n".join(map("\t".join, rows)).encode())
    elif form == ".parquet":
        columns = {"image": list(pairs), "caption": list(pairs.values())}
        pq.write_table(pa.table(columns), path)
    else:
        rows = [{"image": n, "caption": t} for n, t in pairs.items()]
        # Half with escapes, and half without where UTF-8 has them.
        lines = [
            json.dumps(row, ensure_ascii=bool(number % 2 or _surrogates(row)))
            for number, row in enumerate(rows)
        ]
        text = "\n".join(lines) if form == ".jsonl" else f"[{','.join(lines)}]"
        path.write_bytes(text.encode())


def _surrogates(row):
    return any(clean(value) != value for value in row.values())


@pytest.mark.parametrize("form", FORMS)
@quick
@given(pairs=st.dictionaries(texts, texts, min_size=1, max_size=5))
def test_tables(form, pairs):
    if form in ENCODED:
        pairs = {writable(n): writable(t) for n, t in pairs.items()}
    if form == "tsv":
        pairs = {one_line(n): one_line(t) for n, t in pairs.items()}
        # A row of nothing is no row.
        pairs = {f"{n}.": t for n, t in pairs.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = table_of(folder, form)
        write(path, form, pairs)
        tally = Tally()
        found = read_captions(path, tally=tally)
        if form not in ENCODED:
            # What JSON joins to one character is one.
            assert {clean(n): t for n, t in found.items()} == {
                clean(n): t for n, t in expected(pairs).items()
            }
        else:
            assert found == expected(pairs)
        nameless = sum(not names_image(name) for name in pairs)
        assert tally.reasons.total() == tally.reasons["no image"] == nameless
        assert tally.seen == len(found) + nameless
        _check_curation(path, pairs)


def _check_curation(path, pairs):
    """`curate` reads the same names and texts in the same order."""
    file = io.BytesIO()
    counts, _ = ingest_file(IngestTask(0, str(path), {}), file)
    assert counts["rows"] == len(pairs) and not counts["unreadable_lines"]
    rows = pq.read_table(file).to_pylist()
    assert [row["text"] for row in rows] == [
        unicodedata.normalize("NFC", clean(text).strip(BLANKS))
        for text in pairs.values()
    ]
    assert [row["url"] or "" for row in rows] == [
        clean(name).strip() for name in pairs
    ]
    assert list(read_texts([str(path)])) == [
        clean(text) for text in pairs.values() if clean(text).strip()
    ]


@pytest.mark.parametrize("form", FORMS)
@quick
@given(pairs=samples)
def test_evaluation_of_a_folder_with_a_table(form, pairs):
    pairs = {f"{n}{name}.jpg": t for n, (name, t) in enumerate(pairs.items())}
    if form in ENCODED:
        pairs = {writable(n): writable(t) for n, t in pairs.items()}
    if form == "tsv":
        pairs = {one_line(n): one_line(t) for n, t in pairs.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name in pairs:
            Path(folder, name).write_bytes(name.encode("utf-8", "replace"))
        write(table_of(folder, form), form, pairs)
        found = {
            name: (getattr(image, "read_bytes", lambda i=image: i)(), texts)
            for name, image, texts in captioned(folder).examples()
        }
    assert found == {
        name: (name.encode("utf-8", "replace"), texts)
        for name, texts in expected(pairs).items()
    }


@quick
@given(pairs=samples)
def test_folders_and_archives(pairs):
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        archive = Path(folder, "0.tar")
        with tarfile.open(archive, "w") as tar:
            for number, (name, text) in enumerate(pairs.items()):
                stem = f"{number}{name}"
                # At its beginning U+FEFF is the mark of a file.
                contents = writable(one_line(text)).encode("utf-8-sig")
                files = {".jpg": str(number).encode(), ".txt": contents}
                for suffix, body in files.items():
                    (photos / (stem + suffix)).write_bytes(body)
                    member = tarfile.TarInfo(stem + suffix)
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))
        stems = [f"{number}{name}" for number, name in enumerate(pairs)]
        wanted = {
            clean(stem) + ".jpg": (
                str(number).encode(),
                [clean(one_line(text)).strip(BLANKS)],
            )
            for number, (stem, text) in enumerate(
                zip(stems, pairs.values(), strict=True)
            )
        }
        wanted = {
            name: (body, [text for text in lines if text])
            for name, (body, lines) in wanted.items()
        }
        for source in (from_folder, from_archive):
            tally = Tally()
            place = photos if source is from_folder else archive
            found = {n: (read(), t) for n, read, t in source(place, tally)}
            assert found == wanted
            assert not tally.reasons and tally.seen == len(pairs)
            evaluated = captioned(place).examples()
            assert {n: (image, t) for n, image, t in evaluated} == wanted
        listed = {f"{stem}.jpg": [] for stem in stems}
        found = from_caption_file(photos, listed)
        assert {n: read() for n, read, _ in found} == {
            name: body for name, (body, _) in wanted.items()
        }


@quick
@given(
    captions=st.lists(texts, min_size=1, max_size=5),
    paths=st.lists(st.one_of(st.none(), texts), min_size=5, max_size=5),
)
def test_images_within_parquet(captions, paths):
    captions = [writable(text) for text in captions]
    paths = [path and writable(path) for path in paths[: len(captions)]]
    bodies = [b"\xff%d" % number for number in range(len(captions))]
    images = [
        {"bytes": body, "path": path}
        for body, path in zip(bodies, paths, strict=True)
    ]
    keys = [
        posixpath.normpath(path)
        if names_image(path or "")
        else f"x-{number:08d}"
        for number, path in enumerate(paths, start=1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.parquet")
        pq.write_table(pa.table({"image": images, "text": captions}), path)
        tally = Tally()
        found = [(n, read(), t) for n, read, t in from_table(path, tally)]
        evaluated = [*captioned(path).examples()]
    assert found == evaluated
    assert found == [
        (key, body, [text.strip(BLANKS)] if text.strip(BLANKS) else [])
        for key, body, text in zip(keys, bodies, captions, strict=True)
    ]
    assert tally.seen == len(captions)


@quick
@given(
    pairs=st.dictionaries(
        texts, st.lists(texts, min_size=1, max_size=3), min_size=1, max_size=5
    )
)
def test_records(pairs):
    pairs = {writable(n): list(map(writable, t)) for n, t in pairs.items()}
    records = [
        encode_record(name, b"image of " + name.encode(), captions, 1, 1)
        for name, captions in pairs.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.tfrecord-00000-of-00001")
        with tf.io.TFRecordWriter(str(path)) as file:
            for record in records:
                file.write(record)
        tally = Tally()
        found = [(n, read(), t) for n, read, t in from_records(path, tally)]
        evaluated = [*captioned(folder).examples()]
    kept = {
        name: [t.lstrip("\ufeff") for t in texts if t.strip(BLANKS)]
        for name, texts in pairs.items()
    }
    assert found == [
        (
            f"{name or f'x-00000-of-00001[{number}]'}.jpg",
            b"image of " + name.encode(),
            captions,
        )
        for number, (name, captions) in enumerate(kept.items())
    ]
    assert tally.seen == len(records) and not tally.reasons
    # Those without a caption are left out, and counted by who iterates.
    assert evaluated == [
        (name, b"image of " + name.encode(), captions)
        for name, captions in kept.items()
        if captions
    ]
    for record, captions in zip(records, kept.values(), strict=True):
        in_graph = parsed(tf.constant(record))[1].numpy()
        assert [text.decode() for text in in_graph] == captions


@tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
def parsed(record):
    return parse_record(record)
