import json
import os
import threading

import keras
import numpy as np
import pytest
from PIL import Image
from tiny_align import image_file
from tiny_align import tiny_align

from align_keras.cli import main
from align_keras.embedding import Embedder
from align_keras.embedding import embed_images
from align_keras.embedding import embed_texts
from align_keras.embedding import vector_cache
from align_keras.embedding.embed_streams import embed_readable
from align_keras.evaluation import measure_retrieval
from align_keras.io.threads import map_ahead
from align_keras.search import compose_query
from align_keras.search import top_k

TEXTS = ["a red bus", "the blue dog", "a house", "", "cafés on the bus"]


@pytest.fixture(scope="module")
def model():
    return tiny_align()


@pytest.fixture(scope="module")
def photos():
    sizes = [(60, 45), (35, 80), (64, 64), (90, 41), (50, 50)]
    return [image_file(i, size) for i, size in enumerate(sizes)]


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_equals_encoding_one_by_one(batch_size, model, photos):
    images = embed_images(model, photos, batch_size, progress=False)
    texts = embed_texts(model, TEXTS, batch_size, progress=False)
    assert images.dtype == texts.dtype == np.float32
    for row, photo in zip(images, photos, strict=True):
        expected = numpy(model.encode_image([photo]))[0]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5)
    for row, text in zip(texts, TEXTS, strict=True):
        expected = numpy(model.encode_text(text))[0]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5)


def test_every_form_of_an_image(model, photos, tmp_path):
    path = tmp_path / "one.jpg"
    path.write_bytes(photos[1])
    converter = model.preprocessor.image_converter
    forms = [
        photos[1],
        path,
        str(path),
        np.asarray(Image.open(path).convert("RGB")),
        converter.load([path])[0],
    ]
    rows = embed_images(model, iter(forms), progress=False)
    np.testing.assert_allclose(rows, rows[:1].repeat(5, 0), rtol=0, atol=1e-5)


def test_later_weights_count():
    model = tiny_align(seed=1)
    before = embed_texts(model, TEXTS, progress=False)
    kernel = model.text_projection.kernel
    kernel.assign(kernel[:, ::-1])
    after = embed_texts(model, TEXTS, progress=False)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(
        after[1], numpy(model.encode_text(TEXTS[1]))[0], rtol=0, atol=1e-6
    )


def test_progress_bar_goes_to_standard_error(model, capsys):
    embed_texts(model, TEXTS, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Embedding texts" in captured.err and "5/5" in captured.err
    embed_texts(model, TEXTS, progress=False)
    assert capsys.readouterr().err == ""


def test_bad_input_is_named(model, photos, tmp_path):
    def embed(*images):
        return embed_images(model, images, progress=False)

    with pytest.raises(ValueError, match="Image 2 is not readable: .*0 bytes"):
        embed(photos[0], photos[1], b"")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0][:100])
    with pytest.raises(ValueError, match="broken.jpg.* is not readable"):
        embed(photos[0], broken)
    with pytest.raises(FileNotFoundError, match="none.jpg"):
        embed(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="no images to embed"):
        embed()
    with pytest.raises(ValueError, match="no texts to embed"):
        embed_texts(model, [], progress=False)
    with pytest.raises(ValueError, match="batch_size=0"):
        embed_texts(model, TEXTS, batch_size=0, progress=False)
    bare = tiny_align()
    bare.preprocessor = None
    with pytest.raises(ValueError, match="no preprocessor"):
        embed_texts(bare, TEXTS)


def means():
    """An embedder whose vectors may be kept."""
    return Embedder(
        "means",
        images=lambda batch: np.stack([p.mean((0, 1)) for p in batch]),
        texts=None,
        fingerprint="f",
    )


@pytest.mark.parametrize("size", [2, 3])
def test_images_that_are_added_are_not_left_out(size, tmp_path, monkeypatch):
    """Embedded after whole chunks; refused where the last was not full."""
    monkeypatch.setattr(vector_cache, "CHUNK", size)
    blank = [np.full((4, 4, 3), n, "uint8") for n in range(5)]
    images = [(str(n), image) for n, image in enumerate(blank)]

    def embed(count):
        return embed_readable(means(), images[:count], cache=tmp_path)[0]

    embed(4)
    if size == 2:
        np.testing.assert_array_equal(
            embed(5), embed_readable(means(), images)[0]
        )
    else:
        with pytest.raises(ValueError, match="vectors of other images"):
            embed(5)
    # As are those that were taken away.
    with pytest.raises(ValueError, match="vectors of other images"):
        embed(3)


@pytest.mark.parametrize("form", ["path", "bytes", "array", "function"])
def test_vectors_of_other_images_of_the_same_name_are_refused(form, tmp_path):
    blank = {n: np.full((4, 4, 3), n, "uint8") for n in (9, 200)}
    for n, pixels in blank.items():
        Image.fromarray(pixels).save(tmp_path / f"{n}.bmp")
        # Files of the same size, and of the same name in other folders.
        os.utime(tmp_path / f"{n}.bmp", ns=(n, n))

    def named(n):
        path = tmp_path / f"{n}.bmp"
        image = {
            "path": path,
            "bytes": path.read_bytes(),
            "array": blank[n],
            "function": lambda: blank[n],
        }
        return [("a", image[form]), ("b", path)]

    def embed(n):
        return embed_readable(means(), named(n), cache=tmp_path / "cache")[0]

    first = embed(9)
    np.testing.assert_array_equal(embed(9), first)
    with pytest.raises(ValueError, match="vectors of other images"):
        embed(200)


