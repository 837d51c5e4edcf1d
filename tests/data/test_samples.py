"""Samples of archives: which text belongs to which image."""

import io
import itertools
import json
import posixpath
import tarfile

import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from align_keras.data import archives
from align_keras.data.archives import from_archive
from align_keras.data.tally import Tally
from align_keras.io.file_names import is_image


def found_in(path, files):
    """What an archive of these files yields, and what it leaves out."""
    with tarfile.open(path, "w") as tar:
        for name, contents in files:
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            tar.addfile(member, io.BytesIO(contents))
    tally = Tally()
    found = [(name, texts) for name, _, texts in from_archive(path, tally)]
    assert tally.seen == len(found) + tally.reasons.total()
    return dict(found), {(e["file"], e["reason"]) for e in tally.listed}


def members(*names):
    """Files each of which holds its own name up to the suffix."""
    for name in names:
        text = stem_of(name)
        if name.endswith(".json"):
            text = json.dumps({"caption": text})
        yield name, text.encode()


@pytest.mark.parametrize(
    "names",
    [
        [f"v1.{n}.{s}" for s in ("jpg", "txt") for n in range(4)],
        [f"v1.{n}.{s}" for s in ("json", "jpg") for n in range(4)],
        [f"2021-01-01 10.00.0{n}.{s}" for s in ("jpg", "txt") for n in (1, 2)],
        ["v1.1.jpg", "v1.2.jpg", "v1.2.txt"],
        ["v1.2.txt", "v1.1.jpg", "v1.2.jpg"],
        ["v1.1.jpg", "v1.1.txt", "v1.3.jpg", "v1.2.txt"],
        ["v1.1.jpg", "v1.2.heic", "v1.2.txt"],
        ["IMG.jpg", "IMG.edited.jpg", "IMG.edited.txt", "IMG.txt"],
        ["IMG.jpg", "IMG.edited.jpg", "IMG.edited.txt"],
        ["IMG.jpg", "IMG.edited.heic", "IMG.edited.txt"],
        *(
            [f"photo{z}.{s}" for z, s in order]
            for suffix in ("txt", "json")
            for order in itertools.permutations(
                itertools.product(("", ".zoom"), ("jpg", suffix))
            )
        ),
    ],
    ids=" ".join,
)
def test_no_image_of_an_archive_takes_the_text_of_another(tmp_path, names):
    found, left_out = found_in(tmp_path / "0.tar", members(*names))
    stems = {s: {n[: -len(s)] for n in names if n.endswith(s)} for s in SUFFIX}
    texts = stems[".txt"] | stems[".json"]
    images = {name: stem_of(name) for name in filter(is_image, names)}
    assert found == {
        name: [stem] if stem in texts else [] for name, stem in images.items()
    }
    lost = texts - {*images.values()}
    assert left_out == {(stem, "no image") for stem in lost}


SUFFIX = (".jpg", ".txt", ".json")


def test_what_a_dotted_sample_shares(tmp_path):
    """A text that is no image's own; a mask; a text that is blank."""
    files = [
        *members("s0.input.jpg", "s0.depth.jpg", "s0.outputs.txt"),
        *members("s1.png", "s1.seg.png", "s1.txt"),
        ("s1.seg.json", b'{"classes": [1, 2]}'),
        *members("s2.a.jpg", "s2.b.jpg", "s2.a.txt", "s2.txt"),
        *members("s3.jpg", "s3.a.jpg", "s3.txt"),
        ("s3.a.txt", b" "),
    ]
    assert found_in(tmp_path / "0.tar", files) == (
        {
            "s0.input.jpg": ["s0.outputs"],
            "s0.depth.jpg": ["s0.outputs"],
            "s1.png": ["s1"],
            "s2.a.jpg": ["s2.a"],
            "s2.b.jpg": ["s2"],
            "s3.jpg": ["s3"],
            "s3.a.jpg": [],
        },
        set(),
    )


STEMS = st.sampled_from(["v1", "v1.0", "v1.1", "v1.1.x", "a/v1.0", "w", "w.1"])
FORMS = st.sampled_from([".jpg", ".png", ".txt", ".json", ".heic"])
NAMES = st.lists(st.tuples(STEMS, FORMS).map("".join), unique=True, max_size=20)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(names=NAMES, held=st.sampled_from([0, 10, 2**20]))
def test_any_image_has_its_own_text_or_is_counted(tmp_path, names, held):
    """Shuffled within each sample, which may be larger than is held."""
    names = sorted(names, key=key_of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archives, "HELD_BYTES", held)
        found, left_out = found_in(tmp_path / "0.tar", members(*names))
    is_text = {name: name.endswith((".txt", ".json")) for name in names}
    texts = {stem_of(name) for name in names if is_text[name]}
    owned = {stem_of(name) for name in names if not is_text[name]}
    for name in filter(is_image, names):
        stem = stem_of(name)
        if name not in found:
            # A mask beside the image, without a text.
            assert stem not in texts and stem != key_of(name)
        elif stem in texts:
            # Of two such images the later may come after the release.
            assert {*found[name]} == {stem} or (held < 99 and not found[name])
        else:
            assert not owned & {*found[name]}
    told = {text for texts in found.values() for text in texts}
    assert texts & owned <= told | {stem for stem, _ in left_out}


def stem_of(name):
    return name.rpartition(".")[0]


def key_of(name):
    """The name of a sample, up to the first dot."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])
