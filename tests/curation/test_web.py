"""From the web: archives of pages, downloads, and a vocabulary in the end."""

import gzip
import http.server
import io
import json
import os
import shutil
import stat
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ibis", reason="needs the extra `curation`")
pytest.importorskip("warcio", reason="needs the extra `curation`")

import hostile
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from align_keras.cli import main
from align_keras.curation import curate
from align_keras.curation import download
from align_keras.curation import learn_vocabulary
from align_keras.curation import vocabulary as vocabulary_of_texts
from align_keras.curation.addresses import refusal
from align_keras.curation.config import parse_config
from align_keras.curation.download import read_downloads
from align_keras.curation.input_files import read_batches
from align_keras.curation.web_archives import page_pairs

PAGE = """<html><head><base href="/deep/"><title>x</title></head><body>
<img src="bus.jpg" alt=" a red  bus ">
<IMG SRC='https://other.org/c%20at.png?x=1&amp;y=2' ALT="un chat &amp; demi">
<img src="//cdn.org/dog.gif" alt="Ein schöner Hund">
<img src="data:image/png;base64,AAAA" alt="inside the page">
<img src="no-alt.jpg"><img alt="no source"><img src="blank.jpg" alt=" ">
<img src="http://[broken" alt="no address at all">
<p>unclosed <img src=last.jpg alt=letztes>
"""
PAIRS = [
    ("https://example.org/deep/bus.jpg", "a red  bus"),
    ("https://other.org/c%20at.png?x=1&y=2", "un chat & demi"),
    ("https://cdn.org/dog.gif", "Ein schöner Hund"),
    ("https://example.org/deep/last.jpg", "letztes"),
]


def response(writer, page, body, kind="text/html", status="200 OK"):
    headers = StatusAndHeaders(
        status, [("Content-Type", kind)], protocol="HTTP/1.1"
    )
    writer.write_record(
        writer.create_warc_record(
            page, "response", payload=io.BytesIO(body), http_headers=headers
        )
    )


def write_warc(path):
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        page = "https://example.org/a/b.html"
        kind = "text/html; charset=iso-8859-1"
        response(writer, page, PAGE.encode("latin-1"), kind)
        response(writer, page, PAGE.encode(), "image/png")
        response(writer, page, PAGE.encode(), status="404 Not Found")
        response(writer, page, b"")
        response(writer, page, b"\xff\xfe\x00junk <img src=x alt", "text/html")
        utf8 = '<img src="u.jpg" alt="größer 大きい">'.encode()
        response(writer, "https://utf8.org/", utf8)
        wrong = "text/html; charset=no-such-thing"
        response(writer, "https://odd.org/", utf8, wrong)


def pairs_of(path):
    found, bad = [], 0
    for columns, bad_records in read_batches(str(path)):
        bad += bad_records
        lists = [columns[n].to_pylist() for n in ("url", "text", "page")]
        found += zip(*lists, strict=True)
    return [tuple(value.decode() for value in row) for row in found], bad


def test_warc_gives_absolute_addresses_and_texts(tmp_path):
    write_warc(tmp_path / "crawl.warc.gz")
    found, bad = pairs_of(tmp_path / "crawl.warc.gz")
    page = "https://example.org/a/b.html"
    assert found == [
        *((url, text, page) for url, text in PAIRS),
        ("https://utf8.org/u.jpg", "größer 大きい", "https://utf8.org/"),
        ("https://odd.org/u.jpg", "größer 大きい", "https://odd.org/"),
    ]
    assert bad == 0
    assert page_pairs(b"", "https://a.org/") == []


