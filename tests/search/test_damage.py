"""Files of vectors and indexes that are damaged, or a stranger's."""

import base64
import contextlib
import json
import os
import pickle
import shutil
import sqlite3
from types import SimpleNamespace

import hostile
import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra `search`")

from align_keras.cli import main
from align_keras.curation.scores import find_scores
from align_keras.embedding import embed
from align_keras.embedding.vector_cache import VectorCache
from align_keras.embedding.vector_cache import names_digest
from align_keras.embedding.vector_files import parquet
from align_keras.embedding.vector_files import read_manifest
from align_keras.embedding.vector_files import write_manifest
from align_keras.io.claims import claim
from align_keras.io.folders import OutsideFolder
from align_keras.search import Index
from align_keras.search import build_index
from align_keras.search.index_writer import write_index


@pytest.fixture
def vectors(library, tmp_path):
    return shutil.copytree(library.vectors, tmp_path / "vectors")


@pytest.fixture
def index(library, tmp_path):
    return shutil.copytree(library.index, tmp_path / "index")


# === Vectors ===


@pytest.mark.parametrize("place", [0.0, 0.1, 0.4, 0.6, 0.9, 0.99, 1.0])
def test_a_flipped_bit_of_vectors_is_not_indexed(
    library, vectors, tmp_path, place
):
    file = sorted(vectors.glob("*.parquet"))[1]
    hostile.flip(file, place)
    with pytest.raises(ValueError, match=f"`{file}` is damaged"):
        build_index(vectors, tmp_path / "out", library.preset)
    assert not (tmp_path / "out").exists()


def test_lost_files_and_files_of_others_are_named(library, vectors, tmp_path):
    def build():
        build_index(vectors, tmp_path / "out", library.preset)

    first, second, _ = sorted(vectors.glob("*.parquet"))
    shutil.copy(first, second)
    with pytest.raises(ValueError, match=f"`{second}` is damaged"):
        build()
    second.unlink()
    with pytest.raises(ValueError, match=f"`{second}` is missing"):
        build()


@pytest.mark.parametrize("change", hostile.MANIFEST_CHANGES)
def test_a_hostile_manifest_is_refused_by_name(library, vectors, change):
    path = vectors / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(hostile.change_manifest(manifest, *change)))
    for read in (read_manifest, lambda folder: find_scores([folder])):
        with pytest.raises(
            ValueError, match="is not a valid manifest of"
        ) as error:
            read(vectors)
        assert f"`{path}`" in str(error.value)
    # What is written beside it has to read it, too.
    with pytest.raises(ValueError, match="is not a valid manifest of"):
        write_manifest(sorted(vectors.glob("*.parquet")), {})


@pytest.mark.parametrize("about", ["[]", "3", "{}", hostile.DEEP])
def test_a_file_with_hostile_metadata_is_named(vectors, about):
    path = sorted(vectors.glob("*.parquet"))[0]
    table = parquet.read_table(path)
    metadata = {"align_keras": about}
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(ValueError, match=f"`{path}` was not written"):
        write_manifest([path], {})


@pytest.mark.parametrize("held", ["[1]", "3", "null", hostile.DEEP])
def test_a_hostile_claim_is_named(tmp_path, held):
    path = tmp_path / "arguments.json"
    path.write_text(held)
    with pytest.raises(ValueError, match=f"`{path}` is "):
        claim(path, {"model": "a"})


@pytest.mark.parametrize(
    "damage",
    [
        hostile.flip,
        hostile.cut,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"[]"),
        lambda path: np.savez(path, other=1),
    ],
)
def test_damaged_vectors_in_a_cache_are_named(tmp_path, damage):
    owner = SimpleNamespace(fingerprint="f")
    cache = VectorCache(tmp_path, owner, "data")
    cache.save(0, names=np.array(names_digest(["a"])), vectors=np.ones((9, 99)))
    (path,) = tmp_path.rglob("*.npz")
    damage(path)
    with pytest.raises(ValueError, match=f"`{path}` is damaged"):
        cache.check(0, cache.load(0), ["a"])


@pytest.mark.parametrize("readable", [None, 1.0, np.ones((1, 1))])
def test_a_cache_of_images_tells_which_are_readable(tmp_path, readable):
    owner = SimpleNamespace(fingerprint="f")
    cache = VectorCache(tmp_path, owner, "data")
    cache.save(0, vectors=np.ones((1, 9)), readable=np.ones(1))
    assert cache.load(0, {"readable": 1})["readable"] == 1
    kept = {} if readable is None else {"readable": readable}
    cache.save(0, vectors=np.ones((1, 9)), **kept)
    with pytest.raises(ValueError, match="00000.npz` is damaged"):
        cache.load(0, {"readable": 1})


def test_half_a_file_is_named_and_its_checksum_stays(library, vectors):
    def again():
        return embed(
            library.images,
            vectors,
            library.preset,
            batch_size=8,
            images_per_shard=12,
            thumbnail_size=32,
        )

    first = sorted(vectors.glob("*.parquet"))[0]
    hostile.flip(first, 0.2)
    # Embedding again does not make of the damage what ought to be.
    assert again()["shards"] == library.manifest["shards"]
    hostile.cut(first)
    with pytest.raises(ValueError, match=f"`{first}` is not a complete"):
        again()
    first.unlink()
    assert again()["shards"][1:] == library.manifest["shards"][1:]


