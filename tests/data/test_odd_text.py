"""Text of odd encodings, and JSON that says a thing twice."""

import codecs
import io
import json
import random
import tarfile

import pytest
import tensorflow as tf
from archive_files import write_archive
from tiny_align import image_file

from align_keras.classes import read_classes
from align_keras.classes import read_templates
from align_keras.curation.ingest import IngestTask
from align_keras.curation.ingest import ingest_file
from align_keras.data import open_records
from align_keras.data import pack
from align_keras.data import read_captions
from align_keras.data.archives import from_archive
from align_keras.data.records import decode_record
from align_keras.data.records import encode_record
from align_keras.data.records import parse_record
from align_keras.data.tally import Tally
from align_keras.io.json_files import parse_json
from align_keras.io.json_files import read_json
from align_keras.io.text import decode_text
from align_keras.io.text import encoding_of
from align_keras.models.presets import load_config

PNG = image_file(0, form="PNG")


def packed(source, output, *arguments):
    manifest = pack(source, output, *arguments)
    captions = {r["key"]: r["captions"] for r in open_records(output)}
    return captions, manifest["skipped"]


# === A key that is given twice ===

TWICE = '"caption": "a cat", "caption": "a dog"'
ROWS = [
    '{"image": "a.png", "caption": "good"}',
    f'{{"image": "b.png", {TWICE}}}',
    '{"image": "c.png", "caption": "good", "more": [{"x": 1, "x": {}}]}',
    '{"image": "d.png", "caption": "good", "more": {"x": 1, "X": 1}}',
]
DETAIL = "an object has the key 'caption' twice, with 'a cat' and 'a dog'"


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_a_row_with_a_key_twice_is_counted(tmp_path, form):
    path = tmp_path / f"captions.{form}"
    rows = "\n".join(ROWS) if form == "jsonl" else f"[{','.join(ROWS)}]"
    path.write_text(rows)
    tally = Tally()
    found = read_captions(path, tally=tally)
    assert found == {"a.png": ["good"], "d.png": ["good"]}
    assert tally.reasons == {"repeated key": 2}
    assert tally.listed[0]["detail"] == DETAIL
    # `curate` counts them as well.
    counts, _ = ingest_file(IngestTask(0, str(path), {}), io.BytesIO())
    assert counts["rows"] == counts["unreadable_lines"] == 2


def test_a_row_of_karpathys_form_with_a_key_twice_is_counted(tmp_path):
    images = [
        '{"filename": "a.png", "sentences": [{"raw": "good"}]}',
        '{"filename": "b.png", "sentences": [{"raw": "x", "raw": "y"}]}',
        '{"filename": "c.png", "filename": "d.png", "sentences": []}',
    ]
    path = tmp_path / "captions.json"
    path.write_text(f'{{"images": [{",".join(images)}]}}')
    tally = Tally()
    assert read_captions(path, tally=tally) == {"a.png": ["good"]}
    assert tally.reasons == {"repeated key": 2}
    path.write_text('{"images": [], "images": []}')
    with pytest.raises(ValueError, match=r"captions\.json.*'images' twice"):
        read_captions(path)


def test_a_sample_whose_json_has_a_key_twice_is_counted(tmp_path):
    files = {
        "a.png": PNG,
        "a.json": b'{"caption": "good"}',
        "b.png": PNG,
        "b.json": f"{{{TWICE}}}".encode(),
        "c.png": PNG,
        "c.json": b'{"caption": ',
        "d.png": PNG,
        "d.json": b"{]",
        "d.txt": b"text",
    }
    write_archive(tmp_path / "0.tar", files)
    captions, skipped = packed(tmp_path / "0.tar", tmp_path / "out")
    assert captions == {"a": ["good"], "d": ["text"]}
    assert [e["file"] for e in skipped] == ["b.png", "c.png"]
    assert {e["reason"] for e in skipped} == {"unreadable captions"}
    assert skipped[0]["detail"] == f"`b.json`: not valid JSON: {DETAIL}"


@pytest.mark.parametrize("read", [read_json, read_classes, read_templates])
def test_settings_with_a_key_twice_are_refused(tmp_path, read):
    path = tmp_path / "classes.json"
    path.write_text('{"1": "cat",\n "1": "dog"}')
    told = r"In `.*classes\.json` an object has the key '1' twice, with 'cat' "
    with pytest.raises(ValueError, match=told + "and 'dog': remove one"):
        read(path)


