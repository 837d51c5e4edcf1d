"""Build a model from two separately pretrained towers."""

import dataclasses

import keras
import keras_hub

from align_keras import models
from align_keras.io.json_files import read_object
from align_keras.models import presets
from align_keras.models.towers import declared

# Arguments that set the size of a tower, and must match the preset.
SIZES = (
    "width_coefficient",
    "depth_coefficient",
    "num_layers",
    "num_heads",
    "hidden_dim",
    "intermediate_dim",
)
# Arguments that do not depend on the weights: how to train, and Keras's names.
_FREE = {
    "name",
    "trainable",
    "dtype",
    "dropout",
    "batch_norm",
    "virtual_batch_size",
    "image_shape",
}


@dataclasses.dataclass(frozen=True)
class KnownTower:
    """A pretrained tower, and where its weights come from.

    Args:
        source: string. What `from_preset` of a tower opens: the name of a
            shipped tower, a preset directory, a directory of another library
            (docs/foreign_weights.md), or a handle such as
            `"hf://google-bert/bert-base-uncased"`.
        kind: string. `"image"` or `"text"`.
    """

    source: str
    kind: str

    @property
    def path(self):
        """The directory or handle of the source."""
        return presets.find_preset(self.source)

    @property
    def class_name(self):
        """The name of the tower's class."""
        foreign = presets.foreign_weights(self.path)
        if foreign is not None:
            return foreign.model_class.__name__
        return presets.load_config(self.path).get("class_name")

    def is_ours(self):
        """Return whether the tower's class is one of this package."""
        return hasattr(models, self.class_name)

    def has_weights(self):
        """Return whether the source has weights, not only an architecture."""
        return presets.has_weights(self.path)

    def open(self, load_weights=True, **kwargs):
        """Create the tower.

        Args:
            load_weights: bool. Whether to load its weights. Defaults to
                `True`.
            **kwargs: Arguments of its constructor to replace.

        Returns:
            A `keras.Model`.

        Raises:
            ValueError: The source is not a tower of this kind.
        """
        if self.class_name == "AlignDualEncoder":
            raise ValueError(
                f"`{self.kind}_weights` must be those of one tower, and "
                f"{self.source!r} holds a whole pair: pass it as the preset."
            )
        foreign = presets.foreign_weights(self.path)
        if foreign is not None:
            cls = foreign.model_class
            tower = foreign.load(cls, load_weights, **kwargs)
        else:
            tower = self._from_keras(load_weights, **kwargs)
        inputs = declared(tower, "input")
        takes_text = isinstance(inputs, dict) and "token_ids" in inputs
        if takes_text != (self.kind == "text"):
            raise ValueError(
                f"`{self.kind}_weights` must be those of a tower for "
                f"{self.kind}s. Received: {self.source!r}, a "
                f"`{type(tower).__name__}`."
            )
        return tower

    def _from_keras(self, load_weights, **kwargs):
        if presets.is_shipped(self.path):
            config = presets.load_config(self.path)
            config["config"].update(kwargs)
            return keras.saving.deserialize_keras_object(config)
        if load_weights:
            presets.check_weights(self.path)
        with presets.described(self.path, **kwargs):
            return keras_hub.models.Backbone.from_preset(
                self.path,
                load_weights=load_weights and self.has_weights(),
                dtype=keras.config.dtype_policy(),
                **kwargs,
            )

    def tokenizer(self):
        """Return its `AlignTokenizer`, or `None` if it has none."""
        from align_keras.preprocessing import AlignTokenizer

        return self._part("tokenizer", AlignTokenizer)

    def image_converter(self):
        """Return its `AlignImageConverter`, or `None` if it has none."""
        from align_keras.preprocessing import AlignImageConverter

        return self._part("image_converter", AlignImageConverter)

    def _part(self, name, cls):
        foreign = presets.foreign_weights(self.path)
        if foreign is not None:
            has = name in foreign.parts()
            return getattr(foreign, name)() if has else None
        if presets.preset_file(self.path, f"{name}.json") is None:
            return None
        return cls.from_preset(self.path)

    def pooling(self):
        """Return the pooling that sentence-transformers configured for it.

        Returns:
            `"average"`, `"first"`, or `None` if there is no such setting.
        """
        path = presets.preset_file(self.path, "1_Pooling/config.json")
        if path is None:
            return None
        config = read_object(
            path, {}, "config of how a tower is pooled", "Copy it again."
        )
        if config.get("pooling_mode_mean_tokens"):
            return "average"
        if config.get("pooling_mode_cls_token"):
            return "first"
        return None


def known_towers(image_weights=None, text_weights=None):
    """Return the given towers as a dict from kind to `KnownTower`."""
    sources = {"image": image_weights, "text": text_weights}
    return {
        kind: KnownTower(str(source), kind)
        for kind, source in sources.items()
        if source is not None
    }


def fit_to_preset(tower, known, preset):
    """Adapt a preset's tower to the weights of a pretrained one.

    Args:
        tower: `keras.Model`, with or without its weights.
        known: `KnownTower`. Where it comes from.
        preset: string. Path of the preset of the dual encoder.

    Returns:
        dict. Arguments of the preset's tower to replace, so that the weights
        fit.

    Raises:
        ValueError: The preset's tower has another class or size.
    """
    if presets.has_weights(preset):
        raise ValueError(
            f"`{known.kind}_weights` gives a tower to a preset without "
            f"weights, and `{preset}` has its own. Leave "
            f"`{known.kind}_weights` out, or choose a shipped preset."
        )
    config = presets.load_config(preset)["config"][f"{known.kind}_encoder"]
    found = tower.get_config()
    advice = (
        "Choose a preset that fits, or leave the preset out and give the "
        "weights of both towers, which are then taken as they are."
    )
    name = type(tower).__name__
    if config["class_name"] != name:
        raise ValueError(
            f"`{known.kind}_weights` does not fit the preset `{preset}`: "
            f"{known.source!r} is a `{name}`, and the preset has a "
            f"`{config['class_name']}`. {advice}"
        )
    differences = [
        f"{size}={found[size]!r}, not {config['config'].get(size)!r}"
        for size in SIZES
        if size in found and found[size] != config["config"].get(size)
    ]
    if differences:
        raise ValueError(
            f"`{known.kind}_weights` does not fit the preset `{preset}`: "
            f"{known.source!r} has {'; '.join(differences)}. {advice}"
        )
    return {k: v for k, v in found.items() if k not in _FREE}


def copy_weights(source, target):
    """Copy the weights of a tower to one of the same architecture."""
    for theirs, ours in zip(source.weights, target.weights, strict=True):
        ours.assign(theirs)
