"""Read pairs from WebDataset archives; see `align_keras.data.sources`."""

import bz2
import gzip
import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from align_keras.data.sources import MAX_TEXT_BYTES
from align_keras.data.sources import Contents
from align_keras.data.sources import Pairs
from align_keras.data.tally import Tally
from align_keras.io.columns import COLUMNS
from align_keras.io.columns import find_column
from align_keras.io.file_names import holds_several
from align_keras.io.file_names import is_image
from align_keras.io.file_names import is_junk
from align_keras.io.file_names import sample_key
from align_keras.io.file_names import stem_of
from align_keras.io.file_names import suffix_of
from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.json_files import parse_json
from align_keras.io.text import as_texts
from align_keras.io.text import clean_text
from align_keras.io.text import decode_text
from align_keras.io.text import split_lines

# Bytes that one sample of an archive may hold before its pairs are released.
HELD_BYTES = 64 * 2**20


def from_archive(archive: str | Path, tally: Tally | None = None) -> Pairs:
    """Read the samples of a WebDataset archive as a stream.

    Consecutive files with the same name up to the first dot form a sample: an
    image, and its captions in a `.txt` (one per line) or in a `.json` under
    one of the usual names, such as `caption`. An image and a text with the
    same full name form a separate pair. Images with more than one dot in their
    name are otherwise used only if the sample has no image such as `0.jpg`,
    with only a suffix after the dot. An image without its own text gets those
    texts of the sample that belong to no other file. A file name that occurs
    again begins a new sample. A link to an earlier file is read as that file,
    unless the archive is compressed.

    Args:
        archive: string or `pathlib.Path`. A `.tar`, compressed or not.
        tally: `Tally`.

    Yields:
        `(name, image, captions)`, see `align_keras.data.sources`.

    Raises:
        tarfile.ReadError: The archive is damaged. Everything before the
            damage has been yielded.
    """
    tally = Tally() if tally is None else tally
    sample = _Sample("")
    damage = None
    targets = _LinkTargets(archive)
    try:
        for tar, member in read_members(archive):
            name = posixpath.normpath(member.name)
            if member.isfile() and holds_several(name):
                tally.leave_out(clean_text(name), "archive in an archive")
                continue
            key = sample_key(name)
            if sample.ends_before(key, name):
                yield from sample.pairs(tally)
                sample = _Sample(key)
            yield from sample.release(tally, member.size)
            sample.add(name, _contents(tar, member, sample, name, targets))
    except DAMAGES as error:
        damage = error
    yield from sample.pairs(tally)
    if damage is not None:
        if isinstance(damage, FileNotFoundError):
            raise damage
        raise tarfile.ReadError(f"{damage}") from damage


