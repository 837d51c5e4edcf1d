"""One string where a list of strings is taken: each character is none."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from align_keras import AlignTokenizer
from align_keras.classes import class_vectors
from align_keras.classes import classify
from align_keras.curation.config import load_config
from align_keras.curation.curate import _complete
from align_keras.curation.download import download
from align_keras.curation.input_files import find_inputs
from align_keras.curation.vocabulary import learn_vocabulary
from align_keras.data import RecordFiles
from align_keras.embedding import embed_texts
from align_keras.evaluation import measure_vtab
from align_keras.evaluation.multilingual import _choose_languages
from align_keras.io.lists import path_list
from align_keras.planning import compare_chips
from align_keras.search.index_writer import write_index
from align_keras.search.web.run_server import serve
from align_keras.serving import export_saved_model
from align_keras.serving import upload


def test_a_single_path_is_a_list_of_one(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("url,text\na.jpg,a bus\n")
    for given in (path, str(path), [str(path)], (path,)):
        assert [*map(str, path_list(given))] == [str(path)]
        assert find_inputs(given) == ([str(path)], [])
        output = tmp_path / "words.txt"
        assert learn_vocabulary(given, output, 100)["texts"] == 1
    assert RecordFiles(str(path)).paths == [str(path)]


@pytest.mark.parametrize("kind", [str, Path])
def test_scores_and_test_images_are_one_path_or_several(tmp_path, kind):
    config = load_config("align")
    for given in (kind(tmp_path), [kind(tmp_path)]):
        found = _complete(config, given, None, False, given)
        assert found.scores == (str(tmp_path),)
        asked = [r.parameters.get("test_images") for r in found.rules]
        assert (str(tmp_path),) in asked


def _vtab(**tasks):
    return measure_vtab(lambda: None, "out", identity="a", **tasks)


REFUSED = {
    "texts": [
        lambda v: AlignTokenizer.learn_vocabulary(v, 100),
        lambda v: embed_texts(SimpleNamespace(), v),
    ],
    "names": [
        lambda v: class_vectors(None, v),
        lambda v: classify(None, ["a.jpg"], v),
    ],
    "templates": [
        lambda v: class_vectors(None, ["cat", "dog"], v),
        lambda v: write_index([], 1, "out", None, templates=v),
        lambda v: export_saved_model(None, "out", templates=v),
    ],
    "extra_arguments": [lambda v: download("kept", "out", extra_arguments=v)],
    "labels": [lambda v: write_index([], 1, "out", None, labels=v)],
    "classes": [lambda v: export_saved_model(None, "out", classes=v)],
    "languages": [lambda v: _choose_languages(v, ["en"], "data")],
    "tasks": [lambda v: _vtab(tasks=v)],
    "topologies": [lambda v: compare_chips("align-base", topologies=v)],
    "hosts": [lambda v: serve("index", hosts=v)],
    "language": [lambda v: upload("run", "hf://me/birds", language=v)],
}


@pytest.mark.parametrize(
    "name, call", [(name, call) for name in REFUSED for call in REFUSED[name]]
)
def test_a_string_is_no_list_of_texts_or_names(name, call):
    with pytest.raises(ValueError, match=rf"`{name}` must be a list of strin"):
        call("{} en")
