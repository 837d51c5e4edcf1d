"""Divide a data set into parts that several machines pack."""

import dataclasses
import os
import re
from pathlib import Path

from align_keras.data.shuffle import random_place
from align_keras.io.atomic import atomic_file
from align_keras.io.file_names import holds_several
from align_keras.io.file_names import is_parquet
from align_keras.io.file_names import sample_key
from align_keras.io.json_files import is_count
from align_keras.io.json_files import read_object
from align_keras.io.json_files import write_json
from align_keras.io.mirrors import local_copy
from align_keras.io.stores import Store
from align_keras.io.stores import is_store
from align_keras.io.text import clean_text

FOLDER = re.compile(r"part-(\d+)-of-(\d+)")
MANIFEST = "manifest.json"
# Number of missing parts that messages name; the others are counted.
SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a data set.

    Sources that can be read in any order are divided by the random order: the
    parts, one after the other, have the order of a single run. Streams are
    divided by files.

    Attributes:
        number: int. The number of the part, from 1.
        count: int. The number of parts.
    """

    number: int
    count: int

    @classmethod
    def of(cls, value):
        """Make a part from a value such as `"3/64"` or `(3, 64)`.

        Raises:
            ValueError: The value is not a part.
        """
        try:
            pair = value.split("/") if isinstance(value, str) else value
            number, count = (int(n) for n in pair)
        except (TypeError, ValueError):
            number, count = 0, 0
        if not 1 <= number <= count:
            raise ValueError(
                "`part` must be the number of a part, from 1, and the number "
                f"of parts, such as 3/64. Received: {value!r}"
            )
        return cls(number, count)

    @property
    def is_first(self):
        """Whether this is the part that counts files that belong to no part."""
        return self.number == 1

    @property
    def folder(self):
        """The name of the part's directory within the output."""
        return f"part-{self.number:05d}-of-{self.count:05d}"

    def holds(self, key, seed):
        """Tell whether a record belongs to this part, by its random place."""
        place, _ = random_place(key, seed)
        place = int.from_bytes(place, "big") * self.count >> 64
        return place == self.number - 1

    def files(self, names):
        """Return the files of a stream that belong to this part.

        Raises:
            ValueError: There are fewer files than parts.
        """
        if len(names) < self.count:
            raise ValueError(
                f"{len(names)} files cannot be divided into {self.count} "
                f"parts: choose at most {len(names)} parts."
            )
        return names[self.number - 1 :: self.count]

    def names(self, names, streams):
        """Return the files of a store that this part needs.

        Args:
            names: list of strings. All files.
            streams: list of strings. Those to divide; see `find_streams`.
        """
        if not streams:
            return names
        described = set(map(sample_key, streams))

        def is_needed(name):
            # No part reads the tables that img2dataset writes next to its
            # archives, and only the first one counts what nobody reads.
            if is_parquet(name) and sample_key(name) in described:
                return False
            return self.is_first or not holds_several(name)

        others = set(names).difference(streams)
        return [*filter(is_needed, others), *self.files(streams)]


