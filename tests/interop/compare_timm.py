"""Compare our backbone with timm's; a process of its own, for its imports.

python tests/interop/compare_timm.py DIR --numbers b0 --names b2 l2

`DIR` is an empty directory, for a checkpoint of the network whose outputs are
compared; of the others, the names and shapes of the tensors are.
"""

import argparse
import json
import sys
from pathlib import Path

import fake_torchvision

sys.path.append(str(Path(__file__).resolve().parents[1] / "helpers"))

fake_torchvision.install()

import keras
import numpy as np
import safetensors.torch
import timm
import torch
from huggingface_models import make_images
from huggingface_models import randomize

from align_keras import AlignImageConverter
from align_keras import EfficientNetBackbone
from align_keras.interop import timm as interop

parser = argparse.ArgumentParser()
parser.add_argument("directory")
parser.add_argument("--numbers", default="b0")
parser.add_argument("--names", nargs="*", default=[])
options = parser.parse_args()
directory = options.directory
name = f"tf_efficientnet_{options.numbers}"


def agrees(size):
    """Whether our links name each of timm's tensors, with its shape."""
    with torch.device("meta"):
        model = timm.create_model(f"tf_efficientnet_{size}")
    theirs = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not interop.is_unused(name)
    }
    config = {"architecture": f"tf_efficientnet_{size}"}
    with keras.StatelessScope():
        foreign = interop.Timm(directory, config)
        ours = interop.links(foreign.build(EfficientNetBackbone))
    return theirs == {name: link.shape for name, link in ours.items()}


def make_checkpoint():
    model = randomize(timm.create_model(name), seed=0)
    path = Path(directory)
    safetensors.torch.save_file(model.state_dict(), path / "model.safetensors")
    settings = {
        field: list(model.default_cfg[field])
        for field in ("input_size", "mean", "std")
    }
    config = {"architecture": name, "pretrained_cfg": settings}
    (path / "config.json").write_text(json.dumps(config))
    return model, settings


def compare(model):
    """Largest difference of each image size, and largest value."""
    encoder = EfficientNetBackbone.from_preset(directory)
    model = model.double()
    for size in ((64, 64), (97, 75)):
        images = make_images(np.random.default_rng(1), 2, size)
        with torch.no_grad():
            x = torch.tensor(images.transpose(0, 3, 1, 2).astype("float64"))
            expected = model.blocks(model.bn1(model.conv_stem(x))).numpy()
        expected = expected.transpose(0, 2, 3, 1)
        difference = np.abs(np.asarray(encoder(images)) - expected).max()
        yield float(difference), float(np.abs(expected).max())


model, settings = make_checkpoint()
grey = np.full((*settings["input_size"][1:], 3), 100, "uint8")
pixel = np.asarray(AlignImageConverter.from_preset(directory)(grey))[0, 0]
mean, std = np.array(settings["mean"]), np.array(settings["std"])
print(
    json.dumps(
        {
            "differences": list(compare(model)),
            "pixel": float(np.abs(pixel - (100 / 255 - mean) / std).max()),
            "agrees": {size: agrees(size) for size in options.names},
        }
    )
)
