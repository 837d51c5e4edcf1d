"""Where raw image–text pairs come from: caption files, folders, archives.

Every source yields `(name, image, captions)` one by one: the image's path
inside the source, a function that reads its bytes, and its captions. A `Tally`
counts each image of the source, those too that cannot be used.
"""

import functools
import json
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align_keras.data.captions import iterate_captions
from align_keras.data.records import decode_record
from align_keras.data.records import read_shard
from align_keras.data.tally import Tally
from align_keras.io.columns import COLUMNS
from align_keras.io.columns import find_column
from align_keras.io.file_names import is_image
from align_keras.io.file_names import is_junk
from align_keras.io.file_names import list_images
from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.folders import OutsideFolder
from align_keras.io.folders import read_within
from align_keras.io.text import as_texts
from align_keras.io.text import clean_text
from align_keras.io.text import decode_text
from align_keras.io.text import split_lines

# Why a file is left out that is not where it should be.
OUTSIDE = "outside the folder"
# Captions of one image.
MAX_TEXT_BYTES = 8 * 2**20

Pairs = Iterator[tuple[str, Callable[[], bytes], list[str]]]


def from_caption_file(
    folder: str | Path,
    captions: dict[str, list[str]],
    allow_outside: bool = False,
) -> Pairs:
    """Images of a folder, as a caption file lists them.

    Args:
        folder: string or `pathlib.Path` to which the names are relative.
        captions: dict as `read_captions` gives it, which has counted them.
        allow_outside: bool. Whether to read what names and links call outside
            the folder. Defaults to `False`.

    Yields:
        `(name, image, captions)`, see the module.
    """
    for name, texts in captions.items():
        yield clean_text(name), _reader(folder, name, allow_outside), texts


def from_table(
    path: str | Path,
    tally: Tally | None = None,
    folder: str | Path | None = None,
    allow_outside: bool = False,
    **columns: Any,
) -> Pairs:
    """Images that lie in a table, or beside it, with their captions.

    Args:
        path: string or `pathlib.Path`. A Parquet file, such as Hugging Face's
            `datasets` writes.
        tally: `Tally`.
        folder: string or `pathlib.Path`. What paths in the table are relative
            to. Defaults to the folder of the table.
        allow_outside: bool. See `from_caption_file`.
        **columns: `image_column`, `caption_column` and `split`, see
            `read_captions`.

    Yields:
        `(name, image, captions)`, see the module.
    """
    path, tally = Path(path), Tally() if tally is None else tally
    for row in iterate_captions(path, tally=tally, **columns):
        tally.seen += 1
        read = _reader(folder or path.parent, row.name, allow_outside)
        if row.contents is not None:
            read = _Contents(row.contents)
        yield clean_text(row.name), read, row.captions


def from_folder(
    folder: str | Path,
    tally: Tally | None = None,
    names: Iterable[str] | None = None,
    order: Callable[[str], Any] | None = None,
    allow_outside: bool = False,
) -> Pairs:
    """Images of a folder with a `.txt` file of captions beside each.

    The text file has the image's name; each line is a caption.

    Args:
        folder: string or `pathlib.Path`.
        tally: `Tally`.
        names: list of strings. The images to take. Defaults to all; then
            text files without an image are counted, too.
        order: callable. Takes a name and returns what to sort it by. Defaults
            to `None`, the order of the paths.
        allow_outside: bool. See `from_caption_file`.

    Yields:
        `(name, image, captions)`, see the module.
    """
    folder, tally = Path(folder), Tally() if tally is None else tally
    found = list_images(folder) if names is None else names
    for name in found if order is None else sorted(found, key=order):
        try:
            texts = _texts_beside(folder, name, allow_outside)
        except OSError as error:
            outside = isinstance(error, OutsideFolder)
            reason = OUTSIDE if outside else "unreadable captions"
            tally.leave_out(clean_text(name), reason, str(error))
            continue
        tally.seen += 1
        yield clean_text(name), _reader(folder, name, allow_outside), texts
    if names is None:
        stems = {posixpath.splitext(name)[0] for name in found}
        for path in sorted(folder.rglob("*.txt")):
            name = path.relative_to(folder).as_posix()
            if posixpath.splitext(name)[0] not in stems and not is_junk(name):
                tally.leave_out(clean_text(name), "no image of that name")


def _texts_beside(folder, name, allow_outside):
    texts = Path(name).with_suffix(".txt")
    if not (folder / texts).is_file():
        return []
    contents = _read(folder, texts, allow_outside, MAX_TEXT_BYTES)
    return as_texts(split_lines(decode_text(contents)))


def _reader(folder, name, allow_outside):
    return functools.partial(_read, folder, name, allow_outside)


