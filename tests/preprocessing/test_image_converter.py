"""Resizing, cropping and scaling against NumPy and Pillow."""

import collections
import io
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from align_keras.preprocessing import AlignImageConverter
from align_keras.preprocessing import decode
from align_keras.preprocessing import image_converter as module

PHOTOS = Path(__file__).resolve().parents[2] / ".." / "shared/data/photos"


def _photos():
    """Photographs where they are at hand, else smooth and noisy images."""
    files = sorted(PHOTOS.glob("*.JPEG"))[::40]
    if files:
        return [np.asarray(Image.open(f).convert("RGB")) for f in files]
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (9, 11, 3), dtype="uint8")
    noise = random.integers(0, 256, (480, 640, 3), dtype="uint8")
    smooth = Image.fromarray(small).resize((500, 375), Image.BICUBIC)
    return [np.asarray(smooth), noise, noise[:200, :150]]


def _grey_levels(converted):
    return (np.asarray(converted) + 1) * 127.5


def _point_sampled(image, size):
    """Bilinear resizing from two neighbours a side, pixel centres aligned."""
    image = image.astype("float64")
    for axis in (0, 1):
        old = image.shape[axis]
        position = (np.arange(size) + 0.5) * old / size - 0.5
        low = np.floor(position).astype(int)
        weight = position - low
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        below = np.take(image, np.clip(low, 0, old - 1), axis)
        above = np.take(image, np.clip(low + 1, 0, old - 1), axis)
        weight = weight.reshape(shape)
        image = below * (1 - weight) + above * weight
    return image


def test_default_matches_point_sampling():
    for photo in _photos():
        expected = _point_sampled(photo, 346)[28:317, 28:317]
        result = _grey_levels(AlignImageConverter()(photo))
        assert result.shape == (289, 289, 3)
        np.testing.assert_allclose(result, expected, atol=0.02)


def test_antialias_matches_pillow():
    for photo in _photos():
        expected = Image.fromarray(photo).resize((346, 346), Image.BILINEAR)
        expected = np.asarray(expected).astype(float)[28:317, 28:317]
        result = _grey_levels(AlignImageConverter(antialias=True)(photo))
        np.testing.assert_allclose(result, np.round(result), atol=1e-3)
        difference = np.abs(result - expected)
        assert difference.max() < 1.01
        assert difference.mean() < 0.066


def test_both_settings_differ():
    photo = _photos()[0]
    plain = _grey_levels(AlignImageConverter()(photo))
    smooth = _grey_levels(AlignImageConverter(antialias=True)(photo))
    assert np.abs(plain - smooth).mean() > 0.2


@pytest.mark.parametrize("antialias", [False, True])
def test_numpy_path_matches_tensorflow(monkeypatch, antialias):
    converter = AlignImageConverter(antialias=antialias)
    photos = _photos()
    batch = np.stack([photos[0]] * 2)
    expected = [np.asarray(converter(x)) for x in (*photos, batch)]
    monkeypatch.setattr(module, "_uses_tensorflow", lambda: False)
    for photo, result in zip((*photos, batch), expected, strict=True):
        difference = np.abs(np.asarray(converter(photo)) - result) * 127.5
        assert difference.max() < (1.01 if antialias else 0.02)
        assert difference.mean() < 0.005


def test_central_crop_starts_at_28():
    rows = np.arange(346, dtype="float32")
    image = np.broadcast_to(rows[:, None, None], (346, 346, 3))
    result = _grey_levels(AlignImageConverter()(image))
    np.testing.assert_allclose(result[:, 0, 0], rows[28:317], atol=1e-3)
    result = _grey_levels(AlignImageConverter()(image.transpose(1, 0, 2)))
    np.testing.assert_allclose(result[0, :, 0], rows[28:317], atol=1e-3)


def _coordinates(converter):
    height, width = converter.resize_size
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, 0 * x], -1)


