"""What strangers may send: each row of the table in docs/serving.md."""

import io
import re
import struct
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from image_files import draw_file
from PIL import Image
from tiny_align import image_file
from tiny_align import many_scans

from align_keras.preprocessing.gif import first_frame
from align_keras.serving import untrusted_images
from align_keras.serving.untrusted_images import bounded

MAX_PIXELS = 32_000_000


def png(width, height, data=b"", before=b""):
    """A PNG file of any claimed size."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", before, chunk(b"IHDR", header)]
        + [chunk(b"IDAT", data or zlib.compress(b"")), chunk(b"IEND", b"")]
    )


def with_size(form, width, height):
    """A real file whose header is changed to claim another size."""
    content = bytearray(image_file(0, (16, 8), form))
    if form == "JPEG":
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", height, width)
    elif form == "BMP":
        content[18:26] = struct.pack("<ii", width, height)
    elif form == "GIF":
        content[6:10] = struct.pack("<HH", width, height)
    elif content[12:16] == b"VP8 ":
        content[26:30] = struct.pack("<HH", width, height)
    return bytes(content)


def animation(count, side=64):
    frames = [Image.new("L", (side, side), 20 + 2 * i) for i in range(count)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=20
    )
    return buffer.getvalue()


def encoded(form, **options):
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(image_file(5)))
    image.save(buffer, form, **options)
    return buffer.getvalue()


JPEG = image_file(6, (200, 150))
BAD = {
    "nothing": b"",
    "a text": b"this is no image",
    "markup": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "the first two bytes of a JPEG": JPEG[:2],
    "half a JPEG": JPEG[: len(JPEG) // 2],
    "half a PNG": encoded("PNG")[:900],
    "half a WebP": encoded("WEBP")[:200],
    "half a GIF": encoded("GIF")[:900],
    "a PNG without pixels": png(100, 100),
    "a GIF without a frame": b"GIF89a\x05\0\x05\0\0\0\0;",
    "a BMP whose pixels are missing": with_size("BMP", 5000, 5000),
    "an animated WebP": encoded(
        "WEBP", save_all=True, append_images=[Image.new("RGB", (60, 45))]
    ),
    "a JPEG of 101 scans": many_scans(101),
    "zeros": b"\0" * 100_000,
    "a path": b"../../../etc/passwd",
}
BOMBS = {
    "JPEG": with_size("JPEG", 65000, 65000),
    "PNG": png(50_000, 50_000),
    "PNG with pixels": png(6000, 6000, zlib.compress(bytes(6000 * 18001))),
    # Where a first chunk has its size, this one claims 1 x 1.
    "PNG behind another chunk": png(
        7000,
        7000,
        before=b"\0\0\0\x08teXt" + b"\0\0\0\x01" * 2 + b"\xf4\x9c\xc4\x3d",
    ),
    "GIF": with_size("GIF", 65535, 65535),
    "BMP": with_size("BMP", 60_000, 60_000),
    "BMP upside down": with_size("BMP", 60_000, -60_000),
    "WebP": with_size("WEBP", 16383, 16383),
    "lossless WebP": b"RIFF\x20\0\0\0WEBPVP8L\x10\0\0\0\x2f" + b"\xff" * 20,
    "extended WebP": b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0"
    + b"\0" * 4
    + b"\xff" * 9,
}


@pytest.fixture(scope="module")
def signatures(folder):
    loaded = tf.saved_model.load(str(folder / "float32"))
    yield loaded.signatures


def test_bad_images_cost_their_row_alone(signatures, model):
    good = [image_file(7), animation(1), encoded("WEBP", lossless=True)]
    good += [encoded("BMP"), animation(12), many_scans(100)]
    files = [*BAD.values(), good[0], *BOMBS.values(), *good[1:]]
    outputs = signatures["encode_image"](image_bytes=tf.constant(files))
    names = [*BAD, "good", *BOMBS, *["good"] * 5]
    answers = zip(names, outputs["valid"].numpy(), strict=True)
    assert [n for n, valid in answers if valid != (n == "good")] == []
    rows = outputs["embeddings"].numpy()
    places = [place for place, name in enumerate(names) if name == "good"]
    np.testing.assert_allclose(
        rows[places],
        keras.ops.convert_to_numpy(model.encode_image(good)),
        rtol=0,
        atol=1e-5,
    )
    assert not np.delete(rows, places, axis=0).any()


def test_files_of_all_kinds_give_their_own_vectors_or_none(signatures, model):
    generator = np.random.default_rng(5)
    files = [draw_file(generator) for _ in range(120)]
    outputs = signatures["encode_image"](
        image_bytes=tf.constant([file.contents for file in files])
    )
    valid = outputs["valid"].numpy()
    shown = [file for file, good in zip(files, valid, strict=True) if good]
    assert len(shown) > 60
    expected = model.encode_image([file.contents for file in shown])
    np.testing.assert_allclose(
        outputs["embeddings"].numpy()[valid],
        keras.ops.convert_to_numpy(expected),
        rtol=0,
        atol=1e-5,
    )
    assert not outputs["embeddings"].numpy()[~valid].any()


def test_damage_anywhere(signatures):
    """Whatever a file's bytes are, the server goes on."""
    generator = np.random.default_rng(0)
    files = []
    sources = [encoded(form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP")]
    for source in sources * 12:
        content = bytearray(source)
        for place in generator.integers(0, len(content), 4):
            content[place] = generator.integers(0, 256)
        # Most decoders look at the beginning.
        content[generator.integers(0, 40)] = generator.integers(0, 256)
        files.append(bytes(content))
    outputs = signatures["encode_image"](
        image_bytes=tf.constant([*files, JPEG])
    )
    lengths = np.linalg.norm(outputs["embeddings"], axis=1)
    np.testing.assert_allclose(lengths, outputs["valid"], rtol=0, atol=1e-5)
    assert outputs["valid"].numpy()[-1]


def test_bombs_never_reach_a_decoder():
    for name, content in BOMBS.items():
        assert bounded(content, MAX_PIXELS).numpy() == b"", name
    # A size at the limit passes.
    for form in ("JPEG", "PNG", "BMP", "WEBP"):
        content = encoded(form)
        assert bounded(content, 60 * 45).numpy() == content, form
        assert bounded(content, 60 * 45 - 1).numpy() == b"", form


def test_a_file_may_be_too_long(monkeypatch):
    long = JPEG + bytes(1000)
    assert bounded(long, MAX_PIXELS).numpy() == long
    monkeypatch.setattr(untrusted_images, "_MAX_BYTES", len(long) - 1)
    assert bounded(long, MAX_PIXELS).numpy() == b""


def peak_memory(call, *arguments):
    """Bytes that the process took beside what it had."""
    status = Path("/proc/self/status")

    def read(name):
        line = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
        return 1024 * int(line[1])

    try:
        # Makes the peak what is in use now.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("The peak of memory cannot be measured here.")
    before = read("VmRSS")
    call(*arguments)
    return read("VmHWM") - before


def test_memory_is_bounded(model):
    converter = model.preprocessor.image_converter
    strings = tf.TensorSpec((None,), tf.string)

    @tf.function(input_signature=[strings], autograph=False)
    def read(contents):
        return untrusted_images.read_images(contents, converter, MAX_PIXELS)

    side = 3000
    buffer = io.BytesIO()
    Image.new("RGBA", (side, side), (1, 2, 3, 4)).save(buffer, "PNG")
    read(tf.constant([JPEG]))
    peak = peak_memory(read, tf.constant([buffer.getvalue()]))
    assert peak < 20 * side**2

    # An extension that goes on and on.
    head = b"GIF89a\x05\0\x05\0\0\0\0\x21\xfe"
    content = head + b"\xff" * 40_000_000
    peak = peak_memory(read, tf.constant([content]))
    # Some copies, of which the allocator gives back as many as it likes; four
    # bytes for each byte would be more.
    assert peak < 8 * len(content)


def test_one_frame_of_an_animation():
    content = animation(40)
    assert bounded(content, 64 * 64).numpy() == content
    cut = first_frame(tf.constant(content))[0].numpy()
    assert len(cut) < len(content) / 10
    np.testing.assert_array_equal(
        tf.io.decode_gif(cut), tf.io.decode_gif(content)[:1]
    )
    assert bounded(content, 64 * 64 - 1).numpy() == b""


def test_texts(signatures, model):
    texts = ["a red bus " * 100_000, "dog", "x" * 1_000_000, "\0", "a" * 99]
    rows = signatures["encode_text"](texts=tf.constant(texts))["embeddings"]
    # Of a long text, the beginning counts.
    texts[0] = "a red bus " * 20
    np.testing.assert_allclose(
        rows,
        keras.ops.convert_to_numpy(model.encode_text(texts)),
        rtol=0,
        atol=1e-5,
    )
    # No UTF-8, and one character cut in two.
    texts = [b"\xff\xfe\xc0", b"dog \xe6\x9d", b"dog"]
    rows = signatures["encode_text"](texts=tf.constant(texts))["embeddings"]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_wrong_types_are_refused_before_anything_runs(signatures):
    encode = signatures["encode_image"]
    for wrong in (tf.constant([1.0]), tf.constant([[b"a"]]), tf.constant(b"a")):
        with pytest.raises((TypeError, ValueError, tf.errors.OpError)):
            encode(image_bytes=wrong)
    with pytest.raises(TypeError):
        encode(photos=tf.constant([b"a"]))
