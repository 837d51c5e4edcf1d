"""Files behind a handle such as `hf://user/name`, downloaded when asked for."""

import functools
import socket
import time
import urllib.parse
import urllib.request
from pathlib import Path

from align_keras import keras_hub_internals
from align_keras.io.fingerprints import check_digest
from align_keras.io.optional import OptionalModule
from align_keras.io.optional import require

huggingface_hub = OptionalModule("huggingface_hub", extra="huggingface")
hub_errors = OptionalModule("huggingface_hub.errors", extra="huggingface")

HUGGING_FACE = "hf://"
# Seconds after which a hub that does not answer is not there.
_PATIENCE = 5
_WEIGHTS = (".bin", ".h5", ".safetensors")


def handle_file(handle, name):
    """Download a file behind a handle, or find it in the cache.

    Args:
        handle: string, with a scheme that KerasHub knows.
        name: string. The file.

    Returns:
        `pathlib.Path` of the file.

    Raises:
        FileNotFoundError: The hub has no such file there.
        ConnectionError: The hub does not answer, and the cache has no such
            file.
        ValueError: There is no such repository, or one must log in; or the
            weights are not what the hub holds.
    """
    if not handle.startswith(HUGGING_FACE):
        return Path(keras_hub_internals.get_file(handle, name))
    repository = handle.removeprefix(HUGGING_FACE)
    endpoint = _hub_constants().ENDPOINT
    # What is tried in vain costs a minute and more.
    reason = no_network()
    try:
        path = huggingface_hub.hf_hub_download(
            repo_id=repository, filename=name, local_files_only=bool(reason)
        )
    except hub_errors.LocalEntryNotFoundError as error:
        away = f"{endpoint} cannot be reached"
        away = f"{away} ({reason or _first_line(error)})"
        if _is_cached(repository, "config.json"):
            raise FileNotFoundError(
                f"What the cache has of `{handle}` is without {name}, and "
                f"{away}."
            ) from error
        raise ConnectionError(
            f"`{handle}` is not in the cache, and {away}. Where there is a "
            f"network, `hf download {repository}` fetches it; name the "
            "directory that it prints."
        ) from error
    except hub_errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"`{handle}` has no file {name}.") from error
    except (
        hub_errors.RepositoryNotFoundError,
        hub_errors.HFValidationError,
    ) as error:
        raise ValueError(
            f"There is no repository `{repository}` at "
            f"{endpoint} that anybody may read. Check the name; "
            "if it is private or gated, accept its terms there and run "
            "`hf auth login`."
        ) from error
    _check(Path(path), handle)
    return Path(path)


def handle_directory(handle):
    """Download all of a model in Keras' format, or find it in the cache.

    Args:
        handle: string, such as `"hf://user/name"`.

    Returns:
        `pathlib.Path` of the directory.

    Raises:
        ValueError: The handle is of another hub. Else as `handle_file`.
    """
    if not handle.startswith(HUGGING_FACE):
        raise ValueError(
            f"`{handle}` must be saved to a directory first: "
            "`AlignDualEncoder.from_preset(handle).save_to_preset(directory)`."
        )
    directory = handle_file(handle, "config.json").parent
    huggingface_hub.snapshot_download(
        handle.removeprefix(HUGGING_FACE), local_files_only=bool(no_network())
    )
    for path in directory.rglob("*"):
        if path.is_file():
            _check(path, handle)
    return directory


def _hub_constants():
    # They may change while a program runs, so none is kept.
    return require("huggingface_hub.constants", extra="huggingface")


def _first_line(error):
    return " ".join(str(error).split())[:200]


def _is_cached(repository, name):
    found = huggingface_hub.try_to_load_from_cache(repository, name)
    return isinstance(found, str)


def no_network():
    """Return why Hugging Face's hub cannot be reached, or an empty string."""
    # A network may come and go: it is tried once a minute.
    return _no_network(_hub_constants().ENDPOINT, int(time.monotonic() // 60))


@functools.lru_cache(maxsize=1)
def _no_network(endpoint, minute):
    if _hub_constants().HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if urllib.request.getproxies():
        return ""  # A proxy knows the way.
    address = urllib.parse.urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), _PATIENCE).close()
    except OSError as error:
        return str(error)
    return ""


@functools.cache
def _check(path, handle):
    """Compare weights with the digest by which the hub stores them."""
    # The cache names a large file by the SHA-256 digest of the hub's.
    digest = path.resolve().name
    if path.suffix in _WEIGHTS and len(digest) == 64:
        remedy = f"remove it, to have it downloaded from {handle} again"
        check_digest(path, digest, remedy)
