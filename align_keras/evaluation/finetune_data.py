"""Prepare the images of fine-tuning for a classifier."""

import io
import itertools
import logging
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import numpy as np
from PIL import Image

from align_keras.embedding.embed_streams import opened
from align_keras.embedding.embedder import read_bytes
from align_keras.embedding.embedder import read_pixels
from align_keras.embedding.embedder import refuse_floats
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.finetune_recipes import Stage
from align_keras.io.fingerprints import fingerprint
from align_keras.io.folders import read_file
from align_keras.io.threads import map_ahead
from align_keras.preprocessing.agreement import decode_for_graph
from align_keras.preprocessing.decode import decode_in_graph

logger = logging.getLogger("align_keras")

# Share of the shorter side that the central crop keeps (section 5.3).
CENTRAL_CROP = 0.875


class Checked(NamedTuple):
    """The images of a data set that decode.

    Attributes:
        data: `DataSet`.
        labels: int64 array. The labels of the readable images.
        readable: bool array. Whether each image of `data` is readable.
        odd: set. The keys of the images that TensorFlow does not decode like
            Pillow.
        digest: string. Fingerprint of the names of the readable images.
    """

    data: DataSet
    labels: np.ndarray
    readable: np.ndarray
    odd: set
    digest: str

    def examples(self) -> Iterator[tuple[str, Any, int]]:
        """Yield the readable images, in a form that TensorFlow decodes."""
        readable = itertools.compress(self.data.examples(), self.readable)
        for key, image, label in readable:
            image = opened(image)
            if key in self.odd:
                image = _bytes(read_pixels(image))
            yield key, image, label


def check_images(data: DataSet) -> Checked:
    """Decode all images once, and warn of those that do not decode.

    Args:
        data: `DataSet` with labels.

    Returns:
        `Checked`.

    Raises:
        ValueError: no image is readable.
    """

    def check(example):
        key, image, label = example
        alike = True
        try:
            image = opened(image)
            if isinstance(image, np.ndarray):
                refuse_floats(image)
            else:
                alike = decode_for_graph(read_bytes(image))[1]
        except ValueError as error:
            return key, label, alike, error
        return key, label, alike, None

    keys, labels, readable, odd = [], [], [], set()
    for key, label, alike, error in map_ahead(check, data.examples()):
        readable.append(error is None)
        if not alike:
            odd.add(key)
        if error is not None:
            logger.warning("Image %s is left out: %s", key, error)
            continue
        keys.append(key)
        labels.append(label)
    if not keys:
        raise ValueError(f"No image of `{data.name}` is readable.")
    return Checked(
        data,
        np.array(labels, "int64"),
        np.array(readable),
        odd,
        fingerprint(keys),
    )


def as_file(image: Any) -> Any:
    """Encode an image that is an array; return others unchanged."""
    return _bytes(image) if isinstance(image, np.ndarray) else image


def _bytes(image):
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        file = io.BytesIO()
        Image.fromarray(image).convert("RGB").save(file, "PNG")
        return file.getvalue()
    return read_file(image)


def training_batches(
    images: list, labels: np.ndarray, stage: Stage, seed: int, start_step: int
) -> Any:
    """Make endless batches that depend only on the seed and the step."""
    import tensorflow as tf

    def examples():
        place = start_step * stage.batch_size
        while True:
            epoch, first = divmod(place, len(labels))
            order = np.random.default_rng([seed, epoch])
            for index in order.permutation(len(labels))[first:]:
                yield _bytes(images[index]), labels[index], place
                place += 1

    signature = (
        tf.TensorSpec((), tf.string),
        tf.TensorSpec((), tf.int64),
        tf.TensorSpec((), tf.int64),
    )
    dataset = tf.data.Dataset.from_generator(
        examples, output_signature=signature
    )

    def convert(contents, label, place):
        pixels = decode_in_graph(contents)
        if stage.augmentation == "inception":
            draws = tf.stack([tf.constant(seed, tf.int64), place])
            pixels = _random_part(pixels, draws)
        return _to_input(pixels, stage.image_size), label

    dataset = dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(stage.batch_size, drop_remainder=True).prefetch(2)


def test_batches(test: Checked, stage: Stage) -> Iterator[np.ndarray]:
    """Make batches of the central part of each test image, in order."""
    import tensorflow as tf

    def images():
        for _, image, _ in test.examples():
            yield _bytes(image)

    def convert(contents):
        pixels = _central_part(decode_in_graph(contents))
        return _to_input(pixels, stage.eval_size)

    dataset = tf.data.Dataset.from_generator(
        images, output_signature=tf.TensorSpec((), tf.string)
    )
    dataset = dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(min(stage.batch_size, 64)).as_numpy_iterator()


def _random_part(pixels, seed):
    """Crop 8% to 100% of the area at random, and flip at random."""
    import tensorflow as tf

    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(pixels),
        tf.zeros((1, 0, 4)),
        seed,
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        use_image_if_no_bounding_boxes=True,
    )
    part = tf.slice(pixels, begin, size)
    return tf.image.stateless_random_flip_left_right(part, seed)


def _central_part(pixels):
    import tensorflow as tf

    shape = tf.cast(tf.shape(pixels)[:2], tf.float32)
    side = tf.cast(tf.round(CENTRAL_CROP * tf.reduce_min(shape)), tf.int32)
    side = tf.maximum(side, 1)
    top, left = tf.unstack((tf.shape(pixels)[:2] - side) // 2)
    return pixels[top : top + side, left : left + side]


def _to_input(pixels, size):
    import tensorflow as tf

    pixels = tf.image.resize(pixels, (size, size), antialias=True)
    return tf.ensure_shape(pixels / 127.5 - 1.0, (size, size, 3))
