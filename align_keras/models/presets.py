"""Presets by name: directories in KerasHub's format that ship with us."""

import difflib
import functools
import json
import sys
from pathlib import Path

from align_keras import keras_hub_internals

_PACKAGE = Path(__file__).resolve().parents[1]
_WEIGHT_FILES = ("model.weights.h5", "model.weights.json")
# Any of these makes a directory a checkpoint, ours or that of others.
_CONFIG_FILES = ("config.json", "bert_config.json", "params.yaml")


def presets_directory():
    """Return the directory of the shipped presets and recipes.

    An installed wheel holds it inside the package; in a checkout it stands
    beside the package.
    """
    installed = _PACKAGE / "presets"
    return installed if installed.is_dir() else _PACKAGE.parent / "presets"


@functools.cache
def preset_names():
    """Return the names of all shipped model presets, sorted."""
    directories = presets_directory().glob("*/config.json")
    return tuple(sorted(path.parent.name for path in directories))


def list_presets():
    """Describe the shipped ALIGN presets.

    They are architectures with fresh weights: one for each image encoder from
    B0 to B7 and L2 with each text encoder from tiny to large.

    Returns:
        A dict from preset name to a dict with `"image_encoder"` and
        `"text_encoder"`, the names of the towers' presets; `"parameters"`,
        the number of trainable parameters with the vocabulary of 100,000
        tokens; `"embedding_dim"`; and `"gflops"`, billions of floating-point
        operations of one forward pass on one pair, at 289x289 pixels and 64
        tokens.

    Example:

    ```python
    list_presets()["align_b7_bert_base"]["embedding_dim"]  # 640
    ```
    """
    table = {}
    for name in preset_names():
        if name.startswith("align_"):
            path = presets_directory() / name / "metadata.json"
            table[name] = json.loads(path.read_text())["align_keras"]
    return table


def find_preset(preset):
    """Turn the name of a shipped preset into its directory.

    Args:
        preset: string. The name of a preset that we or KerasHub ship, a
            directory, or a handle with a scheme such as `hf://`.

    Returns:
        A string: the directory, or the handle.

    Raises:
        ValueError: `preset` is neither a name nor a directory; the message
            suggests the nearest name.
    """
    preset = str(preset)
    if preset in preset_names():
        return str(presets_directory() / preset)
    if "://" in preset:
        return preset
    path = Path(preset)
    if any((path / name).is_file() for name in _CONFIG_FILES):
        return preset
    if path.exists():
        raise ValueError(
            f"`{preset}` is no preset directory: it has no config.json. Save "
            "a model there with `model.save_to_preset()`."
        )
    if preset in keras_hub_internals.BUILTIN_PRESETS:
        return keras_hub_internals.BUILTIN_PRESETS[preset]["kaggle_handle"]
    nearest = difflib.get_close_matches(preset, preset_names(), n=1, cutoff=0)
    raise ValueError(
        f"There is no preset named `{preset}` and no directory of that name. "
        f"Did you mean `{nearest[0]}`? `align-keras presets` lists all names."
        if nearest
        else f"There is no preset directory `{preset}`."
    )


def preset_file(preset, name):
    """Find a file of a preset, downloading it where that is a handle.

    Args:
        preset: string. What `find_preset` returned.
        name: string. The name of the file.

    Returns:
        A `pathlib.Path`, or `None` where the preset has no such file.
    """
    preset = str(preset)
    if "://" not in preset:
        path = Path(preset) / name
        return path if path.is_file() else None
    try:
        return Path(keras_hub_internals.get_file(preset, name))
    except FileNotFoundError:
        return None


def has_weights(preset):
    """Tell whether a preset holds weights, not an architecture alone."""
    if "://" in preset or foreign_checkpoint(preset) is not None:
        return True
    return any((Path(preset) / name).is_file() for name in _WEIGHT_FILES)


def load_config(preset):
    """Read the `config.json` of a preset."""
    path = preset_file(preset, "config.json")
    if path is None:
        raise ValueError(f"The preset `{preset}` has no config.json.")
    return json.loads(path.read_text("utf-8-sig"))


def require_class(preset, cls):
    """Refuse a preset or checkpoint of another class than `cls`.

    Raises:
        ValueError: The preset is of another class; the message names it.
    """
    checkpoint = foreign_checkpoint(preset)
    if checkpoint is not None:
        checkpoint.require_class(cls)
        return
    name = load_config(preset).get("class_name")
    if name is not None and name not in _class_names(cls):
        raise ValueError(
            f"Preset `{preset}` is of class `{name}`, but `{cls.__name__}` "
            f"was asked for. Call `{name}.from_preset()` instead."
        )


def _class_names(cls):
    return {cls.__name__}.union(*map(_class_names, cls.__subclasses__()))


def foreign_checkpoint(path):
    """Open the checkpoint of another library.

    Args:
        path: string. What `find_preset` returned.

    Returns:
        An `align_keras.interop.Checkpoint`, or `None` where `path` is a
        preset of ours.
    """
    if Path(path).parent == presets_directory():
        return None
    # Conversion stands floors above the models; only loading a checkpoint of
    # others reaches up to it.
    from align_keras.interop import open_checkpoint

    return open_checkpoint(path)


class PresetMixin:
    """Adds the shipped presets to a KerasHub `Backbone`."""

    @keras_hub_internals.classproperty
    def presets(cls):
        """Dict of the shipped presets that this class can load."""
        return {
            name: {"path": str(presets_directory() / name)}
            for name in preset_names()
            if _preset_class(name) == cls.__name__
        }

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Create the model of a preset.

        Args:
            preset: string. The name of a shipped preset, a local preset
                directory, or a handle that KerasHub knows, such as
                `kaggle://` or `hf://`; or a checkpoint of another library,
                whose weights are converted (docs/checkpoints.md).
            load_weights: bool. Whether to load the weights of the preset.
                Shipped presets are architectures without weights; a notice
                says so once. Defaults to `True`.
            **kwargs: Arguments of the constructor that replace those of the
                preset.

        Returns:
            An instance of the class.

        Raises:
            ValueError: There is no such preset.
        """
        path = find_preset(preset)
        checkpoint = foreign_checkpoint(path)
        if checkpoint is not None:
            return checkpoint.load(cls, load_weights, **kwargs)
        if load_weights and not has_weights(path):
            _say_fresh_weights(preset)
            load_weights = False
        return super().from_preset(path, load_weights=load_weights, **kwargs)


@functools.cache
def _preset_class(name):
    return load_config(presets_directory() / name)["class_name"]


@functools.cache
def _say_fresh_weights(preset):
    print(
        f"Preset `{preset}` is an architecture: its weights are freshly "
        "initialised, to be trained.",
        file=sys.stderr,
    )


def has_preprocessor(preset):
    """Tell whether a preset holds a preprocessor."""
    return preset_file(preset, "preprocessor.json") is not None


def has_tokenizer(preset):
    """Tell whether a preset or checkpoint holds the vocabulary of a model."""
    checkpoint = foreign_checkpoint(preset)
    if checkpoint is not None:
        return "tokenizer" in checkpoint.parts()
    return has_preprocessor(preset)
