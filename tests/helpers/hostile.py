"""Files that a hostile hand, or a failing machine, could have written.

What each of them must not do is in the tests; that it is refused by name,
counted, and costs neither time nor memory beyond its limit.
"""

import base64
import csv
import gzip
import json
import marshal
import os
import socket
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

from tiny_align import image_file

SECRET = "the words of a stranger's file"


def folder_with_ways_out(folder):
    """A data folder of two good images, and every way out of it.

    Returns:
        Namespace: `data` (the folder), `secret` (an image that is none of its
        business), `good` (names within) and `outside` (names that lead out).
    """
    data, elsewhere = folder / "data", folder / "data-elsewhere"
    data.mkdir(parents=True)
    # Its name begins like the folder's.
    elsewhere.mkdir()
    secret = elsewhere / "private.png"
    secret.write_bytes(image_file(0, form="PNG"))
    secret.with_suffix(".txt").write_text(SECRET)
    for number, name in enumerate(("a.png", "b.png"), 1):
        (data / name).write_bytes(image_file(number, form="PNG"))
    (data / "link.png").symlink_to(secret)
    (data / "relative.png").symlink_to("../data-elsewhere/private.png")
    (data / "folder").symlink_to(elsewhere)
    (data / "twice.png").symlink_to("link.png")
    # These stay within.
    (data / "inner.png").symlink_to("a.png")
    (data / "sub").mkdir()
    return SimpleNamespace(
        data=data,
        secret=secret,
        good=["a.png", "b.png", "inner.png", "sub/../b.png"],
        outside=[
            str(secret),
            "../data-elsewhere/private.png",
            "sub/../../data-elsewhere/private.png",
            "link.png",
            "relative.png",
            "twice.png",
            "folder/private.png",
        ],
    )


def folder_of_members_outside(folder, name, contents):
    """A data folder of three files, of which two lead out of it.

    Args:
        folder: `pathlib.Path`.
        name: string. What such a file is called; other programs may look at
            the suffix.
        contents: callable of a path, which writes a file there.

    Returns:
        Namespace: `data` (the folder), `mine` (the path of the file within),
        `link` and `behind` (the names of those outside: a link, and a file in
        a folder that is one).
    """
    data, elsewhere = folder / "data", folder / "data-elsewhere"
    for place in (data, elsewhere):
        place.mkdir(parents=True)
    contents(data / name)
    contents(elsewhere / f"x{name}")
    (data / f"link{name}").symlink_to(elsewhere / f"x{name}")
    (data / "behind").symlink_to(elsewhere)
    return SimpleNamespace(
        data=data,
        mine=data / name,
        link=f"link{name}",
        behind=f"behind/x{name}",
    )


def special_files(folder):
    """Names of images that are none, of which some would never end.

    Returns:
        List of names relative to the folder.
    """
    os.mkfifo(folder / "pipe.png")
    (folder / "directory.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    sparse = folder / "sparse.png"
    with open(sparse, "wb") as file:
        file.truncate(5 * 2**30)
    listening = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)  # The path of a socket may have 107 bytes.
    try:
        listening.bind("socket.png")
    finally:
        os.chdir(here)
        listening.close()
    return [
        "pipe.png",
        "directory.png",
        "loop.png",
        "sparse.png",
        "socket.png",
        "x" * 5000 + ".png",
        "y/" * 2500 + "z.png",
        "zero\0.png",
        "half\ud800.png",
        "",
        ".",
    ]


def write_captions(path, names):
    """A caption file that lists images."""
    with open(path, "w", newline="", errors="surrogatepass") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        rows.writerows((name, f"caption of {name[:20]}") for name in names)
    return Path(path)


# === Addresses ===

