"""Decoding in the graph and through Pillow, against Pillow's own results."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from PIL import ImageOps
from PIL.PngImagePlugin import PngInfo

from align_keras.io import images
from align_keras.io.image_parts import exif_orientation
from align_keras.preprocessing import agreement
from align_keras.preprocessing import decode

_graph = decode.decode_in_graph


def _encode(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _image(height=23, width=37):
    """Smooth colours, so that JPEG keeps them, with no symmetry."""
    y, x = np.mgrid[:height, :width]
    red = 255 * x / width
    green = 255 * y / height
    blue = 255 * (x + 2 * y) / (width + 2 * height)
    return np.stack([red, green, blue], -1).astype("uint8")


def _noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype="uint8")


def _both(contents):
    """The image, having checked that all decoders agree exactly."""
    graph = _graph(contents).numpy()
    eager = decode.decode_eagerly(contents).numpy()
    np.testing.assert_array_equal(graph, eager)
    np.testing.assert_array_equal(graph, images.decode_with_pillow(contents))
    assert graph.dtype == np.uint8
    return graph


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_modes(mode):
    contents = _encode(Image.fromarray(_image()).convert(mode), "JPEG")
    expected = Image.open(io.BytesIO(contents)).convert("RGB")
    np.testing.assert_array_equal(_both(contents), np.asarray(expected))
    # A wrong sign of the inks would be far away.
    close = np.asarray(Image.fromarray(_image()).convert(mode).convert("RGB"))
    assert np.abs(_both(contents).astype(int) - close).mean() < 6


def test_inks_are_inverted_without_adobe_marker():
    image = Image.fromarray(_noise(16, 24, 4), "CMYK")
    marked = _encode(image, "JPEG", quality=100)
    start = marked.index(b"\xff\xee")
    plain = marked[:start] + marked[start + 16 :]
    assert b"Adobe" not in plain
    np.testing.assert_array_equal(_both(plain), _both(marked))
    close = np.asarray(image.convert("RGB"))
    assert np.abs(_both(plain).astype(int) - close).mean() < 3
    # Where only a part is decoded, too.
    window = decode.decode_window(
        tf.constant(plain), [0, 0], (16, 24), (16, 24)
    )
    np.testing.assert_array_equal(window, _both(marked))


@pytest.mark.parametrize("behind", ["APP2", "the image"])
def test_exif_counts_wherever_it_is_in_the_header(behind):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _encode(Image.fromarray(_image()), "JPEG", exif=exif.tobytes())
    upright = _encode(Image.fromarray(_image()), "JPEG")
    if behind == "APP2":
        segment = b"\xff\xe2\xff\xff" + bytes(65533)
        contents = turned[:2] + 2 * segment + turned[2:]
        assert exif_orientation(contents) == 6
        np.testing.assert_array_equal(_both(contents), _both(turned))
    else:
        contents = upright + turned
        assert exif_orientation(contents) == 1
        np.testing.assert_array_equal(_both(contents), _both(upright))


def _chunk(name, body):
    check = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)


@pytest.mark.parametrize("form, name", [("JPEG", "Exif\0\0"), ("PNG", "eXIf")])
def test_exif_in_a_comment_is_none(form, name):
    exif = Image.Exif()
    exif[0x0112] = 3
    lie = name.encode() + exif.tobytes()[6:]
    exif[0x0112] = 6
    turned = _encode(Image.fromarray(_image()), form, exif=exif)
    upright = _encode(Image.fromarray(_image()), form)
    for contents, orientation in ((turned, 6), (upright, 1)):
        comment, place = _chunk(b"tEXt", b"Comment\0" + lie), 33
        if form == "JPEG":
            comment = struct.pack(">HH", 0xFFFE, len(lie) + 2) + lie
            place = 2
        lying = contents[:place] + comment + contents[place:]
        assert exif_orientation(lying) == orientation
        np.testing.assert_array_equal(_both(lying), _both(contents))


def test_exif_in_a_colour_profile_of_webp_is_none():
    exif = Image.Exif()
    exif[0x0112] = 3
    lie = b"EXIF\0\1\0\0" + exif.tobytes()[6:]
    exif[0x0112] = 6
    options = {"icc_profile": lie, "lossless": True}
    upright = _encode(Image.fromarray(_image()), "WEBP", **options)
    np.testing.assert_array_equal(_both(upright), _image())
    turned = _encode(Image.fromarray(_image()), "WEBP", exif=exif, **options)
    np.testing.assert_array_equal(_both(turned), np.rot90(_image(), -1))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_in_xmp_does_not_count(form):
    xmp = b'<rdf:Description tiff:Orientation="6" xmlns:tiff="x"/>'
    options = {"xmp": xmp}
    if form == "PNG":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif form == "TIFF":
        options = {"tiffinfo": {700: xmp}}
    contents = _encode(Image.fromarray(_image()), form, **options)
    assert xmp in contents
    pixels = images.decode_with_pillow(contents)
    assert pixels.shape == _image().shape
    assert np.abs(pixels.astype(int) - _image()).mean() < 6


@pytest.mark.parametrize("kind, form", [(3, "HH"), (4, "I"), (9, "i")])
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_of_every_type_of_whole_numbers(order, kind, form):
    value = struct.pack(order + form, *[6, 0][: len(form)])
    block = b"II*\0" if order == "<" else b"MM\0*"
    block += struct.pack(order + "IHHHI", 8, 1, 0x112, kind, 1) + value
    block = b"Exif\0\0" + block + bytes(4)
    contents = _encode(Image.fromarray(_image()), "JPEG", exif=block)
    assert exif_orientation(contents) == 6
    assert _both(contents).shape == (37, 23, 3)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, order):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    exif[0x0132] = "2001:01:01 00:00:00"
    contents = _encode(Image.fromarray(_image()), "JPEG", exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(contents)))
    assert exif_orientation(contents) == orientation
    np.testing.assert_array_equal(_both(contents), np.asarray(expected))


@pytest.mark.parametrize("damage", ["directory far away", "orientation 9"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_counts_as_upright(damage):
    exif = Image.Exif()
    exif.endian = ">"
    exif[0x0112] = 6
    contents = _encode(Image.fromarray(_image()), "JPEG", exif=exif.tobytes())
    plain = np.asarray(Image.open(io.BytesIO(contents)))
    tiff = contents.index(b"Exif\0\0") + 6
    if damage == "orientation 9":
        position, value = contents.index(b"\x01\x12", tiff) + 8, b"\x00\x09"
    else:
        position, value = tiff + 4, b"\xff\xff\xff\xff"
    broken = contents[:position] + value + contents[position + len(value) :]
    np.testing.assert_array_equal(_both(broken), plain)


@pytest.mark.parametrize("colors", [2, 4, 16, 200])
@pytest.mark.parametrize("mode", ["P", "P with a transparent colour"])
def test_png_palette(mode, colors):
    image = Image.fromarray(_noise(20, 30, 3)).quantize(colors)
    options = {} if mode == "P" else {"transparency": 1}
    result = _both(_encode(image, "PNG", **options))
    expected = np.array(image.convert("RGB"))
    if mode != "P":
        expected[np.asarray(image) == 1] = 255
    np.testing.assert_array_equal(result, expected)


def test_png_alpha_is_blended_over_white():
    pixels = _noise(20, 30, 4)
    colour, alpha = pixels[..., :3] / 255, pixels[..., 3:] / 255
    expected = 255 * (colour * alpha + 1 - alpha)
    result = _both(_encode(Image.fromarray(pixels), "PNG"))
    assert np.abs(result - expected).max() <= 0.5 + 1e-6

    gray = Image.fromarray(_noise(20, 30, 2), "LA")
    result = _both(_encode(gray, "PNG"))
    value, alpha = np.split(np.asarray(gray) / 255, 2, axis=-1)
    expected = np.repeat(255 * (value * alpha + 1 - alpha), 3, -1)
    assert np.abs(result - expected).max() <= 0.5 + 1e-6


def test_every_value_under_every_alpha():
    pixels = np.stack(np.meshgrid(*[np.arange(256, dtype="uint8")] * 2), -1)
    result = _both(_encode(Image.fromarray(pixels, "LA"), "PNG"))
    value, alpha = pixels[..., 0].astype(int), pixels[..., 1].astype(int)
    expected = (value * alpha + 255 * (255 - alpha) + 127) // 255
    np.testing.assert_array_equal(result[..., 0], expected)


def test_png_gray_and_bilevel():
    gray = Image.fromarray(_noise(20, 30))
    expected = np.repeat(np.asarray(gray)[..., None], 3, -1)
    np.testing.assert_array_equal(_both(_encode(gray, "PNG")), expected)
    bilevel = gray.convert("1")
    expected = np.repeat(255 * np.asarray(bilevel)[..., None], 3, -1)
    np.testing.assert_array_equal(_both(_encode(bilevel, "PNG")), expected)


def test_png_of_16_bits_keeps_the_high_byte():
    values = np.random.default_rng(0).integers(0, 65536, (20, 30), "uint16")
    result = _both(_encode(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(
        result, np.repeat(values[..., None] >> 8, 3, -1)
    )


def test_gif_gives_the_first_frame():
    frames = [Image.fromarray(_noise(20, 30)), Image.new("L", (30, 20), 7)]
    contents = _encode(
        frames[0], "GIF", save_all=True, append_images=frames[1:]
    )
    expected = np.repeat(np.asarray(frames[0])[..., None], 3, -1)
    np.testing.assert_array_equal(_both(contents), expected)


def test_webp():
    pixels = _noise(20, 30, 3)
    contents = _encode(Image.fromarray(pixels), "WEBP", lossless=True)
    np.testing.assert_array_equal(_both(contents), pixels)
    _both(_encode(Image.fromarray(_image()), "WEBP", quality=80))
    pixels = _noise(20, 30, 4)
    colour, alpha = pixels[..., :3] / 255, pixels[..., 3:] / 255
    contents = _encode(
        Image.fromarray(pixels), "WEBP", lossless=True, exact=True
    )
    expected = 255 * (colour * alpha + 1 - alpha)
    assert np.abs(_both(contents) - expected).max() <= 0.5 + 1e-6


def test_plain_files_are_decoded_once(monkeypatch):
    image = Image.fromarray(_image())
    # A note, a checksum and a length that Pillow should look at.
    png, webp = _encode(image, "PNG"), _encode(image, "WEBP")
    noted = png[:33] + _chunk(b"tEXt", b"Comment\0x") + png[33:]
    broken = png[:33] + _chunk(b"gAMA", b"\0\0\0\1")[:-1] + b"?" + png[33:]
    others = [noted, broken, webp + b"more", _encode(image, "GIF")]
    others.append(_encode(image.quantize(9), "PNG"))
    others.append(_encode(image, "JPEG", progressive=True))

    def refuse(*arguments):
        raise AssertionError("decoded again")

    expected = [images.decode_with_pillow(file) for file in (png, webp)]
    monkeypatch.setattr(agreement, "decode_and_orient", refuse)
    for file, pixels in zip((png, webp), expected, strict=True):
        decoded, graph_agrees = agreement.decode_for_graph(file)
        np.testing.assert_array_equal(decoded, pixels)
        assert graph_agrees
    for file in others:
        with pytest.raises(AssertionError, match="decoded again"):
            agreement.decode_for_graph(file)


def test_animated_webp_is_left_to_pillow():
    frames = [Image.fromarray(_noise(20, 30, 3)), Image.new("RGB", (30, 20))]
    contents = _encode(
        frames[0],
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        lossless=True,
    )
    pixels, graph_agrees = agreement.decode_for_graph(contents)
    np.testing.assert_array_equal(pixels, np.asarray(frames[0]))
    assert not graph_agrees
    with pytest.raises(tf.errors.InvalidArgumentError):
        _graph(contents)


def test_a_png_whose_header_is_not_first_is_left_to_pillow():
    file = io.BytesIO()
    image = Image.fromarray(np.arange(75, dtype="uint8").reshape(5, 5, 3))
    image.save(file, "PNG", dpi=(72, 72))
    contents = file.getvalue()
    # The note of the resolution, of 9 bytes, before the header.
    note = contents.index(b"pHYs") - 4
    moved = contents[note : note + 21]
    contents = contents.replace(moved, b"")
    contents = contents[:8] + moved + contents[8:]
    pixels, graph_agrees = agreement.decode_for_graph(contents)
    np.testing.assert_array_equal(pixels, image)
    assert not graph_agrees


def test_progressive_jpeg_without_all_scans_is_left_to_pillow():
    x = np.arange(400)
    waves = _image(300, 400) // 2 + (60 * np.sin(x / 9) ** 2)[:, None]
    waves = Image.fromarray(waves.astype("uint8"))
    whole = _encode(waves, "JPEG", progressive=True)
    assert agreement.decode_for_graph(whole)[1]
    # The first scan alone.
    some = b"\xff\xda".join(whole.split(b"\xff\xda")[:2]) + b"\xff\xd9"
    pixels, graph_agrees = agreement.decode_for_graph(some)
    expected = images.decode_with_pillow(some)
    np.testing.assert_array_equal(pixels, expected)
    # Each would fill in what is missing in its own way.
    assert not graph_agrees
    with pytest.raises(tf.errors.InvalidArgumentError):
        _graph(some)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_bmp(mode):
    image = Image.fromarray(_noise(20, 30, 4)).convert(mode)
    np.testing.assert_array_equal(
        _graph(_encode(image, "BMP")), np.asarray(image)[..., :3]
    )


def test_palette_bmp_is_refused_by_the_graph():
    # TensorFlow would take the palette's indices for grey levels.
    image = Image.fromarray(_noise(20, 30, 3)).quantize(16)
    contents = _encode(image, "BMP")
    with pytest.raises(tf.errors.InvalidArgumentError):
        _graph(contents)
    pixels, graph_agrees = agreement.decode_for_graph(contents)
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))
    assert not graph_agrees


def _with_bytes_before_segments(mode):
    contents = _encode(Image.fromarray(_image()).convert(mode), "JPEG")
    return contents[:2] + b"?" + contents[2:]


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\xff\xd8",
        b"no image",
        b"RIFF",
        b"GIF89a",
        b"BM",
        _encode(Image.fromarray(_noise(64, 64, 3)), "JPEG")[:900],
        _encode(Image.fromarray(_noise(64, 64, 3)), "PNG")[:900],
        *map(_with_bytes_before_segments, ("L", "RGB", "CMYK")),
    ],
)
def test_broken_files_raise(contents):
    for decoder in (_graph, decode.decode_eagerly):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decoder(contents)
    with pytest.raises(ValueError):
        images.decode_with_pillow(contents)


def test_large_images_are_refused_before_decoding():
    contents = _encode(Image.new("RGB", (300, 200)), "PNG")
    with pytest.raises(images.TooManyPixels, match="300x200"):
        images.decode_with_pillow(contents, max_pixels=59_999)
    pixels = images.decode_with_pillow(contents, max_pixels=60_000)
    assert pixels.shape == (200, 300, 3)
