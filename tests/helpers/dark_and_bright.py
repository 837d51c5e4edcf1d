"""Dark and bright images as class folders, and a small model for them."""

import keras
import numpy as np
import pytest
from PIL import Image

from align_keras import AlignDualEncoder
from align_keras import BertTextEncoder
from align_keras.evaluation import datasets


def small_model():
    """A dual encoder that compiles in a second, for images of any size."""
    keras.utils.set_random_seed(0)
    images = keras.Input((None, None, 3), name="images")
    features = keras.layers.Conv2D(8, 3, strides=4)(images)
    features = keras.layers.BatchNormalization()(features)
    features = keras.layers.ReLU()(features)
    return AlignDualEncoder(
        keras.Model(images, features), BertTextEncoder(50, 1, 2, 16, 32)
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Dark and bright images, a hard task for nobody."""
    root = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 6)):
        for name, level in (("bright", 215), ("dark", 30)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                size = rng.integers(30, 60, 2)
                noise = rng.integers(-30, 31, (*size, 3))
                pixels = (level + noise).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return {
        split: datasets.class_folders(root / split)
        for split in ("train", "test")
    }
