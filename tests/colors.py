"""Images of one color, captions that name it, and a model of a few seconds.

A model that learns anything tells the images apart; one that does not stays
at chance.
"""

import csv

import keras
import numpy as np
import yaml
from PIL import Image
from PIL import ImageColor

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras.data import pack

COLORS = (
    "red orange yellow lime green teal cyan blue navy purple pink white gray "
    "black brown maroon"
).split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "all", *COLORS]
FIELDS = {
    "steps": 40,
    "batch_size": 8,
    "learning_rate": 0.02,
    "warmup_steps": 4,
    "image_size": 32,
    "resize_size": 36,
    "sequence_length": 6,
    "optimizer": "adam",
    "checkpoint_every": 16,
    "vocabulary_size": 60,
}


def write_images(folder):
    """Write a folder of images with a caption file."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = [("image", "caption")]
    for color in COLORS:
        pixels = rng.uniform(-15, 15, (48, 40, 3)) + ImageColor.getrgb(color)
        image = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
        image.save(folder / f"{color}.png")
        rows.append((f"{color}.png", f"all {color}"))
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def write_vocabulary(path):
    """Write a vocabulary with a token for each word of the captions."""
    path.write_text("\n".join(VOCABULARY) + "\n")
    return path


def tiny_model(vocabulary_size, dropout=0.0, synchronized=False):
    """Make a model that compiles fast."""
    images = keras.Input((32, 32, 3), name="images")
    features = keras.layers.Conv2D(16, 8, strides=8)(images)
    features = keras.layers.BatchNormalization(
        momentum=0.8, synchronized=synchronized
    )(features)
    return AlignDualEncoder(
        keras.Model(images, keras.layers.ReLU()(features)),
        BertTextEncoder(vocabulary_size, 1, 2, 16, 32, dropout=dropout),
        initial_temperature=0.1,
    )


def write_training_inputs(folder):
    """Write what a run needs: preset, recipe, packed images, vocabulary.

    Args:
        folder: `pathlib.Path`. It receives `preset`, `recipe.yaml`, `packed`
            and `words.txt`.
    """
    write_images(folder / "photos")
    write_vocabulary(folder / "words.txt")
    keras.utils.set_random_seed(0)
    tiny_model(len(VOCABULARY)).save_to_preset(str(folder / "preset"))
    captions = folder / "photos" / "captions.csv"
    pack(folder / "photos", folder / "packed", captions=captions)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(FIELDS))
