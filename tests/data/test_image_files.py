"""Every decoder shows for every file what its making tells, or refuses it."""

import collections
import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from image_agreement import FATES
from image_agreement import MAX_PIXELS
from image_agreement import assert_shows
from image_agreement import attempt
from image_agreement import examine
from image_agreement import in_export
from image_agreement import with_pillow
from image_files import draw_file
from PIL import Image

from align_keras import AlignImageConverter
from align_keras.data import pack
from align_keras.data.records import decode_record
from align_keras.data.records import read_shard
from align_keras.io.image_parts import MAX_PARTS
from align_keras.io.images import UnknownRange
from align_keras.io.images import decode_with_pillow
from align_keras.preprocessing.agreement import decode_for_graph
from align_keras.preprocessing.decode import decode_in_graph
from align_keras.serving.untrusted_images import read_images

# Pillow says much of broken tags of TIFF.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

# Traits of TIFF that are shown, and those that are skipped.
SHOWN = ("photometric=0 bits=16", "photometric=5", "photometric=6")
SHOWN += ("planes", "tiled", "pages", "deflated", "alpha")
UNKNOWN = ("format=2", "format=3", "bits=32")
REASON = "floats, signed or of 32 bits|its format is not known"


@pytest.fixture(scope="module")
def files():
    generator = np.random.default_rng(0)
    return [draw_file(generator) for _ in range(500)]


def test_every_decoder_shows_the_same(files):
    fates = collections.Counter(examine(file)[0] for file in files)
    # Each way is taken by many.
    assert min(fates[fate] for fate in FATES) > 20


def test_tiff_of_every_kind():
    """Shown as it was made, or skipped with the reason."""
    generator = np.random.default_rng(3)
    kinds = collections.Counter()
    for _ in range(400):
        file = draw_file(generator, "tiff")
        fate, exported = examine(file)
        assert not exported
        kinds.update((t, fate) for t in SHOWN + UNKNOWN if t in file.kind)
        if "no known range" in file.kind:
            with pytest.raises(ValueError, match=REASON):
                decode_with_pillow(file.contents)
    assert all(kinds[trait, "encoded"] for trait in SHOWN)
    assert all(kinds[trait, "skipped"] for trait in UNKNOWN)
    assert not any(kinds[trait, "encoded"] for trait in UNKNOWN)


def test_damage_never_makes_another_image(files):
    """Bytes changed anywhere, most of them where the headers are."""
    generator = np.random.default_rng(2)
    read_by_both = 0
    for file in files:
        damaged = bytearray(file.contents)
        places = [generator.integers(min(150, len(damaged)))]
        places += [generator.integers(len(damaged))]
        for place in places[: generator.integers(1, 3)]:
            damaged[place] = generator.integers(256)
        damaged = bytes(damaged)
        pillow = attempt(with_pillow, damaged)
        graph = attempt(in_export, damaged)
        kept = attempt(lambda c: decode_for_graph(c, MAX_PIXELS)[1], damaged)
        if kept:
            np.testing.assert_array_equal(graph, pillow, err_msg=file.kind)
        if pillow is not None and graph is not None:
            np.testing.assert_array_equal(graph, pillow, err_msg=file.kind)
            read_by_both += 1
        if file.kind.split()[0] in ("gif", "webp"):
            assert graph is None or pillow is not None, file.kind
    assert read_by_both > 100


def test_an_export_reads_the_same(files):
    converter = AlignImageConverter(image_size=16, resize_size=16)

    @tf.function(
        input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False
    )
    def read(contents):
        return read_images(contents, converter, MAX_PIXELS)

    images, valid = read(tf.constant([file.contents for file in files]))
    read_anyhow = {"jpeg", "png", "gif", "webp", "bmp"}
    answers = collections.defaultdict(list)
    for file, image, good in zip(files, images, valid, strict=True):
        form = file.kind.split()[0]
        answers[form].append(bool(good))
        if good:
            pixels = decode_with_pillow(file.contents)
            expected = converter(pixels)
            np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5)
        elif form in ("jpeg", "png") and file.pixels is not None:
            assert "no IEND" in file.kind or "comment between" in file.kind
    assert {form for form, good in answers.items() if any(good)} == read_anyhow


# === JPEG without all of its scans, and WebP without its last chunk ===


def scans_of_every_kind():
    """Progressive JPEG of gray and of colours, cut behind each scan."""
    generator = np.random.default_rng(4)
    noise = generator.integers(0, 60, (40, 56, 3)).astype("uint8")
    y, x = np.mgrid[:40, :56]
    smooth = np.stack([x * 3, y * 4, x + y], -1).astype("uint8") + noise
    for mode in ("L", "RGB", "CMYK"):
        file = io.BytesIO()
        image = Image.fromarray(smooth).convert(mode)
        image.save(file, "JPEG", quality=80, progressive=True)
        scans = file.getvalue().split(b"\xff\xda\0")
        for kept in range(2, len(scans) + 1):
            contents = b"\xff\xda\0".join(scans[:kept])
            yield kept == len(scans), contents.removesuffix(b"\xff\xd9")