def _offsets_and_flips(result):
    """Crop corners and mirrorings, read off crops of `_coordinates`."""
    rows = np.round(result[:, :, 0, 0]).astype(int)
    columns = np.round(result[:, 0, :, 1]).astype(int)
    steps = columns[:, 1] - columns[:, 0]
    # Each crop is one window without gaps, forwards or backwards.
    assert (np.diff(rows) == 1).all()
    assert (np.diff(columns) == steps[:, None]).all()
    assert set(steps) <= {1, -1}
    return rows[:, 0], columns.min(1), steps < 0


def _crops_of_batch(converter, count):
    image = _coordinates(converter).astype("float32")
    batch = np.broadcast_to(image, (count, *image.shape))
    return np.asarray(converter(batch, training=True, seed=(3, 4)))


def _crops_of_files(converter, count):
    file = io.BytesIO()
    Image.fromarray(_coordinates(converter).astype("uint8")).save(file, "PNG")
    contents = tf.constant(file.getvalue())
    crops = tf.data.Dataset.range(count).map(
        lambda n: converter.decode_random_crop(contents, tf.stack([3, n]))
    )
    return next(crops.batch(count).as_numpy_iterator())


@pytest.mark.parametrize(
    ("tensorflow", "crop"),
    [
        (True, _crops_of_batch),
        (False, _crops_of_batch),
        (True, _crops_of_files),
    ],
    ids=["tensorflow", "numpy", "files"],
)
def test_random_crop_distribution(monkeypatch, tensorflow, crop):
    monkeypatch.setattr(module, "_uses_tensorflow", lambda: tensorflow)
    converter = AlignImageConverter(
        image_size=(6, 5), resize_size=(9, 9), scale=1.0, offset=0.0
    )
    count = 4000
    top, left, flipped = _offsets_and_flips(crop(converter, count))
    for values, choices in ((top, 4), (left, 5)):
        counts = collections.Counter(values.tolist())
        assert sorted(counts) == list(range(choices))
        expected = count / choices
        # Six standard deviations.
        limit = 6 * np.sqrt(expected * (1 - 1 / choices))
        assert all(abs(n - expected) < limit for n in counts.values())
    assert abs(flipped.mean() - 0.5) < 3 / np.sqrt(count)
    # The three draws are independent.
    draws = np.corrcoef([top, left, flipped])
    assert np.abs(draws - np.eye(3)).max() < 6 / np.sqrt(count)
    # Without mirror images the crops are the same, and none runs backwards.
    plain = AlignImageConverter.from_config(
        {**converter.get_config(), "mirror": False}
    )
    assert plain.get_config()["mirror"] is False
    same_top, same_left, flipped = _offsets_and_flips(crop(plain, count))
    np.testing.assert_array_equal(same_top, top)
    np.testing.assert_array_equal(same_left, left)
    assert not flipped.any()


def test_fast_crops_are_mirrored_where_they_may_be():
    pixels = np.zeros((64, 64, 3), "uint8")
    pixels[:, 32:] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    for mirror, expected in ((True, {-1, 1}), (False, {1})):
        converter = AlignImageConverter(16, 20, fast=True, mirror=mirror)
        crop = tf.function(converter.decode_random_crop)
        contents = tf.constant(file.getvalue())
        crops = [
            np.asarray(crop(contents, tf.constant([3, n]))) for n in range(12)
        ]
        sides = {int(np.sign(c[:, -1].mean() - c[:, 0].mean())) for c in crops}
        assert sides == expected


def test_random_crop_follows_from_the_seed():
    converter = AlignImageConverter(image_size=16, resize_size=24)
    image = np.random.default_rng(0).integers(0, 256, (5, 30, 40, 3), "uint8")
    first = np.asarray(converter(image, training=True, seed=(1, 2)))
    again = np.asarray(converter(image, training=True, seed=(1, 2)))
    other = np.asarray(converter(image, training=True, seed=(1, 3)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    graph = tf.function(lambda x, s: converter(x, training=True, seed=s))
    drawn = graph(image, tf.constant([1, 2]))
    np.testing.assert_array_equal(drawn, graph(image, tf.constant([1, 2])))
    if keras.backend.backend() == "tensorflow":
        np.testing.assert_array_equal(first, drawn)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(24, 24), (24, 30), (50, 40)])
