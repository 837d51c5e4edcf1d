"""The losses in NumPy and float64, with gradients, from their equations."""

import numpy as np


def unit_rows(shape, seed):
    rows = np.random.default_rng(seed).normal(size=shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def paper_loss(images, texts, temperature, smoothing):
    """Equations 1 and 2 of ALIGN's paper, written out pair by pair."""
    n = len(images)
    losses = np.zeros(n)
    for i in range(n):
        for query, keys in ((images[i], texts), (texts[i], images)):
            scores = np.exp([query @ key / temperature for key in keys])
            log_probabilities = np.log(scores / scores.sum())
            targets = np.full(n, smoothing / n)
            targets[i] += 1 - smoothing
            losses[i] -= targets @ log_probabilities
    return losses


def sigmoid_loss(images, texts, temperature, bias):
    """Algorithm 1 of SigLIP's paper, written out pair by pair."""
    n = len(images)
    losses = np.zeros(n)
    for i in range(n):
        for j in range(n):
            logit = images[i] @ texts[j] / temperature + bias
            sign = 1 if i == j else -1
            losses[i] += np.log(1 + np.exp(-sign * logit))
    return losses


def contrastive_gradients(images, texts, temperature, smoothing, weights):
    """Gradients of `weights @ paper_loss(...)`, in closed form."""
    n = len(images)
    scores = images @ texts.T / temperature
    exponentials = np.exp(scores - scores.max())
    by_row = exponentials / exponentials.sum(axis=1, keepdims=True)
    by_column = exponentials / exponentials.sum(axis=0)
    targets = (1 - smoothing) * np.eye(n) + smoothing / n
    of_scores = weights[:, None] * (by_row - targets) + weights * (
        by_column - targets
    )
    return score_gradients(images, texts, temperature, scores, of_scores)


def sigmoid_gradients(images, texts, temperature, bias, weights):
    """Gradients of `weights @ sigmoid_loss(...)`, in closed form."""
    scores = images @ texts.T / temperature
    of_scores = weights[:, None] * (
        1 / (1 + np.exp(-scores - bias)) - np.eye(len(images))
    )
    gradients = score_gradients(images, texts, temperature, scores, of_scores)
    return {**gradients, "bias": of_scores.sum()}


def score_gradients(images, texts, temperature, scores, of_scores):
    return {
        "images": of_scores @ texts / temperature,
        "texts": of_scores.T @ images / temperature,
        "temperature": -(of_scores * scores).sum() / temperature,
    }


def reference(kind, images, texts, temperature, extra, weights, mask):
    """Losses, hits and gradients of either loss for the rows of a mask.

    `extra` is the label smoothing of the one and the bias of the other, and
    `weights` are those of the losses in the sum whose gradients are given.
    """
    kept = np.arange(len(images))[mask]
    function, slope = {
        "contrastive": (paper_loss, contrastive_gradients),
        "sigmoid": (sigmoid_loss, sigmoid_gradients),
    }[kind]
    rows = images[kept], texts[kept]
    scores = rows[0] @ rows[1].T
    values = {
        "loss": function(*rows, temperature, extra),
        "image_hit": scores.argmax(axis=1) == np.arange(len(kept)),
        "text_hit": scores.argmax(axis=0) == np.arange(len(kept)),
    }
    gradients = slope(*rows, temperature, extra, weights[kept])
    results = {}
    for name, value in {**values, **gradients}.items():
        results[name] = np.asarray(value, "float64")
        if results[name].ndim:
            whole = np.zeros((len(images), *results[name].shape[1:]))
            whole[kept] = results[name]
            results[name] = whole
    return results