def test_wat_gives_the_same_pairs(tmp_path):
    links = [
        {"path": "IMG@/src", "url": "bus.jpg", "alt": " a red  bus "},
        {"path": "A@/href", "url": "page.html", "alt": "no image"},
        {"path": "IMG@/src", "url": "no-alt.jpg"},
        {"path": "IMG@/src", "url": "//cdn.org/dog.gif", "alt": "Hund"},
    ]

    def record(writer, value):
        writer.write_record(
            writer.create_warc_record(
                "https://example.org/a/b.html",
                "metadata",
                payload=io.BytesIO(value),
                warc_content_type="application/json",
            )
        )

    with open(tmp_path / "crawl.wat.gz", "wb") as file:
        writer = WARCWriter(file, gzip=True)
        html = {"Head": {"Base": "/deep/"}, "Links": links}
        envelope = {
            "WARC-Header-Metadata": {
                "WARC-Target-URI": "https://example.org/a/b.html"
            },
            "Payload-Metadata": {
                "HTTP-Response-Metadata": {"HTML-Metadata": html}
            },
        }
        record(writer, json.dumps({"Envelope": envelope}).encode())
        record(writer, b"{broken")
        del envelope["Payload-Metadata"]
        record(writer, json.dumps({"Envelope": envelope}).encode())
    found, bad = pairs_of(tmp_path / "crawl.wat.gz")
    assert [pair[:2] for pair in found] == [
        PAIRS[0],
        ("https://cdn.org/dog.gif", "Hund"),
    ]
    assert bad == 1


def test_archives_go_through_curation(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_warc(folder / "crawl.warc.gz")
    whole = (folder / "crawl.warc.gz").read_bytes()
    cuts = [0, 1, 20, len(whole) // 3, len(whole) // 2, len(whole) - 1]
    for cut in cuts:
        (folder / f"cut-{cut}.warc.gz").write_bytes(whole[:cut])
    rules = {"rules": [{"token_count": {"at_least": 3}}]}
    rules["extra_columns"] = ["page"]
    curate([folder], tmp_path / "out", parse_config(rules))
    kept = pq.read_table(tmp_path / "out" / "kept").to_pylist()
    first = [row for row in kept if row["row_id"] < 10**12]
    assert {(r["url"], r["text"]) for r in first} == set(PAIRS[:3])
    assert {row["page"] for row in first} == {"https://example.org/a/b.html"}
    assert first == kept
    audit = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))
    damaged = [Path(d["file"]).name for d in audit["reading"]["damaged_files"]]
    assert sorted(damaged) == sorted(f"cut-{cut}.warc.gz" for cut in cuts)


@pytest.mark.parametrize("suffix, step", [(".warc", 1), (".warc.gz", 5)])
def test_archive_cut_anywhere_is_damaged(tmp_path, suffix, step):
    write_warc(tmp_path / "crawl.warc.gz")
    whole = (tmp_path / "crawl.warc.gz").read_bytes()
    members, rest = [], whole
    while rest:
        member = zlib.decompressobj(31)
        body = member.decompress(rest)
        size = len(rest) - len(member.unused_data)
        rest = member.unused_data
        members.append((size, len(body)))
    if suffix == ".warc":
        whole = gzip.decompress(whole)
    # Where a record ends nothing tells that another should follow. The two
    # line ends after each are no part of it.
    column, blank = (1, 4) if suffix == ".warc" else (0, 0)
    ends = np.cumsum([member[column] for member in members]).tolist()
    good = {end - extra for end in ends for extra in range(blank + 1)}
    path = tmp_path / f"cut{suffix}"
    for cut in range(0, len(whole), step):
        path.write_bytes(whole[:cut])
        try:
            pairs_of(path)
            assert cut in good, cut
        except (OSError, ValueError):
            assert cut not in good, cut


# === Too much of one thing ===


def write_wat(path, records):
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for contents in records:
            writer.write_record(
                writer.create_warc_record(
                    "https://example.org/",
                    "metadata",
                    payload=io.BytesIO(contents),
                    warc_content_type="application/json",
                )
            )


def wat_record(*links, page="https://example.org/", base=None):
    links = [{"path": "IMG@/src", "url": u, "alt": a} for u, a in links]
    meta = {"Links": links, "Head": {"Base": base} if base else {}}
    return json.dumps(
        {
            "Envelope": {
                "WARC-Header-Metadata": {"WARC-Target-URI": page},
                "Payload-Metadata": {
                    "HTTP-Response-Metadata": {"HTML-Metadata": meta}
                },
            }
        }
    ).encode()


