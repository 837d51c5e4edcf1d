"""Extract pairs of image address and alt-text from Common Crawl's archives.

A WARC file holds the pages themselves, and a WAT file the metadata that Common
Crawl extracted from them. Both yield the columns `url` (absolute), `text` and
`page`.
"""

import json
from collections.abc import Generator
from urllib.parse import urljoin
from urllib.parse import urlsplit

from align_keras.io.batches import columns_of
from align_keras.io.batches import open_stream
from align_keras.io.batches import table_suffix
from align_keras.io.optional import OptionalModule

etree = OptionalModule("lxml.etree", extra="curation")
warc = OptionalModule("warcio.archiveiterator", extra="curation")
warc_errors = OptionalModule("warcio.exceptions", extra="curation")
warc_headers = OptionalModule("warcio.statusandheaders", extra="curation")

# Longer pages are truncated; they are hardly written by hand.
MAX_PAGE_BYTES = 8 * 2**20
# Longer records of one page are counted as unreadable.
MAX_WAT_BYTES = 8 * 2**20
# Limit for the header of a record, and for the HTTP headers in it.
MAX_HEADER_BYTES = 256 * 2**10
# Servers refuse longer addresses. Without a limit, a base address of megabytes
# would be repeated for each image of the page.
MAX_ADDRESS = 8192
BATCH_PAIRS = 65_536
# Characters of pairs in one batch, and at most from one page.
BATCH_CHARACTERS = 32 * 2**20


def read_archive(
    path: str, wanted: set | dict | None = None
) -> Generator[tuple[dict, int], None, None]:
    """Read the pairs of a WARC or WAT file.

    A record that cannot be read is counted. A truncated archive is damaged,
    but one that ends exactly between two records looks complete.

    Args:
        path: string. A local path or an address, compressed or not.
        wanted: set of column names. Defaults to all.

    Yields:
        `(columns, bad_records)`, see `align_keras.io.batches`.

    Raises:
        OSError, ValueError: The archive is damaged.
    """
    is_wat = table_suffix(path) == ".wat"
    pairs, size, bad = [], 0, 0
    # warcio accepts a truncated stream as complete, so Arrow decompresses. It
    # stops at missing HTTP headers, so these are parsed later.
    with open_stream(path) as stream:
        records = warc.ArchiveIterator(stream, no_record_parse=True)
        for record in _whole(records):
            try:
                found = (_wat_pairs if is_wat else _warc_pairs)(record)
            except (
                ValueError,
                TypeError,
                AttributeError,
                KeyError,
                RecursionError,
            ):
                bad += 1
                continue
            pairs += found
            size += sum(map(_size, found))
            if len(pairs) >= BATCH_PAIRS or size >= BATCH_CHARACTERS:
                yield _columns(pairs, wanted), bad
                pairs, size, bad = [], 0, 0
    yield _columns(pairs, wanted), bad


def _whole(records):
    """Yield records, and raise after one that is shorter than declared."""
    record = None
    try:
        headers = _Headers(records.reader)
        records.reader = headers
        for record in records:
            headers.size = 0
            yield record
            stream = record.raw_stream
            while stream.read(2**20):
                pass
            # A truncated header has no length at all, or an empty one.
            length = record.rec_headers.get_header("Content-Length")
            if getattr(stream, "limit", 1) or length == "":
                raise ValueError("damaged archive: a record is cut off")
    except warc_errors.ArchiveLoadFailed as error:
        raise ValueError(f"damaged archive: {error}") from error
    if record is None:
        raise ValueError("damaged archive: it holds no record")


class _Headers:
    """A stream that limits the size of the headers read from it."""

    def __init__(self, stream):
        self.stream = stream
        self.size = 0

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def readline(self, length=None):
        if length is not None:
            # Within a record, the caller limits the size.
            return self.stream.readline(length)
        line = b""
        while not line.endswith(b"\n"):
            # For larger sizes, warcio may stop before the end of the line.
            part = self.stream.readline(8192)
            if not part:
                break
            line += part
            self.size += len(part)
            if self.size > MAX_HEADER_BYTES:
                raise ValueError("damaged archive: a header has no end")
        return line


def _columns(pairs, wanted):
    rows = [dict(zip(("url", "text", "page"), p, strict=True)) for p in pairs]
    if not rows:
        rows = [{}]
        columns = columns_of([dict.fromkeys(("url", "text", "page"))])
        columns = {name: column[:0] for name, column in columns.items()}
    else:
        columns = columns_of(rows)
    return {n: c for n, c in columns.items() if wanted is None or n in wanted}


