"""Find and load presets: shipped architectures, directories and handles.

`save_to_preset` writes a directory in KerasHub's format.
"""

import contextlib
import difflib
import functools
import inspect
import sys
from pathlib import Path

import keras

from align_keras import backend
from align_keras import keras_hub_internals
from align_keras import registry
from align_keras.io.file_names import glob_visible
from align_keras.io.fingerprints import check_digest
from align_keras.io.fingerprints import file_digest
from align_keras.io.folders import check_links
from align_keras.io.folders import stays_inside
from align_keras.io.hub_handles import HUGGING_FACE
from align_keras.io.json_files import read_json
from align_keras.io.json_files import read_object
from align_keras.io.json_files import write_json
from align_keras.io.mirrors import local_copy
from align_keras.io.mirrors import stored
from align_keras.io.optional import require
from align_keras.io.paths import local_path
from align_keras.io.stores import is_store
from align_keras.models.handles import handle_directory
from align_keras.models.handles import handle_file
from align_keras.models.shipped_presets import is_shipped
from align_keras.models.shipped_presets import pretrained_handle
from align_keras.models.shipped_presets import shipped_config
from align_keras.models.shipped_presets import shipped_configs
from align_keras.models.shipped_presets import unknown_preset

# The file with the SHA-256 digests of a preset's files, by name.
CHECKSUMS = "checksums.json"
_CONFIG = "config.json"
_WEIGHT_FILES = ("model.weights.h5", "model.weights.json")
# A directory with one of these is a preset or holds foreign weights.
CONFIG_FILES = ("config.json", "bert_config.json", "params.yaml")


def find_preset(preset, *part):
    """Find a preset by name, directory or handle.

    Args:
        preset: string. The name of a preset that we or KerasHub ship, a
            directory, or a handle with a scheme such as `hf://`.
        *part: string. Names of further files that identify a directory as a
            preset.

    Returns:
        A string: the directory, the handle, or the name of a preset that we
        ship.

    Raises:
        OutsideFolder: The directory contains a link that points outside it.
        ValueError: `preset` is neither a name nor a directory; the message
            suggests the nearest name.
    """
    preset = str(preset)
    if is_store(preset):
        preset = str(local_copy(preset))
    preset = pretrained_handle(preset) or preset
    if is_shipped(preset) or "://" in preset:
        return preset
    path = Path(preset)
    if any((path / name).is_file() for name in (*CONFIG_FILES, *part)):
        # A link could make any file on this computer the vocabulary.
        check_links(path)
        return preset
    if path.exists():
        raise ValueError(
            f"`{preset}` is not a preset directory: it has no config.json. "
            "Save a model there with `model.save_to_preset()`."
        )
    if preset in keras_hub_internals.BUILTIN_PRESETS:
        return keras_hub_internals.BUILTIN_PRESETS[preset]["kaggle_handle"]
    raise unknown_preset(preset)


def preset_file(preset, name):
    """Find a file of a preset, downloading it if the preset is a handle.

    Args:
        preset: string. A result of `find_preset`.
        name: string. The name of the file.

    Returns:
        A `pathlib.Path`, or `None` if the preset has no such file.
    """
    preset = str(preset)
    if is_shipped(preset):
        return None
    if "://" not in preset:
        path = Path(preset) / name
        return path if path.is_file() else None
    try:
        return handle_file(preset, name)
    except FileNotFoundError:
        return None


def has_weights(preset):
    """Tell whether a preset holds weights, not only an architecture.

    Raises:
        ValueError: The weights that it was saved with are missing.
    """
    if is_shipped(preset):
        return False
    if "://" in preset or foreign_weights(preset) is not None:
        return True
    if any((Path(preset) / name).is_file() for name in _WEIGHT_FILES):
        return True
    check_weights(preset)
    return False


def require_weights(preset):
    """Find a preset where fresh weights would be of no use.

    Args:
        preset: string. See `find_preset`.

    Returns:
        A string, see `find_preset`.

    Raises:
        ValueError: There is no such preset, or it has no weights.
    """
    path = find_preset(preset)
    if not has_weights(path):
        raise ValueError(
            f"The preset `{preset}` is an architecture, without weights. "
            "`align-keras presets` lists those that have weights."
        )
    return path


