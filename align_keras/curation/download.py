"""Download the images of kept pairs with img2dataset.

img2dataset pins old versions of many packages that this one needs, so install
it in a separate environment; it is run as a command:

    python3 -m venv img2dataset && img2dataset/bin/pip install img2dataset
"""

import collections
import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

from align_keras.curation.addresses import refusal
from align_keras.io.atomic import atomic_file
from align_keras.io.claims import claim
from align_keras.io.file_names import glob_visible
from align_keras.io.file_names import is_parquet
from align_keras.io.file_names import list_files
from align_keras.io.fingerprints import LENGTH
from align_keras.io.json_files import read_json
from align_keras.io.json_files import write_json
from align_keras.io.kept_rows import kept_folder
from align_keras.io.lists import check_list
from align_keras.io.mirrors import locked
from align_keras.io.optional import OptionalModule
from align_keras.io.paths import local_path
from align_keras.io.progress import progress_bar
from align_keras.io.rows import iterate_parquet
from align_keras.io.rows import open_parquet

arrow = OptionalModule("pyarrow", extra="curation")
parquet = OptionalModule("pyarrow.parquet", extra="curation")

# The file that img2dataset writes beside each shard when it is finished.
STATISTICS = "*_stats.json"
# The columns of img2dataset's metadata that `curate` needs.
IMAGE_COLUMNS = [
    "row_id",
    "key",
    "caption",
    "original_width",
    "original_height",
    "url",
    "status",
]
# At most this many refused rows are listed; all are counted.
MAX_LISTED = 1000
OUTPUT_FORMATS = ("webdataset", "tfrecord", "files")

logger = logging.getLogger("align_keras")


@locked("output")
def download(
    kept: str | Path,
    output: str | Path,
    command: str | None = None,
    image_size: int = 346,
    resize_mode: str = "keep_ratio",
    output_format: str = "webdataset",
    processes: int | None = None,
    threads: int = 64,
    timeout: int = 10,
    retries: int = 1,
    pairs_per_shard: int = 10_000,
    progress: bool = False,
    extra_arguments: Iterable[str] = (),
    allow_private: bool = False,
) -> dict:
    """Download the images of kept pairs with img2dataset.

    An interrupted download resumes with the missing shards; `download.json`
    in the output tells which pairs and settings it is of. As img2dataset
    does by default, images whose HTTP headers opt out of machine learning are
    not downloaded. Only `http` and `https` URLs with public addresses are
    fetched; `refused.json` in the output counts the other rows by reason and
    lists the first 1000. Host names are not resolved for this check, see
    `docs/security.md`.

    Args:
        kept: string. The `kept` directory that `curate` wrote, or its parent.
        output: string. The directory to download to.
        command: string. The img2dataset program, or a Python interpreter that
            has the module. Defaults to the environment variable
            `IMG2DATASET`, or else to `img2dataset` on the path.
        image_size: int. Pixels to resize to. Defaults to `346`.
        resize_mode: string. Passed to img2dataset. Defaults to
            `"keep_ratio"`.
        output_format: string. `"webdataset"` (for `align-keras pack`),
            `"tfrecord"` (ready for training) or `"files"` (for another
            `curate`, with the table `output/images.parquet`).
        processes: int. Defaults to the number of cores.
        threads: int. Number of simultaneous downloads. Defaults to `64`.
        timeout: int. Seconds for one image. Defaults to `10`.
        retries: int. Further attempts. Defaults to `1`.
        pairs_per_shard: int. Defaults to `10_000`.
        progress: bool. Whether to show a progress bar on standard error.
        extra_arguments: list of strings. Passed to img2dataset unchanged.
        allow_private: bool. Whether to fetch from this machine and from
            private networks, too. Defaults to `False`.

    Returns:
        dict, see `read_downloads`, with the additional key `"refused"`
        (numbers by reason) and, for `"files"`, `"table"`.

    Raises:
        FileNotFoundError: img2dataset, or the kept pairs, cannot be found.
        OSError: img2dataset failed; the message ends with its last lines.
        ValueError: No row has an address that may be fetched, or `output`
            holds the download of other pairs, or one with other settings.

    Example:

    ```python
    download("clean", "images", command="img2dataset/bin/img2dataset")
    ```
    """
    if output_format not in OUTPUT_FORMATS:
        raise ValueError(
            f"`output_format` must be one of {', '.join(OUTPUT_FORMATS)}. "
            f"Received: {output_format!r}"
        )
    check_list(extra_arguments, "extra_arguments")
    extra_arguments = list(extra_arguments)
    program = find_program(command)
    output = local_path(output)
    output.mkdir(parents=True, exist_ok=True)
    images, listed = output / "images", output / "download_list.parquet"
    with atomic_file(listed) as temporary:
        pairs, refused, digest = write_download_list(
            kept, temporary, allow_private
        )
        if not pairs:
            raise ValueError(
                f"No row of `{kept}` has an address that may be fetched: "
                f"{refused['reasons'] or 'it has no rows'}."
                + ("" if allow_private else " See `--allow-private`.")
            )
        settings = {
            "pairs": f"{pairs} of digest {digest}",
            "image_size": image_size,
            "resize_mode": resize_mode,
            "output_format": output_format,
            "pairs_per_shard": pairs_per_shard,
            "extra_arguments": extra_arguments,
        }
        # img2dataset skips the numbers of finished shards, whatever they hold.
        if glob_visible(images, STATISTICS):
            claim(output / "download.json", settings, "a download")
        else:
            write_json(output / "download.json", settings)
    write_json(output / "refused.json", refused)
    if refused["rows"]:
        logger.warning(
            "%d rows have addresses that are not fetched, see `%s`.",
            refused["rows"],
            output / "refused.json",
        )
    arguments = {
        "url_list": listed,
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "text",
        "output_folder": images,
        "output_format": output_format,
        "image_size": image_size,
        "resize_mode": resize_mode,
        "resize_only_if_bigger": True,
        "processes_count": processes or os.cpu_count() or 1,
        "thread_count": threads,
        "timeout": timeout,
        "retries": retries,
        "number_sample_per_shard": pairs_per_shard,
        "save_additional_columns": '["row_id"]',
        "compute_hash": "sha256",
        "incremental_mode": "incremental",
        "enable_wandb": False,
    }
    words = [f"--{name}={value}" for name, value in arguments.items()]
    _run([*program, *words, *extra_arguments], images, pairs, progress)
    result = {**read_downloads(images), "refused": refused["reasons"]}
    if output_format == "files":
        result["table"] = str(output / "images.parquet")
        write_image_table(result["metadata"], result["table"])
    return result