# === WARC ===


def _warc_pairs(record):
    page = record.rec_headers.get_header("WARC-Target-URI") or ""
    if record.rec_type != "response" or not page.startswith("http"):
        return []
    parser = warc_headers.StatusAndHeadersParser(("HTTP/",), verify=False)
    try:
        record.http_headers = parser.parse(_Headers(record.raw_stream))
    except EOFError:
        return []
    encoding = record.http_headers.get_header("Content-Encoding") or ""
    if encoding.lower() == "br":
        # A few bytes may expand to gigabytes, and warcio's reader sets no
        # limit.
        raise ValueError("brotli is not read")
    if record.http_headers.get_statuscode() != "200":
        return []
    kind = record.http_headers.get_header("Content-Type") or ""
    if "html" not in kind.lower():
        return []
    contents = record.content_stream().read(MAX_PAGE_BYTES)
    return page_pairs(contents, page, _charset(kind))


def _charset(content_type):
    _, _, charset = content_type.lower().partition("charset=")
    return charset.split(";")[0].strip(" \"'") or None


def page_pairs(
    contents: bytes, page: str, charset: str | None = None
) -> list[tuple[str, str, str]]:
    """Find the images of a page that have an alt-text.

    Args:
        contents: bytes. The HTML.
        page: string. The address of the page.
        charset: string. The encoding that the server declares. Defaults to
            the one that the page declares, or else UTF-8.

    Returns:
        list of tuples `(url, text, page)`, in the order of the page. Addresses
        are absolute; images embedded in the page (`data:`) are left out.
    """
    found = None
    # lxml reads the page's own declaration, but falls back to Latin-1.
    own = None if b"charset" in contents[:2048].lower() else "utf-8"
    for encoding in [charset, own] if charset else [own]:
        try:
            parser = etree.HTMLParser(
                encoding=encoding, huge_tree=True, target=_Images()
            )
            found = etree.fromstring(contents, parser)
            break
        except (LookupError, etree.ParserError, etree.XMLSyntaxError):
            # The encoding is unknown, or the page is empty.
            continue
    if found is None:
        return []
    base = urljoin(page, found.base.strip()) if found.base else page
    return _pairs(found.images, base, page)


def _pairs(images, base, page):
    """Return the pairs of a page, given its images' addresses and texts."""
    if max(len(base or ""), len(page or "")) > MAX_ADDRESS:
        raise ValueError("the page's address is too long")
    pairs, size = [], 0
    for source, alt in images:
        pair = _pair(source, alt, base, page)
        if pair is not None:
            pairs.append(pair)
            size += _size(pair)
            if size > BATCH_CHARACTERS:
                raise ValueError("the page has too many images")
    return pairs


class _Images:
    """A parser target that collects the images of a page.

    A tree would cost more time, and for each element the square of its number
    of attributes.
    """

    def __init__(self):
        self.base = None
        self.images = []

    def start(self, tag, attributes):
        if tag == "img":
            self.images.append((attributes.get("src"), attributes.get("alt")))
        elif tag == "base" and self.base is None:
            self.base = attributes.get("href")

    def close(self):
        return self


def _size(pair):
    return sum(len(part or "") for part in pair)


def _pair(source, alt, base, page):
    """Return an absolute address with its text and page, or `None`."""
    if not source or not alt or not alt.strip():
        return None
    if len(source) > MAX_ADDRESS:
        return None
    try:
        url = urljoin(base, source.strip())
        parts = urlsplit(url)
    except ValueError:
        # No browser could open this address either.
        return None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return None
    return url, alt.strip(), page


# === WAT ===


def _wat_pairs(record):
    if record.rec_type != "metadata":
        return []
    contents = record.content_stream().read(MAX_WAT_BYTES + 1)
    if len(contents) > MAX_WAT_BYTES:
        raise ValueError("the record is too long")
    envelope = json.loads(contents)["Envelope"]
    page = envelope["WARC-Header-Metadata"].get("WARC-Target-URI")
    payload = envelope.get("Payload-Metadata", {})
    response = payload.get("HTTP-Response-Metadata", {})
    found = response.get("HTML-Metadata", {})
    base = page
    if found.get("Head", {}).get("Base"):
        base = urljoin(page, found["Head"]["Base"])
    images = (
        (link.get("url"), link.get("alt"))
        for link in found.get("Links", ())
        if link.get("path") == "IMG@/src"
    )
    return _pairs(images, base, page)