def test_a_preset_with_a_key_twice_is_refused(tmp_path):
    config = '{"class_name": "AlignDualEncoder", "config": {"a": 1, "a": 2}}'
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="config.json` an object has .* 'a'"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', "[" * 200_000, "{", "", '{"a": {"b": [{}]}}']
)
def test_json_is_parsed_or_refused_by_one_error(text):
    try:
        assert parse_json(text) == json.loads(text) == {"a": {"b": [{}]}}
    except ValueError as error:
        assert str(error)


# === UTF-16 and UTF-32 without a mark ===

ENCODINGS = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
LANGUAGES = [
    "a red bus",
    "ein grüner Bus – „schön“",
    "красный автобус",
    "κόκκινο λεωφορείο",
    "autobus 🚌 rosso",
    "รถบัสสีแดง",
    "सड़क पर एक लाल बस",
    "빨간 버스가 길가에 서 있다",
    # A tenth of the low bytes of ideographs are control characters.
    "一只红色的公共汽车停在路边",
    "赤いバスが 東京の道路に 止まっています",
]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_without_a_mark_is_read(tmp_path, encoding):
    for text in LANGUAGES:
        contents = f"{text}\r\n{text} again".encode(encoding)
        assert decode_text(contents) == f"{text}\r\n{text} again"
    folder = tmp_path / "in"
    folder.mkdir()
    files = {}
    for number, text in enumerate(LANGUAGES):
        files[f"{number}.png"] = PNG
        files[f"{number}.txt"] = text.encode(encoding)
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    write_archive(tmp_path / "0.tar", files)
    expected = {str(n): [text] for n, text in enumerate(LANGUAGES)}
    assert packed(folder, tmp_path / "1")[0] == expected
    assert packed(tmp_path / "0.tar", tmp_path / "2")[0] == expected
    rows = [f"{n}.png\t{text}" for n, text in enumerate(LANGUAGES)]
    tables = {
        "tsv": "\n".join(["image\tcaption", *rows]),
        "csv": "\n".join(["image,caption", *rows]).replace("\t", ","),
        "jsonl": "\n".join(
            json.dumps({"image": f"{n}.png", "caption": text}, ensure_ascii=0)
            for n, text in enumerate(LANGUAGES)
        ),
    }
    for form, text in tables.items():
        path = tmp_path / f"captions.{form}"
        path.write_bytes(text.encode(encoding))
        found = read_captions(path)
        assert found == {f"{n}.png": [t] for n, t in enumerate(LANGUAGES)}
        counts, _ = ingest_file(IngestTask(0, str(path), {}), io.BytesIO())
        assert counts["rows"] == len(LANGUAGES)
        assert not counts["unreadable_lines"]
    path = tmp_path / "classes.txt"
    path.write_bytes("\n".join(LANGUAGES).encode(encoding))
    assert read_classes(path).names == [[text] for text in LANGUAGES]


@pytest.mark.parametrize(
    "text",
    ["", "a", "a\0b", "a\nb\nc\n", "\t\t\t\t", "a\tb\tc", "日本語", "x\0" * 0]
    + LANGUAGES
    + ["\x01", "a text with one \0 within"],
)
def test_utf_8_stays_utf_8(text):
    assert decode_text(text.encode()) == text


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_damaged_text_is_not_taken_for_another_alphabet(encoding):
    """Two letters of ASCII are one of Chinese, wherever a zero has come in."""
    words = "a cat on the sofa a red bus café naïve schön Straße".split()
    rng = random.Random(0)
    for _ in range(2000):
        letters = list(" ".join(rng.choices(words, k=rng.randint(6, 40))))
        for _ in range(rng.randint(1, 3)):
            letters[rng.randrange(len(letters))] = rng.choice("\0\x01\x04\x1b")
        assert encoding_of("".join(letters).encode(encoding)) == "utf-8"


@pytest.mark.parametrize("text", LANGUAGES)
def test_a_control_character_makes_no_utf_16_of_utf_8(text):
    """Bytes of an alphabet in UTF-8 are ideographs in UTF-16."""
    for control in "\0\x01\x04\x1b":
        for place in range(len(text) + 1):
            damaged = text[:place] + control + text[place:]
            assert decode_text(damaged.encode()) == damaged
            # Nor does a wrong byte that comes along.
            damaged = damaged.encode() + b" caf\xe9 " + text.encode()
            assert encoding_of(damaged) == "utf-8"


