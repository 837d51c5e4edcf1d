"""Diagnostics against brute force, and of models that are made to fail."""

import numpy as np
import pytest

from align_keras.training import diagnostics


def test_mean_cosine_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    vectors = rng.normal(0.4, 1, (9, 5)) * rng.uniform(0.1, 9, (9, 1))
    pairs = [
        vectors[i]
        @ vectors[j]
        / np.linalg.norm(vectors[i])
        / np.linalg.norm(vectors[j])
        for i in range(9)
        for j in range(9)
        if i != j
    ]
    expected = np.mean(pairs)
    assert 0.05 < expected < 0.9
    assert diagnostics.mean_cosine(vectors) == pytest.approx(expected)
    # A row of zeros is orthogonal to all.
    got = diagnostics.mean_cosine(np.vstack([vectors, np.zeros((1, 5))]))
    assert got == pytest.approx(expected * 9 * 8 / (10 * 9))
    with pytest.raises(ValueError, match="Received: 1"):
        diagnostics.mean_cosine(vectors[:1])


def test_self_match_is_that_of_a_search():
    rng = np.random.default_rng(1)
    first = rng.normal(size=(40, 6))
    second = first + rng.normal(0, 0.9, (40, 6))
    hits = 0
    for i in range(40):
        cosines = [
            first[i] @ row / np.linalg.norm(first[i]) / np.linalg.norm(row)
            for row in second
        ]
        hits += int(np.argmax(cosines) == i)
    assert 5 < hits < 38
    assert diagnostics.self_match(first, second) == hits / 40
    assert diagnostics.self_match(first, 3 * first) == 1.0
    # Rows that are all alike find nothing, whatever a search takes first.
    assert diagnostics.self_match(np.ones((4, 3)), np.ones((4, 3))) == 0.0


@pytest.mark.parametrize(
    "found, words",
    [
        ({"image_cosine": 0.4, "image_cosine_batch_statistics": 0.3}, []),
        (
            {"image_cosine": 0.986, "image_cosine_batch_statistics": 0.175},
            ["moving statistics of batch normalisation have not settled"],
        ),
        (
            {"image_cosine": 0.999, "image_cosine_batch_statistics": 0.998},
            ["The image encoder has collapsed"],
        ),
        ({"text_cosine": 0.97}, ["The text encoder has collapsed"]),
        ({"text_cosine": 0.7, "text_self_match": 0.98}, []),
        ({"text_self_match": 0.05}, ["only 5% of the texts are nearest"]),
        (
            {"image_cosine": 0.999, "text_cosine": 0.999},
            ["image encoder has collapsed", "text encoder has collapsed"],
        ),
        ({}, []),
    ],
)
def test_warnings_are_sentences(found, words):
    sentences = diagnostics.warnings(found)
    assert len(sentences) == len(words)
    for sentence, part in zip(sentences, words, strict=True):
        assert part in sentence and sentence.endswith(".")
