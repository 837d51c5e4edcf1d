"""Judge an encoder by the vectors that it makes, with NumPy only."""

import numpy as np

# Two different inputs of a good encoder have a cosine far below this; above
# it, a softmax with a usual temperature hardly separates them.
COLLAPSED = 0.95
# Cosines with moving and with batch statistics differ by a few hundredths once
# the moving statistics have seen enough batches.
UNSETTLED = 0.3
# Share of texts that should match themselves under another dropout mask.
RECOGNISED = 0.5


def mean_cosine(vectors):
    """Compute the mean cosine over all pairs of different rows.

    Args:
        vectors: float array of shape `(count, dim)`, at least two rows.

    Returns:
        float from -1 to 1. A row of zeros has a cosine of 0 with all others.
    """
    vectors = _unit(vectors)
    count = len(vectors)
    if count < 2:
        raise ValueError(
            f"A mean over pairs needs at least two rows. Received: {count}"
        )
    squares = (vectors**2).sum()
    total = (vectors.sum(axis=0) ** 2).sum() - squares
    return float(total / (count * (count - 1)))


def self_match(first, second):
    """Compute how often a row's nearest row in another version is itself.

    Args:
        first: float array of shape `(count, dim)`.
        second: float array of the same shape. The same inputs, embedded with
            another dropout mask.

    Returns:
        float. The share of rows of `first` whose cosine is greatest with the
        row at the same index in `second`. A tie does not count as a match.
    """
    cosines = _unit(first) @ _unit(second).T
    own = np.diag(cosines).copy()
    np.fill_diagonal(cosines, -np.inf)
    return float((own > cosines.max(axis=1)).mean())


def _unit(vectors):
    vectors = np.asarray(vectors, "float64")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def warnings(found):
    """Describe the problems that the metrics of the diagnostics show.

    Args:
        found: dict with any of `"image_cosine"` (with moving statistics),
            `"image_cosine_batch_statistics"`, `"text_cosine"` and
            `"text_self_match"`.

    Returns:
        list of strings, one sentence or more for each problem.
    """
    sentences = []
    moving = found.get("image_cosine", 0.0)
    batch = found.get("image_cosine_batch_statistics", moving)
    text = found.get("text_cosine", 0.0)
    match = found.get("text_self_match", 1.0)
    if batch > COLLAPSED:
        sentences.append(
            "The image encoder has collapsed: different images have a cosine "
            f"of {batch:.3f} on average. Lower `learning_rate`, or start from "
            "known weights."
        )
    elif moving - batch > UNSETTLED:
        sentences.append(
            "The moving statistics of batch normalisation have not settled: "
            f"different images have a cosine of {moving:.3f} with them and of "
            f"{batch:.3f} with those of a batch, so what is measured and kept "
            "is worse than what is trained. Train longer, or lower their "
            "momentum."
        )
    if text > COLLAPSED:
        sentences.append(
            "The text encoder has collapsed: different texts have a cosine of "
            f"{text:.3f} on average. Lower `learning_rate`, or start from "
            "known weights."
        )
    if match < RECOGNISED:
        sentences.append(
            f"Under dropout, only {match:.0%} of the texts are nearest to "
            "themselves: dropout hides what tells them apart. Lower the "
            "dropout of the text encoder, or start from known weights."
        )
    return sentences
