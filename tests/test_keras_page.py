"""The code of docs/keras.md runs as it stands."""

import importlib.util
import re
from pathlib import Path

import keras

PAGE = Path(__file__).resolve().parents[1] / "docs" / "keras.md"


def test_the_snippets_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Keras numbers the names of layers: the page may not count on being first.
    kinds = keras.layers.Embedding, keras.layers.Conv2D
    for kind in kinds:
        kind(2, 2)
    text = PAGE.read_text("utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(snippets) >= 12
    namespace = {"__name__": "page"}
    for snippet in snippets:
        if "import grain" in snippet and not importlib.util.find_spec("grain"):
            continue  # It is installed for tests, and for nothing else.
        line = text[: text.index(snippet)].count("\n")
        code = compile("\n" * line + snippet, str(PAGE), "exec")
        exec(code, namespace)
    assert (tmp_path / "model.keras").is_file()
