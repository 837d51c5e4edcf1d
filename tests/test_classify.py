"""Classes of images by names alone, beside the sums written out."""

import json

import numpy as np
import pytest
from tiny_align import image_file
from tiny_align import tiny_align

from align_keras.classes import classify
from align_keras.cli import main
from align_keras.embedding import Embedder

NAMES = ["a bus", ["a dog", "a cat"], "a house"]
TEMPLATES = ["{}", "the {} on a street"]


@pytest.fixture(scope="module")
def model():
    return tiny_align()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A preset, and images of several sizes."""
    folder = tmp_path_factory.mktemp("classify")
    model.save_to_preset(str(folder / "preset"))
    for number in range(3):
        contents = image_file(number, (60 + number, 50))
        (folder / f"{number}.jpg").write_bytes(contents)
    return folder


def by_hand(model, images, names, templates):
    """Softmax of cosines over the temperature, of means of unit vectors."""

    def unit(x):
        x = np.asarray(x, "float64")
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    classes = []
    for group in names:
        group = [group] if isinstance(group, str) else group
        prompts = [t.replace("{}", n) for n in group for t in templates]
        classes.append(unit(unit(model.encode_text(prompts)).mean(axis=0)))
    vectors = unit(model.encode_image([str(image) for image in images]))
    powers = np.exp(vectors @ np.stack(classes).T / model.temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("templates", [["{}"], TEMPLATES])
def test_probabilities_are_those_of_the_sums(model, folder, templates):
    images = sorted(folder.glob("*.jpg"))
    found = classify(model, images, NAMES, templates)
    expected = by_hand(model, images, NAMES, templates)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    # They tell the images apart.
    assert np.ptp(found, axis=0).max() > 1e-4


def test_the_command_prints_the_most_probable_first(model, folder, capsys):
    image = str(folder / "1.jpg")
    names = ["a bus", "a dog", "a house"]
    command = ["classify", image, *names, "--model", str(folder / "preset")]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    (expected,) = by_hand(model, [image], names, ["{}"])
    order = np.argsort(-expected)
    assert [line.split("  ")[-1] for line in lines] == [names[n] for n in order]
    printed = [float(line.split("%")[0]) / 100 for line in lines]
    np.testing.assert_allclose(printed, expected[order], atol=1e-4)

    command[1] = str(folder)
    assert main([*command, "--template", "a {}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [str(folder / f"{n}.jpg") for n in range(3)]
    (expected,) = by_hand(model, [image], names, ["a {}"])
    np.testing.assert_allclose(
        [found[image][name] for name in names], expected, rtol=1e-4
    )


def test_what_cannot_be_classified_is_refused(model, folder, tmp_path, capsys):
    with pytest.raises(ValueError, match="at least two classes"):
        classify(model, [folder / "0.jpg"], ["a bus"])
    with pytest.raises(ValueError, match="`images` must hold at least one"):
        classify(model, [], ["a bus", "a dog"])
    blind = Embedder("blind", images=len, texts=len)
    with pytest.raises(ValueError, match="`blind` does not record its temper"):
        classify(blind, [folder / "0.jpg"], ["a bus", "a dog"])
    (tmp_path / "empty").mkdir()
    preset = ["--model", str(folder / "preset")]
    (tmp_path / "names.txt").write_text("crane\nbus\ncrane\n")
    twice = ["--classes", str(tmp_path / "names.txt")]
    for command, message in (
        ([str(folder / "0.jpg"), *twice], "'crane' on line 1 and again on"),
        ([str(folder / "0.jpg"), "a", "b", "a"], "'a' is given twice"),
        ([str(tmp_path / "gone.jpg"), "a", "b"], "no image or folder"),
        ([str(tmp_path / "empty"), "a", "b"], "holds no images"),
        ([str(folder / "0.jpg")], "either as arguments or as a file"),
        ([str(folder / "0.jpg"), "a", *twice], "either as arguments"),
    ):
        assert main(["classify", *command, *preset]) == 2
        assert message in capsys.readouterr().err


def test_recipes_are_listed_with_their_fields(capsys):
    assert main(["recipes"]) == 0
    table = capsys.readouterr().out
    assert "align" in table and "1,200,000 steps" in table
    assert main(["recipes", "small", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["batch_size"] == 64 and fields["optimizer"] == "adamw"
    assert main(["recipes", "small"]) == 0
    assert "batch_size: 64" in capsys.readouterr().out.splitlines()
    assert main(["recipes", "smal"]) == 2
    assert "Did you mean `small`?" in capsys.readouterr().err


def test_what_a_folder_holds_that_is_not_read_is_named(
    folder, tmp_path, capsys
):
    (tmp_path / "a.jpg").write_bytes(image_file(0))
    (tmp_path / "b.heic").write_bytes(b"not read")
    (tmp_path / "c.jpg").write_bytes(b"damaged")
    command = ["--model", str(folder / "preset"), "--json"]
    assert main(["classify", str(tmp_path), "a", "b", *command]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out).keys() == {str(tmp_path / "a.jpg")}
    for name in ("b.heic", "c.jpg"):
        assert f"{tmp_path / name} is left out" in captured.err
    # One that is named by itself is an error.
    assert main(["classify", str(tmp_path / "c.jpg"), "a", "b", *command]) == 2


def test_names_of_images_and_classes_that_are_not_utf8(folder, tmp_path, capfd):
    """Printed as far as they can be, and not a reason to stop."""
    latin = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    for number, name in enumerate((latin, "b.jpg")):
        (tmp_path / name).write_bytes(image_file(number))
    command = ["classify", str(tmp_path), "a \udce9", "a bus"]
    assert main([*command, "--model", str(folder / "preset")]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert str(tmp_path / "caf\\udce9.jpg") in lines
    assert sum("a \\udce9" in line for line in lines) == 2
