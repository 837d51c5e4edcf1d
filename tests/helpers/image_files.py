"""Image files of many kinds, with pixels that are known from their making.

`draw_file` draws one: a format, what this format can vary (mode, depth, alpha
or a transparent colour, interlacing, orientation, colour profile), and perhaps
damage. PNG and TIFF are written here, bit by bit; the others by Pillow.
"""

import dataclasses
import io
import struct
import zlib

import numpy as np
from PIL import Image

ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0"


@dataclasses.dataclass
class ImageFile:
    """An image file, and what it shows.

    Attributes:
        kind: string. How it was made.
        contents: bytes.
        pixels: uint8 array `(height, width, 3)`; `None` where a file is
            damaged, or its numbers do not tell what is white.
        tolerance: float. Levels by which lossy formats may be off on average.
        known: bool. False of kinds that not every release of Pillow reads:
            these may be refused.
    """

    kind: str
    contents: bytes
    pixels: np.ndarray | None
    tolerance: float = 0.0
    known: bool = True


def draw_file(generator, *forms):
    """Draw a file. Who draws with the same generator gets the same one.

    Args:
        generator: `numpy.random.Generator`.
        *forms: strings. Formats to draw from; by default all.
    """
    draw = _Draw(generator)
    makers = {
        _png: 8, _jpeg: 8, _webp: 3, _gif: 3, _bmp: 3, _tiff: 4, _netpbm: 2,
        _other: 1,
    }  # fmt: skip
    names = {make: make.__name__.strip("_") for make in makers}
    make = draw.of(
        *[m for m in makers.items() if not forms or names[m[0]] in forms]
    )
    made = make(draw)
    made.kind = " ".join([names[make], *draw.traits])
    return made


class _Draw:
    """Draws, and remembers by what names."""

    def __init__(self, generator):
        self.generator = generator
        self.traits = []
        self.size = tuple(int(side) for side in generator.integers(9, 40, 2))

    def of(self, *weighted):
        values, weights = zip(*weighted, strict=True)
        chosen = self.generator.choice(
            len(values), p=np.array(weights) / sum(weights)
        )
        return values[chosen]

    def one(self, *values):
        return values[self.generator.integers(len(values))]

    def trait(self, name, *values):
        """One of the values; those that are not false are remembered."""
        value = self.one(*values)
        if value or value == 0 and value is not False:
            self.traits.append(name if value is True else f"{name}={value}")
        return value

    def chance(self, name, probability):
        happens = bool(self.generator.random() < probability)
        if happens:
            self.traits.append(name)
        return happens

    def noise(self, bits, channels):
        """Samples of noise `(height, width, channels)`."""
        shape = (*self.size, channels)
        return self.generator.integers(0, 2**bits, shape, dtype="int64")

    def smooth(self, channels):
        """Samples that lossy formats keep, without symmetry."""
        height, width = self.size
        y, x = np.mgrid[:height, :width]
        y, x = y / height, x / width
        planes = [x, y, (x + 2 * y) / 3, (2 + x - y) / 4][:channels]
        return (40 + 180 * np.stack(planes, -1)).astype("int64")


# === What a file shows ===