ADDRESSES = {
    "public": [
        "http://example.com/a.jpg",
        "HTTPS://EXAMPLE.com:8443/a b.jpg?c=d#e",
        "http://8.8.8.8/a.jpg",
        "http://[2606:4700:4700::1111]/a.jpg",
        "http://b\u00fccher.example/a.jpg",
        "http://user:secret@example.com/a.jpg",
        "http://my.localhost.example.com/a.jpg",
        "http://127.0.0.1.example.com/a.jpg",
        " http://example.com/a.jpg\n",
        "http://0xdeadbeef.example/a.jpg",
    ],
    "not http or https": [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "file://localhost/etc/passwd",
        "ftp://example.com/a.jpg",
        "gopher://127.0.0.1:25/",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "jar:http://example.com/a!/b",
        "s3://bucket/a.jpg",
    ],
    "not an address": [
        None,
        "",
        "   ",
        "/etc/passwd",
        "a.jpg",
        "//example.com/a.jpg",
        "http:///a.jpg",
        "http://",
        "http:a.jpg",
        "http://[::1/a.jpg",
        "http://example.com:port/a.jpg",
        "http://example.com:99999/a.jpg",
        "http://example.com\\@127.0.0.1/a.jpg",
        "http://exam ple.com/a.jpg",
        "http://a\x00b.com/a.jpg",
    ],
    "not a public address": [
        "http://localhost/a.jpg",
        "http://LOCALHOST.:80/a.jpg",
        "http://a.localhost/a.jpg",
        "http://127.0.0.1/a.jpg",
        "http://127.0.0.1.:8080/a.jpg",
        "http://127.1/a.jpg",
        "http://2130706433/a.jpg",
        "http://0x7f000001/a.jpg",
        "http://0177.0.0.1/a.jpg",
        "http://0/a.jpg",
        "http://127%2e0%2e0%2e1/a.jpg",
        "http://\uff11\uff12\uff17.0.0.1/a.jpg",
        "http://127\u30020\u30020\u30021/a.jpg",
        "http://\u2460\u2461\u2466.0.0.1/a.jpg",
        "http://example.com@127.0.0.1/a.jpg",
        "http://10.0.0.1/a.jpg",
        "http://172.16.0.1/a.jpg",
        "http://192.168.1.1/a.jpg",
        "http://100.64.0.1/a.jpg",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/a.jpg",
        "http://[::]/a.jpg",
        "http://[fe80::1%25eth0]/a.jpg",
        "http://[fd00:ec2::254]/a.jpg",
        "http://[fec0::1]/a.jpg",
        "http://[::ffff:127.0.0.1]/a.jpg",
        "http://[::ffff:a9fe:a9fe]/a.jpg",
        "http://[::127.0.0.1]/a.jpg",
        "http://[64:ff9b::7f00:1]/a.jpg",
        "http://[2002:7f00:1::]/a.jpg",
        "http://224.0.0.1/a.jpg",
        "http://255.255.255.255/a.jpg",
        "http://metadata.google.internal/",
        "http://router.local/a.jpg",
        "http://nas/a.jpg",
    ],
}


# === Too much of one thing ===

# Python's parser gives up on it by another error than on what is not JSON.
DEEP = "[" * 200_000


