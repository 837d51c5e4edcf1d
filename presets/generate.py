"""Write the directories of the shipped model presets.

Run it after a change of the sizes below or of a model's config:

    python presets/generate.py [NAME ...]

It builds each model, so that the counts in the metadata are measured.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras  # noqa: E402

from align_keras.models import AlignDualEncoder  # noqa: E402
from align_keras.models import BertTextEncoder  # noqa: E402
from align_keras.models import EfficientNetBackbone  # noqa: E402
from align_keras.models import EfficientNetL2Backbone  # noqa: E402

HERE = Path(__file__).resolve().parent
VOCABULARY_SIZE = 100_000
IMAGE_SIZE = 289
SEQUENCE_LENGTH = 64

# Width and depth coefficients (Tan and Le, 2019; Xie et al., 2020).
EFFICIENTNETS = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
    "l2": (4.3, 5.3),
}
# Layers, width (Devlin et al., 2019; Turc et al., 2019). A head is 64 wide and
# the feed-forward layers are four times as wide as the tokens.
BERTS = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
# The ablations of the paper project the features of smaller networks to the
# 640 of B7; B7 and L2 keep their own width (sections 4.1 and 6.1).
EMBEDDING_DIMS = {"b7": None, "l2": None}


def image_encoder(size):
    if size == "l2":
        return EfficientNetL2Backbone(name="efficientnet_l2")
    width, depth = EFFICIENTNETS[size]
    return EfficientNetBackbone(width, depth, name=f"efficientnet_{size}")


def text_encoder(size):
    num_layers, hidden_dim = BERTS[size]
    return BertTextEncoder(
        vocabulary_size=VOCABULARY_SIZE,
        num_layers=num_layers,
        num_heads=hidden_dim // 64,
        hidden_dim=hidden_dim,
        intermediate_dim=4 * hidden_dim,
        name=f"bert_{size}",
    )


def count_parameters(model):
    return sum(
        variable.value.shape.num_elements()
        for variable in model.trainable_variables
    )


def write(name, model, details=None):
    directory = HERE / name
    directory.mkdir(exist_ok=True)
    config = _without_build_state(keras.saving.serialize_keras_object(model))
    metadata = {"parameter_count": model.count_params()}
    if details:
        metadata["align_keras"] = details
    for file, content in (("config", config), ("metadata", metadata)):
        text = json.dumps(content, indent=2) + "\n"
        (directory / f"{file}.json").write_text(text)
    print(name, metadata["parameter_count"])


def _without_build_state(config):
    if not isinstance(config, dict):
        return config
    return {
        key: _without_build_state(value)
        for key, value in config.items()
        if key not in ("build_config", "compile_config")
    }


def main(wanted):
    for size in EFFICIENTNETS:
        if wanted and not any(f"_{size}" in name for name in wanted):
            continue
        image = image_encoder(size)
        write(f"efficientnet_{size}", image)
        for text_size in BERTS:
            text = text_encoder(text_size)
            write(f"bert_{text_size}", text)
            name = f"align_{size}_bert_{text_size}"
            model = AlignDualEncoder(
                image, text, EMBEDDING_DIMS.get(size, 640), name=name
            )
            macs = image.count_macs(IMAGE_SIZE)
            macs += text.count_macs(SEQUENCE_LENGTH)
            details = {
                "image_encoder": f"efficientnet_{size}",
                "text_encoder": f"bert_{text_size}",
                "parameters": count_parameters(model),
                "embedding_dim": model.embedding_dim,
                "gflops": round(2 * macs / 1e9, 2),
            }
            write(name, model, details)


if __name__ == "__main__":
    main(sys.argv[1:])
