import io

import numpy as np
import pytest
from PIL import Image

from align_keras.embedding import Embedder
from align_keras.search.query import compose_query

TEXTS = {"red": [3.0, 0.0, 0.0, 4.0], "blue": [0.0, 2.0, 0.0, 0.0]}
IMAGE = np.full((2, 2, 3), 7, dtype="uint8")
_FILE = io.BytesIO()
Image.fromarray(IMAGE).save(_FILE, "PNG")
FILE = _FILE.getvalue()
IMAGE_VECTOR = np.array([0.0, 0.6, 0.8, 0.0], dtype="float32")


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Give each input a vector that the test can compute with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bus.png").write_bytes(FILE)

    def images(batch):
        np.testing.assert_array_equal(batch, IMAGE[None])
        return 3 * IMAGE_VECTOR[None]

    def texts(batch):
        return np.array([TEXTS[text] for text in batch], dtype="float32")

    return Embedder("known", images, texts)


def unit(values):
    return np.asarray(values) / np.linalg.norm(values)


RED, BLUE = unit(TEXTS["red"]), unit(TEXTS["blue"])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"text": "red"}, RED),
        ({"image": "bus.png"}, IMAGE_VECTOR),
        ({"minus_text": "red"}, -RED),
        ({"image": FILE, "text": "red"}, IMAGE_VECTOR + 2 * RED),
        ({"image": IMAGE, "minus_text": "red"}, IMAGE_VECTOR - 2 * RED),
        (
            {"image": 5 * IMAGE_VECTOR, "text": "blue", "minus_text": "red"},
            IMAGE_VECTOR + 2 * BLUE - 2 * RED,
        ),
        ({"text": ["red", "blue"]}, RED + BLUE),
        (
            {"text": "blue", "minus_text": ["red"], "minus_weight": 0.5},
            2 * BLUE - 0.5 * RED,
        ),
        (
            {
                "image": "bus.png",
                "text": "red",
                "text_weight": 0.5,
                "image_weight": 3.0,
            },
            3 * IMAGE_VECTOR + 0.5 * RED,
        ),
    ],
)
def test_compose_query(model, arguments, expected):
    query = compose_query(model, **arguments)
    assert query.dtype == np.float32
    np.testing.assert_allclose(query, unit(expected), rtol=0, atol=1e-7)


def test_compose_query_refuses(model):
    with pytest.raises(ValueError, match="at least one of"):
        compose_query(model)
    with pytest.raises(ValueError, match="cancel out.*'red'"):
        compose_query(model, text="red", minus_text="red")
    with pytest.raises(ValueError, match="must be strings.*3 of type int"):
        compose_query(model, text=["red", 3])
