"""Evaluations that read their data from disk."""

import logging

from align_keras.evaluation.embed import ahead
from align_keras.evaluation.embed import embed_images
from align_keras.evaluation.embed import embed_texts
from align_keras.evaluation.embed import picture_reader
from align_keras.evaluation.retrieval import KS
from align_keras.evaluation.retrieval import retrieval_chance
from align_keras.evaluation.retrieval import retrieval_metrics

logger = logging.getLogger("align_keras")


def evaluate_retrieval(model, data, batch_size=64, ks=KS, progress=True):
    """Measure retrieval in both directions on packed data.

    Every picture is embedded once and every one of its captions (section 5.1
    of the paper). A picture that does not decode is left out together with
    its captions, named in a warning, and counted.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor.
        data: string or list of strings. TFRecord files: a folder, a glob or
            a list of paths.
        batch_size: int. Pictures in one call of the network. Defaults to
            `64`.
        ks: tuple of ints. The depths of recall. Defaults to `(1, 5, 10)`.
        progress: bool. Whether to draw progress bars on the standard error
            stream. Defaults to `True`.

    Returns:
        A dict: that of `retrieval_metrics`; under `"chance_…"` each recall
        that a random order would reach; and `"pictures_skipped"`.

    Raises:
        FileNotFoundError: No file matches `data`.
        ValueError: The model has no preprocessor, or no picture is readable.

    Example:

    ```python
    evaluate_retrieval(model, "packed/*.tfrecord")["mean_recall"]
    ```
    """
    # Reading records needs TensorFlow; the functions on arrays do not.
    from align_keras.data import count_records
    from align_keras.data import iterate_records

    read = picture_reader(model)
    texts, owners, skipped = [], [], []

    def read_record(record):
        try:
            return record, read(record["image"])
        except ValueError as error:
            return record, error

    def pictures():
        number = 0
        for record, picture in ahead(read_record, iterate_records(data)):
            if isinstance(picture, ValueError):
                key = record["key"]
                logger.warning("Picture %s is left out: %s", key, picture)
                skipped.append(key)
                continue
            texts.extend(record["captions"])
            owners.extend([number] * len(record["captions"]))
            number += 1
            yield picture

    image_embeddings = embed_images(
        model, pictures(), batch_size, progress, total=count_records(data)
    )
    text_embeddings = embed_texts(model, texts, progress=progress)
    chance = retrieval_chance(owners, len(image_embeddings), ks)
    return {
        **retrieval_metrics(image_embeddings, text_embeddings, owners, ks),
        **{f"chance_{name}": value for name, value in chance.items()},
        "pictures_skipped": len(skipped),
    }
