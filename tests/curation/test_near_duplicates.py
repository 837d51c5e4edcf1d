"""Perceptual hashes, test sets, and clusters of embeddings."""

import io
import shutil

import numpy as np
import pytest

pytest.importorskip("ibis", reason="needs the extra `curation`")
pytest.importorskip("faiss", reason="needs the extra `curation`")

import pyarrow as pa
import pyarrow.parquet as pq
import scipy.fft
from PIL import Image

from align_keras.curation import curate
from align_keras.curation import explain
from align_keras.curation.config import parse_config
from align_keras.curation.embedding_duplicates import embedding_near_duplicates
from align_keras.curation.embedding_duplicates import load_embedder
from align_keras.curation.evaluation_images import hash_evaluation_images
from align_keras.curation.perceptual_hash import hamming_distance
from align_keras.curation.perceptual_hash import perceptual_hash
from align_keras.curation.rule_parts import bands


def photos(folder, count=12):
    """Photographs, small ones so that they are quickly read."""
    files = sorted((folder / "photos").glob("*.JPEG"))[:count]
    images = [Image.open(file).convert("RGB") for file in files]
    for image in images:
        image.thumbnail((400, 400))
    return [np.asarray(image) for image in images]


def test_hash_is_the_usual_one(data_directory):
    """By SciPy's transform, as the package imagehash does it."""
    for pixels in photos(data_directory):
        gray = Image.fromarray(pixels).convert("L")
        gray = gray.resize((32, 32), Image.Resampling.LANCZOS)
        values = scipy.fft.dct(np.asarray(gray, "float64"), axis=0)
        low = scipy.fft.dct(values, axis=1)[:8, :8]
        bits = "".join("01"[int(bit)] for bit in (low > np.median(low)).flat)
        assert perceptual_hash(pixels) % 2**64 == int(bits, 2)


def test_bands_find_every_pair_within_the_distance():
    draw = np.random.default_rng(0)
    for distance in (0, 1, 3, 5, 10):
        masks = [mask % 2**64 for mask in bands(distance + 1)]
        assert len(masks) == distance + 1
        assert sum(masks) == 2**64 - 1
        for _ in range(200):
            one = int(draw.integers(0, 2**63))
            other = one
            for bit in draw.choice(64, distance, replace=False):
                other ^= 1 << int(bit)
            assert any(one & mask == other & mask for mask in masks)
            assert hamming_distance(one, other - 2 * (other & 2**63)) == (
                distance
            )


