"""What a user gets: the wheel, its names, its command, its front page."""

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import align_keras
from align_keras import registry
from align_keras.cli import COMMANDS
from align_keras.cli import main

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "align_keras",
    "presets",
    "LICENSE",
    "README.md",
    "setup.cfg",
    "setup.py",
)


def run(command, cwd, **environment):
    """Run a command; only `environment` says where Python looks."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def run_python(code, cwd, **environment):
    """Run code in a fresh process and return the JSON of its last line."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    output = run(command, cwd, **environment).stdout
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Directory with the installed wheel, built from a copy of the sources."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    source.mkdir()
    for name in (*SOURCES, "pyproject.toml"):
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--no-input"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "-w", directory]
    run([*build, source], directory)
    (wheel,) = directory.glob("*.whl")
    target = directory / "installed"
    run([*pip, "install", *offline, "--target", target, wheel], directory)
    shutil.rmtree(source)
    return target


def test_wheel_holds_every_module_preset_and_recipe(installed):
    expected = {
        path.relative_to(ROOT) for path in ROOT.glob("align_keras/**/*.py")
    }
    configs = ROOT.glob("align_keras/curation/configs/*.yaml")
    expected |= {path.relative_to(ROOT) for path in configs}
    expected.add(Path("align_keras/py.typed"))
    for pattern in ("presets/*/*.json", "presets/recipes/*.yaml"):
        expected |= {
            "align_keras" / path.relative_to(ROOT)
            for path in ROOT.glob(pattern)
        }
    assert len(expected) > 150
    assert [str(p) for p in expected if not (installed / p).is_file()] == []


def test_installed_wheel_works_away_from_the_checkout(installed, tmp_path):
    found = run_python(
        """
        import importlib
        import json
        import pkgutil
        import sys

        import align_keras
        from align_keras.models.shipped_presets import presets_directory
        from align_keras.training import load_recipe

        for module in pkgutil.walk_packages(
            align_keras.__path__, "align_keras."
        ):
            if module.ispkg:
                importlib.import_module(module.name)
        model = align_keras.AlignDualEncoder.from_preset("align_b0_bert_tiny")
        print(json.dumps({
            "files": [
                module.__file__
                for name, module in sys.modules.items()
                if name.partition(".")[0] == "align_keras"
            ],
            "presets_directory": str(presets_directory()),
            "presets": len(align_keras.list_presets()),
            "parameters": sum(
                weight.value.shape.num_elements()
                for weight in model.trainable_variables
            ),
            "batch_size": load_recipe("align").batch_size,
        }))
        """,
        tmp_path,
        PYTHONPATH=str(installed),
        KERAS_BACKEND="tensorflow",
    )
    inside = str(installed / "align_keras")
    assert [
        file for file in found["files"] if not file.startswith(inside)
    ] == []
    assert found["presets_directory"] == str(Path(inside) / "presets")
    assert found["presets"] == 54
    assert (
        found["parameters"]
        == (align_keras.list_presets()["align_b0_bert_tiny"]["parameters"])
    )
    assert found["batch_size"] == 16_384


