"""Where raw image–text pairs come from: caption files, folders, archives.

Every source yields `(name, image, captions)` one by one: the image's path
inside the source, a function that reads its bytes, and its captions. A `Tally`
counts each image of the source, those too that cannot be used.
"""

import bz2
import functools
import gzip
import json
import lzma
import os
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
from align_keras.io.file_names import holds_several
from align_keras.io.file_names import is_image
from align_keras.io.file_names import is_junk
from align_keras.io.file_names import list_images
from align_keras.io.file_names import records_stem
from align_keras.io.file_names import sample_key
from align_keras.io.file_names import walk_folder
from align_keras.io.folders import MAX_FILE_BYTES
from align_keras.io.folders import OutsideFolder
from align_keras.io.folders import read_within
from align_keras.io.folders import resolve_within
from align_keras.io.text import as_texts
from align_keras.io.text import clean_text
from align_keras.io.text import decode_text
from align_keras.io.text import split_lines

# Why a file is left out that is not where it should be.
OUTSIDE = "outside the folder"
# Captions of one image.
MAX_TEXT_BYTES = 8 * 2**20
# What one sample of an archive may hold before its pairs are released.
HELD_BYTES = 64 * 2**20

Pairs = Iterator[tuple[str, Callable[[], bytes], list[str]]]


def from_caption_file(
    folder: str | Path,
    captions: dict[str, list[str]],
    allow_outside: bool = False,
    tally: Tally | None = None,
) -> Pairs:
    """Images of a folder, as a caption file lists them.

    Args:
        folder: string or `pathlib.Path` to which the names are relative.
        captions: dict as `read_captions` gives it, which has counted them.
        allow_outside: bool. Whether to read what names and links call outside
            the folder. Defaults to `False`.
        tally: `Tally`.

    Yields:
        `(name, image, captions)`, see the module.
    """
    tally = Tally() if tally is None else tally
    for name, texts in captions.items():
        tally.looked_at.add(name)
        yield clean_text(name), _reader(folder, name, allow_outside), texts


def from_table(
    path: str | Path,
    tally: Tally | None = None,
    folder: str | Path | None = None,
    allow_outside: bool = False,
    **columns: Any,
) -> Pairs:
    """Images that lie in a table, or beside it, with their captions.

    Neighbouring rows of one image, each with a caption, are one pair.

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
    for row in _joined(iterate_captions(path, tally=tally, **columns)):
        tally.seen += 1
        read = _reader(folder or path.parent, row.name, allow_outside)
        if row.contents is not None:
            read = _Contents(row.contents)
        else:
            tally.looked_at.add(row.name)
        yield clean_text(row.name), read, row.captions


def _joined(rows):
    """Rows, of which neighbours that hold the same image are one."""
    last = damage = None
    try:
        for row in rows:
            if row.shows(last):
                last.captions.extend(row.captions)
                continue
            if last is not None:
                yield last
            last = row
    except (OSError, ValueError) as error:
        # What comes before the damage is whole.
        damage = error
    if last is not None:
        yield last
    if damage is not None:
        raise damage


def from_folder(
    folder: str | Path,
    tally: Tally | None = None,
    names: Iterable[str] | None = None,
    order: Callable[[str], Any] | None = None,
    allow_outside: bool = False,
    holds: Callable[[str], bool] = lambda name: True,
    counts_others: bool = True,
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
        holds: callable. Takes a name and tells whether to take the image.
            Defaults to all.
        counts_others: bool. Whether text files without an image are counted
            where `names` are not given. Defaults to `True`.

    Yields:
        `(name, image, captions)`, see the module.
    """
    folder, tally = Path(folder), Tally() if tally is None else tally
    found = list_images(folder, allow_outside) if names is None else names
    listed: dict[str, dict[str, list[str]]] = {}
    # Those that are not held belong to other parts, which look at them.
    tally.looked_at.update(found)
    taken = list(filter(holds, found))
    for name in taken if order is None else sorted(taken, key=order):
        try:
            texts = _texts_beside(folder, name, allow_outside, listed)
        except OSError as error:
            reason, detail = _why_unread(folder, name, error)
            tally.leave_out(clean_text(name), reason, detail)
            continue
        tally.seen += 1
        yield clean_text(name), _reader(folder, name, allow_outside), texts
    if names is None and counts_others:
        stems = set(map(_stem, found))
        for name in walk_folder(folder, allow_outside)[0]:
            if _suffix(name) == ".txt" and _stem(name) not in stems:
                tally.leave_out(clean_text(name), "no image of that name")