def read_members(
    archive: str | Path,
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Read an archive as a stream, and detect whether it is truncated.

    Args:
        archive: string or `pathlib.Path`. A `.tar`, compressed or not.

    Yields:
        The archive and one of its files, which must be read before the next.

    Raises:
        One of `DAMAGES`: the archive is damaged or missing.
    """
    header = _header_class()
    with (
        _unpacked(archive) as file,
        tarfile.open(fileobj=file, mode="r|", tarinfo=header) as tar,
    ):
        for member in tar:
            if not (member.isdir() or is_junk(member.name)):
                yield tar, member
            # `tarfile` would keep the headers of all files.
            vars(tar)["members"] = []
        if not header.ended:
            raise tarfile.ReadError("it is cut off, so files may be missing")
        _check_end(tar)


# The errors that reading a damaged archive may raise.
DAMAGES = (
    tarfile.TarError,
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    # From headers with invalid numbers.
    ValueError,
    OverflowError,
)


def _unpacked(archive):
    """Open an archive, compressed or not.

    Where a file was compressed in parts, as pbzip2, bgzip and pixz do and as
    concatenated archives are, `tarfile` would stop after the first part.
    """
    with open(archive, "rb") as file:
        head = file.read(6)
    for mark, opened in _COMPRESSIONS.items():
        if head.startswith(mark):
            return opened(archive)
    return open(archive, "rb")


def _check_end(tar):
    """Refuse data after the end, such as another archive added with `cat`."""
    while rest := tar.fileobj.read(tarfile.RECORDSIZE):
        if any(rest):
            raise tarfile.ReadError(
                "data that is not read follows its end, perhaps another "
                "archive that was appended to it; unpack it with "
                "`tar --ignore-zeros`"
            )


class _LinkTargets:
    """Positions of the files that later members of an archive may link to.

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
            # If compressed, each link would cost a pass through the archive.
            self.seekable = False

    def add(self, name, member):
        if self.seekable:
            self.places[name] = member.offset_data, member.size

    def size(self, name, member):
        """Return the size of a link's target; `None` if unknown."""
        target = member.linkname
        if member.issym():
            target = posixpath.join(posixpath.dirname(name), target)
        place = self.places.get(posixpath.normpath(target))
        if place is None:
            return None
        self.places[name] = place
        return place[1]

    def read(self, name):
        """Read the target of a link; call `size` first."""
        place, size = self.places[name]
        with open(self.archive, "rb") as file:
            file.seek(place)
            return file.read(size)


def _header_class():
    """Make a header class that detects the zeros at the end of an archive.

    `tarfile` does not report an archive that is cut off between files or
    within the compressed data.
    """

    class Header(tarfile.TarInfo):
        ended = False

        @classmethod
        def frombuf(cls, buf, *arguments):
            cls.ended = len(buf) == tarfile.BLOCKSIZE and not any(buf)
            header = super().frombuf(buf, *arguments)
            # With a negative size, `tarfile` would go back and never finish.
            # It also reads long names and the like into memory without limit.
            named = header.type in _LONG_HEADERS
            if header.size < 0 or (named and header.size > MAX_HEADER_BYTES):
                raise tarfile.ReadError(f"a header of {header.size} bytes")
            return header

    return Header


def _contents(tar, member, sample, name, targets):
    """Return the bytes of a file in an archive, or why it is not read."""
    suffix = suffix_of(member.name)
    # Only the names of other files matter.
    if not (is_image(member.name) or suffix in _TEXT_SUFFIXES):
        # Later links may point to it, or through it.
        if member.isfile():
            targets.add(name, member)
        elif member.issym() or member.islnk():
            targets.size(name, member)
        return _NOT_READ
    if not (member.isfile() or member.issym() or member.islnk()):
        kind = _KINDS.get(member.type, f"of the type {member.type!r}")
        return _Unread("not a regular file", kind)
    size = member.size if member.isfile() else targets.size(name, member)
    if size is None:
        return _Unread("link in an archive", clean_text(member.linkname))
    most = MAX_TEXT_BYTES if suffix in _TEXT_SUFFIXES else MAX_FILE_BYTES
    if size > min(most, MAX_FILE_BYTES - sample.size):
        return _Unread("file too large", f"{size} bytes")
    sample.size += size
    if not member.isfile():
        return targets.read(name)
    targets.add(name, member)
    return tar.extractfile(member).read()


class _Unread(NamedTuple):
    """The reason why a file was not read, in place of its bytes."""

    reason: str
    detail: str


_NOT_READ = _Unread("not an image", "")
_KINDS = {
    tarfile.FIFOTYPE: "a pipe",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
}
# Headers that hold the name or other metadata of the next file.
_LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
MAX_HEADER_BYTES = 2**20
_TEXT_SUFFIXES = (".txt", ".json")
# First bytes of compressed files. The last is LZMA, the predecessor of xz.
_COMPRESSIONS: dict[bytes, Callable] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x5d\0\0": lzma.open,
}


