"""Files that a hostile hand, or a failing machine, could have written.

What each of them must not do is in the tests; that it is refused by name,
counted, and costs neither time nor memory beyond its limit.
"""

import csv
import os
import socket
from pathlib import Path
from types import SimpleNamespace

from tiny_align import picture_file

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
    secret.write_bytes(picture_file(0, form="PNG"))
    secret.with_suffix(".txt").write_text(SECRET)
    for number, name in enumerate(("a.png", "b.png"), 1):
        (data / name).write_bytes(picture_file(number, form="PNG"))
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