def why_closed(
    folder: str | Path, name: str, allow_outside: bool = False
) -> tuple[str, str]:
    """Tell why a folder is not looked into, or a link leads nowhere.

    Args:
        folder: string or `pathlib.Path`.
        name: string, as `walk_folder` gives it.
        allow_outside: bool. See `from_caption_file`.

    Returns:
        Reason and detail.
    """
    try:
        _look_into(folder, name, allow_outside)
    except OSError as error:
        return _why_unread(Path(folder), name, error)
    # It can be read by now.
    return "unreadable folder", name


def _why_unread(folder, name, error):
    reason = "unreadable captions"
    if isinstance(error, OutsideFolder):
        reason = OUTSIDE
    elif (folder / name).is_dir():
        reason = "unreadable folder"
    elif not (folder / name).exists():
        reason = "missing file"
    return reason, str(error)


def _look_into(folder, name, allow_outside):
    # What is listed because it is not looked into; this says why.
    path = Path(folder, name)
    if path.is_dir():
        os.listdir(resolve_within(folder, name, allow_outside))
    elif not path.exists():
        os.stat(resolve_within(folder, name, allow_outside))


def _texts_beside(folder, name, allow_outside, listed):
    _look_into(folder, name, allow_outside)
    place, base = posixpath.split(name)
    if place not in listed:
        listed[place] = _texts_in(folder / place)
    lines = []
    for text in listed[place].get(_stem(base), ()):
        text = posixpath.join(place, text)
        contents = read_within(folder, text, allow_outside, MAX_TEXT_BYTES)
        lines += split_lines(decode_text(contents))
    return as_texts(lines)


def _texts_in(folder):
    """Names of the text files of a folder, by what they are called."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if _suffix(name) == ".txt":
            found.setdefault(_stem(name), []).append(name)
    return found


def _reader(folder, name, allow_outside):
    return functools.partial(read_within, folder, name, allow_outside)


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
        stem = os.path.basename(records_stem(shard))
        name = example["key"] or f"{stem}[{number}]"
        # The suffix is cut off again, and not a part of the key.
        yield f"{name}.jpg", _Contents(example["image"]), example["captions"]


def from_archive(archive: str | Path, tally: Tally | None = None) -> Pairs:
    """Samples of one WebDataset archive, read as a stream.

    Neighbouring files with one name up to the first dot are one sample: an
    image, and its captions in a `.txt` (one per line) or in a `.json` under
    one of the usual names, such as `caption`. An image that has a text of its
    own full name is a pair of its own. Where a sample has no image with
    nothing but its suffix behind that dot, as `0.jpg` has, those with more
    dots are taken, too. An image without a text of its own takes what of the
    sample's texts is not another file's. A file that comes again begins
    another sample of that name. A link to an earlier file stands for that
    file, unless the archive is compressed.

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
        with (
            _unpacked(archive) as file,
            tarfile.open(fileobj=file, mode="r|", tarinfo=header) as tar,
        ):
            for member in tar:
                if member.isdir() or is_junk(member.name):
                    continue
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
                # It would keep the headers of all files.
                vars(tar)["members"] = []
            if not header.ended:
                raise tarfile.ReadError(
                    "it is cut off, so that files may be lost"
                )
            _check_end(tar)
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


def _unpacked(archive):
    """Open an archive, compressed or not.

    `tarfile` ends behind the first part of what was compressed in parts, as
    pbzip2, bgzip and pixz do, and joins of compressed archives are.
    """
    with open(archive, "rb") as file:
        head = file.read(6)
    for mark, opened in _COMPRESSIONS.items():
        if head.startswith(mark):
            return opened(archive)
    return open(archive, "rb")


def _check_end(tar):
    """Refuse what follows the end, such as another archive, as of `cat`."""
    while rest := tar.fileobj.read(tarfile.RECORDSIZE):
        if any(rest):
            raise tarfile.ReadError(
                "something follows its end, perhaps another archive that was "
                "joined to it, and is not read; unpack it with "
                "`tar --ignore-zeros`"
            )


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
        # Later links may lead to it, or through it.
        if member.isfile():
            targets.add(name, member)
        else:
            targets.size(name, member)
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
# What compressed files begin with. The last is that of the old form of xz.
_COMPRESSIONS: dict[bytes, Callable] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x5d\0\0": lzma.open,
}


def _suffix(name):
    return posixpath.splitext(name)[1].lower()


def _stem(name):
    return posixpath.splitext(name)[0]