def test_distorted_photographs(data_directory, tmp_path):
    """Copies of test photographs go, others stay."""
    pixels = photos(data_directory, 24)
    for folder in ("test", "train"):
        (tmp_path / folder).mkdir()
    names, copy_of_test = [], []
    for number, photo in enumerate(pixels):
        image = Image.fromarray(photo)
        if number % 2:
            image.save(tmp_path / "test" / f"{number}.png")
        half = image.resize((image.width // 2, image.height // 2))
        for kind, copy in (
            ("half", half),
            ("mirror", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        ):
            names.append(f"{number}-{kind}.jpg")
            copy.save(tmp_path / "train" / names[-1], quality=60)
            copy_of_test.append(bool(number % 2))
    names.append("missing.jpg")
    table = pa.table({"url": names, "text": ["one two three"] * len(names)})
    pq.write_table(table, tmp_path / "in.parquet")

    def found(**parameters):
        rules = [{"near_duplicate": {"test_images": ["test"], **parameters}}]
        fields = {"rules": rules, "image_folder": "train"}
        output = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        config = parse_config(fields, tmp_path)
        curate([tmp_path / "in.parquet"], output, config)
        kept = set(pq.read_table(output / "kept")["url"].to_pylist())
        return [name not in kept for name in names[:-1]], output

    dropped, output = found(distance=6)
    recall = np.mean(
        [d for d, c in zip(dropped, copy_of_test, strict=True) if c]
    )
    false = np.mean(
        [d for d, c in zip(dropped, copy_of_test, strict=True) if not c]
    )
    assert recall >= 0.95 and false == 0
    text = (output / "audit.json").read_text("utf-8")
    assert '"unreadable_images": 1' in text
    without_mirrors, _ = found(distance=6, mirrored=False)
    assert not any(without_mirrors[1::2])
    assert without_mirrors[::2] == dropped[::2]
    kept = pq.read_table(output / "kept").to_pylist()
    half = {row["url"]: row for row in kept}["0-half.jpg"]
    height, width = pixels[0].shape[:2]
    assert (half["width"], half["height"]) == (width // 2, height // 2)


def test_test_sets_of_every_form(tmp_path):
    tf = pytest.importorskip("tensorflow")
    from align_keras.data.records import encode_record

    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (3, 8, 8, 3), "uint8")
    images = [Image.fromarray(n).resize((64, 48)) for n in noise]
    expected = sorted(perceptual_hash(np.asarray(i)) for i in images)
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for number, image in enumerate(images):
            file = io.BytesIO()
            image.save(file, "PNG")
            place = tmp_path / "folder" / ("deep" if number else ".")
            (place / f"{number}.png").write_bytes(file.getvalue())
            writer.write(encode_record(str(number), file.getvalue(), "x", 1, 1))
    (tmp_path / "folder" / "broken.jpg").write_bytes(b"no image")
    hexadecimal = [f"{value % 2**64:016x}" for value in expected]
    (tmp_path / "h.txt").write_text("\n".join(hexadecimal))
    pq.write_table(
        pa.table({"image_phash": hexadecimal}), tmp_path / "h.parquet"
    )
    pq.write_table(
        pa.table({"phash": pa.array([v % 2**64 for v in expected], "uint64")}),
        tmp_path / "u.parquet",
    )
    (tmp_path / "h.csv").write_text(
        "phash,x\n" + ",1\n".join(hexadecimal) + ",1\n"
    )
    for name in (
        "folder",
        "a.tfrecord",
        "h.txt",
        "h.parquet",
        "u.parquet",
        "h.csv",
    ):
        found = hash_evaluation_images([tmp_path / name], mirrored=False)
        assert sorted(found) == expected, name
    assert set(
        hash_evaluation_images([tmp_path / "a.tfrecord"], False).values()
    ) == ({"0", "1", "2"})
    both = hash_evaluation_images([tmp_path / "folder"], mirrored=True)
    assert len(both) == 6 and set(expected) <= set(both)
    for number, image in enumerate(images):
        place = "deep/" if number else ""
        name = str(tmp_path / "folder" / f"{place}{number}.png")
        assert both[perceptual_hash(np.asarray(image))] == name
        mirror = np.asarray(image)[:, ::-1]
        assert both[perceptual_hash(mirror)] == f"{name}, mirrored"
    (tmp_path / "bad.txt").write_text("123\n")
    with pytest.raises(ValueError, match="bad.txt"):
        hash_evaluation_images([tmp_path / "bad.txt"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        hash_evaluation_images([tmp_path / "nowhere"])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no image"):
        hash_evaluation_images([tmp_path / "none"])


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(
        "float32"
    )


def test_clusters_find_what_brute_force_finds():
    draw = np.random.default_rng(0)
    train = unit(draw.normal(size=(6000, 32)))
    test = unit(draw.normal(size=(300, 32)))
    # Some are close copies, at angles on both sides of the threshold.
    copies = draw.integers(0, 300, 500)
    noise = draw.normal(size=(500, 32)) * draw.uniform(0.01, 0.08, (500, 1))
    train[:500] = unit(test[copies] + noise)
    cosines = train @ test.T
    expected = np.flatnonzero(cosines.max(1) > 0.975)
    found, tests, values = embedding_near_duplicates(
        train, test, clusters=100, nearest=10, shared=3
    )
    assert 100 < len(expected) < 500
    # Never anything else, and nearly all: the buckets are a heuristic.
    assert set(found) <= set(expected)
    assert len(found) >= 0.98 * len(expected)
    np.testing.assert_array_equal(tests, cosines[found].argmax(1))
    np.testing.assert_allclose(values, cosines[found].max(1), atol=1e-5)
    # Fewer shared clusters miss fewer; none at all leave brute force.
    all_found, _, _ = embedding_near_duplicates(train, test, clusters=1)
    np.testing.assert_array_equal(all_found, expected)
    strict, _, _ = embedding_near_duplicates(
        train, test, clusters=100, nearest=3, shared=3
    )
    assert set(strict) < set(found)
    nothing, _, _ = embedding_near_duplicates(train[:0], test)
    assert len(nothing) == 0


def test_any_tower_embeds_images(data_directory, tmp_path):
    """A preset as the embedder, through the rule."""
    from tiny_align import tiny_align

    tiny_align().save_to_preset(str(tmp_path / "preset"))
    embed = load_embedder(str(tmp_path / "preset"))
    pixels = photos(data_directory, 4)
    vectors = embed(pixels)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    (tmp_path / "test").mkdir()
    (tmp_path / "train").mkdir()
    Image.fromarray(pixels[0]).save(tmp_path / "test" / "0.png")
    for number, photo in enumerate(pixels):
        Image.fromarray(photo).save(tmp_path / "train" / f"{number}.png")
    # An untrained tower finds all alike; a bound between separates them.
    others = np.sort(vectors[1:] @ vectors[0])
    bound = float((1 + others[-1]) / 2)
    names = [f"{number}.png" for number in range(4)] + ["missing.png"]
    table = pa.table({"url": names, "text": ["one two three"] * 5})
    pq.write_table(table, tmp_path / "in.parquet")
    rule = {"test_images": ["test"], "images": "train", "cosine": bound}
    rule["model"] = str(tmp_path / "preset")
    config = parse_config(
        {"rules": [{"near_duplicate_embedding": rule}]}, tmp_path
    )
    curate([tmp_path / "in.parquet"], tmp_path / "out", config)
    kept = pq.read_table(tmp_path / "out" / "kept")["url"].to_pylist()
    assert sorted(kept) == names[1:]
    (found,) = explain(tmp_path / "out", 0)
    (rule,) = found["rules"]
    place = tmp_path / "test" / "0.png"
    assert rule["why"].startswith(f"cosine 1.000 to test image `{place}`")
    # A missing image is added, which is like the test image.
    shutil.copy(tmp_path / "train" / "0.png", tmp_path / "train" / names[4])
    given = [tmp_path / "in.parquet"], config
    with pytest.raises(FileExistsError, match="other inputs or settings"):
        curate(given[0], tmp_path / "out", config)
    stages = {"stages": tmp_path / "out" / ".stages"}
    curate(given[0], tmp_path / "2", config, **stages)
    kept = pq.read_table(tmp_path / "2" / "kept")["url"].to_pylist()
    assert sorted(kept) == names[1:4]
    # Another model of the same name has other vectors.
    tiny_align(seed=1).save_to_preset(str(tmp_path / "preset"))
    with pytest.raises(FileExistsError, match="other inputs or settings"):
        curate(given[0], tmp_path / "2", config)


def test_images_that_are_added_are_measured(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "0.png")
    table = {"url": ["0.png", "1.png"], "text": ["one two three"] * 2}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    config = parse_config({"rules": [{"shorter_side": {"above": 20}}]})
    given = {"image_folder": tmp_path / "images", "stages": tmp_path / "stages"}
    curate([tmp_path / "in.parquet"], tmp_path / "1", config, **given)
    Image.new("RGB", (50, 60)).save(tmp_path / "images" / "1.png")
    curate([tmp_path / "in.parquet"], tmp_path / "2", config, **given)
    widths = [
        pq.read_table(tmp_path / name / "kept")["width"].to_pylist()
        for name in ("1", "2")
    ]
    assert widths == [[40], [40, 50]]


def test_image_tower_alone_embeds_images(tmp_path):
    import keras

    from align_keras import AlignImageConverter
    from align_keras import EfficientNetBackbone

    keras.utils.set_random_seed(0)
    tower = EfficientNetBackbone(0.2, 0.2)
    tower.save_to_preset(str(tmp_path / "tower"))
    draw = np.random.default_rng(0)
    pixels = list(draw.integers(0, 256, (3, 50, 60, 3), "uint8"))
    vectors = load_embedder(str(tmp_path / "tower"))(pixels)
    for photo, vector in zip(pixels, vectors, strict=True):
        features = tower(AlignImageConverter()(photo[None]), training=False)
        average = keras.ops.convert_to_numpy(features)[0].mean((0, 1))
        expected = average / np.linalg.norm(average)
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    with pytest.raises(ValueError, match="efficientnet_b0.*without weights"):
        load_embedder("efficientnet_b0")


def test_embedding_rule_passes_over_rows_without_an_address(tmp_path):
    """By hash they are images, but there is nothing to open."""
    from tiny_align import tiny_align

    tiny_align().save_to_preset(str(tmp_path / "preset"))
    (tmp_path / "test").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "test" / "0.png")
    table = {
        "url": ["0.png", None],
        "text": ["one two three"] * 2,
        "phash": pa.array([1, 2], "uint64"),
    }
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    rule = {"test_images": ["test"], "images": "test"}
    rule["model"] = str(tmp_path / "preset")
    fields = {
        "rules": [{"near_duplicate_embedding": rule}],
        "image_identity": "phash",
    }
    config = parse_config(fields, tmp_path)
    curate([tmp_path / "in.parquet"], tmp_path / "out", config)
    kept = pq.read_table(tmp_path / "out" / "kept")["phash"].to_pylist()
    assert kept == [2]
