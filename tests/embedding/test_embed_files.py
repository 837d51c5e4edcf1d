import json
import os
import shutil
import tarfile

import numpy as np
import pyarrow.parquet
import pytest

from align_keras.cli import main
from align_keras.data import pack
from align_keras.embedding import embed
from align_keras.embedding import embed_files
from align_keras.embedding import parts
from align_keras.embedding.embed_files import thumbnail


def read(directory):
    """Rows of all files, in order."""
    rows = []
    for path in sorted(directory.glob("*.parquet")):
        rows += pyarrow.parquet.read_table(path).to_pylist()
    return rows


def vectors_of(rows):
    return np.array([row["vector"] for row in rows], "float32")


def test_folder_gives_the_models_vectors(library, dual_encoder):
    rows = read(library.vectors)
    assert [row["key"] for row in rows] == library.names
    paths = [str(library.images / name) for name in library.names]
    expected = np.asarray(dual_encoder.encode_image(paths))
    np.testing.assert_allclose(vectors_of(rows), expected, rtol=0, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01
    texts = {row["key"]: row["text"] for row in rows if row["text"]}
    assert texts == {"02.jpg": library.caption}
    assert library.manifest["records"] == 30
    assert library.manifest["skipped"] == 1
    assert library.manifest["finished"]
    assert [shard["records"] for shard in library.manifest["shards"]] == [
        12,
        11,
        7,
    ]


def test_it_resumes_with_what_is_missing(library, tmp_path, monkeypatch):
    output = tmp_path / "vectors"
    shutil.copytree(library.vectors, output)
    files = sorted(output.glob("*.parquet"))
    before = read(output)
    kept = [path.stat().st_mtime_ns for path in files]
    files[1].unlink()
    done = []
    original = embed_files.embed_task

    def watched(task, *arguments):
        done.append(task["file"])
        return original(task, *arguments)

    monkeypatch.setattr(embed_files, "embed_task", watched)

    def again(**changes):
        settings = {
            "batch_size": 8,
            "images_per_shard": 12,
            "thumbnail_size": 32,
        }
        return embed(
            library.images, output, library.preset, **settings | changes
        )

    (output / "manifest.json").unlink()
    manifest = again()
    for number, shard in enumerate(library.manifest["shards"]):
        # A batch of another shape rounds differently.
        if number != 1:
            assert manifest["shards"][number] == shard
    assert {**manifest, "shards": 0} == {**library.manifest, "shards": 0}
    assert json.loads((output / "manifest.json").read_text()) == again()
    assert done == [str(files[1])]
    after = read(output)
    np.testing.assert_allclose(
        vectors_of(after), vectors_of(before), rtol=0, atol=1e-6
    )
    now = [path.stat().st_mtime_ns for path in files]
    assert (now[0], now[2]) == (kept[0], kept[2])
    again()
    assert len(done) == 1
    with pytest.raises(ValueError, match="thumbnail_size=32, but"):
        again(thumbnail_size=64)
    with pytest.raises(ValueError, match="inputs="):
        again(images_per_shard=5)


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_changed_sources_are_noticed(tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(b"some bytes")
    part = {"kind": kind, "path": str(path)}
    if kind == "folder":
        part = {"kind": kind, "path": str(tmp_path), "names": ["a"]}

    def digest():
        return str(parts._states(part))

    first = digest()
    assert digest() == first
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"more bytes than before")
    os.utime(path, ns=times)
    larger = digest()
    os.utime(path, ns=(times[0], times[1] + 1_000_000_000))
    assert len({first, larger, digest()}) == 3


def test_records_and_archives_give_the_same_vectors(library, tmp_path, capsys):
    expected = dict(
        zip(library.names, vectors_of(read(library.vectors)), strict=True)
    )
    archive = tmp_path / "tars" / "00000.tar"
    archive.parent.mkdir()
    captions = tmp_path / "captions.csv"
    names = library.names[:5]
    captions.write_text(
        "image,caption\n" + "".join(f"{name},some words\n" for name in names)
    )
    with tarfile.open(archive, "w") as tar:
        for name in [*names, "broken.jpg"]:
            tar.add(library.images / name, name)
    pack(library.images, tmp_path / "packed", captions=captions)
    for source, skipped in ((archive.parent, 1), (tmp_path / "packed", 0)):
        output = tmp_path / f"vectors-{source.name}"
        command = ["embed", source, "--model", library.preset, "--output"]
        command += [output, "--json", "--batch-size", 8]
        assert main([str(word) for word in command]) == 0
        manifest = json.loads(capsys.readouterr().out)
        assert (manifest["records"], manifest["skipped"]) == (5, skipped)
        for row in read(output):
            key = row["key"] if source == archive.parent else None
            key = key or f"{row['key']}.jpg"
            np.testing.assert_allclose(
                row["vector"], expected[key], rtol=0, atol=1e-5
            )
    assert {row["text"] for row in read(output)} == {"some words"}


def test_damage_is_counted_and_the_rest_embedded(library, tmp_path):
    archive = tmp_path / "cut.tar"
    with tarfile.open(archive, "w") as tar:
        for name in library.names[:4]:
            tar.add(library.images / name, name)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 3])
    manifest = embed(archive, tmp_path / "out", library.preset, batch_size=8)
    assert 1 <= manifest["records"] < 4
    assert manifest["skipped"] == 1