@pytest.mark.parametrize("control", "\0\x01\x04\x1b")
def test_a_control_character_makes_no_utf_16_of_signs(control):
    """A table of few letters and many numbers is ASCII none the less."""
    # The last has a byte that is not UTF-8.
    names = ("____", "000123.png", "2024-01-02_03:04.png", "é_12", "_\udc80")
    for name in names:
        for text in ("", "12,5 + 7 = 19.5", "50 % (1:2)"):
            table = f"image\tcaption\n{control}{name}\t{text}\n"
            table = table.encode("utf-8", "surrogateescape")
            assert encoding_of(table) == "utf-8"


# === Byte order marks within containers ===


def test_marks_at_the_head_of_captions_are_left_out(tmp_path):
    mark = codecs.BOM_UTF8.decode()
    texts = [
        f"{mark}a text",
        f"{mark}{mark}another",
        mark,
        f" {mark} ",
        "plain",
    ]
    record = encode_record("key", PNG, texts, 1, 1)
    expected = ["a text", "another", "plain"]
    assert decode_record(record)["captions"] == expected
    in_graph = parse_record(tf.constant(record))[1].numpy()
    assert [text.decode() for text in in_graph] == expected
    # A caption of nothing else makes way for the other field.
    only = tf.train.Example.FromString(encode_record("k", PNG, [mark], 1, 1))
    only.features.feature["caption"].bytes_list.value.append(b"of the other")
    record = only.SerializeToString()
    assert decode_record(record)["captions"] == ["of the other"]
    assert parse_record(tf.constant(record))[1].numpy() == [b"of the other"]
    for form in ("jsonl", "csv", "json"):
        path = tmp_path / f"captions.{form}"
        row = json.dumps({"image": "a.png", "caption": texts[0]})
        path.write_text(
            {"jsonl": row, "json": f"[{row}]"}.get(
                form, f"image,caption\na.png,{texts[0]}\n"
            )
        )
        assert read_captions(path) == {"a.png": ["a text"]}


# === Members of an archive that are no files ===


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_members_of_other_kinds_are_called_what_they_are(tmp_path, form):
    archive = tmp_path / "0.tar"
    kinds = {
        "pipe": (tarfile.FIFOTYPE, "a pipe"),
        "device": (tarfile.CHRTYPE, "a device"),
        "disk": (tarfile.BLKTYPE, "a device"),
        "other": (b"V", "of the type b'V'"),
    }
    links = {"hard": tarfile.LNKTYPE, "soft": tarfile.SYMTYPE}
    long = "n" * 300
    with tarfile.open(
        archive, "w", format=getattr(tarfile, f"{form.upper()}_FORMAT")
    ) as tar:

        def add(name, kind=tarfile.REGTYPE, contents=b"", target=""):
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(contents)
            member.linkname = target
            tar.addfile(member, io.BytesIO(contents))

        for name, (kind, _) in kinds.items():
            add(f"{name}.jpg", kind)
            add(f"{name}.txt", contents=b"its text")
        add("text.png", contents=PNG)
        add("text.txt", tarfile.FIFOTYPE)
        for name in ("a", long):
            add(f"{name}.png", contents=PNG)
            add(f"{name}.txt", contents=b"good")
        for name, kind in links.items():
            for target in ("a", long, "nowhere"):
                add(f"{name}-{target}.png", kind, target=f"{target}.png")
                add(f"{name}-{target}.txt", contents=b"linked")
        add("b.png", tarfile.CONTTYPE, PNG)
        add("b.txt", contents=b"good")
    tally = Tally()
    found = {n: (read(), t) for n, read, t in from_archive(archive, tally)}
    assert found == {
        f"{name}.png": (PNG, ["good"]) for name in ("a", long, "b")
    } | {
        f"{name}-{target}.png": (PNG, ["linked"])
        for name in links
        for target in ("a", long)
    }
    told = {e["file"]: (e["reason"], e["detail"]) for e in tally.listed}
    assert told == {
        f"{name}.jpg": ("not a regular file", detail)
        for name, (_, detail) in kinds.items()
    } | {
        f"{name}-nowhere.png": ("link in an archive", "nowhere.png")
        for name in links
    } | {
        "text.png": (
            "unreadable captions",
            "`text.txt`: not a regular file: a pipe",
        )
    }  # fmt: skip
