import numpy as np
import pytest

from align_keras.search.query import compose_query

TEXTS = {"red": [3.0, 0.0, 0.0, 4.0], "blue": [0.0, 2.0, 0.0, 0.0]}
PICTURE = np.full((2, 2, 3), 7, dtype="uint8")
PICTURE_VECTOR = np.array([0.0, 0.6, 0.8, 0.0], dtype="float32")


class TowersOfKnownVectors:
    """Gives each input a vector that the test can compute with."""

    def encode_text(self, texts):
        return np.array([TEXTS[text] for text in texts], dtype="float32")

    def encode_image(self, images):
        if isinstance(images, list):
            assert images in (["bus.jpg"], [b"bytes"])
        else:
            np.testing.assert_array_equal(images, PICTURE[None])
        return PICTURE_VECTOR[None]


def unit(values):
    return np.asarray(values) / np.linalg.norm(values)


RED, BLUE = unit(TEXTS["red"]), unit(TEXTS["blue"])


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"text": "red"}, RED),
        ({"image": "bus.jpg"}, PICTURE_VECTOR),
        ({"minus_text": "red"}, -RED),
        ({"image": b"bytes", "text": "red"}, PICTURE_VECTOR + 2 * RED),
        ({"image": PICTURE, "minus_text": "red"}, PICTURE_VECTOR - 2 * RED),
        (
            {"image": 5 * PICTURE_VECTOR, "text": "blue", "minus_text": "red"},
            PICTURE_VECTOR + 2 * BLUE - 2 * RED,
        ),
        (
            {
                "image": "bus.jpg",
                "text": "red",
                "text_weight": 0.5,
                "image_weight": 3.0,
            },
            3 * PICTURE_VECTOR + 0.5 * RED,
        ),
    ],
)
def test_compose_query(arguments, expected):
    query = compose_query(TowersOfKnownVectors(), **arguments)
    assert query.dtype == np.float32
    np.testing.assert_allclose(query, unit(expected), rtol=0, atol=1e-7)


def test_compose_query_refuses():
    model = TowersOfKnownVectors()
    with pytest.raises(ValueError, match="at least one of"):
        compose_query(model)
    with pytest.raises(ValueError, match="cancel out.*'red'"):
        compose_query(model, text="red", minus_text="red")
    with pytest.raises(ValueError, match="one string.*list"):
        compose_query(model, text=["red", "blue"])
