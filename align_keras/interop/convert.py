"""Convert foreign weights to a preset, or a preset to Hugging Face."""

from pathlib import Path

import keras

from align_keras.interop.huggingface_align import save_huggingface
from align_keras.interop.keras_applications import from_keras_applications
from align_keras.interop.keras_applications import keras_applications_converter
from align_keras.interop.recognize import open_foreign_weights
from align_keras.io.atomic import atomic_directory
from align_keras.io.mirrors import reads
from align_keras.io.mirrors import stored
from align_keras.models import AlignDualEncoder
from align_keras.models import presets

FORMATS = ("preset", "huggingface")
_APPLICATIONS = "keras-applications://"


@reads("source")
@stored("destination")
def convert(source, destination, to="preset", antialias=None):
    """Convert weights of another library to a preset, or a preset back.

    Args:
        source: string. For `to="preset"`: a directory of Hugging Face (ALIGN
            or BERT), timm, KerasHub (`BertBackbone`), the original BERT or the
            TensorFlow Model Garden; the handle of one, such as
            `"hf://kakaobrain/align-base"`; or
            `"keras-applications://EfficientNetB0"`, which downloads the
            ImageNet weights. For `to="huggingface"`: anything that
            `AlignDualEncoder.from_preset` accepts and that has weights.
        destination: string. The directory, which is written atomically.
        to: string. `"preset"` for this package, `"huggingface"` for
            `transformers.AlignModel` and `AlignProcessor`. Defaults to
            `"preset"`.
        antialias: bool. Whether shrinking averages over all pixels, as
            Hugging Face does. The public ALIGN checkpoints were trained
            without. Defaults to `None`, the setting of the source.

    Returns:
        The model that was written: an `AlignDualEncoder`, `BertTextEncoder`
        or `EfficientNetBackbone`.

    Raises:
        ValueError: `source` is none of these or has no weights, its tensors
            do not fit, or the other format cannot express the model.

    Example:

    ```python
    convert("hf://kakaobrain/align-base", "align_base")
    convert("align_base", "align_for_transformers", to="huggingface")
    ```
    """
    if to not in FORMATS:
        raise ValueError(f"`to` must be one of {FORMATS}. Received: {to!r}")
    if Path(source).resolve() == Path(destination).resolve():
        raise ValueError(
            f"`{destination}` is the source itself; choose another directory."
        )
    if to == "huggingface":
        path = presets.require_weights(source)
        model = AlignDualEncoder.from_preset(path)
        _set_antialias(_converter(model), antialias)
        save_huggingface(model, destination)
        return model
    model, parts = _read(source)
    converter = parts.get("image_converter", _converter(model))
    _set_antialias(converter, antialias)
    with atomic_directory(destination) as temporary:
        model.save_to_preset(str(temporary))
        for part in parts.values():
            part.save_to_preset(str(temporary))
    return model


def _read(source):
    """Return a model and, for a single tower, its preprocessing parts."""
    if str(source).startswith(_APPLICATIONS):
        theirs = _application(str(source).removeprefix(_APPLICATIONS))
        converter = keras_applications_converter(theirs)
        return from_keras_applications(theirs), {"image_converter": converter}
    foreign = open_foreign_weights(presets.find_preset(source))
    if foreign is None:
        raise ValueError(
            f"`{source}` needs no conversion: it is a preset already, or its "
            "class is one that `AlignDualEncoder` takes as it is. To convert "
            'it for Hugging Face, pass `to="huggingface"`.'
        )
    model = foreign.load(foreign.model_class)
    parts = {}
    if not isinstance(model, AlignDualEncoder):
        parts = {name: getattr(foreign, name)() for name in foreign.parts()}
    return model, parts


def _application(name):
    make = getattr(keras.applications, name, None)
    if make is None or not name.startswith("EfficientNetB"):
        raise ValueError(
            "Of the models in keras.applications, only EfficientNetB0 to "
            f"EfficientNetB7 can be converted. Received: {name!r}"
        )
    return make(include_top=False)


def _converter(model):
    preprocessor = getattr(model, "preprocessor", None)
    return getattr(preprocessor, "image_converter", None)


def _set_antialias(converter, antialias):
    if antialias is None:
        return
    if converter is None:
        raise ValueError(
            "The source does not describe how images are prepared, so there is "
            f"nothing to set. Received: antialias={antialias}"
        )
    converter.antialias = antialias
