"""Recognise which library the weights in a directory or handle come from."""

from pathlib import Path

from align_keras.interop.foreign_weights import read_json
from align_keras.interop.pickled_weights import PICKLED_WEIGHTS
from align_keras.interop.safetensors_file import INDEX
from align_keras.interop.safetensors_file import WEIGHTS
from align_keras.interop.safetensors_file import shard_of_each_tensor
from align_keras.models.handles import handle_file
from align_keras.models.presets import preset_file

# Optional files that Hugging Face has next to config.json.
_OPTIONAL_FILES = (
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def open_foreign_weights(preset):
    """Open the weights of another library.

    Args:
        preset: string. A local directory, or a handle with a scheme that
            KerasHub supports: `hf://`, `kaggle://`, `modelscope://`, `gs://`.

    Returns:
        A `ForeignWeights`, or `None` if `preset` is in Keras' own format and
        its class needs no conversion.

    Raises:
        ValueError: The weights are of an unsupported kind.
    """
    if "://" in str(preset):
        return _open_handle(str(preset))
    directory = Path(preset)
    if (directory / "config.json").is_file():
        config = read_json(directory / "config.json")
        return _from_config(directory, config)
    if (directory / "bert_config.json").is_file():
        return _open_bert(directory)
    if (directory / "params.yaml").is_file():
        from align_keras.interop import model_garden

        params = model_garden.read_params(directory / "params.yaml")
        return model_garden.ModelGardenEfficientNet(directory, params)
    return None


def _from_config(directory, config):
    if "model_type" in config:
        return _open_huggingface(directory, config)
    if "architecture" in config:
        from align_keras.interop.timm import Timm

        return Timm(directory, config)
    if config.get("class_name") == "BertBackbone":
        from align_keras.interop.keras_hub import KerasHubBert

        return KerasHubBert(directory, config)
    return None


def _open_huggingface(directory, config):
    from align_keras.interop.huggingface_align import HuggingFaceAlign
    from align_keras.interop.huggingface_bert import HuggingFaceBert

    kinds = {"align": HuggingFaceAlign, "bert": HuggingFaceBert}
    kind = config["model_type"]
    if kind not in kinds:
        raise ValueError(
            f"`model_type` in `{directory}/config.json` must be 'align' or "
            "'bert'; other Hugging Face models cannot be read. Received: "
            f"{kind!r}."
        )
    return kinds[kind](directory, config)


def _open_bert(directory):
    """Open the original BERT, or the Model Garden's with the same config."""
    from align_keras.interop.tensorflow_checkpoint import TensorFlowCheckpoint

    config = read_json(directory / "bert_config.json")
    names = TensorFlowCheckpoint(directory).shapes
    if any(name.startswith("bert/") for name in names):
        from align_keras.interop.original_bert import OriginalBert

        return OriginalBert(directory, config)
    from align_keras.interop.model_garden import ModelGardenBert

    return ModelGardenBert(directory, config)


# === Handles ===


def _open_handle(handle):
    path = handle_file(handle, "config.json")
    config = read_json(path)
    if "model_type" in config or "architecture" in config:
        _download(handle)
        return _from_config(path.parent, config)
    return _from_config(handle, config)


def _download(handle):
    """Download all files that we read, to the directory of config.json."""
    for name in _OPTIONAL_FILES:
        preset_file(handle, name)
    if preset_file(handle, WEIGHTS) is not None:
        return
    index = preset_file(handle, INDEX)
    if index is None:
        try:
            handle_file(handle, PICKLED_WEIGHTS)
        except FileNotFoundError as error:
            raise ValueError(
                f"`{handle}` has no weights that can be read ({WEIGHTS}, its "
                f"shards or {PICKLED_WEIGHTS}): {error}"
            ) from error
        return
    for name in sorted(set(shard_of_each_tensor(index).values())):
        handle_file(handle, name)