def write_tar(path, members, compressed=False, damage=None):
    """An archive of members, given by name, type, size and bytes.

    Bytes that are fewer than the size are followed by zeros, which cost no
    room on disk; compressed, they cost a thousandth.
    """
    opened = gzip.open(path, "wb", 1) if compressed else open(path, "wb")
    with opened as file:
        for name, kind, size, contents in members:
            header = tarfile.TarInfo(name)
            header.type, header.size = kind, size
            file.write(header.tobuf(tarfile.GNU_FORMAT))
            file.write(contents)
            left = max(0, -(-size // 512) * 512 - len(contents))
            if compressed:
                for start in range(0, left, 2**20):
                    file.write(bytes(min(2**20, left - start)))
            else:
                file.seek(left, 1)
        file.write(bytes(1024))
    return path


def huge_members(size):
    """Members of an archive that would fill the memory, between good ones."""
    good = image_file(1)
    return [
        ("a.jpg", tarfile.REGTYPE, len(good), good),
        ("a.txt", tarfile.REGTYPE, 5, b"first"),
        ("huge.jpg", tarfile.REGTYPE, size, good),
        ("huge.txt", tarfile.REGTYPE, 4, b"huge"),
        ("text.jpg", tarfile.REGTYPE, len(good), good),
        ("text.txt", tarfile.REGTYPE, size, b"long"),
        ("json.jpg", tarfile.REGTYPE, len(good), good),
        ("json.json", tarfile.REGTYPE, len(DEEP), DEEP.encode()),
        ("skip.bin", tarfile.REGTYPE, size, b""),
        ("z.jpg", tarfile.REGTYPE, len(good), good),
        ("z.txt", tarfile.REGTYPE, 4, b"last"),
    ]


def archives_that_end_in_trouble(folder, size):
    """Archives whose third header lies; what comes before it is good."""
    good = huge_members(0)[:2]
    for number, (kind, length) in enumerate(
        [
            (tarfile.GNUTYPE_LONGNAME, size),
            (tarfile.GNUTYPE_LONGLINK, size),
            (tarfile.XHDTYPE, size),
            (tarfile.XGLTYPE, size),
            (tarfile.REGTYPE, -512),
            (tarfile.REGTYPE, -1024),
            (tarfile.XHDTYPE, -512),
        ]
    ):
        member = ("b.jpg", kind, length, b"")
        yield write_tar(folder / f"{number}.tar", [*good, member])
    sparse = "GNU.sparse.major=1\nGNU.sparse.minor=0\nGNU.sparse.realsize=9\n"
    records = "".join(f"{len(x) + 4} {x}\n" for x in sparse.split())
    members = [("p", tarfile.XHDTYPE, len(records), records.encode())]
    members.append(("b.jpg", tarfile.REGTYPE, 1024, b"9" * 1024))
    yield write_tar(folder / "sparse.tar", [*good, *members])


def write_endless(path, before, filling, size, after=b""):
    """A file that is as long as it is monotonous; compressed, for `.gz`.

    Args:
        path: string or `pathlib.Path`.
        before: bytes.
        filling: bytes, which come again and again.
        size: int. Bytes of them in all.
        after: bytes.
    """
    block = filling * max(1, 2**20 // len(filling))
    zipped = str(path).endswith(".gz")
    with gzip.open(path, "wb", 1) if zipped else open(path, "wb") as file:
        file.write(before)
        for _ in range(-(-size // len(block))):
            file.write(block)
        file.write(after)
    return path


# What comes first, what comes without end, what comes last, and the rows that
# can be read, of each form of a table.
ENDLESS_TABLES = {
    "a line of JSON": (
        ".jsonl",
        b'{"url": "a", "text": "one"}\n{"url": "b", "text": "',
        b"b",
        b'"}\n{"url": "c", "text": "three"}\n',
    ),
    "a list in JSON": (
        ".jsonl",
        b'{"url": "a", "text": "one"}\n{"url": "b", "text": [',
        b"1,",
        b'1]}\n{"url": "c", "text": "three"}\n',
    ),
    "a field of CSV": (".csv", b"url,text\na,one\nb,", b"b", b"\nc,three\n"),
    "a quoted field": (
        ".csv",
        b'url,text\na,one\nb,"',
        b"b",
        b'"\nc,three\n',
    ),
    "fields of CSV": (".csv", b"url,text\na,one\nb", b",b", b"\nc,three\n"),
    "a field of TSV": (
        ".tsv",
        b"url\ttext\na\tone\nb\t",
        b"b",
        b"\nc\tthree\n",
    ),
}


def endless_archives():
    """What comes first, and without end, of archives that never come to it.

    Returns:
        dict from what each of them is to a suffix and a pair of bytes.
    """
    info = b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 2\r\n\r\n{}"
    head = info + b"\r\n\r\nWARC/1.0\r\nWARC-Type: response\r\n"
    return {
        "no line": (".warc", b"", b"a"),
        "a line of a header": (".warc", head + b"X: ", b"a"),
        "a header": (".wat", head, b"X-Name: value\r\n"),
        "a line that goes on": (".warc", head + b"X: a\r\n", b" a\r\n"),
        "names alone": (".wat", head, b"a\r\n"),
    }


def warc_response(http):
    """The bytes of a record of a response, given all that a server sent."""
    return (
        b"WARC/1.0\r\nWARC-Type: response\r\n"
        b"WARC-Target-URI: http://example.org/\r\n"
        b"Content-Length: %d\r\n\r\n%s\r\n\r\n" % (len(http), http)
    )


def page_of_many_attributes(count):
    """A page of one image, whose attributes are compared with each other."""
    names = b" ".join(b"a%d" % number for number in range(count))
    return b'<img %s src="a.jpg" alt="a red bus">' % names


def page_of_a_long_base(length, count):
    """A page whose addresses together are longer than any memory."""
    base = b"http://example.org/" + b"x" * length
    images = b'<img src="a.jpg" alt="b">' * count
    return b'<base href="%s/">' % base + images


# === Damage ===


def flip(path, place=0.5, bit=0):
    """Flip one bit of a file, at a share of its length."""
    position = int(place * (os.path.getsize(path) - 1))
    with open(path, "r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def cut(path, share=0.5):
    """Leave the first part of a file."""
    os.truncate(path, int(share * os.path.getsize(path)))


# What an index may say that is not so: the field, and its value.
MISSING = object()
INDEX_CHANGES = [
    *[
        (field, value)
        for field in ("count", "dim")
        for value in (MISSING, 0, -1, 1.5, True, "30", [], None, 2**62)
    ],
    *[("kind", value) for value in (MISSING, "nearest", [], None, 1, {})],
    *[("fingerprint", value) for value in (MISSING, 1, None, ["a"])],
    *[("labels", value) for value in (MISSING, None, "a", [1], [[]], [[1]])],
    *[("templates", value) for value in (MISSING, [], "{}", [1], ["no"])],
    *[("settings", value) for value in (MISSING, [], "a", None, [1])],
    ("sha256", MISSING),
    ("sha256", ["vectors.npy"]),
    ("sha256", {"vectors.npy": 1}),
    ("sha256", {"../secret": "0" * 64}),
    ("sha256", {"model/../../secret": "0" * 64}),
    ("sha256", {"/etc/passwd": "0" * 64}),
    ("kind", "hnsw"),
    ("kind", "ivf-pq"),
    ("kind", "qdrant"),
]


# The same of a manifest of vectors or scores: where, and what.
MANIFEST_CHANGES = [
    *[((), value) for value in ([], 3, None, "a")],
    *[(("arguments",), value) for value in (MISSING, [], "thumbnail_size", 1)],
    *[(("arguments", "fingerprint"), value) for value in (MISSING, [1], 3)],
    *[(("shards",), v) for v in (MISSING, 3, "a", {}, [], ["sha256"], [1])],
    *[(("shards", 0, "file"), value) for value in (MISSING, [], 3, None)],
    *[(("shards", 0, "records"), value) for value in (MISSING, "3", -1, True)],
    *[(("shards", 0, "sha256"), value) for value in (3, [], None)],
]


def change_manifest(manifest, place, value):
    """Return what JSON holds with another value in a place, or without it."""
    if not place:
        return value
    *above, last = place
    inner = manifest
    for name in above:
        inner = inner[name]
    if value is MISSING:
        del inner[last]
    else:
        inner[last] = value
    return manifest


class Program:
    """Unpickled, it would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# === Models ===


def configs_that_run_programs(ran):
    """What a preset could have in the place of a tower, to make a directory.

    Args:
        ran: the directory.
    """
    source = f"__import__('os').mkdir({str(ran)!r})"
    program = compile(f"lambda x: {source}", "", "eval").co_consts[0]
    code = base64.b64encode(marshal.dumps(program)).decode()
    function = {
        "class_name": "__lambda__",
        "config": {"code": code, "defaults": None, "closure": None},
    }

    def call(module, name, **arguments):
        return {
            "module": module,
            "class_name": name,
            "config": arguments,
            "registered_name": None,
        }

    named = {"module": "os", "class_name": "function", "config": "mkdir"}
    return {
        "a lambda": function,
        "a layer of a lambda": call(
            "keras.layers", "Lambda", function=function
        ),
        "a process": call("subprocess", "Popen", args=["mkdir", str(ran)]),
        "a function": {**named, "registered_name": "mkdir"},
        "exec": call("builtins", "exec", source=source),
        "a download": call(
            "keras.utils",
            "get_file",
            origin="file:///etc/hostname",
            fname=str(ran),
        ),
        "another model": call("keras.models", "load_model", filepath=str(ran)),
        "a SavedModel": call("keras.layers", "TFSMLayer", filepath=str(ran)),
        "a pickle": call("pickle", "loads", data="x"),
        "nothing": {},
        "a number": 1,
        "a list": [],
        "a name": "AlignDualEncoder",
    }


EMPTY = '{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}'


def safetensors_files():
    """Files in the form of safetensors that are not what they say."""

    def file(header, length=None, data=bytes(64)):
        if not isinstance(header, bytes):
            header = json.dumps(header).encode()
        length = len(header) if length is None else length
        return length.to_bytes(8, "little") + header + data

    def tensor(**changes):
        good = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
        return {"t": {**good, **changes}}

    def two(first, second):
        parts = {"a": first, "b": second}
        return file(
            {
                name: {
                    "dtype": "F32",
                    "shape": [(end - start) // 4],
                    "data_offsets": [start, end],
                }
                for name, (start, end) in parts.items()
            }
        )

    return {
        "nothing": b"",
        "half a length": b"abc",
        "a header of 2**63 bytes": file(tensor(), 2**63 - 1),
        "a header of 2**64 bytes": file(tensor(), 2**64 - 1),
        "a header beyond the end": file(tensor(), 10**6),
        "brackets": file(DEEP.encode()),
        "braces": file(b'{"a":' * 100_000),
        "no JSON": file(b"hello"),
        "a list": file([]),
        "a tensor beyond the end": file(tensor(data_offsets=[0, 10**12])),
        "a tensor before the start": file(tensor(data_offsets=[-64, 0])),
        "a shape that overflows": file(tensor(shape=[2**40, 2**40])),
        "a shape of more bytes": file(tensor(shape=[100, 100])),
        "a negative shape": file(tensor(shape=[-4, -4])),
        "another type": file(tensor(dtype="PY")),
        "a hole": two((0, 16), (48, 64)),
        "an overlap": two((0, 32), (16, 64)),
        "half a character": file(b'{"\\ud800": {}}'),
        "no UTF-8": file(b'{"\xff": {}}'),
        "a type that is a list": file(tensor(dtype=["F32"])),
        "a type that is a dict": file(tensor(dtype={"F32": {}})),
        "offsets that overflow": file(tensor(data_offsets=[2**64, 2**65])),
        "offsets that are texts": file(tensor(data_offsets=["0", "64"])),
        "offsets the wrong way": file(tensor(data_offsets=[64, 0])),
        "one name twice": file(
            json.dumps(tensor())[:-1].encode()
            + b", "
            + json.dumps(tensor(shape=[2, 8], data_offsets=[0, 32])).encode()[
                1:
            ]
        ),
        "a header of blanks": file(b" " * 2**25),
        "more names than memory": file(
            (
                "{" + ", ".join(f'"{n}": {EMPTY}' for n in range(400_000)) + "}"
            ).encode()
        ),
    }


def keras_files(folder, ran):
    """Files of Keras that write elsewhere, fill the disk, or run a program.

    Args:
        folder: `pathlib.Path` in which they are written.
        ran: `pathlib.Path` of the directory that the program would make.

    Returns:
        dict from what each of them is to its path.
    """
    config = configs_that_run_programs(ran)["a layer of a lambda"]
    model = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "s", "layers": [config]},
        "registered_name": None,
    }
    pair = {
        "module": "align_keras",
        "class_name": "AlignDualEncoder",
        "config": {"image_encoder": model, "text_encoder": model},
        "registered_name": "align_keras>AlignDualEncoder",
    }
    process = configs_that_run_programs(ran)["a process"]
    members = {
        "a lambda": {"config.json": json.dumps(model)},
        "a lambda in a tower": {"config.json": json.dumps(pair)},
        "a process": {"config.json": json.dumps(process)},
        "an absolute member": {str(ran): "x"},
        "a member above": {f"../{ran.name}": "x"},
        "brackets": {"config.json": DEEP},
        "a bomb": {"config.json": b" " * 2**28},
    }
    found = {}
    for name, files in members.items():
        found[name] = folder / f"{name.replace(' ', '_')}.keras"
        with zipfile.ZipFile(found[name], "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("metadata.json", '{"keras_version": "3.13.0"}')
            for member, contents in files.items():
                file.writestr(member, contents)
    return found
