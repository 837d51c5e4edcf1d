"""The model behind an index: loaded once, on one device or on many."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.embedder import fingerprint_of
from align_keras.embedding.embedder import load_saved_model
from align_keras.embedding.embedder import saved_model_embedder

__all__ = ["SearchModel", "load_search_model", "model_path"]


@dataclasses.dataclass(frozen=True)
class SearchModel:
    """A model as search uses it.

    Args:
        embedder: an `align_keras.evaluation.Embedder`.
        temperature: float. What cosines are divided by before a softmax, or
            `None` where it is not known, as in a SavedModel on replicas.
        takes_files: bool. Whether the model decodes pictures itself.
    """

    embedder: Embedder
    temperature: float | None = None
    takes_files: bool = False


def model_path(model):
    """Return the directory of a trained model, or say what is wrong with it.

    Args:
        model: string or `pathlib.Path`. A preset directory with weights, or a
            SavedModel.

    Returns:
        `pathlib.Path`.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: it holds neither.
    """
    path = Path(model)
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no model directory `{model}`: give a preset directory "
            "with weights or a SavedModel."
        )
    if is_saved_model(path):
        return path
    weights = list(path.glob("model.weights.*"))
    if not (path / "config.json").is_file() or not weights:
        raise ValueError(
            f"`{model}` is neither a preset directory with weights nor a "
            "SavedModel: it has no config.json with model.weights.h5, and no "
            "saved_model.pb."
        )
    return path


def is_saved_model(path):
    """Tell whether a directory holds a SavedModel."""
    return (Path(path) / "saved_model.pb").is_file()


def load_search_model(model, strategy=None):
    """Load a model for embedding and for search.

    Args:
        model: string or `pathlib.Path`. A preset directory with weights, or a
            SavedModel that `align-keras export` wrote.
        strategy: a `tf.distribute.Strategy`, or what `make_strategy`
            returned. Pictures are split over its replicas. Defaults to
            `None`, one device.

    Returns:
        A `SearchModel`.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: it is no model.
    """
    path = model_path(model)
    scope = contextlib.nullcontext() if strategy is None else strategy.scope()
    replicas = getattr(strategy, "num_replicas_in_sync", 1)
    many = replicas > 1 and hasattr(strategy, "run")
    with scope:
        if is_saved_model(path):
            served = load_saved_model(path)
            embedder = saved_model_embedder(path, served)
            # Searching needs it, and that is on one device.
            temperature = None if many else _temperature(served)
            if many:
                encode = _signature(path)
                embedder = _spread(embedder, strategy, encode)
            return SearchModel(embedder, temperature, takes_files=True)
        from align_keras import AlignDualEncoder

        dual_encoder = AlignDualEncoder.from_preset(str(path))
    embedder = as_embedder(dual_encoder, str(path), fingerprint_of(path))
    if many:
        embedder = _spread(embedder, strategy, dual_encoder.encode_image)
    return SearchModel(embedder, float(dual_encoder.temperature))


def _temperature(served):
    """What an export tells beside the similarities of its default."""
    import tensorflow as tf

    ask = served.signatures.get("serving_default")
    if ask is None or "temperature" not in ask.structured_outputs:
        return None
    nothing = tf.constant([b""])
    return float(ask(image_bytes=nothing, texts=nothing)["temperature"])


def _signature(path):
    """A picture encoder whose weights lie on the replicas of the scope."""
    import tensorflow as tf

    served = tf.saved_model.load(str(path))
    signature = served.signatures["encode_image"]

    def encode(values, served=served):
        return signature(image_bytes=values)["embeddings"]

    return encode


def local_replicas(strategy):
    """Over how many replicas of this process a batch is split.

    Args:
        strategy: as in `load_search_model`.

    Returns:
        int. 1 where it is not split.
    """
    if not hasattr(strategy, "run"):
        return 1
    from align_keras.training.strategies import worker_of

    return strategy.num_replicas_in_sync // worker_of(strategy)[1]


def _spread(embedder, strategy, encode):
    """Return the embedder with its pictures split over the replicas."""
    import tensorflow as tf

    local = local_replicas(strategy)

    @tf.function(autograph=False, reduce_retracing=True)
    def run(values):
        return strategy.run(encode, (values,))

    def images(batch):
        files = isinstance(batch[0], bytes)
        batch = np.array(batch, object) if files else np.stack(batch)
        parts = iter(np.array_split(batch, local))
        values = strategy.experimental_distribute_values_from_function(
            lambda _: tf.constant(
                next(parts).tolist() if files else next(parts)
            )
        )
        results = strategy.experimental_local_results(run(values))
        return np.concatenate([result.numpy() for result in results])

    return dataclasses.replace(embedder, images=images)