def write_image_table(metadata: Iterable[str], path: str | Path) -> None:
    """Write a table of the downloaded images as input for `curate`.

    Args:
        metadata: list of strings, as `read_downloads` returns them.
        path: string. The Parquet file to write, with the columns `id` (the
            `row_id` of the kept row), `image_path` (relative to img2dataset's
            folder), `text`, `width` and `height` (before resizing) and
            `source_url`.
    """
    schema = arrow.schema(
        [
            ("id", "string"),
            ("image_path", "string"),
            ("text", "string"),
            ("width", "int32"),
            ("height", "int32"),
            ("source_url", "string"),
        ]
    )
    with (
        atomic_file(path) as temporary,
        parquet.ParquetWriter(temporary, schema) as writer,
    ):
        for file in metadata:
            shard = Path(file).stem
            rows = [
                {
                    "id": str(row["row_id"]),
                    "image_path": f"{shard}/{row['key']}.jpg",
                    "text": row["caption"],
                    "width": row["original_width"],
                    "height": row["original_height"],
                    "source_url": row["url"],
                }
                for batch in iterate_parquet(file, IMAGE_COLUMNS)
                for row in batch.to_pylist()
                if row["status"] == "success"
            ]
            writer.write_table(arrow.Table.from_pylist(rows, schema))


def find_program(command: str | None = None) -> list[str]:
    """Return the command that starts img2dataset.

    Args:
        command: string. The img2dataset program, or a Python interpreter.

    Returns:
        list of strings.

    Raises:
        FileNotFoundError: There is no such program.
    """
    command = command or os.environ.get("IMG2DATASET") or "img2dataset"
    found = shutil.which(command)
    if found is None:
        raise FileNotFoundError(
            f"There is no program `{command}`. Install img2dataset into an "
            "environment of its own (python3 -m venv img2dataset && "
            "img2dataset/bin/pip install img2dataset), and pass the path "
            "img2dataset/bin/img2dataset with `--img2dataset` or the "
            "environment variable IMG2DATASET."
        )
    if Path(found).name.startswith("python"):
        return [found, "-m", "img2dataset"]
    return [found]


