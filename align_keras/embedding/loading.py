"""Load presets, SavedModels and KerasHub's models as embedders."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from align_keras.embedding.embedder import Embedder
from align_keras.embedding.embedder import as_embedder
from align_keras.embedding.embedder import keras_hub_embedder
from align_keras.embedding.embedder import read_bytes
from align_keras.embedding.embedder import refuse_floats
from align_keras.embedding.replicas import is_split
from align_keras.embedding.replicas import over_replicas
from align_keras.io.fingerprints import directory_fingerprint
from align_keras.io.fingerprints import fingerprint
from align_keras.io.folders import check_links
from align_keras.io.hub_handles import HUGGING_FACE
from align_keras.io.mirrors import reads
from align_keras.models import presets
from align_keras.models.handles import handle_file
from align_keras.models.shipped_presets import preset_names
from align_keras.preprocessing.agreement import decode_for_graph

_KERAS_HUB = {
    "CLIPBackbone": "CLIPPreprocessor",
    "SigLIPBackbone": "SigLIPPreprocessor",
}


@reads("model")
def load_embedder(model: str | Path, strategy: Any = None) -> Embedder:
    """Load a model for evaluation, embedding and search.

    Args:
        model: string or `pathlib.Path`. A SavedModel that `align-keras export`
            wrote; the directory or handle of an `AlignDualEncoder` preset; or
            the directory, handle or name of a preset of KerasHub's CLIP or
            SigLIP, such as `"clip_vit_base_patch32"`.
        strategy: a `tf.distribute.Strategy`, or what `make_strategy`
            returned. Images are split over its replicas. Defaults to `None`,
            one device.

    Returns:
        An `Embedder`.

    Raises:
        ValueError: `model` is none of these, or has no weights.

    Example:

    ```python
    embedder = load_embedder("run/model")
    ```
    """
    path = Path(model)
    if path.is_dir():
        check_links(path)
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        if is_saved_model(path):
            return _load_saved_model(path, strategy)
        kind = _kind(path)
        if kind in _KERAS_HUB:
            import keras_hub

            models = keras_hub.models
            backbone = getattr(models, kind).from_preset(str(model))
            preprocessor = getattr(models, _KERAS_HUB[kind])
            parts = backbone, preprocessor.from_preset(str(model))
        else:
            from align_keras.models import AlignDualEncoder

            presets.require_class(
                presets.require_weights(model), AlignDualEncoder
            )
            dual_encoder = AlignDualEncoder.from_preset(str(model))
    identity = model_fingerprint(model)
    if kind in _KERAS_HUB:
        name = path.name or str(model)
        return keras_hub_embedder(*parts, name, identity, strategy)
    return as_embedder(dual_encoder, str(model), identity, strategy)


def model_fingerprint(model: str | Path) -> str | None:
    """Return what tells a model from others, also from its other versions.

    Args:
        model: string or `pathlib.Path`. The directory, name or handle of a
            preset.

    Returns:
        The fingerprint of the directory, or of the handle and the version
        that a hub has now; `None` for presets without weights, and for hubs
        that do not tell the version.
    """
    found = presets.find_preset(model)
    if found.startswith((HUGGING_FACE, "kaggle://")):
        # Their caches name a directory by its commit or version.
        version = handle_file(found, "config.json").parent.name
        return fingerprint(found, version)
    return directory_fingerprint(found)


def _kind(path):
    """Return the name of the class that a preset holds."""
    if (path / "config.json").is_file():
        return presets.load_config(path).get("class_name")
    if path.name.startswith("clip_"):
        return "CLIPBackbone"
    if path.name.startswith("siglip"):
        return "SigLIPBackbone"
    return "AlignDualEncoder"


@reads("model")
def require_model(model: str | Path) -> Path:
    """Return the directory of a trained model, after checking it.

    Args:
        model: string or `pathlib.Path`. A preset directory with weights, a
            SavedModel, or the name or handle of a preset with weights, which
            is downloaded.

    Returns:
        `pathlib.Path`.

    Raises:
        FileNotFoundError: there is no such directory.
        OutsideFolder: a file in it is a link that points outside it.
        ValueError: the directory holds neither a preset with weights nor a
            SavedModel.
    """
    path = Path(model)
    if is_saved_model(path):
        check_links(path)
        return path
    if not path.is_dir():
        if "://" not in str(model) and str(model) not in preset_names():
            raise FileNotFoundError(
                f"There is no model directory `{model}`: give a preset "
                "directory with weights, a SavedModel, or the name or handle "
                "of a preset with weights."
            )
        path = presets.preset_directory(str(model))
    check_links(path)
    found = any((path / name).is_file() for name in presets.CONFIG_FILES)
    if not found or not presets.has_weights(str(path)):
        raise ValueError(
            f"`{model}` is neither a preset directory with weights nor a "
            "SavedModel: it has no config.json with model.weights.h5, and no "
            "saved_model.pb."
        )
    return path


# === SavedModels ===


def is_saved_model(path: str | Path) -> bool:
    """Return whether a directory holds a SavedModel."""
    return (Path(path) / "saved_model.pb").is_file()


def _load_saved_model(path, strategy=None):
    """Make an `Embedder` from what `align-keras export` wrote."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers the tokenizer's operations

    served = tf.saved_model.load(str(path))
    for name in ("encode_image", "encode_text"):
        if name not in served.signatures:
            raise ValueError(
                f"The SavedModel `{path}` has no signature `{name}`: write it "
                "with `align-keras export`. Received: "
                f"{', '.join(served.signatures)}"
            )

    def encode_image(values):
        signature = served.signatures["encode_image"]
        return signature(image_bytes=values)["embeddings"]

    def texts(batch):
        signature = served.signatures["encode_text"]
        return signature(texts=tf.constant(list(batch)))["embeddings"].numpy()

    def images(batch):
        return encode_image(tf.constant(list(batch))).numpy()

    temperature = None
    if is_split(strategy):
        images = over_replicas(strategy, encode_image)
    else:
        # Only search needs the temperature, and it runs on one device.
        temperature = _temperature(served)
    return Embedder(
        name=str(path),
        images=images,
        texts=texts,
        read=_read_file,
        fingerprint=directory_fingerprint(path),
        temperature=temperature,
        decodes=True,
    )


def _read_file(image):
    """Return the bytes of a file that the graph decodes like Pillow."""
    if isinstance(image, np.ndarray):
        refuse_floats(image)
        return _png(image)
    contents = read_bytes(image)
    # Otherwise the graph may fail or silently decode other pixels.
    pixels, decodable = decode_for_graph(contents)
    return contents if decodable else _png(pixels)


def _png(pixels):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _temperature(served):
    """Return the temperature that the default signature returns, or `None`."""
    import tensorflow as tf

    ask = served.signatures.get("serving_default")
    if ask is None or "temperature" not in ask.structured_outputs:
        return None
    nothing = tf.constant([b""])
    return float(ask(image_bytes=nothing, texts=nothing)["temperature"])
