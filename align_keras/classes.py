"""Prompts of classes to the vectors of a zero-shot classifier."""

import numpy as np

from align_keras.embedding.scores import as_vectors

# Whether each prompt is scaled to unit length before the mean is taken.
ENSEMBLES = ("normalized", "plain")


def class_vectors(embed, names, templates=("{}",), ensemble="normalized"):
    """Embed each class as the mean of its prompts.

    Args:
        embed: callable from a list of strings to a float array of as many
            rows.
        names: list with an entry for each class: a string, or a list of
            strings where the class has several names.
        templates: list of strings with `{}` where the name goes. Defaults to
            the name alone.
        ensemble: string. `"normalized"` scales each prompt to unit length
            before the mean, as CLIP does; `"plain"` averages them as they
            are, the other reading of the paper's section 5.2. On an embedder
            of unit vectors both agree. The mean is scaled to unit length
            either way. Defaults to `"normalized"`.

    Returns:
        float32 array `(num_classes, dim)`, rows of unit length.

    Raises:
        ValueError: `ensemble` is unknown, a template has no `{}`, or the
            prompts of a class cancel out.
    """
    if ensemble not in ENSEMBLES:
        raise ValueError(
            f"`ensemble` must be one of {ENSEMBLES}. "
            f"Received: ensemble={ensemble!r}"
        )
    templates = check_templates(list(templates), "templates")
    names = [[name] if isinstance(name, str) else name for name in names]
    prompts = [
        template.replace("{}", name)
        for of_one_class in names
        for name in of_one_class
        for template in templates
    ]
    vectors = as_vectors(embed(prompts), "embed(prompts)").astype("float64")
    if ensemble == "normalized":
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.maximum(lengths, 1e-12)
    counts = np.array([len(of_one_class) for of_one_class in names])
    ends = np.cumsum(counts * len(templates))
    means = np.stack(
        [part.mean(axis=0) for part in np.split(vectors, ends[:-1])]
    )
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if not lengths.min() > 1e-6:
        raise ValueError(
            f"The prompts of the class {names[lengths.argmin()][0]!r} cancel "
            "out, so that their mean has no direction: give other templates."
        )
    return (means / lengths).astype("float32")


def check_templates(templates, origin):
    """Return templates, or say which one is wrong; `None` stays `None`."""
    if templates is None:
        return None
    if not isinstance(templates, list) or not templates:
        raise ValueError(
            f"The templates of `{origin}` must be a list of strings. "
            f"Received: {templates!r}"
        )
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(
                f"A template of `{origin}` must hold `{{}}` once, where the "
                f"name of the class goes. Received: {template!r}"
            )
    return templates