def commit_parts(output, count):
    """Write the manifest of the whole data set if all parts are packed.

    Args:
        output: string or `pathlib.Path`. The directory, or its address.
        count: int. The number of parts.

    Returns:
        A pair: the manifest, or `None` if parts are missing, and the list of
        the missing parts' numbers.

    Raises:
        ValueError: Parts were packed with different arguments, or none of
            them holds a record.
    """
    parts = [Part(number, count) for number in range(1, count + 1)]
    held = {part: _read(output, part) for part in parts}
    missing = [part.number for part in parts if held[part] is None]
    if missing:
        return None, missing
    first = _asked(held[parts[0]])
    shards, reasons, skipped = [], {}, []
    for part, manifest in held.items():
        if _asked(manifest) != first:
            raise ValueError(
                f"`{output}` holds parts that were packed with different "
                f"arguments: {part.folder} with {_asked(manifest)}, and "
                f"{parts[0].folder} with {first}. Remove one of them, and pack "
                "it again."
            )
        shards += [
            {**shard, "file": f"{part.folder}/{shard['file']}"}
            for shard in manifest["shards"]
        ]
        for reason, number in manifest["skipped_reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + number
        skipped += manifest["skipped"]
    sums = {
        name: sum(manifest[name] for manifest in held.values())
        for name in ("records", "captions", "skipped_count", "images")
    }
    if not sums["records"]:
        raise ValueError(
            f"No image of `{first['source']}` could be packed: "
            f"{sums['skipped_count']} were left out ({reasons}), see the "
            f"manifests in `{output}`."
        )
    whole = {
        **sums,
        "parts": count,
        "held_out": 0,
        "order": held[parts[0]]["order"],
        "skipped_reasons": dict(sorted(reasons.items())),
        "skipped": skipped[:1000],
        "shards": shards,
        "arguments": first,
    }
    # Two machines that finish at the same time write the same manifest.
    _write(output, whole)
    return whole, []


def _asked(manifest):
    arguments = manifest["arguments"]
    return {name: v for name, v in arguments.items() if name != "part"}


def _read(output, part):
    """Return the manifest of a part; `None` if it is not packed."""
    name = f"{part.folder}/{MANIFEST}"
    if not is_store(output):
        path = Path(output, name)
        return read_manifest(path) if path.is_file() else None
    if not Store(output).is_file(name):
        return None
    return read_manifest(local_copy(f"{Store(output)}/{name}"))


def read_manifest(path):
    """Read a manifest that `pack` wrote, of a part or of the whole data set.

    Raises:
        ValueError: The manifest is damaged or was written by another program.
            The message names the file and the field.
    """
    counts = ("records", "captions", "skipped_count", "images", "held_out")
    return read_object(
        path,
        {
            **dict.fromkeys(counts, is_count),
            "arguments": {"source": str},
            "order": str,
            "shards": [{"file": str, "records": is_count}],
            "skipped": list,
            "skipped_reasons": {"*": is_count},
        },
        "manifest of packed records",
        "Remove it and the files next to it, and pack again, or choose "
        "another directory.",
    )


def _write(output, manifest):
    if not is_store(output):
        write_json(Path(output, MANIFEST), manifest)
        return
    with atomic_file(f"{Store(output)}/{MANIFEST}") as temporary:
        write_json(temporary, manifest)


def other_divisions(output, count):
    """Return the folders of parts for a different number of parts."""
    if is_store(output):
        names = {name.partition("/")[0] for name in Store(output).sizes()}
    else:
        names = os.listdir(output) if os.path.isdir(output) else ()
    found = ((name, FOLDER.fullmatch(name)) for name in sorted(names))
    return [name for name, match in found if match and int(match[2]) != count]


def describe_missing(missing, count):
    """Name the parts that are still to be packed."""
    if not missing:
        return (
            f"All {count} parts are packed, but the manifest is missing: pack "
            "any part again in the same way, which only writes the manifest."
        )
    shown = ", ".join(map(str, missing[:SHOWN]))
    if len(missing) > SHOWN:
        shown += f" and {len(missing) - SHOWN} more"
    return (
        f"{count - len(missing)} of {count} parts are packed. The manifest "
        f"is written when all are; missing: {shown}."
    )


def shards_of_parts(folder, manifest):
    """Return the TFRecord files of a data set that was packed in parts.

    Args:
        folder: string. A directory, or its address.
        manifest: dict. The contents of its `manifest.json`; empty if there is
            none.

    Returns:
        list of strings. Empty if the folder holds no parts.

    Raises:
        FileNotFoundError: Some parts have not been packed yet, or only the
            manifest of the data set is missing.
    """
    if manifest.get("parts"):
        return [f"{folder}/{shard['file']}" for shard in manifest["shards"]]
    if is_store(folder):
        files = set(Store(folder).sizes())
    else:
        paths = Path(folder).glob("part-*/*")
        files = {f"{path.parent.name}/{path.name}" for path in paths}
    parts = {file.partition("/")[0] for file in files}
    found = [match for match in map(FOLDER.fullmatch, parts) if match]
    if not found:
        return []
    count = int(found[0][2])
    # In a store, the manifest of a part appears after its records.
    missing = [
        number
        for number in range(1, count + 1)
        if f"{Part(number, count).folder}/{MANIFEST}" not in files
    ]
    raise FileNotFoundError(
        f"`{clean_text(str(folder))}` holds a data set that is packed in "
        f"parts, and is not complete. {describe_missing(missing, count)}"
    )