def test_images_left_out_are_named_again_from_vectors_on_disk(
    photos, tmp_path, caplog
):
    images = [("good", photos[0]), ("bad", b"no image")]
    for _ in range(2):
        caplog.clear()
        _, readable = embed_readable(means(), images, cache=tmp_path)
        assert readable.tolist() == [True, False]
        assert "Image bad is left out" in caplog.text


def test_ahead_keeps_order_and_reads_no_further_than_needed():
    taken = []
    release = threading.Event()

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    def work(number):
        if number == 0:
            release.wait(5)
        else:
            release.set()
        return -number

    results = map_ahead(work, items(), workers=3)
    assert [next(results) for _ in range(5)] == [0, -1, -2, -3, -4]
    assert len(taken) <= 5 + 4 * 3
    assert list(results) == [-number for number in range(5, 100)]


@pytest.fixture(scope="module")
def packed(photos, tmp_path_factory):
    """Two shards as img2dataset writes them, one image broken."""
    import tensorflow as tf

    def feature(*values):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    captions = [
        [b"a red bus", b"the bus"],
        [b"the blue dog"],
        [b"a house", b"the house on the green", b"a red house"],
        [b"a green bus near the house"],
        [b"dogs"],
    ]
    folder = tmp_path_factory.mktemp("packed")
    contents = [*photos[:2], b"no image", *photos[3:]]
    for shard, numbers in enumerate(([0, 1, 2], [3, 4])):
        path = str(folder / f"{shard}.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for number in numbers:
                features = {
                    "key": feature(f"name{number}".encode()),
                    "jpg": feature(contents[number]),
                    "txt": feature(*captions[number]),
                }
                example = tf.train.Example(
                    features=tf.train.Features(feature=features)
                )
                writer.write(example.SerializeToString())
    return folder


# What the records above come to without the broken one.
KEPT = [0, 1, 3, 4]
KEPT_TEXTS = [
    "a red bus",
    "the bus",
    "the blue dog",
    "a green bus near the house",
    "dogs",
]
OWNERS = [0, 0, 1, 2, 3]


def expected_recalls(model, photos, ks):
    images = numpy(model.encode_image([photos[i] for i in KEPT]))
    scores = images @ numpy(model.encode_text(KEPT_TEXTS)).T
    by_image, by_text = np.argsort(-scores, axis=1), np.argsort(-scores.T, 1)
    owners = np.array(OWNERS)
    result = {}
    for k in ks:
        hits = [i in owners[row[:k]] for i, row in enumerate(by_image)]
        result[f"image_to_text_recall@{k}"] = np.mean(hits)
        hits = [o in row[:k] for o, row in zip(owners, by_text, strict=True)]
        result[f"text_to_image_recall@{k}"] = np.mean(hits)
    return result


def test_measure_retrieval(model, photos, packed, caplog):
    result = measure_retrieval(
        model,
        str(packed / "*.tfrecord"),
        ks=(1, 2, 3),
        batch_size=3,
        progress=False,
        samples=0,
    )
    expected = expected_recalls(model, photos, (1, 2, 3))
    assert {k: result[k] for k in expected} == pytest.approx(expected)
    # The numbers tell something: neither all hits nor all misses.
    assert 0 < result["text_to_image_recall@2"] < 1
    assert (result["images"], result["texts"]) == (4, 5)
    assert result["images_skipped"] == 1
    assert "name2" in caplog.text and "left out" in caplog.text
    assert result["chance_text_to_image_recall@1"] == 0.25
    assert result["chance_image_to_text_recall@1"] == pytest.approx(5 / 4 / 5)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        measure_retrieval(model, str(packed / "nowhere*"))


def test_command_line(model, photos, packed, tmp_path, capsys):
    model.save_to_preset(tmp_path / "preset")
    command = ["evaluate", "retrieval", "--model", str(tmp_path / "preset")]
    command += ["--data", str(packed), "--batch-size", "2"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    expected = expected_recalls(model, photos, (1, 5, 10))
    assert {k: result[k] for k in expected} == pytest.approx(expected)

    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "4 images, 5 captions" in lines[0] and "1 left out" in lines[0]
    recall = result["text_to_image_recall@1"]
    row = next(
        line for line in lines if line.startswith("text to image recall@1")
    )
    assert row.split()[4:6] == [f"{recall:.1%}", "25.00%"]

    assert main([*command[:-3], "nowhere", "--json"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_search_finds_the_image_itself(model, photos):
    vectors = embed_images(model, photos, progress=False)
    for index, photo in enumerate(photos):
        query = compose_query(model, image=photo)
        np.testing.assert_allclose(query, vectors[index], rtol=0, atol=1e-5)
        assert top_k(query, vectors, 1)[0][0] == index
    text = numpy(model.encode_text("a red bus"))[0]
    query = compose_query(model, image=vectors[2], minus_text="a red bus")
    expected = vectors[2] - 2 * text
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(query, expected, rtol=0, atol=1e-5)