def load_config(preset):
    """Return the config of a preset, as Keras serialises a model."""
    if is_shipped(preset):
        return shipped_config(preset)
    path = preset_file(preset, _CONFIG)
    if path is None:
        raise ValueError(f"The preset `{preset}` has no {_CONFIG}.")
    _check_files(str(preset), _CONFIG.__eq__)
    form = {"class_name?": str, "config?": dict}
    return read_object(path, form, "config of a model", "Copy it again.")


def require_class(preset, cls):
    """Refuse a preset or foreign weights of another class than `cls`.

    Raises:
        ValueError: The preset is of another class; the message names it.
    """
    foreign = foreign_weights(preset)
    if foreign is not None:
        foreign.require_class(cls)
        return
    name = load_config(preset).get("class_name")
    if name is not None and name not in _class_names(cls):
        raise ValueError(
            f"Preset `{preset}` is of class `{name}`, but `{cls.__name__}` "
            f"was asked for. Call `{name}.from_preset()` instead."
        )


def _class_names(cls):
    return {cls.__name__}.union(*map(_class_names, cls.__subclasses__()))


def foreign_weights(path):
    """Open the weights of another library.

    Args:
        path: string. A result of `find_preset`.

    Returns:
        A `ForeignWeights` of `align_keras.interop`, or `None` if `path` needs
        no conversion.
    """
    if is_shipped(path):
        return None
    return registry.find("open_foreign_weights")(path)


def preset_directory(preset):
    """Return the local directory of a preset, downloading it if needed.

    Args:
        preset: string. A directory, a handle, or the name of a preset.

    Returns:
        `pathlib.Path`.

    Raises:
        ValueError: There is no such preset, or it has no weights.
    """
    path = require_weights(preset)
    if "://" not in path:
        return Path(path)
    foreign = foreign_weights(path)
    return handle_directory(path) if foreign is None else foreign.directory


# Arguments of `keras.Model`, besides those of a class.
_OF_MODELS = {"inputs", "outputs", "dtype", "name", "trainable"}