def test_refusals(library, tmp_path, capsys):
    command = ["embed", library.images, "--model", library.preset]
    command += ["--output", tmp_path / "out"]
    command += ["--spark", "local[2]", "--strategy", "mirrored"]
    assert main([str(word) for word in command]) == 2
    assert "leave out --strategy or --spark" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="no model directory `nowhere`"):
        embed(library.images, tmp_path / "out", "nowhere")
    with pytest.raises(ValueError, match="neither a preset directory"):
        embed(library.images, tmp_path / "out", library.images)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty` is empty"):
        embed(tmp_path / "empty", tmp_path / "out", library.preset)
    assert not (tmp_path / "out").exists()


def test_thumbnails_keep_their_shape():
    import io

    from PIL import Image

    def size(height, width, limit):
        pixels = np.full((height, width, 3), 100, "uint8")
        return Image.open(io.BytesIO(thumbnail(pixels, limit))).size

    assert size(300, 600, 100) == (200, 100)
    assert size(40, 50, 100) == (50, 40)
    # A strip does not become a long file.
    assert size(30, 9000, 100) == (300, 1)
    assert thumbnail(np.zeros((5, 5, 3), "uint8"), 0) == b""


@pytest.mark.parametrize("form", ["preset", "saved_model"])
def test_replicas_give_the_same_vectors(library, tmp_path, form, replicas):
    """Two devices of a `MirroredStrategy` share each batch."""
    np.testing.assert_allclose(
        replicas[form],
        vectors_of(read(library.vectors)),
        rtol=0,
        atol=1e-5,
    )


REPLICAS = """
import sys
import tensorflow as tf

cpus = tf.config.list_physical_devices("CPU")
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpus[0], two)
from align_keras.embedding import embed
from align_keras.training.strategies import make_strategy

pictures, preset, saved_model, output = sys.argv[1:]
strategy = make_strategy("mirrored")
assert strategy.num_replicas_in_sync == 2
try:
    embed(pictures, f"{output}/small", preset, strategy, batch_size=1)
except ValueError as error:
    assert "at least 2, the number of replicas" in str(error)
else:
    raise AssertionError("A batch of one was taken.")
for name, model in (("preset", preset), ("saved_model", saved_model)):
    embed(pictures, f"{output}/{name}", model, strategy, batch_size=8)
"""


@pytest.fixture(scope="module")
def replicas(library, saved_model, tmp_path_factory):
    import subprocess
    import sys

    output = tmp_path_factory.mktemp("replicas")
    done = subprocess.run(
        [
            *(sys.executable, "-c", REPLICAS, library.images),
            *(library.preset, saved_model, output),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: vectors_of(read(output / name))
        for name in ("preset", "saved_model")
    }