def _read(*arguments):
    try:
        return read_within(*arguments)
    except OutsideFolder as error:
        raise OutsideFolder(f"{error} Or give `--allow-outside`.") from None


class _Contents:
    """Bytes that are at hand, to be read like those of a file."""

    def __init__(self, contents):
        self.contents = contents

    def __call__(self):
        return self.contents


# === Records and archives ===


def from_records(shard: str | Path, tally: Tally | None = None) -> Pairs:
    """Pairs of one TFRecord file, of img2dataset or of `pack`.

    Args:
        shard: string or `pathlib.Path`.
        tally: `Tally`.

    Yields:
        `(name, image, captions)`, see the module.

    Raises:
        ValueError: The file is damaged; what came before the damage has been
            yielded.
    """
    tally = Tally() if tally is None else tally
    for number, record in enumerate(read_shard(shard)):
        tally.seen += 1
        try:
            example = decode_record(record, require_captions=False)
        except ValueError as error:
            tally.skip(
                f"{Path(shard).name}[{number}]", "broken record", str(error)
            )
            continue
        name = example["key"] or f"{Path(shard).stem}[{number}]"
        # The suffix is cut off again, and not a part of the key.
        yield f"{name}.jpg", _Contents(example["image"]), example["captions"]


def from_archive(archive: str | Path, tally: Tally | None = None) -> Pairs:
    """Samples of one WebDataset archive, read as a stream.

    Neighbouring files with one name up to the first dot are one sample: an
    image, and its captions in a `.txt` (one per line) or in a `.json` under
    one of the usual names, such as `caption`. Where a sample has no image with
    nothing but its suffix behind that dot, as `0.jpg` has, those with more
    dots are taken, each with the text of its own full name, or else that of
    the sample. A file that comes again begins another sample of that name. A
    link to an earlier file stands for that file, unless the archive is
    compressed.

    Args:
        archive: string or `pathlib.Path`. A `.tar`, compressed or not.
        tally: `Tally`.

    Yields:
        `(name, image, captions)`, see the module.

    Raises:
        tarfile.ReadError: The archive is damaged; what came before the damage
            has been yielded.
    """
    tally = Tally() if tally is None else tally
    sample = _Sample("")
    damage = None
    header = _header_class()
    targets = _LinkTargets(archive)
    try:
        with tarfile.open(archive, "r|*", tarinfo=header) as tar:
            for member in tar:
                if member.isdir() or is_junk(member.name):
                    continue
                name = posixpath.normpath(member.name)
                folder, base = posixpath.split(name)
                key = posixpath.join(folder, base.partition(".")[0])
                if sample.ends_before(key, name):
                    yield from sample.pairs(tally)
                    sample = _Sample(key)
                sample.files[name] = _contents(
                    tar, member, sample, name, targets
                )
                # It would keep the headers of all files.
                vars(tar)["members"] = []
        if not header.ended:
            raise tarfile.ReadError("it is cut off, so that files may be lost")
    except (
        tarfile.TarError,
        OSError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        # Of headers whose numbers are none.
        ValueError,
        OverflowError,
    ) as error:
        damage = error
    yield from sample.pairs(tally)
    if damage is not None:
        if isinstance(damage, FileNotFoundError):
            raise damage
        raise tarfile.ReadError(f"{damage}") from damage


class _LinkTargets:
    """Where files lie that later members of an archive may link to.

    Args:
        archive: string or `pathlib.Path`.
    """

    def __init__(self, archive):
        self.archive = archive
        self.places = {}
        try:
            tarfile.open(archive, "r:").close()
            self.seekable = True
        except (tarfile.TarError, OSError):
            # Compressed: each link would cost a pass through the archive.
            self.seekable = False

    def add(self, name, member):
        if self.seekable:
            self.places[name] = member.offset_data, member.size

    def size(self, name, member):
        """The bytes of what a link leads to; `None` where it is not known."""
        target = member.linkname
        if member.issym():
            target = posixpath.join(posixpath.dirname(name), target)
        place = self.places.get(posixpath.normpath(target))
        if place is None:
            return None
        self.places[name] = place
        return place[1]

    def read(self, name):
        """Read what a link leads to, whose size was asked for before."""
        place, size = self.places[name]
        with open(self.archive, "rb") as file:
            file.seek(place)
            return file.read(size)


def _header_class():
    """A class of headers that notices the zeros at the end of an archive.

    `tarfile` takes an archive that is cut off between files, or in what is
    compressed, for a whole one.
    """

    class Header(tarfile.TarInfo):
        ended = False

        @classmethod
        def frombuf(cls, buf, *arguments):
            cls.ended = len(buf) == tarfile.BLOCKSIZE and not any(buf)
            header = super().frombuf(buf, *arguments)
            # `tarfile` would go back by as much, and never come to an end; and
            # it reads names and the like, however long, into memory.
            named = header.type in _LONG_HEADERS
            if header.size < 0 or (named and header.size > MAX_HEADER_BYTES):
                raise tarfile.ReadError(f"a header of {header.size} bytes")
            return header

    return Header


