"""Export the towers to other runtimes, without their preprocessing."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np

from align_keras.embedding.embedder import as_embedder
from align_keras.io.atomic import atomic_directory
from align_keras.io.json_files import write_json
from align_keras.io.mirrors import stored
from align_keras.io.optional import OptionalModule
from align_keras.io.paths import local_path
from align_keras.io.word_pieces import SPECIAL_TOKENS
from align_keras.preprocessing import AlignTokenizer
from align_keras.serving.export_options import QUANTIZED
from align_keras.serving.quantization import compare_towers
from align_keras.serving.quantization import draw_sample
from align_keras.serving.quantization import quantize
from align_keras.serving.quantization import split_sample
from align_keras.serving.runtimes import open_tower
from align_keras.serving.towers import computing_dtypes

openvino = OptionalModule("openvino", extra="openvino")
tf2onnx = OptionalModule("tf2onnx", extra="onnx")

SUFFIXES = {"litert": "tflite", "onnx": "onnx", "openvino": "xml"}
# All files that an export may consist of; the last four are of tokenizers.
_FILES = (
    *(
        f"{tower}.{suffix}"
        for tower in ("image_encoder", "text_encoder")
        for suffix in (*SUFFIXES.values(), "bin")
    ),
    "preprocessing.json",
    "vocabulary.txt",
    "vocabulary.json",
    "merges.txt",
    "vocabulary.spm",
)
# ONNX Runtime 1.14 (2023) and later support this version.
_OPSET = 18
# What a config holds beside the settings that `preprocessing.json` needs.
_OF_KERAS = {"name", "trainable", "dtype"}
_NOT_OF_IMAGES = _OF_KERAS | {
    # Only in training.
    "fast",
    "mirror",
}
_NOT_OF_TEXTS = _OF_KERAS | {
    "config_file",
    # In `vocabulary.txt`.
    "vocabulary",
    # The same for every `AlignTokenizer`; see `AlignPreprocessor` for both.
    "sequence_length",
    "split",
    # `AlignTokenizer` takes only BERT's.
    "special_tokens",
}


@stored("path")
def export_towers(model: Any, path: str | Path, form: str) -> list[str]:
    """Write each tower as an ONNX, OpenVINO or LiteRT model.

    None of these formats can decode image files or run BERT's tokenizer with
    the operations of its runtime alone, so the towers take preprocessed
    inputs. The batch may have any size.

    - `image_encoder`: `images`, float32 `(batch, height, width, 3)`;
    - `text_encoder`: `token_ids` and `padding_mask`, int32 `(batch,
      sequence_length)`.

    Both return `embeddings`, float32 `(batch, embedding_dim)` of unit length.
    The directory also contains `preprocessing.json`, which describes how to
    make these inputs, and `vocabulary.txt` or the files of another tokenizer.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, in
            float32.
        path: string or `pathlib.Path`. The directory to write. If the export
            fails, it is not created. The files of an earlier export, in
            any of the forms, are removed or replaced.
        form: string, `"onnx"`, `"openvino"` or `"litert"`.

    Returns:
        List of the names of the files.

    Raises:
        ValueError: `form` is unknown, the model has no preprocessor or
            another precision, or the Keras backend is not TensorFlow.
        ImportError: The package that converts to this format is not
            installed.

    Example:

    ```python
    export_towers(model, "align_onnx", "onnx")

    encode_image = open_tower("align_onnx/image_encoder.onnx")
    vectors = encode_image({"images": images})
    ```
    """
    preprocessor = _check(model, form, SUFFIXES)
    with atomic_directory(path, _FILES) as temporary:
        for name, function in _tower_functions(model).items():
            target = temporary / f"{name}.{SUFFIXES[form]}"
            if form == "openvino":
                graph = function.get_concrete_function()
                _save_openvino(openvino.convert_model(graph), target)
            elif form == "onnx":
                proto = _to_onnx(function)
                target.write_bytes(proto.SerializeToString())
            else:
                target.write_bytes(_to_litert(model, function))
        _write_preprocessing(preprocessor, temporary)
        return sorted(file.name for file in temporary.iterdir())


@stored("path")
def export_quantized_towers(
    model: Any, path: str | Path, form: str, data: Any
) -> dict:
    """Write each tower with weights and products in 8-bit integers.

    The files are those of `export_towers`, and a quarter of their size. Some
    pairs of `data` set the ranges of the integers; on others, both precisions
    are compared.

    Args:
        model: an `align_keras.AlignDualEncoder` with a preprocessor, in
            float32.
        path: string or `pathlib.Path`. The directory to write, see
            `export_towers`.
        form: string, `"onnx"` or `"openvino"`.
        data: an `align_keras.evaluation.datasets.DataSet` with captions,
            like what the model will see. At most 128 pairs calibrate and 500
            compare, drawn from its first 20,000.

    Returns:
        Dict with `"files"`, the names of the files, and what `compare_towers`
        returns.

    Raises:
        ValueError: As for `export_towers`, or `data` has fewer than two
            readable images with captions.
        ImportError: tf2onnx, ONNX Runtime or OpenVINO is not installed.

    Example:

    ```python
    from align_keras.evaluation.datasets import captioned

    data = captioned("packed/*.tfrecord")
    export_quantized_towers(model, "align_int8", "openvino", data)["recall"]
    ```
    """
    preprocessor = _check(model, form, QUANTIZED)
    sample = draw_sample(data, as_embedder(model), preprocessor.tokenize)
    middle = split_sample(sample)
    functions = _tower_functions(model)
    with (
        atomic_directory(path, _FILES) as temporary,
        TemporaryDirectory() as scratch,
    ):
        towers = {}
        for name, function in functions.items():
            target = temporary / f"{name}.{SUFFIXES[form]}"
            integers = target
            if form == "openvino":
                integers = Path(scratch, f"{name}.onnx")
            batches = sample.batches(name, 0, middle)
            between = form == "onnx" and name == "image_encoder"
            quantize(_to_onnx(function), integers, batches, between)
            if form == "openvino":
                _save_openvino(openvino.convert_model(integers), target)
            towers[name] = open_tower(target)
        exact = {name: _run(function) for name, function in functions.items()}
        found = compare_towers(sample, towers, exact)
        _write_preprocessing(preprocessor, temporary)
        files = sorted(file.name for file in temporary.iterdir())
    return {"files": files, **found}


def _check(model, form, forms):
    """Return the preprocessor, or say why the towers cannot be exported."""
    if form not in forms:
        raise ValueError(
            f"`form` must be one of {sorted(forms)}. Received: form={form!r}"
        )
    preprocessor = model.require_preprocessor()
    if keras.config.backend() != "tensorflow":
        raise ValueError(
            f"The {form} export converts the graphs of the TensorFlow backend "
            "only. Set the environment variable KERAS_BACKEND to tensorflow. "
            f"Received: backend={keras.config.backend()!r}"
        )
    dtypes = set(computing_dtypes(model).values())
    if dtypes != {"float32"}:
        raise ValueError(
            f"The {form} export takes models in float32: export with the "
            f"precision float32. Received: {', '.join(sorted(dtypes))}"
        )
    return preprocessor


def _tower_functions(model):
    import tensorflow as tf

    preprocessor = model.preprocessor
    images = tf.TensorSpec(
        (None, *preprocessor.image_converter.image_size, 3),
        tf.float32,
        name="images",
    )
    token_ids, padding_mask = (
        tf.TensorSpec((None, preprocessor.sequence_length), tf.int32, name=name)
        for name in ("token_ids", "padding_mask")
    )

    @tf.function(input_signature=[images], autograph=False)
    def image_encoder(images):
        return {"embeddings": model.encode_image(images)}

    @tf.function(input_signature=[token_ids, padding_mask], autograph=False)
    def text_encoder(token_ids, padding_mask):
        tokens = {"token_ids": token_ids, "padding_mask": padding_mask}
        return {"embeddings": model.encode_text(tokens)}

    return {"image_encoder": image_encoder, "text_encoder": text_encoder}


def _run(function):
    return lambda inputs: function(**inputs)["embeddings"].numpy()


def _save_openvino(graph, path):
    # By default, the weights would be rounded to 16 bits.
    openvino.save_model(graph, path, compress_to_fp16=False)


def _to_onnx(function):
    proto, _ = tf2onnx.convert.from_function(
        function,
        input_signature=function.input_signature,
        opset=_OPSET,
        custom_op_handlers={"Erfc": (_erfc, [])},
    )
    for value in (*proto.graph.input, *proto.graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        if not batch.dim_value:
            batch.dim_param = "batch"
    return proto


def _erfc(context, node, name, arguments):
    """Replace Erfc, which exact GELU uses and ONNX lacks, by 1 - Erf."""
    dtype = context.get_dtype(node.output[0])
    shape = context.get_shape(node.output[0])
    one = context.make_const(f"{name}_one", np.ones((), "float32"))
    erf = context.make_node("Erf", node.input[:], dtypes=[dtype])
    context.remove_node(node.name)
    context.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        name=name,
        outputs=node.output[:],
        shapes=[shape],
        dtypes=[dtype],
    )


def export_onnx(model, path, input_signature=None):
    """Write a model as one ONNX file that takes the inputs of `model`.

    The export of Keras itself cannot convert exact GELU.

    Args:
        model: a `keras.Model` in float32.
        path: string or `pathlib.Path`. The file to write.
        input_signature: see `keras.Model.export`. Defaults to `None`: the
            inputs of the model.

    Returns:
        List of the names of the inputs.
    """
    import tensorflow as tf

    shapes = input_signature or model.input
    if isinstance(shapes, (list, tuple)):
        (shapes,) = shapes
    names = [tensor.name for tensor in keras.tree.flatten(model.input)]
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for tensor, name in zip(keras.tree.flatten(shapes), names, strict=True)
    ]

    @tf.function(input_signature=specs, autograph=False)
    def call(*inputs):
        return model(keras.tree.pack_sequence_as(shapes, inputs))

    local_path(path).write_bytes(_to_onnx(call).SerializeToString())
    return names


def _to_litert(model, function):
    import tensorflow as tf

    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    return tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], module
    ).convert()


def _write_preprocessing(preprocessor, directory):
    converter = preprocessor.image_converter.get_config()
    tokenizer = preprocessor.tokenizer
    settings = {
        "image": {
            "resize": converter.pop("resize_size"),
            "central_crop": converter.pop("image_size"),
            **_relevant(converter, _NOT_OF_IMAGES),
        },
        "text": {"sequence_length": preprocessor.sequence_length},
    }
    if isinstance(tokenizer, AlignTokenizer) and preprocessor.packer is None:
        settings["text"] |= {
            **_relevant(tokenizer.get_config(), _NOT_OF_TEXTS),
            "special_tokens": SPECIAL_TOKENS,
            "start": "[CLS]",
            "end": "[SEP]",
            "padding": "[PAD]",
        }
        vocabulary = "".join(f"{token}\n" for token in tokenizer.vocabulary)
        (directory / "vocabulary.txt").write_text(vocabulary, encoding="utf-8")
    else:
        # Other tokenizers describe themselves, and save their own files.
        settings["text"] |= preprocessor.describe_text()
        tokenizer.save_assets(str(directory))
    write_json(directory / "preprocessing.json", settings)


def _relevant(config, irrelevant):
    return {
        name: np.asarray(value).tolist()
        for name, value in config.items()
        if name not in irrelevant
    }
