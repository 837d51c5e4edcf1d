"""YAML as people write it, and as somebody would write it to do harm."""

import time

import pytest

from align_keras.io.yaml_files import read_yaml


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


def test_plain_values_are_read(tmp_path):
    text = "\ufeffsteps: 1_000\nrate: 1.0e-3\nrules: [a, {b: c}]\nname: é\n"
    assert read_yaml(write(tmp_path, text)) == {
        "steps": 1000,
        "rate": 1e-3,
        "rules": ["a", {"b": "c"}],
        "name": "é",
    }
    assert read_yaml(write(tmp_path, "")) is None
    # Equal keys of different mappings, and siblings at one depth.
    siblings = "\n".join(f"k{n}: {{a: [1]}}" for n in range(200))
    assert len(read_yaml(write(tmp_path, siblings))) == 200


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("steps: [1", "line 1"),
        (BOMB, r"alias `\*a` is not supported.*line 2"),
        ("base: &b {x: 1}\nother:\n  <<: *b\n", r"alias `\*b`"),
        ("[" * 100_000, "nested more than 64 levels deep"),
        ("steps: 1\nsteps: 2\n", "`steps` is given twice.*line 2"),
        ("a:\n  b: 1\n  b: 2\n", "`b` is given twice"),
        ("x: !!python/object/apply:os.system [ls]", "python/object"),
        ("x" * 2_000_000, "at most"),
        ("steps: " + "9" * 5000, "number of 5000 characters"),
        # Python could not write them in any message.
        ("steps: 0x" + "f" * 9000, "number of 9002 characters"),
        ("steps: 0b" + "1" * 90_000, "number of 90002 characters"),
        # Minutes and hours, which take as many squared.
        ("steps: 1" + ":1" * 400_000, "number of 800001 characters"),
        ("rate: 1" + ":1" * 300 + ".5", "number of 603 characters"),
    ],
)
def test_what_does_harm_is_named_at_once(tmp_path, text, reason):
    path = write(tmp_path, text)
    start = time.process_time()
    with pytest.raises(ValueError, match="recipe.yaml` is not .*" + reason):
        read_yaml(path)
    # Not a measurement: the bomb would take hours.
    assert time.process_time() - start < 20


def test_bytes_that_are_not_text_are_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="recipe.yaml` is not valid YAML"):
        read_yaml(path)