def _contents(tar, member, sample, name, targets):
    """The bytes of a file in an archive; `None` and `_TooLarge`, see there."""
    suffix = _suffix(member.name)
    # Of what is not an image or text the name alone counts.
    if not (is_image(member.name) or suffix in _TEXT_SUFFIXES):
        return None
    size = member.size if member.isfile() else targets.size(name, member)
    if size is None:
        return None
    most = MAX_TEXT_BYTES if suffix in _TEXT_SUFFIXES else MAX_FILE_BYTES
    if size > min(most, MAX_FILE_BYTES - sample.size):
        return _TooLarge(size)
    sample.size += size
    if not member.isfile():
        return targets.read(name)
    targets.add(name, member)
    file = tar.extractfile(member)
    return None if file is None else file.read()


class _TooLarge(int):
    """In the place of what is not read, as it has so many bytes."""


# Headers whose contents are a name, or other facts of the file that follows.
_LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
MAX_HEADER_BYTES = 2**20
_TEXT_SUFFIXES = (".txt", ".json")


def _suffix(name):
    return posixpath.splitext(name)[1].lower()


class _Sample:
    """The files of an archive that belong together.

    Attributes:
        key: string. Their name up to the first dot.
        files: dict from their names to bytes; `None` for links that lead
            nowhere, and for what is not an image or a text; `_TooLarge` for
            what is not read.
        size: int. The bytes that are held.
    """

    def __init__(self, key):
        self.key = key
        self.files = {}
        self.size = 0

    def ends_before(self, key, name):
        """Whether a file is the first of the next sample."""
        if not self.files:
            return True
        if key != self.key or name in self.files:
            return True
        # Names with dots of their own, such as `v1.2_0001.jpg`, are one
        # sample up to their first dot, which would become as large as the
        # archive. An image with a text of its own is whole.
        last = posixpath.splitext(next(reversed(self.files)))[0]
        own = [n for n in self.files if posixpath.splitext(n)[0] == last]
        whole = any(map(is_image, own)) and any(
            _suffix(n) in _TEXT_SUFFIXES for n in own
        )
        return (
            whole and last != self.key and posixpath.splitext(name)[0] != last
        )

    def pairs(self, tally):
        """Yield the images that can be used; count the others."""
        images = [name for name in self.files if is_image(name)]
        plain = [n for n in images if posixpath.splitext(n)[0] == self.key]
        if not images:
            if self.files:
                held = ", ".join(posixpath.basename(n) for n in self.files)
                tally.leave_out(
                    clean_text(self.key), "no image", clean_text(held)[:200]
                )
            return
        # A mask such as `0.seg.png` beside `0.jpg` is not another image.
        for name in plain or images:
            contents = self.files[name]
            if contents is None:
                tally.leave_out(clean_text(name), "link in an archive")
                continue
            if isinstance(contents, _TooLarge):
                reason = f"{contents} bytes"
                tally.leave_out(clean_text(name), "file too large", reason)
                continue
            tally.seen += 1
            yield clean_text(name), _Contents(contents), self._captions(name)

    def _captions(self, image):
        stems = {}
        for name in self.files:
            stem, suffix = posixpath.splitext(name)
            if suffix.lower() in _TEXT_SUFFIXES:
                stems.setdefault(stem, {})[suffix.lower()] = self.files[name]
        captions = {stem: _captions_of(of) for stem, of in stems.items()}
        own = captions.get(posixpath.splitext(image)[0])
        everything = [text for texts in captions.values() for text in texts]
        return own or captions.get(self.key) or everything


def _captions_of(files):
    """The captions of a `.txt` and a `.json` of one name."""
    files = {s: c for s, c in files.items() if isinstance(c, bytes)}
    text = decode_text(files.get(".txt", b""))
    lines = as_texts(split_lines(text))
    listed = _listed_captions(files.get(".json"))
    # img2dataset writes the same caption into both, line ends within it too.
    same = len(listed) == 1 and listed[0].split() == text.split()
    return listed if same or not lines else lines


def _listed_captions(contents):
    """The captions of a sample's JSON; anything else has none."""
    try:
        fields = json.loads(decode_text(contents or b""))
    except (ValueError, RecursionError):
        return []
    if not isinstance(fields, dict):
        return []
    return as_texts(fields.get(find_column(fields, COLUMNS["caption"])))
