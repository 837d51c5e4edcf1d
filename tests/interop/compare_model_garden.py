"""Compare our towers with the Model Garden's; a process for its imports.

Argument: an empty directory.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras
import yaml
from official.nlp.modeling import networks
from official.vision.modeling.backbones import efficientnet
from official.vision.modeling.classification_model import ClassificationModel

from align_keras import BertTextEncoder
from align_keras import EfficientNetBackbone
from align_keras.interop import from_model_garden_bert
from align_keras.interop import from_model_garden_efficientnet

os.environ["CUDA_VISIBLE_DEVICES"] = ""
directory = Path(sys.argv[1])
rng = np.random.default_rng(0)
found = {}


def randomize(model):
    for weight in model.weights:
        kind = weight.name.rpartition("/")[2].partition(":")[0]
        shape = weight.shape.as_list()
        if kind in ("gamma", "moving_variance"):
            value = rng.uniform(0.7, 1.3, shape)
        elif "embeddings" in kind:
            value = rng.normal(0, 0.7, shape)
        elif len(shape) < 2 or kind == "bias":
            value = rng.uniform(-0.3, 0.3, shape)
        else:
            fan_in = np.prod(shape) / max(shape[-1], 2)
            value = rng.normal(0, np.sqrt(1.5 / fan_in), shape)
        weight.assign(value)


def record(name, result, expected):
    difference = np.abs(np.asarray(result) - expected).max()
    found[name] = [float(difference), float(np.abs(expected).max())]


def refused(name, cls, source):
    try:
        cls.from_preset(str(source))
    except ValueError as error:
        found[name] = str(error)


# === EfficientNet ===

backbone = efficientnet.EfficientNet(
    "b0",
    se_ratio=0.25,
    activation="swish",
)
randomize(backbone)
last = [
    layer
    for layer in backbone.layers
    if type(layer).__name__ == "InvertedBottleneckBlock"
][-1]
y, x = np.mgrid[:65, :75][..., None] / 20
waves = rng.uniform(0, 9, (2, 2, 1, 1, 3))
images = np.sin(waves[0] * y) * np.cos(waves[1] * x)
images = images.astype("float32")
features = tf_keras.Model(backbone.inputs, last.output)
expected = features(images).numpy()
record(
    "efficientnet", from_model_garden_efficientnet(backbone)(images), expected
)
params = {
    "task": {
        "model": {
            "backbone": {
                "type": "efficientnet",
                "efficientnet": {"model_id": "b0", "se_ratio": 0.25},
            },
            "norm_activation": {"activation": "swish", "norm_epsilon": 0.001},
        }
    }
}
classifier = ClassificationModel(backbone, num_classes=3)
source = directory / "efficientnet"
source.mkdir()
(source / "params.yaml").write_text(yaml.safe_dump(params))
# As a training run leaves it: with a head, and counters of the run.
tf.train.Checkpoint(model=classifier, step=tf.Variable(3)).write(
    str(source / "ckpt-3")
)
encoder = EfficientNetBackbone.from_preset(str(source))
record("efficientnet/training", encoder(images), expected)

# === BERT ===

config = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 70,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
encoders = {}
for kind in ("BertEncoder", "BertEncoderV2"):
    encoder = getattr(networks, kind)(
        vocab_size=50,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        inner_dim=48,
        max_sequence_length=70,
        type_vocab_size=2,
        **({"dict_outputs": True} if kind == "BertEncoder" else {}),
    )
    mask = np.tile((np.arange(20) < 13).astype("int32"), (2, 1))
    inputs = {
        "input_word_ids": rng.integers(5, 50, (2, 20)).astype("int32") * mask,
        "input_mask": mask,
        "input_type_ids": np.zeros_like(mask),
    }
    encoder(inputs)
    randomize(encoder)
    expected = encoder(inputs)["sequence_output"].numpy()[:, :13]
    tokens = {"token_ids": inputs["input_word_ids"], "padding_mask": mask}
    ours = from_model_garden_bert(encoder)
    record(kind, ours(tokens)["sequence_output"][:, :13], expected)
    place = "encoder" if kind == "BertEncoder" else "model"
    source = directory / kind
    source.mkdir()
    tf.train.Checkpoint(**{place: encoder}).write(
        str(source / "bert_model.ckpt")
    )
    (source / "bert_config.json").write_text(json.dumps(config))
    ours = BertTextEncoder.from_preset(str(source))
    record(f"{kind}/file", ours(tokens)["sequence_output"][:, :13], expected)
config["num_hidden_layers"] = 3
(source / "bert_config.json").write_text(json.dumps(config))
refused("more layers", BertTextEncoder, source)
config.update(num_hidden_layers=2, hidden_size=64)
(source / "bert_config.json").write_text(json.dumps(config))
refused("other width", BertTextEncoder, source)
print(json.dumps(found))