class PresetMixin(backend.Module):
    """Adds the shipped presets to a KerasHub `Backbone`."""

    def __init__(self, *args, **kwargs):
        # Keras' functional models silently ignore unknown keywords.
        unknown = sorted(set(kwargs) - _OF_MODELS)
        if unknown:
            known = inspect.signature(type(self)).parameters
            near = difflib.get_close_matches(unknown[0], known, 1)
            raise ValueError(
                f"`{type(self).__name__}` has no argument `{unknown[0]}`."
                + (f" Did you mean `{near[0]}`?" if near else "")
                + f" Received: {', '.join(unknown)}"
            )
        super().__init__(*args, **kwargs)

    @keras_hub_internals.classproperty
    def presets(cls):
        """Dict of the shipped presets that this class can load."""
        return {
            name: config
            for name, config in shipped_configs().items()
            if config["class_name"] == cls.__name__
        }

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Create the model of a preset.

        Args:
            preset: string. The name of a shipped preset, a local preset
                directory, or a handle that KerasHub supports, such as
                `kaggle://` or `hf://`; or a directory of another library,
                whose weights are converted (docs/foreign_weights.md).
            load_weights: bool. Whether to load the weights of the preset.
                Shipped presets are architectures without weights, which is
                reported once. Defaults to `True`.
            **kwargs: Arguments of the constructor that replace those of the
                preset.

        Returns:
            An instance of the class.

        Raises:
            ValueError: There is no such preset, or its weights are damaged.
        """
        path = find_preset(preset)
        foreign = foreign_weights(path)
        if foreign is not None:
            return foreign.load(cls, load_weights, **kwargs)
        if load_weights and path.startswith(HUGGING_FACE):
            # KerasHub would not verify the digests of its downloads.
            path = str(handle_directory(path))
        if load_weights and not has_weights(path):
            _say_fresh_weights(preset)
            load_weights = False
        if load_weights:
            check_weights(path)
        if not is_shipped(path):
            with described(path, **kwargs):
                # KerasHub's backbone loader loses track of which layers are
                # quantised.
                dtype = load_config(path)["config"].get("dtype")
                if is_quantized(dtype):
                    refuse_dtype(kwargs.get("dtype"))
                    kwargs["dtype"] = dtype
                return super().from_preset(path, load_weights, **kwargs)
        require_class(path, cls)
        config = load_config(path)
        config["config"].update(kwargs)
        return keras.saving.deserialize_keras_object(config)

    @stored("preset_dir")
    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Save config, weights and their checksums to a preset directory.

        Args:
            preset_dir: string. The directory.
            max_shard_size: int or float. Maximum size of a weight file in
                GB. Defaults to `10`.
        """
        directory = local_path(preset_dir)
        super().save_to_preset(preset_dir, max_shard_size)
        write_checksums(directory)

    @stored("filepath")
    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Export the model for inference, see `keras.Model.export`.

        Args:
            filepath: string or `pathlib.Path`. The file or directory to
                write.
            format: string. A format of `keras.Model.export`. `"onnx"` uses
                our own exporter, because that of Keras does not support some
                operations, such as exact GELU. Defaults to
                `"tf_saved_model"`.
            **kwargs: Arguments of `keras.Model.export` for the format. On
                JAX, networks such as BERT need an `input_signature` with a
                fixed text length.
        """
        filepath = str(local_path(filepath))
        _check_format(format)
        if format != "onnx":
            with _fixed_sizes_asked():
                return super().export(filepath, format=format, **kwargs)
        signature = kwargs.pop("input_signature", None)
        verbose = kwargs.pop("verbose", None)
        if kwargs:
            raise TypeError(
                "An ONNX export takes no other arguments. "
                f"Received: {sorted(kwargs)}"
            )
        names = registry.find("export_onnx")(self, filepath, signature)
        if verbose:
            print(f"{filepath}: {', '.join(names)}")


class StoredPart:
    """Saves a part of a preset to a local directory or a store."""

    @stored("preset_dir")
    def save_to_preset(self, preset_dir):
        """Save the part to a preset directory.

        Args:
            preset_dir: string. The directory, or its URL in a store.
        """
        directory = local_path(preset_dir)
        super().save_to_preset(str(directory))
        files = [directory / f"{part}.json" for part in _PARTS]
        files += glob_visible(directory / "assets", "**/*")
        _write_checksums(directory, files, _is_of_part)


_PARTS = ("image_converter", "preprocessor", "tokenizer")


def _is_weights(name):
    return ".weights." in name


def _is_of_model(name):
    return _is_weights(name) or name == _CONFIG


def _is_of_part(name):
    return not _is_of_model(name)


def write_checksums(directory):
    """Store the digests of the weight files and the config of a directory."""
    directory = Path(directory)
    files = [directory / _CONFIG, *glob_visible(directory, "*.weights.*")]
    _write_checksums(directory, files, _is_of_model)


def _write_checksums(directory, files, own):
    """Write the checksums of files; keep those of names that are not `own`."""
    listed = directory / CHECKSUMS
    digests = _read_checksums(listed) if listed.is_file() else {}
    digests = {name: d for name, d in digests.items() if not own(name)}
    for file in sorted(files):
        if file.is_file():
            name = file.relative_to(directory).as_posix()
            digests[name] = file_digest(file)
    write_json(listed, digests)


# The backends that support each export format.
_BACKENDS = {
    "tf_saved_model": ("tensorflow", "jax"),
    "onnx": ("tensorflow",),
    "openvino": ("tensorflow",),
    "litert": ("tensorflow",),
    "torch": ("torch",),
}


def _check_format(format):
    """Refuse a format that this backend or installation cannot export."""
    backend = keras.config.backend()
    backends = _BACKENDS.get(format, (backend,))
    if backend not in backends:
        raise ValueError(
            f"An export with format={format!r} needs Keras to run on "
            f"{' or '.join(backends)}: save the model, set the environment "
            "variable KERAS_BACKEND and load it there. "
            f"Received: backend={backend!r}"
        )
    if format == "openvino":
        require("openvino", extra="openvino")


@contextlib.contextmanager
def _fixed_sizes_asked():
    """Explain what to pass when JAX fails because a size is unknown."""
    try:
        yield
    except Exception as error:
        if "InconclusiveDimension" not in type(error).__name__:
            raise
        raise ValueError(
            "An encoder needs to know the length of texts, or the "
            "size of images, when JAX exports it. Pass an "
            "`input_signature` of fixed lengths: a list with a dict "
            "from the names of the inputs to `keras.InputSpec`, such "
            'as `"token_ids": keras.InputSpec("int32", (None, 64))`.'
        ) from error


@contextlib.contextmanager
def described(path, file="config.json", **kwargs):
    """Report an invalid config in one sentence; Keras would print all of it.

    Args:
        path: string. The directory of the config.
        file: string. The name of the config. Defaults to `"config.json"`.
        **kwargs: Arguments of the caller that replace those of the config.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        reason = str(error).rpartition("Exception encountered:")[2].strip()
        given = [
            f"{name}={value!r}"[:100]
            for name, value in kwargs.items()
            if value is not None
        ]
        given = f", with {', '.join(given)}," if given else ""
        raise ValueError(
            f"`{path}/{file}`{given} does not describe a valid object: "
            f"{reason[:300]}"
        ) from error