def test_a_jpeg_that_lacks_scans_is_no_image_of_the_graph():
    for whole, contents in scans_of_every_kind():
        # Cut off, as a download breaks off; and closed by who kept it.
        assert attempt(with_pillow, contents) is None
        ended = contents + b"\xff\xd9"
        pillow = attempt(with_pillow, ended)
        pixels, kept = decode_for_graph(ended, MAX_PIXELS)
        np.testing.assert_array_equal(pixels, pillow)
        assert kept == whole
        for decode in (decode_in_graph, in_export):
            assert attempt(decode, contents) is None
            assert (attempt(decode, ended) is not None) == whole
        # Another whole image behind the end does not make up for it.
        if not whole:
            assert attempt(in_export, ended + last_of(ended)) is None


def last_of(contents):
    """A whole image of the same frame."""
    image = Image.open(io.BytesIO(contents))
    file = io.BytesIO()
    image.save(file, "JPEG", progressive=True)
    return file.getvalue()


def test_what_is_lost_of_high_frequencies_alone_is_shown_by_all():
    """libjpeg fills in nothing there, so that decoders agree."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24), "uint8")
    Image.fromarray(noise).save(file, "JPEG", progressive=True)
    scans = file.getvalue().split(b"\xff\xda\0")
    # Two bytes of the component, and then the first and last coefficient.
    bands = [(scan[4], scan[5], scan[6] & 15) for scan in scans[1:]]
    assert (6, 63, 2) in bands
    place = bands.index((1, 63, 0)) + 1
    narrow = scans[place][:4] + b"\1\x0a" + scans[place][6:]
    changed = [*scans[:place], narrow, *scans[place + 1 :]]
    pillow = attempt(with_pillow, b"\xff\xda\0".join(changed))
    graph = attempt(decode_in_graph, b"\xff\xda\0".join(changed))
    assert pillow is not None
    np.testing.assert_array_equal(graph, pillow)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_that_is_to_end_within_a_chunk_is_refused(mode, lossless):
    generator = np.random.default_rng(0)
    samples = generator.integers(0, 256, (20, 30, len(mode)), "uint8")
    exif = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0)
    file = io.BytesIO()
    Image.fromarray(samples).save(
        file, "WEBP", lossless=lossless, exact=True, exif=exif
    )
    contents = file.getvalue()
    whole = len(contents) - 8
    shown = {}
    for size in range(whole - len(exif) - 20, whole + 3):
        short = contents[:4] + struct.pack("<I", size) + contents[8:]
        pillow = attempt(with_pillow, short)
        for decode in (decode_in_graph, in_export):
            graph = attempt(decode, short)
            assert (graph is None) == (pillow is None), size - whole
            if pillow is not None:
                np.testing.assert_array_equal(graph, pillow)
                shown[size - whole] = graph.shape[:2]
    # Turned as the chunk says, and not where that lies behind the end.
    assert shown == {0: (30, 20), -len(exif) - 8: (20, 30)}


@pytest.mark.parametrize(
    # Encoders pad what is lossy themselves.
    "lossless, padded",
    [(False, False), (True, False), (True, True)],
)
def test_a_webp_of_one_chunk_ends_with_it(lossless, padded):
    generator = np.random.default_rng(0)
    contents = bytes(20)
    while contents[8:15] != b"WEBPVP8" or contents[16] % 2 != padded:
        file = io.BytesIO()
        samples = generator.integers(0, 256, (20, 30, 3), "uint8")
        Image.fromarray(samples).save(file, "WEBP", lossless=lossless)
        contents = file.getvalue()
    whole, shown = len(contents) - 8, []
    for size in range(whole - 20, whole + 3):
        short = contents[:4] + struct.pack("<I", size) + contents[8:]
        pillow = attempt(with_pillow, short)
        for decode in (decode_in_graph, in_export):
            graph = attempt(decode, short)
            if graph is not None:
                np.testing.assert_array_equal(graph, pillow)
                shown.append(size - whole)
    assert shown == [0, 0]


# === What the export and records are refused, each with its reason ===


def tiff(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_pixels_of_no_known_range_are_skipped(tmp_path, kind):
    contents = tiff(np.arange(600).reshape(20, 30).astype(kind))
    with pytest.raises(UnknownRange, match="unsigned 8 or 16 bits"):
        decode_with_pillow(contents)
    (tmp_path / "in").mkdir()
    good = tiff(np.arange(600).reshape(20, 30).astype("uint16"))
    for name, file in (("bad", contents), ("good", good)):
        (tmp_path / "in" / f"{name}.tif").write_bytes(file)
        (tmp_path / "in" / f"{name}.txt").write_text("text")
    manifest = pack(tmp_path / "in", tmp_path / "out")
    assert manifest["records"] == 1
    (skipped,) = manifest["skipped"]
    assert skipped["file"] == "bad.tif"
    assert skipped["reason"] == "pixels of no known range"
    assert "floats, signed or of 32 bits" in skipped["detail"]


def test_records_hold_what_was_made(tmp_path):
    """`pack` in one: from files of all kinds to the graph that trains."""
    generator = np.random.default_rng(1)
    made = {}
    (tmp_path / "in").mkdir()
    for number in range(60):
        file = draw_file(generator)
        made[str(number)] = file
        # The suffix says nothing about the contents.
        (tmp_path / "in" / f"{number}.jpg").write_bytes(file.contents)
        (tmp_path / "in" / f"{number}.txt").write_text("text")
    manifest = pack(tmp_path / "in", tmp_path / "out")
    found = set()
    for shard in manifest["shards"]:
        for record in read_shard(str(tmp_path / "out" / shard["file"])):
            record = decode_record(record)
            found.add(record["key"])
            file = made[record["key"]]
            pixels = decode_in_graph(record["image"]).numpy()
            if file.pixels is not None:
                assert_shows(file, pixels)
    for key, file in made.items():
        assert key in found or file.pixels is None or not file.known
    assert manifest["skipped_count"] == 60 - len(found)


def chunk(name, body):
    check = zlib.crc32(name + body).to_bytes(4, "big")
    return len(body).to_bytes(4, "big") + name + body + check


@pytest.mark.parametrize(
    "colour, channels, keys",
    [
        (6, 4, [b"\0\7" * 3]),
        (6, 4, [b"\0\7"]),
        (4, 2, [b"\0\7"]),
        (3, 1, [b"\0\x80\x40\x20"]),
        (3, 1, [b"\0", b"\xff"]),
        (2, 3, [b"\0\7" * 3, b"\0\1" * 3]),
        (2, 3, [b"\0\7"]),
        (0, 1, [b"\0\7", b"\0\1"]),
        (0, 1, [b"\0\7" * 3]),
        (0, 1, [b"\1\7"]),
    ],
)
def test_a_key_on_which_decoders_differ_is_refused(colour, channels, keys):
    row = b"\0" + bytes([7 if colour != 3 else 1]) * (4 * channels)
    header = bytes([0, 0, 0, 4, 0, 0, 0, 4, 8, colour, 0, 0, 0])
    palette = chunk(b"PLTE", bytes(9)) if colour == 3 else b""
    contents = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette
    end = chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    assert attempt(decode_in_graph, contents + end) is not None
    contents += b"".join(chunk(b"tRNS", key) for key in keys)
    assert attempt(decode_in_graph, contents + end) is None
    assert attempt(in_export, contents + end) is None


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_key_beyond_the_depth_is_refused(depth):
    header = bytes([0, 0, 0, 8, 0, 0, 0, 8, depth, 0, 0, 0, 0])
    contents = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    end = chunk(b"IDAT", zlib.compress(bytes(8 * (1 + depth))))
    end += chunk(b"IEND", b"")
    for value, known in ((2**depth - 1, True), (2**depth, False)):
        clear = chunk(b"tRNS", value.to_bytes(2, "big"))
        pixels = attempt(in_export, contents + clear + end)
        assert (pixels is not None) == known


def test_a_key_behind_more_chunks_than_are_followed_is_refused():
    header = bytes([0, 0, 0, 8, 0, 0, 0, 8, 8, 0, 0, 0, 0])
    contents = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    end = chunk(b"tRNS", b"\0\0") + chunk(b"IDAT", zlib.compress(bytes(72)))
    end += chunk(b"IEND", b"")
    for count, known in ((MAX_PARTS - 4, True), (MAX_PARTS, False)):
        notes = count * chunk(b"prVt", b"")
        pixels = attempt(in_export, contents + notes + end)
        assert (pixels is not None) == known
        if known:
            assert (pixels == 255).all()


@pytest.mark.parametrize("size, known", [(16, False), (40, True), (124, True)])
def test_headers_of_bmp(size, known):
    header = struct.pack("<IiiHHI", size, 2, 2, 1, 24, 0).ljust(size, b"\0")
    pixels = b"\1\2\3\4\5\6\0\0"
    start = 14 + len(header)
    contents = struct.pack("<2sIHHI", b"BM", start + 16, 0, 0, start)
    contents += header + 2 * pixels
    for decode in (with_pillow, in_export):
        assert (attempt(decode, contents) is not None) == known


def test_planes_of_16_bits_are_refused():
    image = Image.new("RGB", (4, 4))
    file = io.BytesIO()
    image.save(file, "TIFF")
    image = Image.open(file)
    image.tag_v2[284], image.tag_v2[258] = 2, (16, 16, 16)
    with pytest.raises(UnknownRange, match="planes"):
        decode_with_pillow(image)


# === Damage among the pixels of GIF and WebP ===


def gif_of_codes(generator, bits, count, mistakes):
    """A GIF of any codes, some of them mistaken, as wide as its pixels."""
    clear = 2**bits
    known, lengths, last, pixels = clear + 2, [1] * clear + [0, 0], None, 0
    data, place = 0, 0
    for number in range(count):
        code = int(generator.integers(known + (last is not None)))
        if number == 0 or number % 5000 == 4999:
            code = clear
        elif number == count - 1:
            code = clear + 1
        elif code in (clear, clear + 1) or (last is None and code > clear):
            code = 0
        elif number in mistakes:
            code = min(known + 1 + number % 3, 2 ** known.bit_length() - 1)
        width = min(known.bit_length(), 12)
        data, place = data | code << place, place + width
        if code == clear:
            known, lengths, last = clear + 2, [1] * clear + [0, 0], None
        elif code != clear + 1:
            length = lengths[code] if code < len(lengths) else lengths[last] + 1
            pixels += length
            if last is not None and known < 4096:
                lengths.append(lengths[last] + 1)
                known += 1
            last = min(code, len(lengths) - 1)
    data = data.to_bytes(-(-place // 8), "little")
    size = struct.pack("<HH", pixels, 1)
    size_of_block = int(generator.integers(1, 256))
    blocks = [
        data[n : n + size_of_block] for n in range(0, len(data), size_of_block)
    ]
    palette = generator.integers(0, 256, 3 * clear, "uint8").tobytes()
    return (
        b"GIF89a" + size + bytes([0xF0 | (bits - 1), 0, 0]) + palette
        + b"," + bytes(4) + size + b"\0" + bytes([bits])
        + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0;"
    )  # fmt: skip


def test_a_gif_names_no_code_that_its_table_lacks():
    generator = np.random.default_rng(0)
    answers = collections.Counter()
    for number in range(120):
        bits = int(generator.integers(2, 9))
        count = [9, 90, 900, 6000][number % 4]
        mistakes = set()
        if number % 3 == 0:
            mistakes.add(int(generator.integers(3, min(count - 1, 200))))
        contents = gif_of_codes(generator, bits, count, mistakes)
        pillow = attempt(lambda c: decode_with_pillow(c), contents)
        graph = attempt(decode_in_graph, contents)
        answers[graph is not None] += 1
        assert (graph is None) == (pillow is None), (bits, count, mistakes)
        if graph is not None:
            np.testing.assert_array_equal(graph, pillow)
    assert min(answers.values()) > 20


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("lossless", [False, True])
def test_the_pixels_of_a_webp_end_with_their_chunk(lossless, extended):
    generator = np.random.default_rng(0)
    samples = generator.integers(0, 256, (20, 30, 3), "uint8")
    file = io.BytesIO()
    options = {"xmp": b"<x/>"} if extended else {}
    Image.fromarray(samples).save(file, "WEBP", lossless=lossless, **options)
    whole = file.getvalue()
    start = whole.index(b"VP8L" if lossless else b"VP8 ", 12)
    length = int.from_bytes(whole[start + 4 : start + 8], "little")
    refused = 0
    for less in (2, 20, 100):
        # What the chunk lacks follows the end of the file, or of the chunk.
        for name in (b"", b"ZZZZ" + struct.pack("<I", less)):
            body = whole[8:start] + whole[start : start + 4]
            body += struct.pack("<I", length - less)
            body += whole[start + 8 : start + 8 + length - less] + name
            rest = whole[start + 8 + length - less : start + 8 + length]
            size = len(body) + (less if name else 0)
            short = b"RIFF" + struct.pack("<I", size) + body + rest
            # Of two bytes, both may be none of the pixels'.
            pillow = attempt(with_pillow, short)
            refused += pillow is None
            for decode in (decode_in_graph, in_export):
                graph = attempt(decode, short)
                assert (graph is None) == (pillow is None), (less, name)
                if graph is not None:
                    np.testing.assert_array_equal(graph, pillow)
    assert refused >= 4
    np.testing.assert_array_equal(decode_in_graph(whole), with_pillow(whole))