def test_an_image_is_cropped_as_in_a_batch_of_one(size, antialias):
    """Images that are resized already are cropped before they are floats."""
    converter = AlignImageConverter(16, 24, antialias=antialias)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), "uint8")

    @tf.function
    def crop(image, seed):
        return converter(image, training=True, seed=seed)

    alone = crop.get_concrete_function(
        tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec(2, tf.int32)
    )
    assert alone.output_shapes == (16, 16, 3)
    for number in range(8):
        seed = tf.constant([3, number])
        found = alone(tf.constant(image), seed)
        wanted = crop(image[None], seed)[0]
        np.testing.assert_array_equal(found, wanted)


def test_training_needs_a_seed():
    with pytest.raises(ValueError, match="seed"):
        AlignImageConverter()(np.zeros((9, 9, 3)), training=True)


def test_scale_and_offset_per_channel():
    converter = AlignImageConverter(
        image_size=4, resize_size=4, scale=[1, 2, 3], offset=[10, 20, 30]
    )
    image = np.full((4, 4, 3), 5, "uint8")
    np.testing.assert_allclose(converter(image)[0, 0], [15, 30, 45])


def test_result_is_float32_under_mixed_precision():
    image = _photos()[0]
    expected = np.asarray(AlignImageConverter()(image))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        result = AlignImageConverter()(image)
    finally:
        keras.config.set_dtype_policy(before)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    np.testing.assert_array_equal(result, expected)


def test_config_round_trip():
    converter = AlignImageConverter(
        image_size=(30, 20),
        resize_size=(40, 50),
        antialias=True,
        fast=True,
        scale=[0.1, 0.2, 0.3],
        offset=[1.0, 2.0, 3.0],
        name="pictures",
    )
    config = keras.saving.serialize_keras_object(converter)
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == converter.get_config()
    assert copy.image_size == (30, 20) and copy.resize_size == (40, 50)
    image = _photos()[0]
    np.testing.assert_array_equal(copy(image), converter(image))


def test_sizes():
    assert AlignImageConverter().resize_size == (346, 346)
    assert AlignImageConverter(image_size=64).resize_size == (77, 77)
    assert AlignImageConverter(64, 64).resize_size == (64, 64)
    with pytest.raises(ValueError, match="does not fit"):
        AlignImageConverter(image_size=64, resize_size=63)
    with pytest.raises(ValueError, match="positive"):
        AlignImageConverter(image_size=0)
    converter = AlignImageConverter(image_size=64)
    converter.image_size = 32
    assert converter(np.zeros((9, 9, 3))).shape == (32, 32, 3)


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"\(9, 9\)"):
        AlignImageConverter()(np.zeros((9, 9)))


def test_load(tmp_path):
    converter = AlignImageConverter(image_size=20)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), "uint8")
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(file.getvalue())
    items = [path, str(path), file.getvalue(), image, pixels]
    result = converter.load(items)
    assert isinstance(result, np.ndarray) and result.dtype == np.float32
    expected = np.asarray(converter(pixels))
    np.testing.assert_array_equal(result, np.stack([expected] * 5))
    np.testing.assert_array_equal(converter.load(path), expected[None])
    assert converter.load([]).shape == (0, 20, 20, 3)


