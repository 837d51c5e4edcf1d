"""Mirror directories of a store in local directories.

All code writes files to a local disk, with renames and locks. For an address
such as `s3://bucket/run`, it gets a local directory, whose files are copied to
the store: first the new files, then a listing of all files with a conditional
write. The directory changes at the moment of this write.
"""

import contextlib
import functools
import glob
import hashlib
import inspect
import itertools
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from typing import ParamSpec
from typing import TypeVar

from align_keras.io.atomic import UNFINISHED
from align_keras.io.fingerprints import file_digest
from align_keras.io.leases import Lease
from align_keras.io.locks import LOCK_NAME
from align_keras.io.locks import directory_lock
from align_keras.io.stores import Store
from align_keras.io.stores import is_store

# The listing: sizes and digests of the files in the directory, by name.
LISTING = ".align_keras.files.json"
# The folder of files that will replace others, named by their digest.
STAGED = ".align_keras.staged"
# Stored last: readers that find these assume that all other files exist.
_LAST = ("manifest.json", "config.json", "saved_model.pb")
# These are not part of the result.
_LOCAL = (LOCK_NAME, LISTING)

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("align_keras")
_active: list["Mirror"] = []


class Mirror:
    """A local directory that mirrors a directory of a store.

    Args:
        store: `Store`. The directory in the store.
        path: string or `pathlib.Path`. The local directory.
        check: callable. Called before changing anything that others see. It
            raises an error if this process may no longer write. Defaults to
            a function that does nothing.

    Example:

    ```python
    mirror = Mirror(Store("s3://bucket/run"), "/scratch/run")
    mirror.pull()
    (mirror.path / "notes.txt").write_text("done")
    mirror.push()
    ```
    """

    def __init__(
        self,
        store: Store,
        path: str | Path,
        check: Callable[[], None] = lambda: None,
    ):
        self.store = store
        self.path = Path(path)
        self._check = check
        # Size and digest of each file, and where staged files wait.
        self.listing: dict[str, list] = {}
        self.staged: dict[str, str] = {}
        self.removed: list[str] = []
        self._tag: Any = None
        self._digests: dict[str, tuple] = {}
        self._pushing = threading.Lock()

    def pull(self) -> None:
        """Copy the files of the store to the local directory.

        If a `push` was interrupted after its commit, it is finished first. If
        it was interrupted before, files that it staged are removed.

        Raises:
            FileNotFoundError: A file that was stored is missing.
            ValueError: A file is damaged.
        """
        self.read_listing()
        self._finish()
        sizes = self.store.sizes()
        # Remove files that were staged but never committed or cleaned up.
        self.store.remove(*(n for n in sizes if n.startswith(f"{STAGED}/")))
        for name in filter(_is_content, sizes):
            self.fetch(name, name)
        missing = sorted(set(self.listing) - set(sizes))
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} files of `{self.store}` are missing, the "
                f"first is `{missing[0]}`. Copy them again, or remove "
                f"`{self.store}/{LISTING}` if they were removed on purpose."
            )

    def fetch(self, name: str, place: str) -> None:
        """Copy a file from its place in the store and verify it."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self.store.get(place, target)
        if self.listing.get(name) not in (None, self._entry(name)):
            raise ValueError(
                f"`{self.store}/{name}` is damaged, or another program has "
                "changed it: it is not the file that was stored. Copy it "
                f"again, or remove `{self.store}/{LISTING}` if it was changed "
                "on purpose."
            )

    def push(self) -> None:
        """Copy changed files of the local directory to the store.

        Files may be written to in the meantime. The stored copy of a file is
        its contents at some moment during the push.

        Raises:
            StaleWriter: Another process has pushed since the last `pull` or
                `push`.
        """
        with self._pushing:
            self._push()

    def _push(self):
        if self.path.is_file():
            self._check()
            self.store.put(self.path, "")
            return
        found = {name: self._entry(name) for name in self._names()}
        changed = [n for n in found if found[n] != self.listing.get(n)]
        removed = [n for n in self.listing if n not in found]
        if not changed and not removed:
            return
        self._check()
        staged = {}
        for name in sorted(changed, key=_order):
            # Replace existing files only after all new ones are stored.
            if name in self.listing:
                staged[name] = f"{STAGED}/{found[name][1]}"
            place = staged.get(name, name)
            self.store.put(self.path / name, place)
            if self._entry(name) != found[name]:
                found[name] = self._put_copy(name, place)
        self._check()
        self._commit(found, staged, removed)
        self._finish()

    def _put_copy(self, name, place):
        """Store a copy of a file that is being written to."""
        with tempfile.TemporaryDirectory(prefix="align_keras-") as folder:
            copy = shutil.copyfile(self.path / name, Path(folder, "copy"))
            self.store.put(copy, place)
            return [copy.stat().st_size, file_digest(copy)]

    def _commit(self, listing, staged, removed):
        contents = {"files": listing, "staged": staged, "removed": removed}
        text = json.dumps(contents, indent=1, sort_keys=True)
        self._tag = self.store.replace(LISTING, text.encode(), self._tag)
        self.listing, self.staged, self.removed = listing, staged, removed

    def read_listing(self) -> None:
        """Read the listing of the last complete `push`."""
        text, self._tag = self.store.read_with_tag(LISTING)
        try:
            held = json.loads(text) if text is not None else {}
            self.listing = dict(held.get("files", {}))
            self.staged = dict(held.get("staged", {}))
            self.removed = list(held.get("removed", ()))
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise ValueError(
                f"`{self.store}/{LISTING}` is damaged. Copy it again."
            ) from None

    def _finish(self):
        """Move committed staged files to their places."""
        if not self.staged and not self.removed:
            return
        there = self.store.sizes()
        for name, staged in self.staged.items():
            if staged in there:
                self.store.copy(staged, name)
        self.store.remove(*self.removed)
        done = list(self.staged.values())
        self._commit(self.listing, {}, [])
        self.store.remove(*done)

    def _names(self):
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = Path(folder, name).relative_to(self.path).as_posix()
                if _is_content(path):
                    yield path

    def _entry(self, name):
        return [(self.path / name).stat().st_size, self._digest(name)]

    def _digest(self, name):
        """Return the digest of a local file, cached until it changes."""
        status = (self.path / name).stat()
        key = status.st_size, status.st_mtime_ns, status.st_ino
        known = self._digests.get(name)
        if known is None or known[0] != key:
            known = key, file_digest(self.path / name)
            self._digests[name] = known
        return known[1]


@contextlib.contextmanager
def mirror(address: str) -> Iterator[Path]:
    """Yield a local directory that mirrors a directory of a store.

    The directory is locked while the block runs. Files are stored when the
    block ends and whenever it calls `publish`. If it raises an error, the
    files stored before are kept.

    Args:
        address: string.

    Raises:
        BlockingIOError: Another process is writing to it.
    """
    store = Store(address)
    with contextlib.ExitStack() as stack:
        lease = Lease(store)
        stack.callback(lease.release)
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="align_keras-")
        )
        # Put the address into the path, so that messages with it are clear.
        path = Path(folder, *store.address.replace("://", "/").split("/"))
        path.parent.mkdir(parents=True)
        active = Mirror(store, path, lease.check)
        active.pull()
        _active.append(active)
        stack.callback(_active.remove, active)
        stack.enter_context(_as_address(str(path), store.address))
        yield path
        active.push()


@contextlib.contextmanager
def _as_address(path, address):
    """Name the address instead of its mirror in messages and errors."""

    def rename(record):
        record.msg = _readdressed(record.getMessage(), path, address)
        record.args = ()
        return True

    logger.addFilter(rename)
    try:
        yield
    except Exception as error:
        error.args = _readdressed(error.args, path, address)
        # Errors of the operating system print these instead.
        for name in ("filename", "filename2"):
            named = getattr(error, name, None)
            if named is not None:
                setattr(error, name, _readdressed(named, path, address))
        raise
    finally:
        logger.removeFilter(rename)


def publish(path: str | Path) -> None:
    """Store the current files of a directory if it mirrors one of a store.

    Args:
        path: string or `pathlib.Path`. The directory, or a path in it. Does
            nothing for an ordinary local directory.
    """
    path = Path(path)
    for active in _active:
        if active.path == path or active.path in path.parents:
            active.push()


def stored(
    parameter: str, but: Callable[[dict], bool] = lambda arguments: False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function that writes a directory also write to an address.

    Args:
        parameter: string. The parameter that names the directory.
        but: callable. Takes the arguments and returns whether the function
            handles the address itself. Defaults to never.

    Returns:
        A decorator. In the function's return value, paths of the mirror are
        replaced by addresses.

    Example:

    ```python
    @stored("output")
    def write(rows, output): ...

    write(rows, "s3://bucket/rows")
    ```
    """

    def store(arguments, proceed):
        target = arguments.get(parameter)
        if (
            not isinstance(target, (str, os.PathLike))
            or not is_store(target)
            or but(arguments)
        ):
            return proceed()
        address = os.fspath(target)
        with mirror(address) as path:
            is_text = isinstance(target, str)
            arguments[parameter] = str(path) if is_text else path
            result = proceed()
        return _readdressed(result, str(path), str(Store(address)))

    return _around(store)


