"""The common interface to the weights of other libraries."""

from pathlib import Path

from align_keras.interop.pickled_weights import PICKLED_WEIGHTS
from align_keras.interop.pickled_weights import PickledWeights
from align_keras.interop.safetensors_file import INDEX
from align_keras.interop.safetensors_file import WEIGHTS
from align_keras.interop.safetensors_file import SafetensorsFiles
from align_keras.io import json_files
from align_keras.preprocessing import AlignPreprocessor


class ForeignWeights:
    """The weights of another library, in a local directory.

    A subclass defines the class of the converted model, how to build that
    model, and how to set its weights.

    Args:
        directory: string or `pathlib.Path`.
        config: dict. The configuration, as the other library wrote it.
    """

    # The class of the converted model.
    model_class: type | None = None

    def __init__(self, directory, config):
        self.directory = Path(directory)
        self.config = config

    def load(self, cls, load_weights=True, **kwargs):
        """Create the model.

        Args:
            cls: The class whose `from_preset` was called.
            load_weights: bool. Whether to set the weights.
            **kwargs: Arguments of the constructor that replace those of the
                directory.

        Returns:
            An instance of `cls`.

        Raises:
            ValueError: The weights are for another class, our model cannot
                express their network, or their tensors do not fit.
        """
        self.require_class(cls)
        model = self.build(cls, **kwargs)
        if load_weights:
            self.load_weights(model)
        return model

    def require_class(self, cls):
        """Refuse a class that the weights do not fit."""
        if not issubclass(cls, self.model_class):
            raise ValueError(
                f"`{self.directory}` holds the weights of a "
                f"`{self.model_class.__name__}`, but `{cls.__name__}` was "
                f"asked for. Call `{self.model_class.__name__}.from_preset()`."
            )

    def build(self, cls, **kwargs):
        """Create the model with fresh weights."""
        return cls(**{**self.arguments(), **kwargs})

    def arguments(self):
        """Return the arguments of the model's constructor as a dict."""
        raise NotImplementedError

    def load_weights(self, model):
        """Set every weight of the model."""
        raise NotImplementedError

    def tensors(self):
        """Open the weights of a directory in PyTorch's layout.

        Returns:
            `SafetensorsFiles`, or `PickledWeights` if there is nothing else.
        """
        safe = any(
            (self.directory / name).is_file() for name in (WEIGHTS, INDEX)
        )
        pickled = self.directory / PICKLED_WEIGHTS
        if not safe and pickled.is_file():
            return PickledWeights(pickled)
        return SafetensorsFiles(self.directory)

    def parts(self):
        """List the parts of a preprocessor that the directory describes.

        Returns:
            A list with `"tokenizer"`, `"image_converter"`, both or neither.
        """
        return []

    def tokenizer(self, **kwargs):
        """Return the `AlignTokenizer`, or raise if there is no vocabulary.

        Args:
            **kwargs: Arguments that replace those of the directory.
        """
        raise ValueError(
            f"`{self.directory}` holds no vocabulary for a tokenizer."
        )

    def image_converter(self, **kwargs):
        """Return the `AlignImageConverter`, or raise if none is described.

        Args:
            **kwargs: Arguments that replace those of the directory.
        """
        raise ValueError(
            f"`{self.directory}` does not describe how images are prepared."
        )

    def preprocessor(self, **kwargs):
        """Return the `AlignPreprocessor`.

        Args:
            **kwargs: Arguments that replace those of the directory.
        """
        parts = {
            "tokenizer": self.tokenizer,
            "image_converter": self.image_converter,
        }
        for name, make in parts.items():
            if name not in kwargs:
                kwargs[name] = make()
        return AlignPreprocessor(**kwargs)


def read_json(path):
    """Read a JSON object, or raise an error that names the file."""
    content = json_files.read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"`{path}` does not hold a JSON object.")
    return content


def require_values(config, expected, path, reason):
    """Refuse a configuration with unexpected values.

    Args:
        config: dict. Missing fields count as having the expected value.
        expected: dict from field to its only valid value.
        path: string. Where the configuration comes from, for error messages.
        reason: string. Why no other value is possible.

    Raises:
        ValueError: A field has another value; the message names it.
    """
    for name, value in expected.items():
        received = config.get(name, value)
        if received != value:
            raise ValueError(
                f"`{name}` in {path} must be {value!r}: {reason}. "
                f"Received: {received!r}."
            )


def require_numbers(config, names, path):
    """Refuse a configuration if one of the given fields is not a number.

    Args:
        config: dict. Missing fields are allowed.
        names: sequence of strings. The fields.
        path: string. Where the configuration comes from, for error messages.

    Raises:
        ValueError: A field is not a number; the message names it.
    """
    for name in names:
        value = config.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(
                f"`{name}` in {path} must be a number. Received: {value!r}."
            )