class _Sample:
    """The files of an archive that belong together.

    Attributes:
        key: string. Their name up to the first dot.
        files: dict from their names to bytes, or to `_Unread`.
        names: set of strings. All files, including those released already.
        size: int. The number of bytes held.
    """

    def __init__(self, key):
        self.key = key
        self.files = {}
        self.names = set()
        self.size = 0
        self._release_at = HELD_BYTES
        self._released = set()

    def add(self, name, contents):
        self.files[name] = contents
        self.names.add(name)

    def ends_before(self, key, name):
        """Whether a file is the first of the next sample."""
        return not self.names or key != self.key or name in self.names

    def release(self, tally, more):
        """Yield complete pairs early if the next file makes the sample large.

        If names contain further dots, such as `v1.2_0001.jpg`, the whole
        archive may be one sample.
        """
        if self.size + more <= self._release_at:
            return
        texts, _ = self._texts()
        paired = {stem_of(n) for n in self.files if is_image(n)} & texts.keys()
        paired.discard(self.key)
        for name in [n for n in self.files if stem_of(n) in paired]:
            contents = self.files.pop(name)
            self.size -= len(contents) if isinstance(contents, bytes) else 0
            if is_image(name):
                yield from _pair(name, contents, texts[stem_of(name)], tally)
        self._released |= paired
        # If little could be released, do not try again too soon.
        self._release_at = max(HELD_BYTES, 2 * self.size)

    def pairs(self, tally):
        """Yield the images that can be used; count the others."""
        texts, unread = self._texts()
        images = [name for name in self.files if is_image(name)]
        is_plain = {name: stem_of(name) == self.key for name in images}
        owners = {
            stem_of(name)
            for name in self.files
            if suffix_of(name) not in _TEXT_SUFFIXES
        } | self._released
        free = texts.keys() - owners
        # If other images have their own texts, one without has lost its text.
        dotted = self._released or any(
            stem_of(name) in texts for name in images if not is_plain[name]
        )
        used = {stem_of(name) for name in images} | self._released
        for name in images:
            if stem_of(name) in texts:
                stems = [stem_of(name)]
            elif stem_of(name) in self._released:
                stems = []
            elif any(is_plain.values()) and not is_plain[name]:
                # A mask such as `0.seg.png` next to `0.jpg` is not another
                # image.
                continue
            elif self.key in free:
                stems = [self.key]
            elif dotted and not is_plain[name]:
                stems = []
            else:
                stems = [stem for stem in texts if stem in free]
            used.update(stems)
            captions = [text for stem in stems for text in texts[stem]]
            contents = self.files[name]
            lost = [unread[stem] for stem in stems if stem in unread]
            if lost and not captions and isinstance(contents, bytes):
                tally.leave_out(
                    clean_text(name), "unreadable captions", lost[0]
                )
                continue
            yield from _pair(name, contents, captions, tally)
        lost = [stem for stem in texts if stem not in used]
        if any(is_plain.values()):
            # Other texts of the sample do not belong to a missing image.
            lost = [stem for stem in lost if stem in owners]
        elif self.files and not (images or owners & {*lost, *self._released}):
            lost = [self.key]
        held = ", ".join(posixpath.basename(name) for name in self.files)
        for stem in lost:
            tally.leave_out(
                clean_text(stem), "no image", clean_text(held)[:200]
            )

    def _texts(self):
        """Return captions and unreadable files, by names without suffix.

        The first dict holds the captions of text files, the second one why
        files could not be read.
        """
        stems, texts, unread = {}, {}, {}
        for name in self.files:
            if suffix_of(name) in _TEXT_SUFFIXES:
                stems.setdefault(stem_of(name), []).append(name)
        for stem, names in stems.items():
            # Hold the decoded texts of only one stem at a time.
            read = {name: _read_text(name, self.files[name]) for name in names}
            for name, found in read.items():
                if isinstance(found, _Unread):
                    told = ": ".join(found)
                    unread[stem] = f"`{clean_text(name)}`: {told}"
            captions = _captions_of(read)
            if captions is not None:
                texts[stem] = captions
        return texts, unread


def _pair(name, contents, captions, tally):
    """Yield an image of an archive, or count why it cannot be used."""
    name = clean_text(name)
    if isinstance(contents, _Unread):
        tally.leave_out(name, *contents)
    else:
        tally.seen += 1
        yield name, Contents(contents), captions


def _read_text(name, contents):
    """Return the text of a `.txt`, the captions of a `.json`, or `_Unread`."""
    if isinstance(contents, _Unread):
        return contents
    text = decode_text(contents)
    if suffix_of(name) == ".txt":
        return text
    try:
        fields = parse_json(text)
    except ValueError as error:
        return _Unread("not valid JSON", f"{error}")
    fields = fields if isinstance(fields, dict) else {}
    column = find_column(fields, COLUMNS["caption"])
    # A file without captions describes something else, perhaps a mask.
    return None if column is None else as_texts(fields[column])


def _captions_of(read):
    """Merge the captions of a `.txt` and a `.json`; `None` without any."""
    # `0.txt` and `0.TXT` are two files.
    texts = [text for text in read.values() if isinstance(text, str)]
    found = [listed for listed in read.values() if isinstance(listed, list)]
    listed = [text for texts in found for text in texts]
    lines = as_texts([line for text in texts for line in split_lines(text)])
    # img2dataset writes the same caption into both, including line breaks.
    same = len(listed) == len(texts) and all(
        one.split() == other.split()
        for one, other in zip(listed, texts, strict=True)
    )
    if all(text is None for text in read.values()):
        return None
    return listed if same or not lines else lines