def locked(parameter: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function lock the directory that it writes.

    Args:
        parameter: string. The parameter that names the directory, a local path
            or an address; see `stored`.

    Returns:
        A decorator.

    Example:

    ```python
    @locked("output")
    def write(rows, output): ...
    ```
    """

    def hold(arguments, proceed):
        with directory_lock(arguments[parameter]):
            return proceed()

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return stored(parameter)(_around(hold)(function))

    return decorate


def reads(*parameters: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function that reads local files also read those of a store.

    Args:
        *parameters: strings. The parameters that name the files to read, each
            a path or a list of paths.

    Returns:
        A decorator. The function gets local copies; see `local_copy`.

    Example:

    ```python
    @reads("path")
    def count_lines(path): ...

    count_lines("s3://bucket/words.txt")
    ```
    """

    def copy(arguments, proceed):
        for name in parameters:
            value = arguments.get(name)
            if isinstance(value, (list, tuple)):
                arguments[name] = [local_copy(path) for path in value]
            elif name in arguments:
                arguments[name] = local_copy(value)
        return proceed()

    return _around(copy)


def _around(
    call: Callable[[dict, Callable], Any],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a decorator that runs code around a function.

    Args:
        call: callable. Takes a dict of the arguments, which it may change, and
            a callable that calls the function with them.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            return call(
                bound.arguments, lambda: function(*bound.args, **bound.kwargs)
            )

        return run

    return decorate


def local_copy(
    path: Any, choose: Callable[[list[str]], list[str]] | None = None
) -> Any:
    """Return a local path for reading, and copy files of a store.

    Args:
        path: string or `pathlib.Path`. A local path is returned as it is. The
            files at an address, or those that a glob of a store matches, are
            copied to the cache (see `cache_directory`). The copy is reused
            until the files in the store change.
        choose: callable. Takes the names of the files below an address, and
            returns those to copy. Defaults to `None`: all.

    Raises:
        FileNotFoundError: There are no files at the address.
    """
    if not isinstance(path, (str, os.PathLike)) or not is_store(path):
        return path
    store, name = Store(os.fspath(path)), ""
    if store.is_file() or glob.has_magic(store.address):
        folder, name = _split(store.address)
        # The name of a file may contain glob characters such as brackets.
        exact = Store(glob.escape(store.address))
        found = store.matches() or exact.matches()
        store = Store(folder)
        entries = {f.removeprefix(f"{folder}/"): e for f, e in found.items()}
    else:
        entries = {n: e for n, e in store.entries().items() if _is_content(n)}
    if not entries:
        raise FileNotFoundError(f"There is nothing at `{path}`.")
    if choose is not None:
        entries = {n: entries[n] for n in choose(list(entries))}
    copy = _copy_of(store, entries) / name
    return str(copy) if isinstance(path, str) else copy


def _split(address):
    """Split an address into a directory without wildcards and the rest."""
    parts = address.split("/")
    fixed = itertools.takewhile(lambda p: not glob.has_magic(p), parts[:-1])
    count = len(list(fixed))
    return "/".join(parts[:count]), "/".join(parts[count:])


def _copy_of(store, entries):
    """Copy files of a directory into the cache."""
    source = Mirror(store, cache_directory())
    source.read_listing()
    # Staged files may not have been moved to their places yet.
    places = {name: source.staged.get(name, name) for name in entries}
    versions = [
        (name, source.listing.get(name) or store.version(name, entry))
        for name, entry in sorted(entries.items())
    ]
    text = json.dumps([store.address, versions])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    # Put the address into the path, so that messages show the origin.
    folder = cache_directory() / digest / store.address.replace("://", "/")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as part:
            copy = Mirror(store, Path(part, folder.name))
            copy.listing = source.listing
            for name, place in places.items():
                copy.fetch(name, place)
                # Set a fixed time, so that all copies are alike.
                os.utime(copy.path / name, (0, 0))
            with contextlib.suppress(OSError):
                # Another process may have been faster.
                os.replace(copy.path, folder)
    return folder


def cache_directory() -> Path:
    """Return the directory of the cache.

    The environment variable `ALIGN_KERAS_CACHE` names the directory;
    otherwise it is `~/.cache/align_keras/stores`.
    """
    default = Path.home() / ".cache" / "align_keras" / "stores"
    return Path(os.environ.get("ALIGN_KERAS_CACHE") or default)


def without_cache(value: Any) -> Any:
    """Remove the cache directory from paths, also within dicts and lists.

    The rest of a copy's path identifies its contents on any machine.
    """
    return _readdressed(value, str(cache_directory()), "")


def _is_content(name):
    parts = name.split("/")
    # Ignore temporary files that another thread is writing.
    begun = any(p.startswith(".") and UNFINISHED in p for p in parts)
    return parts[0] != STAGED and parts[-1] not in _LOCAL and not begun


def _order(name):
    return Path(name).name in _LAST, name


def _readdressed(value, path, address):
    """Replace a local directory by an address in paths and containers."""
    if isinstance(value, str):
        return value.replace(path, address)
    if isinstance(value, Path):
        return _readdressed(str(value), path, address)
    if isinstance(value, dict):
        return {k: _readdressed(v, path, address) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_readdressed(v, path, address) for v in value)
    return value
