"""Save, load, clone and export a dual encoder."""

import base64
import copy
import functools
import inspect
import os
import tempfile
import warnings
from pathlib import Path

import keras
from keras import layers
from keras.dtype_policies import DTypePolicyMap

from align_keras import registry
from align_keras.io.atomic import atomic_directory
from align_keras.io.mirrors import stored
from align_keras.models import presets
from align_keras.models.carried import FILE as CARRIED
from align_keras.models.carried import Carried
from align_keras.models.lora import described_without_lora
from align_keras.models.lora import lora_layers
from align_keras.models.lora import merged_lora
from align_keras.models.snapshot import Snapshot

# Marks a preprocessor in a preset's config that is stored in separate files.
BESIDE = "preprocessor.json"
_TOWERS = ("image_encoder", "text_encoder")


class _OfClone(dict):
    """Carries a clone through `clone_model`, as outputs of a cloned graph.

    Keras passes these outputs to the class of the model, which returns the
    clone that they carry.
    """

    def __init__(self, model):
        super().__init__(model.output)
        self.model = model


def _are_of_clone(args):
    return len(args) > 1 and isinstance(args[1], _OfClone)


def _unless_cloned(construct):
    """Make a constructor do nothing if `clone_model` passes a finished clone.

    Keras only passes a graph to constructors without named arguments; for
    others it would make a plain model.
    """

    @functools.wraps(construct)
    def run(self, *args, **kwargs):
        if not _are_of_clone(args):
            construct(self, *args, **kwargs)

    try:
        inspect.signature(construct).bind(None)
    except TypeError:
        return run
    # For a constructor without required arguments, Keras collects the
    # arguments from the signature, and must see that of `run`.
    del run.__wrapped__
    return run


def _layers_of(tower):
    """List all layers in an encoder, in an order that its config determines."""
    return list(tower._flatten_layers(include_self=False))