def write_download_list(
    kept: str | Path, path: str | Path, allow_private: bool = False
) -> tuple[int, dict, str]:
    """Write the `url`, `text` and `row_id` of kept pairs for img2dataset.

    Args:
        kept: string. See `download`.
        path: string. The Parquet file to write.
        allow_private: bool. See `refusal`.

    Returns:
        Tuple of the number of pairs written, an int; a dict that describes the
        refused rows: `"rows"` (a number), `"reasons"` (numbers by reason) and
        `"refused"` (the first 1000, with `row_id`, `url` and `reason`); and
        the digest of the pairs, a string.
    """
    folder = kept_folder(kept) or Path(kept)
    columns = ["url", "text", "row_id"]
    files = [Path(file) for file in list_files(folder, is_parquet)]
    if files:
        with open_parquet(files[0]) as first:
            found = set(first.schema_arrow.names)
    if not files or not {*columns} <= found:
        raise FileNotFoundError(
            f"`{kept}` holds no kept pairs; run `align-keras curate` first."
        )
    schema = arrow.schema(
        [("url", "string"), ("text", "string"), ("row_id", "int64")]
    )
    pairs, reasons, listed = 0, collections.Counter(), []
    digest = hashlib.sha256()
    with parquet.ParquetWriter(path, schema) as writer:
        for file in files:
            for batch in iterate_parquet(file, columns):
                batch = batch.select(columns).cast(schema)
                urls = batch["url"].to_pylist()
                found = [refusal(url, allow_private) for url in urls]
                for row, reason in enumerate(found):
                    if reason and len(listed) < MAX_LISTED:
                        number = batch["row_id"][row].as_py()
                        about = {"row_id": number, "url": urls[row]}
                        listed.append({**about, "reason": reason})
                reasons.update(filter(None, found))
                good = arrow.array([reason is None for reason in found])
                batch = batch.filter(good)
                writer.write_batch(batch)
                for row in batch.to_pylist():
                    digest.update(f"{list(row.values())}\n".encode())
                pairs += good.true_count
    return (
        pairs,
        {
            "rows": reasons.total(),
            "reasons": dict(sorted(reasons.items())),
            "refused": listed,
        },
        digest.hexdigest()[:LENGTH],
    )


def read_downloads(folder: str | Path) -> dict:
    """Summarise img2dataset's report on its downloads.

    Args:
        folder: string. The output folder of img2dataset.

    Returns:
        dict of `"pairs"`, `"downloaded"`, `"failed"` (numbers), `"failures"`
        (numbers by reason), `"metadata"` (img2dataset's Parquet files, which
        `curate` can read; they hold the sizes of the images) and
        `"incomplete_shards"` (shards that were begun but not finished).

    Raises:
        FileNotFoundError: There is no finished shard.
    """
    folder = Path(folder)
    failures, pairs, good = {}, 0, 0
    files = [Path(file) for file in list_files(folder, is_parquet)]
    finished = {_shard(file) for file in glob_visible(folder, STATISTICS)}
    files = [file for file in files if _shard(file) in finished]
    if not files:
        raise FileNotFoundError(
            f"`{folder}` holds no finished img2dataset shard."
        )
    for file in files:
        columns = ["status", "error_message"]
        with open_parquet(file) as source:
            table = source.read(columns).to_pylist()
        pairs += len(table)
        for row in table:
            if row["status"] == "success":
                good += 1
            else:
                reason = _reason(row)
                failures[reason] = failures.get(reason, 0) + 1
    begun = {path.name.split(".")[0] for path in glob_visible(folder, "*.tar")}
    begun |= {
        path.name.split(".")[0] for path in glob_visible(folder, "*.tfrecord")
    }
    # With the format `files`, a shard is a folder named by its number.
    begun |= {
        path.name
        for path in glob_visible(folder, "*")
        if path.is_dir() and path.name.isdigit()
    }
    return {
        "pairs": pairs,
        "downloaded": good,
        "failed": pairs - good,
        "failures": dict(sorted(failures.items())),
        "metadata": [str(file) for file in files],
        "incomplete_shards": sorted(begun - finished),
    }


def _shard(path):
    return path.name.removesuffix("_stats.json").removesuffix(".parquet")


def _reason(row):
    """Shorten a reason, since a URL in it would make each one unique."""
    message = row["error_message"] or row["status"] or "unknown"
    for known in ("HTTP Error", "timed out", "cannot identify", "Forbidden"):
        if known in message:
            start = message.index(known)
            return message[start : start + 30].split(":")[0].strip()
    return message.split(":")[0][:60]


def _run(words, folder, pairs, progress):
    """Run the program to its end, and show its progress."""
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last = []

    def listen():
        for line in process.stdout:
            last.append(line)
            del last[:-20]

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        _wait(process, folder, pairs, progress)
    except BaseException:
        # Ctrl-C also ends img2dataset; the next run resumes.
        process.terminate()
        process.wait()
        raise
    listener.join()
    if process.returncode:
        tail = " ".join("".join(last).split())[-500:]
        raise OSError(
            f"img2dataset ended with status {process.returncode}: {tail}"
        )


def _wait(process, folder, pairs, progress):
    if not progress:
        process.wait()
        return
    with progress_bar("Downloading", pairs) as advance:
        done, ended = 0, False
        while not ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
                ended = True
            count = _attempted(folder)
            advance(count - done)
            done = count


def _attempted(folder):
    """Count the pairs in finished shards."""
    total = 0
    for file in glob_visible(folder, STATISTICS):
        try:
            total += read_json(file)["count"]
        except (ValueError, KeyError, OSError):
            # img2dataset is just writing the file.
            continue
    return total