def _over_white(colours, alpha):
    """8-bit samples over white; alpha from 0 to 255."""
    blended = colours * alpha + 255 * (255 - alpha)
    return _rgb((blended + 127) // 255)


def _rgb(samples):
    if samples.shape[-1] == 1:
        samples = np.repeat(samples, 3, -1)
    return samples.astype("uint8")


def _to_8_bits(samples, bits):
    if bits > 8:
        return samples >> (bits - 8)
    return samples * (255 // (2**bits - 1))


def _turned(pixels, orientation):
    """What a viewer shows of pixels that a camera held turned."""
    turns = {
        1: lambda p: p,
        2: np.fliplr,
        3: lambda p: np.rot90(p, 2),
        4: np.flipud,
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    return turns[orientation](pixels)


def _exif(draw, orientation):
    """An EXIF block without the header that JPEG has.

    Without an orientation only its second directory, that of the thumbnail,
    has one.
    """
    order = draw.trait("exif", "<", ">")
    others = [(0x10F, 2, 4, b"me\0\0"), (0x11A, 3, 1, b"\1\1\0\0")]
    entries = list(others)
    if orientation:
        kind, form = draw.one((3, "HH"), (3, "HH"), (4, "I"))
        value = struct.pack(order + form, *[orientation, 0][: len(form)])
        entries.insert(draw.one(0, 1, 2), (0x112, kind, 1, value))
    second = 8 + 2 + 12 * len(entries) + 4
    block = b"II*\0" if order == "<" else b"MM\0*"
    block += struct.pack(order + "I", 8)
    block += _directory(order, entries, second)
    turned = struct.pack(order + "HH", 3, 0)
    return block + _directory(order, [(0x112, 3, 1, turned)], 0)


def _directory(order, entries, following):
    """A directory of TIFF whose values are of four bytes."""
    parts = [struct.pack(order + "H", len(entries))]
    for tag, kind, count, value in entries:
        parts.append(struct.pack(order + "HHI", tag, kind, count) + value)
    return b"".join(parts) + struct.pack(order + "I", following)


# What looks like EXIF where it is not looked for: the names of each format,
# and other words that its readers look for.
_DECOY = b'tiff:Orientation="3" tRNS PLTE IDAT '


def _decoy(draw, name):
    return _DECOY + name + _exif(draw, 3)


def _orientation(draw, probability=0.3):
    if draw.generator.random() < probability:
        return draw.trait("orientation", *range(1, 9))
    return None


def _profile(draw, size):
    return draw.generator.integers(0, 256, size, dtype="uint8").tobytes()


# === PNG ===

_GRAY, _COLOUR, _PALETTE, _GRAY_ALPHA, _COLOUR_ALPHA = 0, 2, 3, 4, 6
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {
    0: (1, 2, 4, 8, 16),
    2: (8, 16),
    3: (1, 2, 4, 8),
    4: (8, 16),
    6: (8, 16),
}
# First row and column, and steps, of each pass.
_ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def _chunk(name, contents):
    check = zlib.crc32(name + contents)
    length = struct.pack(">I", len(contents))
    return length + name + contents + struct.pack(">I", check)


def _packed(samples, bits, order=">"):
    """The bytes of rows of samples `(rows, columns, channels)`."""
    rows = samples.reshape(len(samples), -1)
    if bits % 8 == 0:
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in rows]
    places = (rows[..., None] >> np.arange(bits)[::-1]) & 1
    places = places.reshape(len(rows), -1).astype("uint8")
    return [np.packbits(row).tobytes() for row in places]


def _filtered(draw, rows, step):
    """Rows of a PNG, each behind the number of its filter: none, sub, up."""
    before = None
    for row in rows:
        values = np.frombuffer(row, "uint8")
        kind = draw.one(0, 1, 2)
        other = np.zeros_like(values)
        if kind == 1:
            other[step:] = values[: max(len(values) - step, 0)]
        elif kind == 2 and before is not None:
            other = before
        yield bytes([kind]) + (values - other).astype("uint8").tobytes()
        before = values


def _png(draw):
    colour = draw.trait("type", *_CHANNELS)
    bits = draw.trait("depth", *_DEPTHS[colour])
    channels = _CHANNELS[colour]
    samples = draw.noise(bits, channels)
    chunks = [_png_profile(draw)]
    text = b""
    if draw.chance("text", 0.1):
        text = b"Comment\0" + b"x" * draw.trait("bytes", 100, 3_000_000)
        text = _chunk(b"tEXt", text)
    elif draw.chance("decoy", 0.3):
        text = _png_decoy(draw)
    text_behind = draw.one(True, False)
    if not text_behind:
        chunks.append(text)
    palette = draw.generator.integers(0, 256, (2**bits, 4))
    if colour == _PALETTE:
        palette = palette.astype("uint8")
        chunks.append(_chunk(b"PLTE", palette[:, :3].tobytes()))
    clear = colour in (0, 2, 3) and draw.chance("tRNS", 0.5)
    if clear:
        # A colour that is there, and another that shares its high bytes.
        key = samples[0, 0].copy()
        samples[::2, ::3] = key
        if bits == 16:
            samples[1, 1] = key ^ 1
        entry, kind = key, ">u2"
        if colour == _PALETTE:
            # Entries that are not named are opaque.
            palette[draw.one(1, 2, len(palette)) :, 3] = 255
            entry, kind = palette[:, 3], "u1"
            entry = entry[
                : 1 + int(np.max(np.nonzero(entry != 255), initial=0))
            ]
        chunks.append(_chunk(b"tRNS", entry.astype(kind).tobytes()))
    orientation = _orientation(draw)
    late = False
    if orientation:
        chunk = _chunk(b"eXIf", _exif(draw, orientation))
        late = draw.chance("late", 0.3)
        if not late:
            chunks.append(chunk)
    second = _chunk(b"eXIf", _exif(draw, 3))
    if draw.chance("second" if orientation else "thumbnail's", 0.1):
        # The first counts, also where it tells nothing.
        chunk = chunk if orientation else _chunk(b"eXIf", _exif(draw, None))
        chunks = [c for c in chunks if c != chunk] + [chunk, second]
        late = False

    interlaced = draw.chance("interlaced", 0.3)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    step = max(1, bits * channels // 8)
    data = []
    for top, left, down, right in passes:
        part = samples[top::down, left::right]
        if part.size:
            data += _filtered(draw, _packed(part, bits), step)
    data = zlib.compress(b"".join(data))
    cut = draw.generator.integers(1, len(data))
    chunks += [_chunk(b"IDAT", data[:cut]), _chunk(b"IDAT", data[cut:])]
    if late:
        chunks.append(chunk)
    if text_behind:
        chunks.append(text)
    if not draw.chance("no IEND", 0.05):
        chunks.append(_chunk(b"IEND", b""))
        if draw.chance("behind the end", 0.1):
            chunks.append(second)
    height, width = draw.size
    header = struct.pack(
        ">IIBBBBB", width, height, bits, colour, 0, 0, interlaced
    )
    contents = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    contents += b"".join(chunks)

    if colour == _PALETTE:
        entries = palette[samples[..., 0]].astype("int64")
        pixels = _rgb(entries[..., :3])
        if clear:
            pixels = _over_white(entries[..., :3], entries[..., 3:])
    elif colour in (_GRAY_ALPHA, _COLOUR_ALPHA):
        high = _to_8_bits(samples, bits)
        pixels = _over_white(high[..., :-1], high[..., -1:])
    else:
        pixels = _rgb(_to_8_bits(samples, bits))
        if clear:
            pixels[(samples == key).all(-1)] = 255
    pixels = _turned(pixels, orientation or 1)
    return _perhaps_cut(draw, ImageFile("", contents, pixels))


def _png_decoy(draw):
    body = _decoy(draw, b"eXIf")
    stored = zlib.compress(body, 0)
    chunks = {
        "tEXt": b"Comment\0" + body,
        "zTXt": b"Comment\0\0" + stored,
        "iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + body,
        "prVt": body,
        "pHYs": b"short",
    }
    name = draw.trait("", *chunks)
    return _chunk(name.encode(), chunks[name])


def _png_profile(draw):
    if not draw.chance("profile", 0.2):
        return b""
    profile = _profile(draw, draw.trait("bytes", 500, 2_000_000))
    return _chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile))


def _perhaps_cut(draw, file):
    """Cut the last third of some files off."""
    if draw.chance("cut", 0.05):
        contents = file.contents[: len(file.contents) * 2 // 3]
        return dataclasses.replace(file, contents=contents, pixels=None)
    return file


# === Formats that Pillow writes ===


def _saved(samples, mode, form, **options):
    if samples.shape[-1] == 1:
        samples = samples[..., 0]
    file = io.BytesIO()
    kind = "<u2" if mode == "I;16" else "uint8"
    image = Image.frombytes(
        mode, samples.shape[1::-1], samples.astype(kind).tobytes()
    )
    image.save(file, form, **options)
    return file.getvalue()


def _jpeg(draw):
    mode = draw.trait("", "L", "RGB", "RGB", "CMYK", "YCCK")
    samples = draw.smooth({"L": 1, "RGB": 3}.get(mode, 4))
    options = {"quality": 97}
    options["subsampling"] = draw.trait("subsampling", 0, 1, 2)
    if mode in ("CMYK", "YCCK"):
        options["subsampling"] = 0
    if mode == "RGB":
        options["keep_rgb"] = draw.chance("keep_rgb", 0.1)
        options["subsampling"] *= not options["keep_rgb"]
    options["progressive"] = draw.chance("progressive", 0.3)
    options["restart_marker_blocks"] = draw.trait("restart", False, 3)
    pixels = _rgb(samples)
    if mode in ("CMYK", "YCCK"):
        light = 255 - samples
        pixels = _rgb(light[..., :3] * light[..., 3:] // 255)
    written = samples
    if mode == "YCCK":
        # Pillow inverts what it writes; only black is inverted in the file.
        ycc = Image.fromarray(_rgb(samples[..., :3])).convert("YCbCr")
        black = samples[..., 3:]
        written = np.concatenate([255 - np.asarray(ycc, int), black], -1)
    contents = _saved(written, mode.replace("YCCK", "CMYK"), "JPEG", **options)
    if mode == "YCCK":
        contents = contents.replace(ADOBE + b"\0", ADOBE + b"\2")
    elif mode == "CMYK" and draw.chance("no APP14", 0.5):
        contents = contents.replace(ADOBE + b"\0", b"")

    scans = contents.split(b"\xff\xda\0")
    lost = options["progressive"] and draw.chance("scan lost", 0.2)
    if lost:
        kept = draw.generator.integers(2, len(scans))
        contents = b"\xff\xda\0".join(scans[:kept])
        # Whoever cut it may have ended it, too.
        if not draw.chance("no end", 0.3):
            contents += b"\xff\xd9"
    elif options["progressive"] and draw.chance("comment between", 0.1):
        between = b"\xff\xfe\0\x08\xff\xda\0\x08\1\1"
        contents = (b"\xff\xda\0".join(scans[:3])) + between
        contents += b"".join(b"\xff\xda\0" + scan for scan in scans[3:])

    segments = []
    if draw.chance("profile", 0.3):
        count = draw.trait("segments", 1, 2)
        for number in range(count):
            head = b"ICC_PROFILE\0" + bytes([number + 1, count])
            segments.append((0xE2, head + _profile(draw, 65000)))
    orientation = _orientation(draw, 0.5)
    if orientation:
        exif = b"Exif\0\0" + _exif(draw, orientation)
        place = draw.trait("behind", 0, len(segments))
        segments.insert(place, (0xE1, exif))
    if draw.chance("decoy", 0.3):
        body = _decoy(draw, b"Exif\0\0")
        decoys = {
            "COM": [(0xFE, body)],
            "APP0": [(0xE0, body)],
            "APP1": [(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + body)],
            "APP2": [(0xE2, b"ICC_PROFILE\0\1\1" + body)],
            "APP13": [(0xED, b"Photoshop 3.0\0" + body)],
            "many": [(0xFE, body)] * 40,
            "thumbnail's": [(0xE1, b"Exif\0\0" + _exif(draw, None))],
        }
        name = draw.trait("", *decoys)
        if name != "thumbnail's":
            segments = decoys[name] + segments
        elif not orientation:
            segments += decoys[name]
    if orientation and draw.chance("second", 0.1):
        segments.append((0xE1, b"Exif\0\0" + _exif(draw, 3)))
    # Any number of these may stand before a marker.
    fill = b"\xff" * draw.trait("fill", 0, 0, 0, 2)
    added = b"".join(
        fill + struct.pack(">BBH", 0xFF, marker, len(part) + 2) + part
        for marker, part in segments
    )
    contents = contents[:2] + added + contents[2:]
    if draw.chance("behind the end", 0.1):
        # Such as another image, with an orientation of its own.
        exif = b"Exif\0\0" + _exif(draw, 3)
        contents += struct.pack(">HHH", 0xFFD8, 0xFFE1, len(exif) + 2) + exif
        contents += b"\xff\xd9"
    pixels = _turned(pixels, orientation or 1)
    pixels = None if lost else pixels
    tolerance = 6 if options["subsampling"] or mode == "YCCK" else 3
    return _perhaps_cut(draw, ImageFile("", contents, pixels, tolerance))


def _webp(draw):
    lossless = draw.chance("lossless", 0.6)
    mode = draw.trait("", "RGB", "RGBA")
    options = {"lossless": lossless, "exact": True, "quality": 95}
    orientation = _orientation(draw)
    if orientation:
        header = draw.trait("header", b"", b"Exif\0\0")
        options["exif"] = header + _exif(draw, orientation)
    if draw.chance("profile", 0.2):
        options["icc_profile"] = _profile(draw, 500)
    decoy = draw.chance("decoy", 0.3) and draw.trait(
        "",
        "ICCP",
        "XMP ",
        "ZZZZ",
        "no flag",
        "behind the end",
        "no alpha",
        "reserved",
        "short",
    )
    body = _decoy(draw, b"EXIF\0\1\0\0")
    if decoy == "ICCP":
        options["icc_profile"] = body
    elif decoy:
        # Makes a file of the extended kind.
        options["xmp"] = body
    samples = draw.noise(8, 4) if lossless else draw.smooth(4)
    if mode == "RGB":
        samples = samples[..., :3]
        pixels = _rgb(samples)
    else:
        pixels = _over_white(samples[..., :3], samples[..., 3:])
    if draw.chance("animated", 0.1):
        other = Image.new(mode, samples.shape[1::-1], (9,) * len(mode))
        options |= {"save_all": True, "append_images": [other]}
    contents = _saved(samples, mode, "WEBP", **options)
    chunk = struct.pack("<4sI", b"ZZZZ", len(body)) + body
    chunk += b"\0" * (len(body) % 2)
    if decoy == "ZZZZ":
        # Behind the first chunk.
        size = struct.pack("<I", len(contents) - 8 + len(chunk))
        contents = contents[:4] + size + contents[8:30] + chunk + contents[30:]
    elif decoy in ("no flag", "no alpha", "reserved"):
        flags = contents[20]
        if decoy == "no flag":
            flags, orientation = flags & ~0x08, None
        elif decoy == "no alpha":
            flags = flags & ~0x10
        else:
            flags |= draw.trait("bit", 0x01, 0x40, 0x80)
        contents = contents[:20] + bytes([flags]) + contents[21:]
    elif decoy == "short":
        # As the file says, it ends within its last chunk or before it.
        size = len(contents) - 8 - draw.trait("by", 2, 6, 8, 30, 1000)
        contents = contents[:4] + struct.pack("<i", size) + contents[8:]
    elif decoy == "behind the end":
        block = _exif(draw, 3)
        contents += struct.pack("<4sI", b"EXIF", len(block)) + block
    pixels = _turned(pixels, orientation or 1)
    if decoy == "short" or (decoy == "no alpha" and mode == "RGBA"):
        # Pillow shows the latter where the file is lossless.
        pixels = None
    tolerance = 0 if lossless else 6
    file = ImageFile("", contents, pixels, tolerance, decoy != "reserved")
    return _perhaps_cut(draw, file)


def _paletted(draw, colours):
    indices = draw.noise(8, 1) % colours
    palette = draw.generator.integers(0, 256, (colours, 3))
    image = Image.fromarray(indices[..., 0].astype("uint8"), "P")
    image.putpalette(palette.astype("uint8").tobytes())
    return image, indices[..., 0], _rgb(palette[indices[..., 0]])


def _gif(draw):
    image, indices, pixels = _paletted(draw, draw.trait("", 2, 7, 256))
    options = {"interlace": draw.trait("interlace", 0, 1), "optimize": False}
    options["include_color_table"] = draw.chance("own colours", 0.3)
    options["disposal"] = draw.trait("disposal", 0, 2, 3)
    clear = draw.chance("transparency", 0.4)
    if clear:
        options["transparency"] = draw.one(0, 1)
        pixels[indices == options["transparency"]] = 255
    if draw.chance("animated", 0.2):
        other = Image.new("L", image.size, 9)
        options |= {"save_all": True, "append_images": [other]}
    file = io.BytesIO()
    image.save(file, "GIF", **options)
    contents = file.getvalue()
    if draw.chance("larger screen", 0.1):
        height, width = (side + 3 for side in draw.size)
        contents = contents[:6] + struct.pack("<HH", width, height)
        contents += file.getvalue()[10:]
        # What lies around is white where anything is clear, or else the
        # first colour.
        colour = np.asarray(image.getpalette()[:3])
        around = np.full((height, width, 3), 255 if clear else colour)
        around[: height - 3, : width - 3] = pixels
        pixels = around.astype("uint8")
    known = not draw.chance("other version", 0.05)
    if not known:
        contents = contents.replace(contents[3:6], b"88a", 1)
    elif b"\x21\xf9\4" in contents and draw.chance("short control", 0.05):
        place = contents.index(b"\x21\xf9\4")
        short = b"\x21\xf9\3" + contents[place + 3 : place + 6] + b"\0"
        contents = contents[:place] + short + contents[place + 8 :]
        known, pixels = False, None
    return _perhaps_cut(draw, ImageFile("", contents, pixels, 0, known))


def _bmp(draw):
    height, width = draw.size
    bits = draw.trait("bits", 1, 4, 8, 16, 24, 32)
    samples = draw.noise(8, 3)
    pixels = _rgb(samples)
    colours, fields = b"", b""
    if bits <= 8:
        image, indices, pixels = _paletted(draw, 2**bits)
        palette = np.zeros((2**bits, 4), "uint8")
        palette[:, :3] = np.reshape(image.getpalette(), (-1, 3))[: 2**bits]
        colours = palette[:, [2, 1, 0, 3]].tobytes()
        rows = _packed(indices[..., None], bits)
    elif bits == 16:
        samples = samples >> 3
        words = samples[..., 0] * 1024 + samples[..., 1] * 32 + samples[..., 2]
        rows = _packed(words[..., None], 16, "<")
        pixels = _rgb(samples * 255 // 31)
    else:
        alpha = draw.noise(8, 1)
        stored = np.concatenate([samples[..., ::-1], alpha], -1)
        if bits == 32 and draw.chance("masks", 0.5):
            fields = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
            pixels = _over_white(samples, alpha)
        rows = _packed(stored[..., : bits // 8], 8)
    rows = [row + b"\0" * (-len(row) % 4) for row in rows]
    upside = draw.chance("upside down", 0.3)
    data = b"".join(rows if upside else rows[::-1])
    short = bits in (24,) and draw.chance("OS/2", 0.2)
    if short:
        header = struct.pack("<IHHHH", 12, width, height, 1, bits)
        data = b"".join(rows[::-1])
    else:
        size = 56 if fields else 40
        header = struct.pack(
            "<IiiHHIIiiII", size, width, -height if upside else height, 1,
            bits, 3 if fields else 0, len(data), 0, 0, 0, 0,
        )  # fmt: skip
        header += fields
    header += colours
    start = 14 + len(header)
    contents = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    contents += header + data
    tolerance = 1 if bits == 16 else 0
    return _perhaps_cut(draw, ImageFile("", contents, pixels, tolerance))


# Photometric interpretations.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _TIFF_RGB, _INKS, _TIFF_YCC = 0, 1, 2, 5, 6
_TIFF_CHANNELS = {_TIFF_RGB: 3, _INKS: 4, _TIFF_YCC: 3}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3


def _tiff(draw):
    order = draw.trait("order", "<", ">")
    kind = draw.trait("photometric", 0, 1, 2, 2, 5, 6)
    gray = kind in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    bits, form = 8, _UNSIGNED
    if gray:
        bits = draw.trait("bits", 1, 2, 4, 8, 12, 16, 16, 32)
    elif kind == _TIFF_RGB:
        bits = draw.trait("bits", 8, 16)
    if bits in (8, 16, 32):
        form = draw.trait("format", *[_UNSIGNED] * 8, _SIGNED, _FLOAT)
        form = _SIGNED if form == _FLOAT and bits == 8 else form
    channels, extra = _TIFF_CHANNELS.get(kind, 1), None
    may_have_alpha = kind == _TIFF_RGB or (kind == _BLACK_IS_ZERO and bits == 8)
    if may_have_alpha and draw.chance("alpha", 0.4):
        channels, extra = channels + 1, 2
    samples = draw.noise(bits, channels)
    height, width = draw.size
    orientation = _orientation(draw)
    tags = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [1],
        262: [kind],
        274: [orientation or 1],
        277: [channels],
        339: [form] * channels,
    }
    if extra:
        tags[338] = [extra]
    if kind == _TIFF_YCC:
        # As many samples of colour as of light.
        tags[530] = [1, 1]
    apart = channels > 1 and draw.chance("planes", 0.2)
    planes = np.split(samples, channels, -1) if apart else [samples]
    tags[284] = [2 if apart else 1]
    tiled = bits >= 8 and draw.chance("tiled", 0.2)
    blocks = [block for p in planes for block in _blocks(p, tags, tiled)]
    blocks = [b"".join(_tiff_rows(b, bits, order, form)) for b in blocks]
    if draw.chance("deflated", 0.4):
        blocks, tags[259] = [zlib.compress(b) for b in blocks], [8]
    contents = _with_tags(order, blocks, tags, draw.chance("pages", 0.1))

    high = _to_8_bits(samples, bits)
    if kind == _INKS:
        light = 255 - high
        pixels = _rgb(light[..., :3] * light[..., 3:] // 255)
    elif kind == _TIFF_YCC:
        ycc = Image.frombytes("YCbCr", (width, height), _rgb(high).tobytes())
        pixels = np.asarray(ycc.convert("RGB"))
    elif extra:
        pixels = _over_white(high[..., :-1], high[..., -1:])
    else:
        pixels = _rgb(255 - high if kind == _WHITE_IS_ZERO else high)
    pixels = _turned(pixels, orientation or 1)
    if form != _UNSIGNED or bits == 32:
        draw.traits.append("no known range")
        pixels = None
    known = not (
        (bits == 16 and kind == _WHITE_IS_ZERO and order == ">")
        or (bits == 12 and (kind, order) != (_BLACK_IS_ZERO, "<"))
        or (apart and (bits > 8 or gray or kind == _TIFF_YCC))
    )
    tolerance = 1 if kind == _TIFF_YCC else 0
    file = ImageFile("", contents, pixels, tolerance, known)
    return _perhaps_cut(draw, file)


def _blocks(plane, tags, tiled):
    """The one strip of a plane, or its tiles of 16 x 16 samples."""
    height, width, _ = plane.shape
    if not tiled:
        tags[278] = [height]
        return [plane]
    tags[322] = tags[323] = [16]
    plane = np.pad(plane, [(0, -height % 16), (0, -width % 16), (0, 0)])
    return [
        plane[top : top + 16, left : left + 16]
        for top in range(0, height, 16)
        for left in range(0, width, 16)
    ]


def _tiff_rows(samples, bits, order, form):
    rows = _packed(samples, bits, order)
    if form == _FLOAT:
        values = [np.frombuffer(row, f"{order}u{bits // 8}") for row in rows]
        rows = [(v / 2.0**bits).astype(f"{order}f{bits // 8}") for v in values]
        rows = [row.tobytes() for row in rows]
    return rows


def _with_tags(order, blocks, tags, pages):
    """A TIFF file, whose tags hold 16-bit numbers, and perhaps two pages."""
    second = {256: [1], 257: [1], 258: [8], 262: [1], 277: [1], 278: [1]}
    page, directory = _page(order, 8, blocks, tags, pages)
    head = b"II*\0" if order == "<" else b"MM\0*"
    contents = head + struct.pack(order + "I", directory) + page
    if pages:
        contents += _page(order, len(contents), [b"\7"], second, False)[0]
    return contents


def _page(order, place, blocks, tags, pages):
    """A page of a TIFF file that begins at a place, and its directory's."""
    blocks = [block + b"\0" * (len(block) % 2) for block in blocks]
    places = place + np.cumsum([0, *map(len, blocks)])
    at, lengths = (324, 325) if 322 in tags else (273, 279)
    tags = tags | {at: places[:-1], lengths: list(map(len, blocks))}
    directory = int(places[-1])
    behind = directory + 2 + 12 * len(tags) + 4
    entries, values = [], b""
    for tag, numbers in sorted(tags.items()):
        value = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(value) > 4:
            place = struct.pack(order + "I", behind + len(values))
            values, value = values + value, place
        entries.append((tag, 3, len(numbers), value.ljust(4, b"\0")))
    # The next directory stands behind two bytes of pixels.
    following = behind + len(values) + 2 if pages else 0
    table = _directory(order, entries, following)
    return b"".join(blocks) + table + values, directory


def _netpbm(draw):
    colour = draw.chance("colour", 0.5)
    largest = draw.trait("largest", 1, 255, 1023, 65535)
    samples = draw.noise(16, 3 if colour else 1) % (largest + 1)
    height, width = draw.size
    plain = draw.chance("plain", 0.3)
    number = 2 + colour + 3 * (not plain)
    head = f"P{number}\n{width} {height}\n{largest}\n".encode()
    if plain:
        text = " ".join(map(str, samples.ravel()))
        data = text.encode() + b"\n"
    else:
        data = b"".join(_packed(samples, 16 if largest > 255 else 8))
    if largest > 255 and not colour:
        pixels = _rgb(np.rint(samples / largest * 65535).astype(int) >> 8)
        return _perhaps_cut(draw, ImageFile("", head + data, pixels))
    # Of colours Pillow rounds to the nearest.
    pixels = _rgb(np.rint(samples / largest * 255).astype(int))
    return _perhaps_cut(draw, ImageFile("", head + data, pixels))


def _other(draw):
    form = draw.trait("", "AVIF", "JPEG2000")
    mode = draw.trait("", "RGB", "RGBA")
    if form == "JPEG2000" and draw.chance("16 bits", 0.3):
        samples = draw.noise(16, 1)
        contents = _saved(samples, "I;16", form, irreversible=False)
        return _perhaps_cut(draw, ImageFile("", contents, _rgb(samples >> 8)))
    samples = draw.smooth(len(mode))
    options = {"quality": 95}
    signed = form == "JPEG2000" and draw.chance("no known range", 0.1)
    if form == "JPEG2000":
        samples = draw.noise(8, len(mode))
        options = {"irreversible": False, "mct": 0, "signed": signed}
        options["no_jp2"] = draw.chance("bare", 0.3)
    pixels = _rgb(samples[..., :3])
    if mode == "RGBA":
        pixels = _over_white(samples[..., :3], samples[..., 3:])
    orientation = None
    if form == "AVIF":
        orientation = _orientation(draw)
        if orientation:
            options["exif"] = _exif(draw, orientation)
    contents = _saved(samples, mode, form, **options)
    pixels = _turned(pixels, orientation or 1)
    tolerance = 6 if form == "AVIF" else 0
    pixels = None if signed else pixels
    return _perhaps_cut(draw, ImageFile("", contents, pixels, tolerance))