def test_help_of_the_installed_command_is_quick(installed, tmp_path):
    result = run(
        [sys.executable, "-X", "importtime"]
        + [installed / "bin" / "align-keras", "--help"],
        tmp_path,
        PYTHONPATH=str(installed),
    )
    imported = {
        line.rpartition("|")[2].strip() for line in result.stderr.splitlines()
    }
    assert "align_keras.cli" in imported
    heavy = {"keras", "keras_hub", "tensorflow", "jax", "numpy", "rich"}
    assert imported & heavy == set()
    for command, sentence in COMMANDS.items():
        assert re.search(rf"^ +{command}\s", result.stdout, re.MULTILINE)
        assert " ".join(sentence.split()) in " ".join(result.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: align-keras {command}" in capsys.readouterr().out


def test_there_is_one_version(installed, tmp_path):
    """Of the package, the wheel, the command, and the citation."""
    found = run(
        [installed / "bin" / "align-keras", "--version"],
        tmp_path,
        PYTHONPATH=str(installed),
    )
    version = align_keras.__version__
    assert found.stdout == f"align-keras {version}\n"
    assert (installed / f"align_keras-{version}.dist-info").is_dir()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == version


def test_import_chooses_no_backend(tmp_path):
    modules = run_python(
        """
        import json
        import sys

        import align_keras

        print(json.dumps(sorted(sys.modules)))
        """,
        tmp_path,
        PYTHONPATH=str(ROOT),
    )
    assert "align_keras" in modules
    heavy = {"keras", "keras_hub", "tensorflow", "jax", "numpy"}
    assert heavy & set(modules) == set()


def test_what_lower_floors_call_on_is_there():
    assert registry.names() == [
        "export_onnx",
        "export_saved_model",
        "load_image_encoder",
        "load_preprocessor",
        "measure_retrieval",
        "open_foreign_weights",
    ]
    for name in registry.names():
        assert callable(registry.find(name)), name


def test_no_module_imports_what_only_the_whole_package_has():
    """The floors would not be seen: the root imports from each of them."""
    for path in ROOT.glob("align_keras/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                taken = names & set(align_keras.__all__)
                assert node.module != "align_keras" or not taken, path
            if isinstance(node, ast.Attribute):
                whole = ast.unparse(node)
                assert whole not in {
                    f"align_keras.{name}" for name in align_keras.__all__
                }, path


def test_readme_lists_the_folders_of_the_package():
    text = (ROOT / "README.md").read_text()
    places = text.partition("## Where things are")[2].partition("`presets/`")[0]
    listed = re.findall(r"`(?:align_keras/)?(\w+)`", places)
    packages = [path.parent.name for path in ROOT.glob("align_keras/*/*.py")]
    assert sorted(listed) == sorted(set(packages))


def test_tensorflow_keeps_the_memory_of_tensors(tmp_path):
    """Large tensors, freed and made again, cost no new pages of memory."""
    code = """
        import resource

        import align_keras
        import tensorflow as tf

        def faults():
            for _ in range(3):
                tf.zeros((64, 2**20)) + 1.0
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

        print(-faults() + faults())
        """
    given = {"PYTHONPATH": str(ROOT), "TF_CPU_ALLOCATOR_USE_BFC": "0"}
    lost = run_python(code, tmp_path, **given)
    del given["TF_CPU_ALLOCATOR_USE_BFC"]
    assert run_python(code, tmp_path, **given) < lost / 10


def test_jax_needs_no_tensorflow(tmp_path):
    """Strings and images in, vectors out."""
    found = run_python(
        """
        import sys

        # As if they were not installed.
        for name in ("tensorflow", "tensorflow_text"):
            sys.modules[name] = None

        import json

        import keras
        import numpy as np

        import align_keras
        from align_keras import *

        words = "[PAD] [UNK] [CLS] [SEP] [MASK] a red bus".split()
        images = keras.Input((32, 32, 3))
        model = AlignDualEncoder(
            keras.Model(images, keras.layers.Conv2D(8, 8, 8)(images)),
            BertTextEncoder(len(words), 1, 2, 16, 32),
            preprocessor=AlignPreprocessor(
                AlignTokenizer(words),
                AlignImageConverter(image_size=32, resize_size=40),
                sequence_length=8,
            ),
        )
        def numbers(x):
            return keras.ops.convert_to_numpy(x).tolist()
        # What the preprocessor must make of the two captions by hand.
        by_hand = {
            "token_ids": np.array(
                [[2, 5, 6, 7, 3, 0, 0, 0], [2, 5, 1, 3, 0, 0, 0, 0]]
            ),
            "padding_mask": np.array(
                [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]
            ),
        }
        # Resizing and cropping leave an even gray as it is.
        gray = np.full((1, 50, 60, 3), 51, "uint8")
        print(json.dumps({
            "names": [name for name in align_keras.__all__
                      if name not in globals()],
            "backend": keras.config.backend(),
            "texts": numbers(model.encode_text(["A red bus", "a dog"])),
            "tokens": numbers(model.encode_text(by_hand)),
            "images": numbers(model.encode_image(gray)),
            "pixels": numbers(model.encode_image(
                np.full((1, 32, 32, 3), 51 / 127.5 - 1, "float32")
            )),
        }))
        """,
        tmp_path,
        PYTHONPATH=str(ROOT),
        KERAS_BACKEND="jax",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    assert found["backend"] == "jax"
    assert found["names"] == []
    first, second = found["texts"]
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 1e-4
    for given, expected in (("texts", "tokens"), ("images", "pixels")):
        for row, other in zip(found[given], found[expected], strict=True):
            assert sum(x * x for x in row) == pytest.approx(1, abs=1e-5)
            assert row == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("name", align_keras.__all__)
def test_public_name_is_explained_with_an_example(name):
    docstring = textwrap.dedent(
        "    " + (getattr(align_keras, name).__doc__ or "")
    )
    assert "Example:" in docstring
    code = re.findall(r"```python\n(.*?)```", docstring, re.DOTALL)
    assert code
    for block in code:
        compile(textwrap.dedent(block), name, "exec")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="AlignModel"):
        align_keras.AlignModel  # noqa: B018


def test_readme_lists_the_presets_as_they_are():
    """Each row: image encoder, embedding, and per text encoder a cell."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("|")
    ]
    texts = [heading.strip("`") for heading in rows[0][2:]]
    checked = 0
    table = align_keras.list_presets()
    for image, width, *cells in rows[2:11]:
        for text, cell in zip(texts, cells, strict=True):
            row = table[f"align_{image.strip('`')}_bert_{text}"]
            size, gflops = cell.split(" · ")
            assert int(width) == row["embedding_dim"]
            assert size == f"{row['parameters'] / 1e6:.0f} M"
            assert gflops == f"{row['gflops']:.1f}"
            checked += 1
    assert checked == len(table) == 54


def test_readme_imports_what_exists():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    names = []
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        for statement in ast.parse(block).body:
            if isinstance(statement, ast.ImportFrom):
                module = importlib.import_module(statement.module)
                names += [getattr(module, n.name) for n in statement.names]
    assert align_keras.AlignDualEncoder in names


TYPED = (
    "curation",
    "data",
    "embedding",
    "evaluation",
    "planning",
    "search",
    "serving",
    "training",
)


@pytest.mark.parametrize("package", TYPED)
def test_public_functions_have_type_hints(package):
    """Those of the functions, and of the methods of the classes, in `__all__`;
    mypy checks that they are true."""
    package = importlib.import_module(f"align_keras.{package}")
    for name in package.__all__:
        public = getattr(package, name)
        functions = {name: public}
        if inspect.isclass(public):
            functions = {
                f"{name}.{key}": value
                for key, value in vars(public).items()
                if inspect.isfunction(value) and not key.startswith("_")
            }
        for place, function in functions.items():
            signature = inspect.signature(function)
            bare = [
                parameter.name
                for parameter in signature.parameters.values()
                if parameter.annotation is inspect.Parameter.empty
                and parameter.name != "self"
            ]
            assert bare == [], place
            empty = inspect.Signature.empty
            assert signature.return_annotation is not empty, place


def test_the_page_on_security_counts_its_cases():
    """The number of cases of each file that docs/security.md names."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(\w+/test_\w+\.py)` \| (\d+) \|", page)
    assert len(rows) > 10
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-q"]
        + ["-p", "no:cacheprovider", *(f"tests/{name}" for name, _ in rows)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTEST_ADDOPTS": "", "ALIGN_THOROUGH": ""},
    )
    found = re.findall(r"^tests/(\S+): (\d+)$", collected.stdout, re.M)
    assert sorted(found) == sorted(rows), collected.stdout[-2000:]
