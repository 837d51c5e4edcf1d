"""Download the files behind a handle such as `hf://user/name`."""

import functools
import socket
import time
import urllib.parse
import urllib.request
from pathlib import Path

from align_keras import keras_hub_internals
from align_keras.io.fingerprints import check_digest
from align_keras.io.hub_handles import HUGGING_FACE
from align_keras.io.optional import OptionalModule
from align_keras.io.optional import require

huggingface_hub = OptionalModule("huggingface_hub", extra="huggingface")
hub_errors = OptionalModule("huggingface_hub.errors", extra="huggingface")

# Seconds to wait for a hub before it counts as unreachable.
_PATIENCE = 5
_WEIGHTS = (".bin", ".h5", ".safetensors")


def handle_file(handle, name):
    """Download a file behind a handle, or find it in the cache.

    Args:
        handle: string with a scheme that KerasHub supports.
        name: string. The name of the file.

    Returns:
        `pathlib.Path` of the file.

    Raises:
        FileNotFoundError: The repository has no such file.
        ConnectionError: The hub does not answer, and the file is not in the
            cache.
        ValueError: The repository does not exist or requires a login; or the
            weights differ from those on the hub.
    """
    if not handle.startswith(HUGGING_FACE):
        return Path(keras_hub_internals.get_file(handle, name))
    repository = handle.removeprefix(HUGGING_FACE)
    endpoint = _hub_constants().ENDPOINT
    # Without a network, the client would retry for more than a minute.
    reason = no_network()
    try:
        path = huggingface_hub.hf_hub_download(
            repo_id=repository, filename=name, local_files_only=bool(reason)
        )
    except hub_errors.LocalEntryNotFoundError as error:
        away = f"{endpoint} cannot be reached ({reason or _first_line(error)})"
        if _is_cached(repository, "config.json"):
            raise FileNotFoundError(
                f"The cached copy of `{handle}` lacks {name}, and {away}."
            ) from error
        raise ConnectionError(
            f"`{handle}` is not in the cache, and {away}. On a machine with "
            f"network access, `hf download {repository}` fetches it; pass the "
            "directory that it prints."
        ) from error
    except hub_errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"`{handle}` has no file {name}.") from error
    except (
        hub_errors.RepositoryNotFoundError,
        hub_errors.HFValidationError,
    ) as error:
        raise ValueError(
            f"There is no public repository `{repository}` at {endpoint}. "
            "Check the name; if it is private or gated, accept its terms there "
            "and run `hf auth login`."
        ) from error
    _check(Path(path), handle)
    return Path(path)


def handle_directory(handle):
    """Download all files of a model in Keras' format, or find them cached.

    Args:
        handle: string, such as `"hf://user/name"`.

    Returns:
        `pathlib.Path` of the directory.

    Raises:
        ConnectionError: The hub does not answer, and the cache holds only
            some of the files.
        ValueError: The handle is of another hub. Also raises the errors of
            `handle_file`.
    """
    if not handle.startswith(HUGGING_FACE):
        raise ValueError(
            f"`{handle}` must be saved to a directory first: "
            "`AlignDualEncoder.from_preset(handle).save_to_preset(directory)`."
        )
    directory = handle_file(handle, "config.json").parent
    repository = handle.removeprefix(HUGGING_FACE)
    reason, lacking = no_network(), None
    try:
        huggingface_hub.snapshot_download(
            repository, local_files_only=bool(reason)
        )
    except hub_errors.LocalEntryNotFoundError as error:
        reason, lacking = reason or _first_line(error), error
    # The cache may not know which files there are.
    if lacking or (reason and not any(directory.glob("*.weights.h5"))):
        raise ConnectionError(
            f"The cache has only some files of `{handle}`, and "
            f"{_hub_constants().ENDPOINT} cannot be reached ({reason}). On a "
            f"machine with network access, `hf download {repository}` fetches "
            "them."
        ) from lacking
    for path in directory.rglob("*"):
        if path.is_file():
            _check(path, handle)
    return directory


def _hub_constants():
    # They may change while a program runs, so keep no copy.
    return require("huggingface_hub.constants", extra="huggingface")


def _first_line(error):
    return " ".join(str(error).split())[:200]


def _is_cached(repository, name):
    found = huggingface_hub.try_to_load_from_cache(repository, name)
    return isinstance(found, str)


def no_network():
    """Return why Hugging Face's hub cannot be reached, or an empty string."""
    # A network may come and go, so try it once a minute.
    return _no_network(_hub_constants().ENDPOINT, int(time.monotonic() // 60))


@functools.lru_cache(maxsize=1)
def _no_network(endpoint, minute):
    if _hub_constants().HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if urllib.request.getproxies():
        return ""  # A proxy makes the connection.
    address = urllib.parse.urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), _PATIENCE).close()
    except OSError as error:
        return str(error)
    return ""


@functools.cache
def _check(path, handle):
    """Compare weights with the digest of the hub."""
    # The cache names a large file by the SHA-256 digest that the hub gives.
    digest = path.resolve().name
    if path.suffix in _WEIGHTS and len(digest) == 64:
        remedy = f"remove it, to have it downloaded from {handle} again"
        check_digest(path, digest, remedy)