def test_load_names_what_does_not_decode(tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.jpg.*0 bytes"):
        AlignImageConverter().load([empty])
    with pytest.raises(ValueError, match="number 1 of the list"):
        AlignImageConverter().load([np.zeros((9, 9, 3), "uint8"), b"text"])
    with pytest.raises(FileNotFoundError, match="absent.jpg"):
        AlignImageConverter().load([tmp_path / "absent.jpg"])


def test_encoded_files_in_a_graph():
    converter = AlignImageConverter(image_size=20)
    files = []
    for size in ((40, 30), (25, 60)):
        file = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), "uint8")
        Image.fromarray(noise).save(file, "PNG")
        files.append(file.getvalue())
    graph = tf.function(
        lambda x: converter(x),
        input_signature=[tf.TensorSpec([None], "string")],
    )
    result = graph(tf.constant(files))
    np.testing.assert_allclose(result, converter.load(files), atol=2e-5)
    one = tf.function(lambda x: converter(x))(tf.constant(files[1]))
    np.testing.assert_allclose(one, converter.load(files)[1], atol=2e-5)


def _encode(size, form="JPEG", **kwargs):
    random = np.random.default_rng(4)
    small = random.integers(0, 256, (7, 9, 3), dtype="uint8")
    buffer = io.BytesIO()
    image = Image.fromarray(small).resize(size, Image.BICUBIC)
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()


def _ramp(size):
    """An image whose red and green tell the column and the row."""
    width, height = size
    pixels = np.full((height, width, 3), 128.0)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.round().astype("uint8"))
    image.save(buffer, "JPEG", quality=98, subsampling=0)
    return tf.constant(buffer.getvalue())


# The last is decoded at an eighth of its size.
@pytest.mark.parametrize(
    "size, ratio", [((90, 110), 1), ((200, 220), 1), ((1020, 1060), 8)]
)
def test_fast_crops_are_those_of_the_whole_image(size, ratio):
    contents = _ramp(size)
    options = {"image_size": 96, "resize_size": 115}
    fast, plain = (
        tf.function(
            AlignImageConverter(**options, fast=fast).decode_random_crop,
            autograph=False,
        )
        for fast in (True, False)
    )
    crops = []
    for number in range(4):
        seed = tf.constant([3, number])
        crops.append(_grey_levels(fast(contents, seed)))
        expected = _grey_levels(plain(contents, seed))
        # Window and image end at whole pixels; a grey level for the JPEG.
        pixel = 255 * ratio / min(size)
        assert np.abs(crops[-1] - expected).max() < 1.5 * pixel + 2
        assert np.abs(crops[-1] - expected).mean() < 0.75 * pixel + 1
    assert max(np.abs(crops[0] - crop).mean() for crop in crops) > 5


def test_fast_decodes_at_a_fraction_of_the_size():
    contents = tf.constant(_encode((1020, 1060)))
    corner = tf.constant([19, 19])
    window = decode.decode_window(contents, corner, (96, 96), (115, 115))
    # 1060 / 115 is above 8, so that a side of 8 pixels became one.
    assert window.shape == (
        round(1060 / 8 * 96 / 115),
        round(1020 / 8 * 96 / 115),
        3,
    )
    whole = Image.open(io.BytesIO(contents.numpy()))
    whole.draft("RGB", (1020 // 8, 1060 // 8))
    whole = np.asarray(whole, "float32")
    top, left = round(1060 / 8 * 19 / 115), round(1020 / 8 * 19 / 115)
    expected = whole[top:, left:][: window.shape[0], : window.shape[1]]
    # Both ask libjpeg for the same; versions of it may round differently.
    assert np.abs(expected - window.numpy()).mean() < 1


def test_fast_leaves_other_files_to_the_whole_decoder():
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        _encode((90, 110), "PNG"),
        _encode((90, 110), exif=exif.tobytes()),
    ]
    options = {"image_size": 96, "resize_size": 115}
    for contents in files:
        crops = [
            AlignImageConverter(**options, fast=fast).decode_random_crop(
                tf.constant(contents), tf.constant([3, 1])
            )
            for fast in (True, False)
        ]
        np.testing.assert_array_equal(*crops)
