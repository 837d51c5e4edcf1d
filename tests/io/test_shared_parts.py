"""Claims, fingerprints, JSON files, optional modules, threads, progress."""

import copy
import hashlib
import json
import pickle
import threading

import numpy as np
import pytest

from align_keras.io.claims import claim
from align_keras.io.fingerprints import arrays_fingerprint
from align_keras.io.fingerprints import directory_fingerprint
from align_keras.io.fingerprints import file_digest
from align_keras.io.fingerprints import fingerprint
from align_keras.io.json_files import read_json
from align_keras.io.json_files import write_json
from align_keras.io.optional import OptionalModule
from align_keras.io.progress import progress_bar
from align_keras.io.progress import progress_steps
from align_keras.io.threads import map_ahead

# === Claims ===


def test_a_claim_holds_and_names_what_differs(tmp_path):
    path = tmp_path / "run" / "recipe.json"
    claim(path, {"steps": 3, "shape": (1, 2)}, "a run")
    before = path.read_bytes()
    claim(path, {"shape": (1, 2), "steps": 3}, "a run")
    for changed, name in (
        ({"steps": 4, "shape": (1, 2)}, "steps"),
        ({"steps": 3}, "shape"),
        ({"steps": 3, "shape": (1, 2), "seed": 0}, "seed"),
    ):
        with pytest.raises(ValueError, match=f"holds a run with {name}="):
            claim(path, changed, "a run")
    assert path.read_bytes() == before


# === JSON ===


def test_json_files_are_read_as_people_write_them(tmp_path):
    value = {"name": "café \u2028 \udce9", "n": [1, 2.5, None]}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == value
    assert read_json(tmp_path / "a.json") == value
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "bom.json") == {"a": 1}


@pytest.mark.parametrize(
    "contents", [b"{", b"", b"\xff\xfe{", b"[" * 200_000, b'{"a": 1} x']
)
def test_a_file_that_is_not_json_is_named(tmp_path, contents):
    path = tmp_path / "manifest.json"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="manifest.json` is not valid JSON"):
        read_json(path)


# === Fingerprints ===


def test_fingerprints_tell_values_and_files_apart(tmp_path):
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    values = [["ab", "c"], ["a", "bc"], ["abc"], "abc", [["ab", "c"]], 1, 1.0]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint("a", "b") != fingerprint("ab")
    assert len(fingerprint()) == 16
    arrays = [np.arange(4.0), np.ones(3)]
    changed = [np.arange(4.0), np.array([1.0, 1.0, 2.0])]
    kinds = [(arrays,), (changed,), (arrays[::-1],), (arrays, "average")]
    assert len({arrays_fingerprint(*kind) for kind in kinds}) == 4

    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y").write_bytes(b"1")
    digest = hashlib.sha256(b"1").hexdigest()
    assert file_digest(tmp_path / "x" / "y") == digest
    found = {directory_fingerprint(tmp_path)}
    (tmp_path / "x" / "y").write_bytes(b"2")
    found.add(directory_fingerprint(tmp_path))
    (tmp_path / "x" / "y").rename(tmp_path / "x" / "z")
    found.add(directory_fingerprint(tmp_path))
    assert len(found) == 3 and None not in found
    assert directory_fingerprint(tmp_path / "x" / "z") is None


# === Optional modules ===


def test_an_optional_module_is_imported_at_its_first_use():
    module = OptionalModule("json.decoder", extra="search")
    assert module.JSONDecoder is json.decoder.JSONDecoder
    missing = OptionalModule("no_such_package.part", extra="search")
    for twin in (missing, copy.copy(missing), copy.deepcopy(missing)):
        with pytest.raises(
            ImportError, match=r'`no_such_package`: pip .*"align-keras\[search'
        ):
            _ = twin.table
    assert pickle.loads(pickle.dumps(module)).JSONDecoder is json.JSONDecoder


# === Threads ===


def test_work_ahead_keeps_order_and_reads_little():
    taken, running, most = [], set(), []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    def work(number):
        running.add(threading.get_ident())
        return number * number

    for count, result in enumerate(map_ahead(work, items(), workers=2)):
        assert result == count * count
        most.append(len(taken) - count)
    assert len(most) == 100 and max(most) <= 4 * 2 + 1


def test_an_error_in_a_thread_comes_out():
    def work(number):
        if number == 3:
            raise KeyError(number)
        return number

    seen = []
    with pytest.raises(KeyError):
        for number in map_ahead(work, range(10), workers=2):
            seen.append(number)
    assert seen == [0, 1, 2]


# === Progress ===


def test_progress_goes_to_the_error_stream(capsys):
    with progress_bar("Embedding", 3) as advance:
        advance()
        advance(2)
    with progress_steps() as step:
        step("Reading")
        step("Reading: 10 rows", update=True)
        step("Writing")
    out, err = capsys.readouterr()
    assert out == ""
    assert "Embedding" in err and "3/3" in err
    assert "Reading: 10 rows" in err and "Writing" in err
    # What has ended shows no spinner.
    assert err.count("✓") == 2
    with progress_bar("Embedding", 3, shown=False) as advance:
        advance(3)
    with progress_steps(shown=False) as step:
        step("Reading")
    assert capsys.readouterr().err == ""