class Saving:
    """Saves a dual encoder together with its towers and preprocessor."""

    def own_dtype_config(self):
        """Return the config of the dtype policy outside the towers.

        The towers save their own policies. KerasHub's `get_config` would
        collect the policies of all layers by path, but the paths of two
        towers may coincide.
        """
        policy = self.dtype_policy
        if not isinstance(policy, DTypePolicyMap):
            projections = (self.image_projection, self.text_projection)
            quantized = {
                layer.path: layer.dtype_policy
                for layer in projections
                if layer is not None and layer.quantization_mode is not None
            }
            if quantized:
                policy = DTypePolicyMap(policy, quantized)
        return keras.dtype_policies.serialize(policy)

    def frozen_layers(self):
        """List the frozen layers of encoders that are not frozen as a whole.

        The config of an encoder already says whether all of it is frozen.

        Returns:
            A dict from `"image_encoder"` or `"text_encoder"` to the indices of
            these layers among all layers of the encoder.
        """
        if lora_layers(self):
            return {}  # Merging the updates unfreezes what they froze.
        found = {}
        for name in _TOWERS:
            tower = getattr(self, name)
            places = [
                place
                for place, layer in enumerate(_layers_of(tower))
                if not layer.trainable
            ]
            if tower.trainable and places:
                found[name] = places
        return found

    def preprocessor_config(self):
        """Return the config of the preprocessor, including its vocabulary."""
        if self.__dict__.get("_saves_preset"):
            return BESIDE  # A preset stores it in separate files.
        config = keras.saving.serialize_keras_object(self.preprocessor)
        tokenizer = config["config"].get("tokenizer")
        # KerasHub keeps a vocabulary in files next to the config, but a config
        # in memory has no files.
        for name in ("vocabulary", "merges", "proto"):
            if tokenizer and tokenizer["config"].get(name, "") is None:
                value = getattr(self.preprocessor.tokenizer, name, None)
                if isinstance(value, bytes):
                    value = base64.b64encode(value).decode("ascii")
                tokenizer["config"][name] = value
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        if config.get("trainable"):
            # Setting it would unfreeze the layers that are frozen.
            del config["trainable"]
        frozen = config.pop("frozen_layers", {})
        for name in _TOWERS:
            tower = config[name]
            if not isinstance(tower, dict):
                continue
            # A dtype from the caller applies to the towers too. A saved dtype
            # is a dict, and then the towers have their own; so do quantised
            # towers.
            dtype, own = config.get("dtype"), tower["config"].get("dtype")
            if presets.is_quantized(own):
                presets.refuse_dtype(dtype)
            elif not isinstance(dtype, dict) and "dtype" in tower["config"]:
                tower = {**tower, "config": {**tower["config"], "dtype": dtype}}
            config[name] = layers.deserialize(tower, custom_objects)
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.dtype_policies.get(config["dtype"])
        preprocessor = config.get("preprocessor")
        if preprocessor == BESIDE:
            warnings.warn(
                "The network of this preset is loaded without its "
                "preprocessor, as KerasHub's `Backbone` does. "
                "`AlignDualEncoder.from_preset` loads both.",
                stacklevel=2,
            )
            config["preprocessor"] = None
        elif isinstance(preprocessor, dict):
            # KerasHub changes the config: it puts the objects it makes into it.
            config["preprocessor"] = keras.saving.deserialize_keras_object(
                copy.deepcopy(preprocessor), custom_objects
            )
        model = cls(**config)
        for name, places in frozen.items():
            held = _layers_of(getattr(model, name))
            for place in places:
                held[place].trainable = False
        return model

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _unless_cloned(cls.__init__)

    def __new__(cls, *args, **kwargs):
        if _are_of_clone(args):
            return args[1].model
        return super().__new__(cls, *args, **kwargs)

    def _run_through_graph(self, inputs, **functions):
        # Only `clone_model` passes both functions. It would make a plain
        # graph, which could not be trained like this model.
        if sorted(functions) != ["call_fn", "operation_fn"]:
            return super()._run_through_graph(inputs, **functions)
        clone = functions["operation_fn"]
        with described_without_lora(self):
            found = {layer: clone(layer) for layer in self.layers}
        towers = (self.image_encoder, self.text_encoder)
        others = [
            layer
            for layer, other in found.items()
            if layer not in towers
            and not isinstance(layer, layers.InputLayer)
            and (other is layer or other.get_config() != layer.get_config())
        ]
        given = [
            x
            for x, own in zip(
                keras.tree.flatten(inputs), self.inputs, strict=True
            )
            if x.shape != own.shape or keras.utils.get_source_inputs(x) != [x]
        ]
        call_function = functions["call_fn"]
        if others or given or call_function is not None:
            raise ValueError(
                "A clone takes pairs as the model does, and `clone_function` "
                "may change only its encoders. Clone the plain graph "
                "`keras.Model(model.input, model.output)` instead. Received: "
                f"input_tensors={given}, call_function={call_function}, other "
                f"layers={[layer.name for layer in others]}"
            )
        config = {
            **self.get_config(),
            "image_encoder": found[self.image_encoder],
            "text_encoder": found[self.text_encoder],
        }
        if type(found[self.text_encoder]) is not type(self.text_encoder):
            # With `recursive=True` the clone is a plain graph of unknown class.
            config["text_pooling"] = self.resolved_text_pooling
        return _OfClone(type(self).from_config(config))

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Create the model of a preset, with its preprocessor.

        Args:
            preset: string. The name of a shipped preset such as
                `"align_b7_bert_base"`, a directory that `save_to_preset`
                wrote, or a handle that KerasHub supports; or a directory in
                Hugging Face's layout, or the handle of one, such as
                `"hf://kakaobrain/align-base"`, whose weights are converted.
            load_weights: bool. Whether to load the weights of the preset.
                Shipped presets are architectures without weights, which is
                reported once. Defaults to `True`.
            **kwargs: Arguments of the constructor that replace those of the
                preset. `image_encoder` and `text_encoder` may be dicts of
                arguments of the respective tower, for example
                `text_encoder={"vocabulary_size": 30_000}`. If the weights no
                longer fit, pass `load_weights=False`.

        Returns:
            An `AlignDualEncoder`.

        Example:

        ```python
        model = AlignDualEncoder.from_preset(
            "align_b3_bert_mini", image_encoder={"batch_norm": "ghost"}
        )
        ```
        """
        path = presets.find_preset(preset)
        foreign = presets.foreign_weights(path)
        if foreign is not None:
            return foreign.load(cls, load_weights, **kwargs)
        presets.require_class(path, cls)
        for name in ("image_encoder", "text_encoder"):
            if isinstance(kwargs.get(name), dict):
                tower = presets.load_config(path)["config"][name]
                tower["config"].update(kwargs[name])
                kwargs[name] = tower
        preprocessor = kwargs.pop("preprocessor", None)
        model = super().from_preset(
            preset, load_weights, preprocessor=None, **kwargs
        )
        if preprocessor is None and presets.has_preprocessor(path):
            load_preprocessor = registry.find("load_preprocessor")
            preprocessor = load_preprocessor(path)
        model.preprocessor = preprocessor
        carried = presets.preset_file(path, CARRIED)
        if load_weights and carried is not None:
            model.carried = Carried.read(carried.parent)
        return model

    @stored("preset_dir")
    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Save config, weights and preprocessor to a preset directory.

        Low-rank updates are merged into the weights.

        Args:
            preset_dir: string. The directory, which is written atomically.
            max_shard_size: int or float. Maximum size of a weight file in
                GB. Defaults to `10`.
        """
        self.begin_saving(preset_dir, max_shard_size)()

    def begin_saving(self, preset_dir, max_shard_size=10):
        """Copy the current state of the model, to write a preset later.

        Args:
            preset_dir: string. A local directory, see `save_to_preset`.
            max_shard_size: int or float. See `save_to_preset`.

        Returns:
            A callable that writes the directory. Training may continue in the
            meantime.
        """
        # For a compiled model, Keras would also write the moments of the
        # optimizer, and the weight file would be three times as large.
        optimizer = getattr(self, "optimizer", None)
        self.optimizer = None
        weights = []

        def save_weights(filepath, max_shard_size=None):
            name = os.path.basename(filepath)
            weights.append((Snapshot(self), name, max_shard_size))

        self.__dict__.update(_saves_preset=True, save_weights=save_weights)
        try:
            with tempfile.TemporaryDirectory(prefix="align_keras-") as folder:
                with merged_lora(self):
                    super().save_to_preset(folder, max_shard_size)
                if self.preprocessor is not None:
                    self.preprocessor.save_to_preset(folder)
                files = {
                    path.relative_to(folder): path.read_bytes()
                    for path in Path(folder).rglob("*")
                    if path.is_file()
                }
        finally:
            self.optimizer = optimizer
            del self.__dict__["_saves_preset"], self.__dict__["save_weights"]

        def write():
            with atomic_directory(preset_dir) as temporary:
                for name, contents in files.items():
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    (temporary / name).write_bytes(contents)
                for snapshot, name, size in weights:
                    snapshot.write(temporary / name, size)
                presets.write_checksums(temporary)
                if self.carried is not None:
                    self.carried.write(temporary)

        return write

    def save(self, filepath, *args, **kwargs):
        """Save the model to a `.keras` file, as `keras.Model.save` does."""
        if lora_layers(self):
            warnings.warn(
                "Low-rank updates are merged into the weights of a .keras "
                "file: the loaded model has none to train further, and the "
                "layers that they froze may be frozen. `save_weights` keeps "
                "them.",
                stacklevel=2,
            )
        super().save(filepath, *args, **kwargs)

    def export(
        self,
        filepath,
        format="tf_saved_model",
        verbose=None,
        input_signature=None,
        **kwargs,
    ):
        """Export the model for inference.

        With a preprocessor, a SavedModel takes encoded images and strings,
        see `align_keras.serving.export_saved_model`. If the model has no
        preprocessor, the format is another, or an `input_signature` is given,
        the export has the same inputs as the model, as in Keras.

        Args:
            filepath: string or `pathlib.Path`. The file or directory to
                write.
            format: string. `"tf_saved_model"`, `"onnx"`, `"openvino"`,
                `"litert"`, or another format of `keras.Model.export`.
                Defaults to `"tf_saved_model"`.
            verbose: bool. Whether to print what was written. Defaults to
                `None`, the default of the format.
            input_signature: see `keras.Model.export`. On JAX, networks such as
                BERT need one with a fixed text length. Defaults to `None`.
            **kwargs: Arguments of `export_saved_model`, or arguments of
                `keras.Model.export` for the format.

        Returns:
            With a preprocessor, a dict from the name of each signature to the
            list of its inputs.
        """
        takes_files = self.preprocessor is not None and input_signature is None
        if format != "tf_saved_model" or not takes_files:
            return super().export(
                filepath,
                format=format,
                verbose=verbose,
                input_signature=input_signature,
                **kwargs,
            )
        export_saved_model = registry.find("export_saved_model")
        signatures = export_saved_model(self, filepath, **kwargs)
        if verbose:
            for name, inputs in signatures.items():
                print(f"{filepath}: {name}({', '.join(inputs)})")
        return signatures
