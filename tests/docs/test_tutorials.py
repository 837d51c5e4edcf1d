"""The commands of the tutorials run as they stand, one after the other."""

import csv
import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import hub_server
import pytest
from tiny_align import tiny_align
from without_xla import disable_xla

from align_keras.cli import main
from align_keras.cli import make_parser
from align_keras.quickstart import write_scenes

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
NOTEBOOKS = ROOT / "examples" / "notebooks"


def notebook_of(page):
    path = ROOT / "docs" / "make_notebooks.py"
    spec = importlib.util.spec_from_file_location("make_notebooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.notebook_of(page)


def commands(name):
    """The commands of a page that end by themselves, but for pip's."""
    page = (TUTORIALS / f"{name}.md").read_text("utf-8")
    found = []
    for block in re.findall(r"^```shell\n(.*?)^```", page, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[0] == "align-keras":
                found.append(words[1:])
            else:
                assert words[:2] == ["pip", "install"]
    return found


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scenes("photos", 20)
    shutil.copy(min(Path("photos/images").iterdir()), "photos/one.jpg")
    return tmp_path / "photos"


def run(words):
    assert main(words) == 0, words


@pytest.mark.thorough
def test_train_on_your_photos(photos):
    ran = []
    for words in commands("train_on_your_photos"):
        if words[0] == "train":
            # The same run, over in seconds.
            words = [*words, "--set", "epochs=1", "--set", "image_size=32"]
            words += ["--set", "batch_size=4"]
        run(words)
        ran.append(words[0])
    assert ran == ["train", "evaluate", "embed", "index", "search"]
    assert Path("run/saved_model/saved_model.pb").is_file()


def test_the_captions_of_the_page_are_read(tmp_path):
    from align_keras.data import read_captions

    page = (TUTORIALS / "train_on_your_photos.md").read_text("utf-8")
    (table,) = re.findall(r"^```\n(image,caption\n.*?)^```", page, re.M | re.S)
    path = tmp_path / "captions.csv"
    path.write_text(table)
    expected = {}
    for row in csv.DictReader(table.splitlines()):
        expected.setdefault(row["image"], []).append(row["caption"])
    assert read_captions(path) == expected


@pytest.fixture
def pretrained(monkeypatch, tmp_path):
    """What stands on a hub of this machine in the place of align-base."""
    pytest.importorskip("torch", reason="It makes the pretrained model")
    pytest.importorskip("transformers", reason="It makes the pretrained model")
    from huggingface_models import make_align
    from huggingface_models import make_processor

    make_align().save_pretrained(tmp_path / "published")
    make_processor().save_pretrained(tmp_path / "published")
    with hub_server.hub_running() as hub:
        hub.add("kakaobrain/align-base", tmp_path / "published")
        hub_server.use(hub, monkeypatch, tmp_path / "cache")
        yield


def test_search_your_photos(photos, pretrained, capsys):
    ran = []
    for words in commands("search_your_photos"):
        run(words)
        ran.append(words[0])
    assert ran == ["classify", "embed", "index", *["search"] * 3]
    assert "one.jpg" in capsys.readouterr().out


@pytest.mark.thorough
def test_fine_tune(photos, pretrained):
    ran = []
    for words in commands("fine_tune"):
        if words[0] == "train":
            words = [*words, "--set", "steps=2", "--set", "batch_size=4"]
            words += ["--set", "image_size=33", "--set", "checkpoint_every=2"]
        run(words)
        ran.append(words[0])
    expected = ["pack", "evaluate", "train", "evaluate", "evaluate"]
    assert ran == [*expected, "average", "evaluate"]


def test_curate_a_crawl(tmp_path, monkeypatch, capsys):
    pytest.importorskip("ibis", reason="It is the extra curation")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    page = (TUTORIALS / "curate_a_crawl.md").read_text("utf-8")
    (table,) = re.findall(r"^```\n(url,.*?)^```", page, re.M | re.S)
    Path("pairs").mkdir()
    Path("pairs/a.csv").write_text(table)
    for words in commands("curate_a_crawl"):
        run(words)
    assert "token_count" in capsys.readouterr().out
    assert Path("clean/audit.html").is_file()
    kept = parquet.read_table("clean/kept").column("text").to_pylist()
    assert kept == ["a red bus on a street in the rain"]
    assert "[CLS]" in Path("vocabulary.txt").read_text().split()


@pytest.mark.thorough
def test_cleaner_data(photos, capsys, monkeypatch):
    """Each pair has a score, and those with the best are packed again."""
    pytest.importorskip("ibis", reason="It is the extra curation")
    parquet = pytest.importorskip("pyarrow.parquet")
    page = (TUTORIALS / "cleaner_data.md").read_text("utf-8")
    (rules,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    example = (ROOT / "examples" / "two_passes.yaml").read_text("utf-8")
    assert example.partition("rules:\n")[2] == rules.partition("rules:\n")[2]
    Path("two_passes.yaml").write_text(rules)
    write_scenes("test", 8, split="evaluation")
    tiny_align().save_to_preset("tiny")
    disable_xla(monkeypatch)
    trained = []
    for words in commands("cleaner_data"):
        if words[0] == "train":
            options = vars(make_parser().parse_args(words))
            trained.append(options)
            if len(trained) == 2:
                # It is the same command with other data, and takes as long.
                shutil.copytree("first", "second")
                continue
            # The same run, over in seconds.
            words[words.index("--preset") + 1] = "tiny"
            words = [*words, "--set", "steps=2", "--set", "image_size=33"]
            words += ["--set", "batch_size=4", "--no-diagnostics"]
        capsys.readouterr()
        run(words)
        if "--explain" in words:
            assert "score" in capsys.readouterr().out
    assert "mean recall" in capsys.readouterr().out

    def rows_of(folder):
        (path,) = Path(folder).glob("*.parquet")
        return parquet.read_table(path).to_pylist()

    one, other = trained
    differ = {name for name in one if one[name] != other[name]}
    assert differ == {"data", "workdir"}
    assert other["data"] == "packed_again"
    first, second = rows_of("clean/kept"), rows_of("cleaner/kept")
    assert 15 < len(first) < 20
    scores = {row["key"]: row["score"] for row in rows_of("scores")}
    named = {Path(row["url"]).with_suffix("").as_posix() for row in first}
    assert scores.keys() == named
    best = sorted(scores, key=scores.get)[-int(0.6 * len(scores)) :]
    assert {Path(row["url"]).with_suffix("").as_posix() for row in second} == (
        set(best)
    )
    for folder, rows in (("packed", first), ("packed_again", second)):
        manifest = json.loads(Path(folder, "manifest.json").read_text())
        assert manifest["records"] == len(rows)


@pytest.mark.thorough
def test_train_on_a_cluster(photos):
    ran = []
    for words in commands("train_on_a_cluster"):
        if words[0] == "train":
            small = ["--set", "image_size=32", "--set", "resize_size=346"]
            run([*words, *small])
        elif words[0] == "pack":
            run(words)
        else:
            # Compiling for a TPU is what tests/planning do, in a process.
            options = make_parser().parse_args(words)
            assert options.topology == "v5e:2x2"
        ran.append(words[0])
    assert ran == ["plan", "pack", "train"]


@pytest.mark.parametrize("page", sorted(p.stem for p in TUTORIALS.glob("*")))
def test_the_notebooks_are_the_pages(page):
    path = NOTEBOOKS / f"{page}.ipynb"
    notebook = json.loads(path.read_text("utf-8"))
    made = notebook_of((TUTORIALS / f"{page}.md").read_text("utf-8"))
    assert notebook == made, "Run `python docs/make_notebooks.py` again."
    ran = [
        shlex.split(line.removeprefix("!"))[1:]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        for line in "".join(cell["source"]).replace("\\\n", " ").splitlines()
        if line.startswith("!align-keras")
    ]
    assert ran == commands(page)