def check_weights(preset):
    """Refuse weights that differ from those that were saved.

    Args:
        preset: string. A result of `find_preset`. Presets that are not
            directories or have no checksums are not checked.

    Raises:
        ValueError: A weight file is damaged or missing; the message names it.
    """
    _check_files(preset, _is_weights)


def _read_checksums(path):
    return read_object(
        path,
        {"*": str},
        "list of checksums",
        "Copy it again; if files were changed on purpose, remove it.",
    )


def _check_files(preset, own):
    """Refuse files that have changed, among the names accepted by `own`."""
    if is_shipped(preset) or "://" in preset:
        return
    listed = Path(preset) / CHECKSUMS
    if not listed.is_file():
        return
    for name, digest in _read_checksums(listed).items():
        if not stays_inside(name):
            raise ValueError(f"`{listed}` is damaged: it names `{name}`.")
        if own(name):
            remedy = f"if it was changed on purpose, remove {listed}"
            remedy = f"copy it again; {remedy}"
            check_digest(Path(preset) / name, digest, remedy)


def is_quantized(dtype):
    """Whether the config of a dtype policy has one policy for each layer."""
    return isinstance(dtype, dict) and dtype["class_name"] == "DTypePolicyMap"


def refuse_dtype(dtype):
    """Refuse a dtype that a caller passes to replace a quantised one.

    Raises:
        ValueError: `dtype` is neither `None` nor a saved one.
    """
    if dtype is not None and not isinstance(dtype, dict):
        raise ValueError(
            "The preset is quantised, and its weights fit no other dtype. "
            f"Leave `dtype` out. Received: dtype={dtype!r}"
        )


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
    """Tell whether a preset or foreign directory holds a vocabulary."""
    foreign = foreign_weights(preset)
    if foreign is not None:
        return "tokenizer" in foreign.parts()
    return has_preprocessor(preset)


def load_part(cls, preset, part, **kwargs):
    """Load a preprocessor, or a part of one, from a preset.

    Args:
        cls: The class to load.
        preset: string, see `find_preset`; or a directory that the part's own
            `save_to_preset` wrote.
        part: string. `"tokenizer"`, `"image_converter"` or `"preprocessor"`.
        **kwargs: Arguments of the constructor that replace those of the
            preset.

    Returns:
        An instance of `cls`, or of the class that the preset names instead.

    Raises:
        ValueError: The preset has no such part.
    """
    file = f"{part}.json"
    path = find_preset(preset, file)
    foreign = foreign_weights(path)
    if foreign is not None:
        return getattr(foreign, part)(**kwargs)
    if is_shipped(path):
        raise ValueError(_say_architecture(path))
    config = preset_file(path, file)
    if config is not None:
        _check_files(path, _is_of_part)
    # Other libraries have files of this name too.
    about = None if config is None else read_json(config)
    if not isinstance(about, dict) or "class_name" not in about:
        raise ValueError(
            f"`{path}` holds no {file} of a `{cls.__name__}`. Pass a directory "
            "written by `save_to_preset` of a model with a preprocessor, or of "
            f"a `{cls.__name__}`."
        )
    loader = keras_hub_internals.KerasPresetLoader(path, None)
    with described(path, file, **kwargs):
        return getattr(loader, f"load_{part}")(cls, **kwargs)


def _say_architecture(name):
    cls = shipped_configs()[name]["class_name"]
    return (
        f"The preset `{name}` is an architecture, without weights, a tokenizer "
        "or an image converter. Create a model from it with "
        f'`{cls}.from_preset("{name}")`, and an `AlignTokenizer(vocabulary)` '
        "and an `AlignImageConverter()`, or pass a directory that "
        "`save_to_preset` wrote."
    )


class _Architecture(dict):
    """KerasHub's entry for an architecture that we ship.

    KerasHub's own classes only load presets with weights; this entry makes
    them raise an error that says what to do.
    """

    def __init__(self, name):
        super().__init__()
        self._name = name

    def __missing__(self, key):
        raise ValueError(_say_architecture(self._name))


for _name in shipped_configs():
    keras_hub_internals.BUILTIN_PRESETS.setdefault(_name, _Architecture(_name))
