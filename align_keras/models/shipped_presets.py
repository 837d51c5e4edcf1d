"""List the shipped architectures and the weights that others publish.

There is one file for each tower; pairs of towers are composed from them.

Nothing here imports Keras, so listing and checking names is fast.
"""

import copy
import difflib
import functools
import importlib.util
import json
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def presets_directory():
    """Return the directory of the shipped presets and recipes.

    In an installed wheel it is inside the package; in a checkout it is next
    to the package.
    """
    installed = _PACKAGE / "presets"
    return installed if installed.is_dir() else _PACKAGE.parent / "presets"


@functools.cache
def _towers(kind):
    """Read the shipped towers of a kind, `"image"` or `"text"`, by size."""
    files = (presets_directory() / kind).glob("*.json")
    return {path.stem: json.loads(path.read_text()) for path in sorted(files)}


@functools.cache
def _pairs():
    """Map the name of each shipped pair to its image and its text tower."""
    return {
        f"align_{size}_{text['config']['name']}": (image, text)
        for size, image in _towers("image").items()
        for text in _towers("text").values()
    }


@functools.cache
def shipped_configs():
    """Map the name of each shipped preset to its config in Keras' format."""
    towers = (*_towers("image").values(), *_towers("text").values())
    configs = {tower["config"]["name"]: _tower(tower) for tower in towers}
    for name, (image, text) in _pairs().items():
        pair = {
            "name": name,
            "image_encoder": _tower(image),
            "text_encoder": _tower(text),
            "embedding_dim": image["embedding_dim"],
        }
        configs[name] = _serialized("AlignDualEncoder", pair)
    return configs


def _tower(tower):
    # `None` stands for the dtype of the caller, or else Keras' default.
    config = {**tower["config"], "dtype": None}
    return _serialized(tower["class_name"], config)


def _serialized(class_name, config):
    return {
        "class_name": class_name,
        "config": config,
        "registered_name": f"align_keras>{class_name}",
    }


@functools.cache
def _pretrained():
    """Read the descriptions of the models that others publish with weights."""
    path = presets_directory() / "pretrained.json"
    return json.loads(path.read_text("utf-8"))


def pretrained_handle(preset):
    """Return the handle of the weights with that name, or `None`."""
    return _pretrained().get(preset, {}).get("handle")


def preset_names():
    """Return the names of all model presets, sorted."""
    return sorted((*shipped_configs(), *_pretrained()))


def may_be_preset(name):
    """Tell whether a name may be that of a preset, of ours or of KerasHub's.

    Importing KerasHub takes seconds. Its presets are keys of dicts in its
    source, so that a name which is not quoted there is not one of them.
    """
    if name in preset_names():
        return True
    found = importlib.util.find_spec("keras_hub")
    if found is None or not found.submodule_search_locations:
        return True
    quoted = f'"{name}"'
    return any(
        quoted in path.read_text("utf-8")
        for folder in found.submodule_search_locations
        for path in Path(folder).rglob("*_presets.py")
    )


def unknown_preset(preset):
    """Return the error for what is neither a name nor a directory."""
    nearest = difflib.get_close_matches(preset, preset_names(), n=1)
    suggestion = f"Did you mean `{nearest[0]}`? " if nearest else ""
    return ValueError(
        f"There is no preset named `{preset}` and no directory of that name. "
        f"{suggestion}`align-keras presets` lists all names."
    )


def shipped_config(preset):
    """Return the config of a shipped preset, as Keras serialises a model."""
    return copy.deepcopy(shipped_configs()[preset])


def is_shipped(preset):
    """Tell whether a preset is a shipped architecture, which has no weights."""
    return preset in shipped_configs()


def list_presets():
    """Describe the shipped ALIGN presets.

    They are architectures without trained weights: one for each combination
    of an image encoder (B0 to B7 and L2) and a text encoder (tiny to large).

    Returns:
        A dict from preset name to a dict with `"image_encoder"` and
        `"text_encoder"`, the names of the towers' presets; `"parameters"`,
        the number of trainable parameters with a vocabulary of 100,000
        tokens; `"embedding_dim"`; and `"gflops"`, billions of floating-point
        operations for a forward pass on one pair of 289x289 pixels and 64
        tokens.

    Example:

    ```python
    list_presets()["align_b7_bert_base"]["embedding_dim"]  # 640
    ```
    """
    return {
        name: {
            "image_encoder": image["config"]["name"],
            "text_encoder": text["config"]["name"],
            "parameters": _count_parameters(image, text),
            "embedding_dim": image["embedding_dim"],
            "gflops": round(2 * (image["macs"] + text["macs"]) / 1e9, 2),
        }
        for name, (image, text) in sorted(_pairs().items())
    }


def list_pretrained_presets():
    """Describe the named presets that have weights.

    They are models that others have published: an ALIGN model, and encoders
    to start from. `from_preset` of the named class downloads a model when it
    is first used, and keeps it in Hugging Face's cache.

    Returns:
        A dict from preset name to a dict with `"handle"`, its location;
        `"class_name"`, the class whose `from_preset` loads it;
        `"megabytes"`, the size of the download; `"license"`; `"trained_on"`;
        `"results"`, a dict of the authors' measurements in %; and `"source"`,
        the publication.

    Example:

    ```python
    list_pretrained_presets()["bert_mini_uncased"]["license"]  # "Apache-2.0"
    ```
    """
    return copy.deepcopy(_pretrained())


def _count_parameters(image, text):
    width = image["embedding_dim"]
    projected = [text["config"]["hidden_dim"]]
    if image["num_features"] != width:
        projected.append(image["num_features"])
    projections = sum((features + 1) * width for features in projected)
    temperature = 1
    return image["parameters"] + text["parameters"] + projections + temperature