def test_a_manifest_without_checksums_gets_them(library, vectors, tmp_path):
    path = vectors / "manifest.json"
    manifest = json.loads(path.read_text())
    for shard in manifest["shards"]:
        del shard["sha256"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="no checksums: run `align-keras emb"):
        build_index(vectors, tmp_path / "out", library.preset)


# === Indexes ===


@pytest.mark.parametrize(
    "name", ["vectors.npy", "texts.bin", "keys.npy", "model/model.weights.h5"]
)
@pytest.mark.parametrize("place", [0.2, 0.8])
def test_verify_finds_a_flipped_bit(index, capsys, name, place):
    Index(index, verify=True)
    hostile.flip(index / name, place)
    with pytest.raises(ValueError, match=f"{name}` is damaged"):
        Index(index, verify=True)
    command = ["search", str(index), "--text", "a bus", "--verify"]
    assert main(command) == 2
    assert f"{name}` is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("number", range(len(hostile.INDEX_CHANGES)))
def test_an_index_is_validated_when_it_is_opened(index, number):
    name, value = hostile.INDEX_CHANGES[number]
    path = index / "index.json"
    about = json.loads(path.read_text())
    about[name] = value
    if value is hostile.MISSING:
        del about[name]
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError) as caught:
        Index(index)
    message = str(caught.value)
    assert str(index) in message or "templates" in message
    assert len(message) < 600


@pytest.mark.parametrize("text", ["", "[]", "null", "1", '"a"', hostile.DEEP])
def test_what_is_no_index_is_refused(index, text):
    (index / "index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json"):
        Index(index)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [1, 29, 30])
def test_vectors_that_are_not_finite_are_refused(index, value, count):
    path = index / "vectors.npy"
    vectors = np.load(path)
    vectors[:count] = value
    np.save(path, vectors)
    query = np.ones((1, vectors.shape[1]), "float32")
    opened = Index(index)
    with contextlib.suppress(ValueError):
        for rows, scores in opened.search(query, 5):
            assert len(rows) == 5 and np.isfinite(scores).all()
    with pytest.raises(ValueError, match="finite"):
        opened.search(query, 30)


@pytest.mark.parametrize(
    "contents", [b"", b"\x93NUMPY", b"not an array", pickle.dumps([1])]
)
def test_vectors_that_are_no_array_are_refused(index, contents):
    (index / "vectors.npy").write_bytes(contents)
    with pytest.raises(ValueError, match=r"vectors\.npy` is damaged"):
        Index(index)
    (index / "vectors.npy").unlink()
    with pytest.raises(ValueError, match=r"vectors\.npy` is damaged"):
        Index(index)


def test_a_pickled_array_is_not_run(index, tmp_path):
    ran = tmp_path / "ran"
    array = np.array([hostile.Program(ran)], dtype=object)
    np.save(index / "vectors.npy", array, allow_pickle=True)
    with pytest.raises(ValueError):
        Index(index)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["texts.bin", "vectors.npy", "model/a.txt"])
def test_links_that_lead_out_of_an_index_are_refused(index, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text(hostile.SECRET)
    (index / name).unlink(missing_ok=True)
    (index / name).symlink_to(secret)
    with pytest.raises(OutsideFolder, match=os.path.basename(name)):
        Index(index)


def test_a_preset_with_a_link_is_not_copied_into_an_index(library, tmp_path):
    preset = shutil.copytree(library.preset, tmp_path / "preset")
    (preset / "notes.txt").symlink_to("/etc/hostname")
    with pytest.raises(OutsideFolder, match="notes.txt"):
        build_index(library.vectors, tmp_path / "out", preset)


def test_verify_reads_what_embedded_qdrant_wrote(library, tmp_path):
    pytest.importorskip("qdrant_client")
    path = tmp_path / "index"
    rows = [(["a"] * 20, [""] * 20, np.eye(20, 8) + 1, [b""] * 20)]
    write_index(rows, 20, path, library.preset, "qdrant")
    for _ in range(2):
        # Opening it must not change what was summed.
        index = Index(path, verify=True)
        index.search(np.ones((1, 8), "float32"), 3)
        index.close()
    (store,) = path.rglob("storage.sqlite")
    hostile.flip(store, 0.9)
    with pytest.raises(ValueError, match="storage.sqlite` is damaged: build"):
        Index(path, verify=True)


def test_embedded_qdrant_runs_no_program(library, tmp_path):
    pytest.importorskip("qdrant_client")
    rng = np.random.default_rng(0)
    rows = [(["a"] * 20, [""] * 20, rng.normal(size=(20, 8)), [b""] * 20)]
    path = tmp_path / "index"
    write_index(rows, 20, path, library.preset, "qdrant")
    Index(path).close()
    ran = tmp_path / "ran"
    program = pickle.dumps(hostile.Program(ran))
    (store,) = path.rglob("storage.sqlite")
    good = store.read_bytes()
    for change in (
        ("UPDATE points SET point = ? WHERE rowid = 3", program),
        (
            "UPDATE points SET id = ? WHERE rowid = 3",
            base64.b64encode(program).decode(),
        ),
    ):
        with contextlib.closing(sqlite3.connect(store)) as database:
            with database:
                database.execute(change[0], change[1:])
        with pytest.raises(ValueError, match="sqlite.*calls posix.mkdir"):
            Index(path)
        assert not ran.exists()
        store.write_bytes(good)
    store.write_bytes(b"not a database" * 100)
    with pytest.raises(ValueError, match="storage.sqlite"):
        Index(path)