def test_records_that_would_fill_the_memory_are_counted(tmp_path):
    path = tmp_path / "a.wat.gz"
    long = "x" * 100_000
    bad = [
        b'{"Envelope": "' + b"x" * 2**25 + b'"}',
        hostile.DEEP.encode(),
        b"[" + b"[]," * 2**23 + b"[]]",
        wat_record(("a.jpg", "b"), base=f"https://example.org/{long}"),
        wat_record(*[(f"a.jpg?{long[:8000]}{n}", "b") for n in range(900)]),
    ]
    good = wat_record(("a.jpg", "a red bus"), (long, "too long an address"))
    write_wat(path, [good, *bad, good])
    tracemalloc.start()
    found = list(read_batches(str(path), None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    texts = [t for columns, _ in found for t in columns["text"].to_pylist()]
    # Of the last of the bad all fits, for a page may have that many.
    assert texts == [b"a red bus", *[b"b"] * 900, b"a red bus"]
    assert sum(count for _, count in found) == len(bad) - 1
    assert peak < 100 * 2**20


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", hostile.endless_archives())
def test_headers_without_end_end_their_archive(tmp_path, kind, compressed):
    suffix, before, filling = hostile.endless_archives()[kind]
    path = tmp_path / f"a{suffix}{'.gz' if compressed else ''}"
    hostile.write_endless(path, before, filling, 64 * 2**20)
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="damaged archive"):
        list(read_batches(str(path)))
    assert time.perf_counter() - begin < 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_headers_of_a_server_without_end_cost_their_page_alone(tmp_path):
    page = b'<img src="a.jpg" alt="words">'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
    good = hostile.warc_response(head + b"\r\n" + page)
    path = tmp_path / "a.warc"
    records = [good]
    for filling in (b"a", b"X: y\r\n", b" y\r\n"):
        http = head + filling * (2**24 // len(filling))
        records += [hostile.warc_response(http), good]
    # A few bytes of which may be gigabytes.
    for name in (b"br", b"BR"):
        brotli = head + b"Content-Encoding: " + name + b"\r\n\r\n" + page
        records += [hostile.warc_response(brotli), good]
    # Headers of many records together may be as long as they like.
    short = hostile.warc_response(b"")
    path.write_bytes(b"".join(records) + short * 5000 + good)
    urls, bad = [], 0
    for columns, unreadable in read_batches(str(path)):
        urls += columns["url"].to_pylist()
        bad += unreadable
    assert urls == [b"http://example.org/a.jpg"] * 7
    assert bad == 5


def test_pages_take_time_in_proportion(tmp_path):
    page = hostile.page_of_many_attributes(600_000)
    begin = time.perf_counter()
    (pair,) = page_pairs(page, "https://example.org/")
    assert time.perf_counter() - begin < 10
    assert pair[:2] == ("https://example.org/a.jpg", "a red bus")
    with pytest.raises(ValueError, match="address is too long"):
        page_pairs(hostile.page_of_a_long_base(10_000, 9), "https://a.b/")
    with pytest.raises(ValueError, match="too many images"):
        page_pairs(hostile.page_of_a_long_base(8_000, 5000), "https://a.b/")
    with pytest.raises(ValueError, match="address is too long"):
        page_pairs(b"<img src=a alt=b>", "https://a.b/" + "c" * 10_000)
    for nothing in (b"", b" ", b"\0", b"<", b"<!-- -->"):
        assert page_pairs(nothing, "https://a.b/") == []


def test_lines_that_are_no_rows_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    good = b'{"url": "http://a.b/c.jpg", "text": "a red bus"}\n'
    with open(path, "wb") as file:
        file.write(b"\xef\xbb\xbf" + good)
        file.write(hostile.DEEP.encode() + b"\n" + good)
        file.write(b'{"text": "' + b"x" * 9 * 2**20 + b'"}\n' + good)
        # A line without an end.
        file.write(b"y" * 40 * 2**20)
    tracemalloc.start()
    found = list(read_batches(str(path), None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(c["text"]) for c, _ in found if c) == 3
    assert sum(count for _, count in found) == 3
    assert peak < 40 * 2**20


# === Downloading ===


def image(size, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), "uint8")
    file = io.BytesIO()
    Image.fromarray(noise).resize(size).save(file, "JPEG")
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Real images, and whatever else the web has."""

    def do_GET(self):
        if "slow" in self.path:
            time.sleep(8)
        if "missing" in self.path:
            self.send_error(404)
            return
        body = image((320, 240), len(self.path))
        if "broken" in self.path:
            body = body[: len(body) // 2]
        if "huge" in self.path:
            file = io.BytesIO()
            Image.new("1", (12_000, 12_000)).save(file, "PNG")
            body = file.getvalue()
        if "text" in self.path:
            body = b"<html>not an image</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


NAMES = ["good1", "good2", "missing", "slow", "broken", "text", "huge", "good3"]


@pytest.fixture
def address():
    """Of a local server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def kept(tmp_path, address):
    """The kept directory of a run whose addresses that server answers."""
    urls = [f"{address}/{name}.jpg" for name in NAMES]
    texts = [f"a caption of {name}" for name in NAMES]
    pq.write_table(
        pa.table({"url": urls, "text": texts}), tmp_path / "in.parquet"
    )
    rules = parse_config({"rules": [{"token_count": {"at_least": 3}}]})
    curate([tmp_path / "in.parquet"], tmp_path / "clean", rules)
    return tmp_path / "clean"


# What img2dataset leaves, written by twenty lines in its stead.
STAND_IN = """#!{python}
import json, sys, urllib.request
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
given = dict(word[2:].split("=", 1) for word in sys.argv[1:])
if given["image_size"] == "13":
    print("no luck today"); sys.exit(3)
assert given["url_col"] == "url" and given["caption_col"] == "text"
assert given["input_format"] == "parquet" and given["timeout"] == "3"
rows = pq.read_table(given["url_list"]).to_pylist()
out = Path(given["output_folder"]); out.mkdir()
for number, row in enumerate(rows):
    row.update(key=f"{{number:09d}}",
               status="success", error_message=None, caption=row.pop("text"),
               width=64, height=48, original_width=320, original_height=240)
    try:
        patience = 0.5 if "slow" in row["url"] else 60
        body = urllib.request.urlopen(row["url"], timeout=patience).read()
        if not body.endswith(b"\\xff\\xd9"):
            row.update(status="failed_to_resize",
                       error_message="cannot identify image file 0x7f")
        elif given["output_format"] == "files":
            (out / "00000").mkdir(exist_ok=True)
            (out / "00000" / (row["key"] + ".jpg")).write_bytes(body)
    except Exception as error:
        row.update(status="failed_to_download", error_message=str(error))
pq.write_table(pa.Table.from_pylist(rows), out / "00000.parquet")
(out / "00000.tar").write_bytes(b""); (out / "00001.tar").write_bytes(b"")
(out / "00000_stats.json").write_text(json.dumps(dict(count=len(rows))))
"""


def test_download_writes_reads_and_counts(kept, tmp_path, capsys):
    program = tmp_path / "img2dataset"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    allowed = {"timeout": 3, "allow_private": True}
    result = download(
        kept, tmp_path / "got", str(program), progress=True, **allowed
    )
    assert result["refused"] == {}
    assert result["pairs"] == len(NAMES)
    assert result["downloaded"] == 3 and result["failed"] == 5
    assert result["failures"] == {
        "HTTP Error 404": 1,
        "cannot identify image file 0x7": 3,
        "timed out": 1,
    }
    # A shard without statistics was begun and not finished.
    assert result["incomplete_shards"] == ["00001"]
    # With `output_format="files"`, it is a folder.
    for name in ("00000", "00002", "_tmp"):
        (tmp_path / "got" / "images" / name).mkdir()
    result = read_downloads(tmp_path / "got" / "images")
    assert result["incomplete_shards"] == ["00001", "00002"]
    listed = pq.read_table(tmp_path / "got" / "download_list.parquet")
    assert listed.column_names == ["url", "text", "row_id"]
    assert sorted(listed["row_id"].to_pylist()) == list(range(len(NAMES)))
    assert f"{len(NAMES)}/{len(NAMES)}" in capsys.readouterr().err
    # The downloads' own table goes through the rules of sizes.
    rules = {"rules": [{"shorter_side": {"above": 200}}]}
    again = curate(result["metadata"], tmp_path / "2", parse_config(rules))
    assert again["kept"] == len(NAMES)
    command = ["download", str(kept), "--output", str(tmp_path / "cli")]
    command += ["--img2dataset", str(program), "--timeout", "3"]
    command += ["--allow-private", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["downloaded"] == 3
    with pytest.raises(OSError, match="status 3: no luck today"):
        download(kept, tmp_path / "x", str(program), image_size=13, **allowed)
    with pytest.raises(FileNotFoundError, match="environment of its own"):
        download(kept, tmp_path / "y", "no-such-program")
    with pytest.raises(FileNotFoundError, match="no kept pairs"):
        download(tmp_path, tmp_path / "z", str(program))


def test_a_directory_is_of_one_download(tmp_path):
    """img2dataset would take its shards for those of another list."""
    program = tmp_path / "img2dataset"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from pathlib import Path\n"
        "import pyarrow as pa, pyarrow.parquet as pq\n"
        "given = dict(w[2:].split('=', 1) for w in sys.argv[1:])\n"
        "if given['image_size'] == '13': sys.exit(3)\n"
        "rows = pq.read_table(given['url_list']).to_pylist()\n"
        "came = {'status': 'failed', 'error_message': ''}\n"
        "table = pa.Table.from_pylist([row | came for row in rows])\n"
        "out = Path(given['output_folder']); out.mkdir(exist_ok=True)\n"
        "if not (out / '00000.parquet').exists():\n"
        "    pq.write_table(table, out / '00000.parquet')\n"
        "(out / '00000_stats.json').write_text('{}')\n"
    )
    program.chmod(0o755)

    def fetch(urls, **settings):
        table = {"url": urls, "text": ["a text"] * len(urls)}
        table["row_id"] = range(len(urls))
        (tmp_path / "clean").mkdir(exist_ok=True)
        pq.write_table(pa.table(table), tmp_path / "clean" / "rows.parquet")
        given = tmp_path / "clean", tmp_path / "got", str(program)
        return download(*given, **settings)

    first, other = ["http://a.b/1", "http://a.b/2"], ["http://a.b/3"]
    with pytest.raises(OSError, match="status 3"):
        fetch(other, image_size=13)
    # Nothing has come, so that other pairs may still come here.
    assert fetch(first)["pairs"] == 2
    assert fetch(first, retries=2)["pairs"] == 2
    listed = tmp_path / "got" / "download_list.parquet"
    before = listed.read_bytes()
    with pytest.raises(ValueError, match="got` holds a download with pairs="):
        fetch(other)
    for name, value in (
        ("pairs_per_shard", 9),
        ("image_size", 9),
        ("output_format", "tfrecord"),
    ):
        with pytest.raises(ValueError, match=f"download with {name}="):
            fetch(first, **{name: value})
    assert listed.read_bytes() == before


def test_the_whole_way_from_the_web(tmp_path, address):
    """Text rules, download, rules of images, pack."""
    from align_keras.data import pack

    program = tmp_path / "img2dataset"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    html = "".join(
        f'<img src="/{name}.jpg" alt="a fine caption of {name}">'
        for name in ("good1", "good22", "missing", "good333")
    )
    with open(tmp_path / "crawl.warc.gz", "wb") as file:
        writer = WARCWriter(file, gzip=True)
        response(writer, f"{address}/page.html", html.encode())
    crawl = [tmp_path / "crawl.warc.gz"]
    with pytest.raises(ValueError, match="`width`.*--config web_text"):
        curate(crawl, tmp_path / "0", "align")
    assert curate(crawl, tmp_path / "1", "web_text")["kept"] == 4
    options = {"output_format": "files", "timeout": 3, "allow_private": True}
    got = download(tmp_path / "1", tmp_path / "got", str(program), **options)
    images = tmp_path / "got" / "images"
    (tmp_path / "test").mkdir()
    shutil.copy(images / "00000" / "000000001.jpg", tmp_path / "test")
    curate(
        [got["table"]],
        tmp_path / "2",
        "web_images",
        image_folder=images,
        test_images=[tmp_path / "test"],
    )
    pairs = pq.read_table(tmp_path / "2" / "kept")
    found = {
        (row["url"], row["text"], row["width"]) for row in pairs.to_pylist()
    }
    assert found == {
        ("00000/000000000.jpg", "a fine caption of good1", 320),
        ("00000/000000003.jpg", "a fine caption of good333", 320),
    }
    pq.write_table(pairs, tmp_path / "pairs.parquet")
    packed = pack(
        images,
        tmp_path / "packed",
        captions=tmp_path / "pairs.parquet",
        image_column="url",
    )
    assert packed["records"] == 2


@pytest.mark.multiprocess
def test_img2dataset_itself(kept, tmp_path):
    program = os.environ.get("IMG2DATASET") or shutil.which("img2dataset")
    if program is None:
        pytest.skip("IMG2DATASET names no program, and the path has none")
    result = download(
        kept,
        tmp_path / "got",
        program,
        image_size=64,
        processes=1,
        threads=4,
        timeout=2,
        retries=0,
        allow_private=True,
    )
    assert result["pairs"] == len(NAMES)
    assert result["downloaded"] >= 3
    assert result["failures"]["HTTP Error 404"] == 1
    assert sum(result["failures"].values()) == result["failed"] >= 3
    images = tmp_path / "got" / "images"
    from align_keras.data import pack

    manifest = pack(images, tmp_path / "packed")
    assert manifest["records"] == result["downloaded"]


@pytest.mark.parametrize("reason", sorted(hostile.ADDRESSES))
def test_addresses_that_are_not_fetched(reason):
    for url in hostile.ADDRESSES[reason]:
        assert (refusal(url) or "public") == reason, url
        allowed = refusal(url, allow_private=True)
        good = ("public", "not a public address")
        assert (allowed is None) == (reason in good), url


def test_refused_addresses_are_counted_and_named(tmp_path, capsys):
    program = tmp_path / "img2dataset"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "import pyarrow.parquet as pq\n"
        "given = dict(w[2:].split('=', 1) for w in sys.argv[1:])\n"
        "urls = pq.read_table(given['url_list'])['url'].to_pylist()\n"
        "print(json.dumps(urls)); sys.exit(3)\n"
    )
    program.chmod(0o755)
    urls = [url for some in hostile.ADDRESSES.values() for url in some]
    (tmp_path / "clean").mkdir()
    pq.write_table(
        pa.table(
            {
                "url": urls,
                "text": ["a text"] * len(urls),
                "row_id": range(len(urls)),
            }
        ),
        tmp_path / "clean" / "rows.parquet",
    )
    output = tmp_path / "out"
    with pytest.raises(OSError, match="status 3"):
        download(tmp_path / "clean", output, str(program))
    fetched = pq.read_table(output / "download_list.parquet")
    assert fetched["url"].to_pylist() == hostile.ADDRESSES["public"]
    refused = json.loads((output / "refused.json").read_text())
    assert refused["reasons"] == {
        reason: len(some)
        for reason, some in hostile.ADDRESSES.items()
        if reason != "public"
    }
    assert refused["rows"] + len(fetched) == len(urls)
    named = {(r["url"], r["reason"]) for r in refused["refused"]}
    assert ("file:///etc/passwd", "not http or https") in named
    pq.write_table(
        pa.table({"url": ["ftp://a.b/c"], "text": ["a"], "row_id": [0]}),
        tmp_path / "clean" / "rows.parquet",
    )
    with pytest.raises(ValueError, match="not http or https"):
        download(tmp_path / "clean", tmp_path / "none", str(program))


# === Vocabulary ===


def test_vocabulary_is_the_same_in_python_and_in_a_saved_model(tmp_path):
    import tensorflow as tf

    from align_keras import AlignTokenizer

    texts = [
        "A red bus, near the café",
        "two dogs running on the beaches",
        "日本 の 猫 on the wall",
        "חתול על גדר",
        "Größere Hunde laufen; 3.5 km!",
    ] * 3
    folder = tmp_path / "clean" / "kept"
    folder.mkdir(parents=True)
    (folder.parent / "dropped").mkdir()
    (folder.parent / "manifest.json").write_text("{}")
    pq.write_table(pa.table({"text": texts[:7]}), folder / "0.parquet")
    pq.write_table(
        pa.table({"text": [*texts[7:], None, " "]}), folder / "1.parquet"
    )
    (tmp_path / "more.txt").write_text("a word\n\nmore words\n", "utf-8")
    inputs = [tmp_path / "clean", tmp_path / "more.txt"]
    result = learn_vocabulary(inputs, tmp_path / "v.txt", size=300)
    assert result["texts"] == len(texts) + 2
    again = learn_vocabulary(inputs[::-1], tmp_path / "w.txt", size=300)
    assert again["tokens"] == result["tokens"]
    first = (tmp_path / "v.txt").read_text("utf-8")
    assert first == (tmp_path / "w.txt").read_text("utf-8")
    vocabulary = first.splitlines()
    assert vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(vocabulary) == len(set(vocabulary)) == result["tokens"]
    assert {"the", "cafe", "日", "##e"} <= set(vocabulary)
    tokenizer = AlignTokenizer(tmp_path / "v.txt")

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, strings):
            return tokenizer(strings).to_tensor(-1)

    module = Module()
    module.tokenizer = tokenizer
    tf.saved_model.save(module, str(tmp_path / "model"))
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    probes = [*texts[:5], "unseen Wörter 猫猫", "x\u0301 — “quoted”", ""]
    served = loaded(tf.constant(probes)).numpy()
    for text, row in zip(probes, served, strict=True):
        expected = [int(i) for i in tokenizer(text)]
        assert [int(i) for i in row if i >= 0] == expected
    # Texts from which it was learned have no unknown word.
    unknown = tokenizer.token_to_id("[UNK]")
    assert unknown not in served[:5]
    with pytest.raises(ValueError, match="no text"):
        pq.write_table(pa.table({"text": [None, ""]}), tmp_path / "n.parquet")
        learn_vocabulary([tmp_path / "n.parquet"], tmp_path / "x.txt")
    with pytest.raises(ValueError, match="no column `title`.*text"):
        learn_vocabulary(inputs[:1], tmp_path / "x.txt", text_column="title")
    assert not Path(tmp_path / "x.txt").exists()


@pytest.mark.parametrize(
    "options, size",
    [([], 100_000), (["--multilingual"], 250_000), (["--size", "40"], 40)],
)
def test_command_learns_a_vocabulary(
    tmp_path, capsys, monkeypatch, options, size
):
    learn, asked = vocabulary_of_texts.learn_word_pieces, []

    def learn_word_pieces(texts, size, strip_accents):
        # The signs of many scripts would go with the accents.
        assert strip_accents == ("--multilingual" not in options)
        asked.append(size)
        return learn(texts, size, strip_accents)

    monkeypatch.setattr(
        vocabulary_of_texts, "learn_word_pieces", learn_word_pieces
    )
    (tmp_path / "in.txt").write_text("a red bus\ntwo dogs\n")
    output = tmp_path / "v.txt"
    command = ["vocab", str(tmp_path / "in.txt"), "--output", str(output)]
    assert main([*command, "--json", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert asked == [size]
    vocabulary = output.read_text("utf-8").splitlines()
    assert said["tokens"] == len(vocabulary) <= size
    assert said["texts"] == 2