class _Sample:
    """The files of an archive that belong together.

    Attributes:
        key: string. Their name up to the first dot.
        files: dict from their names to bytes; `None` for links that lead
            nowhere, and for what is not an image or a text; `_TooLarge` for
            what is not read.
        names: set of strings. The files, those too that are no longer held.
        size: int. The bytes that are held.
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
        """Yield the pairs of a sample that is very large with what follows.

        Names with dots of their own, such as `v1.2_0001.jpg`, are one sample
        up to their first dot, which may be as large as the archive.
        """
        if self.size + more <= self._release_at:
            return
        texts = self._texts()
        paired = {_stem(n) for n in self.files if is_image(n)} & texts.keys()
        paired.discard(self.key)
        for name in [n for n in self.files if _stem(n) in paired]:
            contents = self.files.pop(name)
            self.size -= len(contents) if isinstance(contents, bytes) else 0
            if is_image(name):
                yield from _pair(name, contents, texts[_stem(name)], tally)
        self._released |= paired
        # Where little could be released, the next look would find as little.
        self._release_at = max(HELD_BYTES, 2 * self.size)

    def pairs(self, tally):
        """Yield the images that can be used; count the others."""
        texts = self._texts()
        images = [name for name in self.files if is_image(name)]
        is_plain = {name: _stem(name) == self.key for name in images}
        owners = {
            _stem(name)
            for name in self.files
            if _suffix(name) not in _TEXT_SUFFIXES
        } | self._released
        free = texts.keys() - owners
        # Where images have texts of their own, one without has lost its text.
        dotted = self._released or any(
            _stem(name) in texts for name in images if not is_plain[name]
        )
        used = {_stem(name) for name in images} | self._released
        unread = {
            _stem(name): f"`{clean_text(name)}` is {_why_no_text(contents)}"
            for name, contents in self.files.items()
            if _suffix(name) in _TEXT_SUFFIXES
            and not isinstance(contents, bytes)
        }
        for name in images:
            if _stem(name) in texts:
                stems = [_stem(name)]
            elif _stem(name) in self._released:
                stems = []
            elif any(is_plain.values()) and not is_plain[name]:
                # A mask such as `0.seg.png` beside `0.jpg` is not another
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
            # Another text of the sample is not another image's.
            lost = [stem for stem in lost if stem in owners]
        elif self.files and not (images or owners & {*lost, *self._released}):
            lost = [self.key]
        held = ", ".join(posixpath.basename(name) for name in self.files)
        for stem in lost:
            tally.leave_out(
                clean_text(stem), "no image", clean_text(held)[:200]
            )

    def _texts(self):
        """The captions of files that hold some, by names without suffix."""
        stems = {}
        for name, contents in self.files.items():
            if _suffix(name) in _TEXT_SUFFIXES:
                files = stems.setdefault(_stem(name), {})
                # `0.txt` and `0.TXT` are two.
                files.setdefault(_suffix(name), []).append(contents)
        texts = {stem: _captions_of(files) for stem, files in stems.items()}
        return {stem: of for stem, of in texts.items() if of is not None}


def _pair(name, contents, captions, tally):
    """Yield an image of an archive, or count why it cannot be."""
    name = clean_text(name)
    if contents is None:
        tally.leave_out(name, "link in an archive")
    elif isinstance(contents, _TooLarge):
        tally.leave_out(name, "file too large", f"{contents} bytes")
    else:
        tally.seen += 1
        yield name, _Contents(contents), captions


def _why_no_text(contents):
    if contents is None:
        return "a link in an archive"
    return f"too large, {contents} bytes"


def _captions_of(files):
    """The captions of `.txt` and `.json` of one name, `None` without.

    A JSON without a field of captions describes something else, a mask perhaps.
    """
    found = map(_listed_captions, files.get(".json", ()))
    found = [texts for texts in found if texts is not None]
    listed = [text for texts in found for text in texts]
    if ".txt" not in files:
        return listed if found else None
    texts = [decode_text(_if_read(text)) for text in files[".txt"]]
    lines = as_texts([line for text in texts for line in split_lines(text)])
    # img2dataset writes the same caption into both, line ends within it too.
    same = len(listed) == len(texts) and all(
        one.split() == other.split()
        for one, other in zip(listed, texts, strict=True)
    )
    return listed if same or not lines else lines


def _if_read(contents):
    return contents if isinstance(contents, bytes) else b""


def _listed_captions(contents):
    """The captions of a sample's JSON, `None` where it has no field of them."""
    try:
        fields = json.loads(decode_text(_if_read(contents)))
    except (ValueError, RecursionError):
        return []
    fields = fields if isinstance(fields, dict) else {}
    column = find_column(fields, COLUMNS["caption"])
    return None if column is None else as_texts(fields[column])
