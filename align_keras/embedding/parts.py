"""Turn each part of a source into one file, here or on executors."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align_keras.embedding.loading import load_embedder
from align_keras.embedding.loading import require_model
from align_keras.embedding.replicas import local_replicas
from align_keras.embedding.vector_files import claim_vectors
from align_keras.embedding.vector_files import write_manifest
from align_keras.io.fingerprints import directory_fingerprint
from align_keras.io.fingerprints import fingerprint
from align_keras.io.locks import directory_lock
from align_keras.io.mirrors import without_cache
from align_keras.io.optional import require
from align_keras.io.paths import local_path
from align_keras.io.progress import progress_bar

# A file names this many skipped images, and counts all of them.
_MAX_LISTED = 100

logger = logging.getLogger("align_keras")


def has_executors(arguments: dict) -> bool:
    """Return whether tasks run elsewhere, without access to a local mirror."""
    return arguments.get("run_tasks") is not None


def work_on_parts(
    work: Callable,
    plan: Callable,
    output: str | Path,
    model: str | Path,
    settings: dict,
    *,
    what: str,
    title: str,
    strategy: Any,
    batch_size: int,
    progress: bool,
    run_tasks: Callable | None,
) -> dict:
    """Write the missing files of all parts, and the manifest.

    Args:
        work: callable. Takes a task, an `Embedder` and a callable that it
            informs of progress; writes the file `task["file"]` from
            `task["part"]`.
        plan: callable. Returns the parts, dicts as from `plan_sources`.
        output: string or `pathlib.Path`. The directory to write.
        model: string or `pathlib.Path`. See `require_model`.
        settings: dict of JSON values that are added to each task.
        what: string. What the files hold; their names begin with it.
        title: string. The title of the progress bar.
        strategy, batch_size, progress, run_tasks: see `embed`.

    Returns:
        dict, see `write_manifest`.
    """
    require("pyarrow.parquet", extra="search")
    if batch_size < local_replicas(strategy):
        raise ValueError(
            f"`batch_size` must be at least {local_replicas(strategy)}, the "
            f"number of replicas here. Received: batch_size={batch_size}"
        )
    output = local_path(output)
    path = require_model(model)
    parts = plan()
    states = [_states(part) for part in parts]
    arguments = {
        **settings,
        "inputs": fingerprint(without_cache(parts), states),
        "fingerprint": directory_fingerprint(path),
    }
    worker, workers = _worker_of(strategy)
    # All workers of a run write into one directory; only the first locks it.
    with contextlib.nullcontext() if worker else directory_lock(output):
        claim_vectors(output, arguments, what)
        name = f"{what}-{{:05d}}-of-{len(parts):05d}.parquet"
        files = [output / name.format(number) for number in range(len(parts))]
        missing = [
            {
                "part": part,
                "file": str(file),
                "model": str(path.resolve()),
                "batch_size": batch_size,
                **arguments,
            }
            for part, file in zip(parts, files, strict=True)
            if not file.is_file()
        ]
        made = {task["file"] for task in missing}
        if missing and run_tasks is not None:
            run_tasks(missing)
        elif missing:
            embedder = load_embedder(path, strategy)
            tasks = missing[worker::workers]
            with progress_bar(title, shown=progress) as advance:
                for number, task in enumerate(tasks, 1):
                    advance(0, f"{title}, file {number} of {len(tasks)}")
                    work(task, embedder, advance)
        new = [file for file in files if str(file) in made]
        return write_manifest(files, arguments, new)


def skipped_images(about: dict) -> Callable:
    """Return a callable that records what is skipped.

    Args:
        about: dict. The metadata of a file, in which the callable updates
            `"skipped"` and `"skipped_images"`.

    Returns:
        A callable that takes a key, a reason and optionally a number of rows.
    """
    about |= {"skipped": 0, "skipped_images": []}

    def skip(key, reason, rows=1):
        about["skipped"] += rows
        listed = about["skipped_images"]
        if len(listed) < _MAX_LISTED:
            logger.warning("Image %s is left out: %s", key, reason)
            listed.append([str(key), reason])
            if len(listed) == _MAX_LISTED:
                logger.warning(
                    "Further images left out of this part are only counted."
                )

    return skip


def _worker_of(strategy):
    if strategy is None:
        return 0, 1
    from align_keras.training.strategies import worker_of

    return worker_of(strategy)


def _states(part):
    """Return sizes and times, which change when a source does."""

    def state(path):
        try:
            about = path.stat()
        except (OSError, ValueError):
            # It is not on this host, or the name is no valid path.
            return None
        return [about.st_size, about.st_mtime_ns]

    path = Path(part["path"])
    return [state(path / name) for name in part.get("names", [""])]
