"""Prepare images as in the paper: resize, crop and scale."""

import os

import keras
import keras_hub
import numpy as np
from keras import ops

from align_keras import keras_hub_internals
from align_keras.io.folders import read_file
from align_keras.io.images import decode_with_pillow
from align_keras.models import AlignDualEncoder
from align_keras.models import presets
from align_keras.preprocessing.decode import decode_in_graph
from align_keras.preprocessing.decode import decode_window
from align_keras.preprocessing.decode import is_upright_jpeg
from align_keras.preprocessing.tf_graph import in_tf_graph

# The paper resizes to 346 and crops 289 (section 4.1).
_RESIZE_RATIO = 346 / 289


@keras.saving.register_keras_serializable(package="align_keras")
class AlignImageConverter(presets.StoredPart, keras_hub.layers.ImageConverter):
    """Turns images into the float arrays that the image tower takes.

    Every image is resized to `resize_size` without keeping its aspect ratio
    and then cropped to `image_size`: at the centre in evaluation; at a random
    position, and mirrored at random, in training (section 4.1 of the paper;
    `mirror=False` turns off mirroring). Values are scaled from 0..255 to
    -1..1. The layer runs eagerly on every Keras backend, inside tf.data and
    inside a SavedModel. Results are float32 under every dtype policy.

    Random crops are stateless: they depend only on `seed`. TensorFlow and
    NumPy (used eagerly on other backends) draw different numbers from the
    same seed.

    Args:
        image_size: int or tuple of two ints. Height and width of the result
            in pixels. Defaults to 289.
        resize_size: int or tuple of two ints. Height and width before the
            crop. Defaults to `None`, which is 346 / 289 of `image_size`, as
            in the paper.
        antialias: bool. Whether shrinking averages over all pixels and
            rounds to whole grey levels, like Pillow and therefore the Hugging
            Face processor. Defaults to `False`, as the public reproduction
            of ALIGN was trained.
        fast: bool. Whether `decode_random_crop`, and therefore training,
            decodes only the part of a JPEG that the crop shows. If that part
            is at least 2, 4 or 8 times as large as the crop, it is decoded
            at a half, a quarter or an eighth of its size. The part begins
            and ends at whole pixels of the file. Defaults to `False`.
        mirror: bool. Whether training mirrors half of the images. Mirroring
            makes captions wrong that mention left, right or letters. Defaults
            to `True`, as in the paper.
        scale: float or three floats. Multiplied with the values 0..255.
            Defaults to 1 / 127.5.
        offset: float or three floats. Added afterwards. Defaults to -1.

    Example:

    ```python
    converter = AlignImageConverter(image_size=64)
    photo = np.random.randint(0, 256, (120, 160, 3), dtype="uint8")
    converter(photo)  # (64, 64, 3), float32
    converter(photo[None], training=True, seed=[1, 2])  # (1, 64, 64, 3)
    ```
    """

    backbone_cls = AlignDualEncoder

    def __init__(
        self,
        image_size=(289, 289),
        resize_size=None,
        antialias=False,
        fast=False,
        mirror=True,
        scale=1 / 127.5,
        offset=-1.0,
        **kwargs,
    ):
        image_size = _pair(image_size, "image_size")
        if resize_size is None:
            resize_size = [round(side * _RESIZE_RATIO) for side in image_size]
        resize_size = _pair(resize_size, "resize_size")
        # In bfloat16, 0..255 would have only 8 significant bits.
        kwargs.setdefault("dtype", "float32")
        super().__init__(
            image_size=resize_size,
            scale=scale,
            offset=offset,
            crop_to_aspect_ratio=False,
            antialias=antialias,
            data_format="channels_last",
            **kwargs,
        )
        self.image_size = image_size
        self.fast = fast
        self.mirror = mirror

    @classmethod
    def from_preset(cls, preset, **kwargs):
        """Create the image converter of a preset.

        Args:
            preset: string. A local preset directory, a handle that KerasHub
                supports, or a directory of another library that describes
                how images are prepared (docs/foreign_weights.md).
            **kwargs: Arguments of the constructor that replace those of the
                preset, such as `antialias`.

        Returns:
            An `AlignImageConverter`.
        """
        return presets.load_part(cls, preset, "image_converter", **kwargs)

    @property
    def image_size(self):
        """Height and width of the result. It can be set."""
        return self._image_size

    @image_size.setter
    def image_size(self, value):
        value = _pair(value, "image_size")
        if any(c > r for c, r in zip(value, self.resize_size, strict=True)):
            raise ValueError(
                f"`image_size` {value} does not fit into `resize_size` "
                f"{self.resize_size}; choose a smaller `image_size`."
            )
        self._image_size = value

    @property
    def resize_size(self):
        """Height and width to which images are resized before the crop."""
        return (self.resizing.height, self.resizing.width)

    def call(self, images, training=False, seed=None):
        """Convert an image, or a batch of images of the same size.

        Args:
            images: uint8 or float array `(height, width, 3)` or `(batch,
                height, width, 3)` with values 0..255. In a TensorFlow graph
                also a string tensor, `()` or `(batch,)`, of encoded files.
            training: bool. Whether to crop and mirror at random instead of
                taking the central crop. Defaults to `False`.
            seed: two ints. Required with `training=True`. Each image of the
                batch has its own random draw.

        Returns:
            float32 tensor `(height, width, 3)` or `(batch, height, width, 3)`
            with `height, width = image_size`.
        """
        if training and seed is None:
            raise ValueError(
                "Random crops need a seed: pass `seed=(a, b)` together with "
                "`training=True`."
            )
        if "string" in repr(getattr(images, "dtype", None)):
            return self._convert_encoded(images, training, seed)
        images = _to_tensor(images)
        if len(images.shape) not in (3, 4) or images.shape[-1] != 3:
            raise ValueError(
                "Images must have the shape (height, width, 3) or (batch, "
                f"height, width, 3). Received: {tuple(images.shape)}."
            )
        if training:
            images = self._random_crop(images, seed)
        else:
            images = self._central_crop(self._resize(images))
        images = self._scale(images)
        if in_tf_graph():
            return images
        if keras_hub_internals.in_grain_data_pipeline():
            return keras_hub_internals.to_grain(images)
        return ops.convert_to_tensor(images)

    def _scale(self, images):
        images = images * np.asarray(self.scale, "float32")
        return images + np.asarray(self.offset, "float32")

    def decode(self, contents):
        """Decode one encoded image inside a TensorFlow graph.

        Args:
            contents: scalar string tensor, the bytes of a JPEG, PNG, WebP
                (not animated), GIF (first frame, if it fills the screen) or
                BMP (24 or 32 bit, not compressed) file. EXIF orientation is
                applied, and transparent images are put on white.

        Returns:
            uint8 tensor `(height, width, 3)`. A file that does not decode
            raises `tf.errors.InvalidArgumentError` when the graph runs.
        """
        return decode_in_graph(contents)

    def decode_random_crop(self, contents, seed):
        """Decode one encoded image and crop it at random, in a graph.

        This is for training, inside a TensorFlow graph like `decode`. With
        `fast=True`, only the cropped part of a JPEG is decoded.

        Args:
            contents: scalar string tensor, see `decode`.
            seed: two ints. The same seed gives the same crop, up to half a
                pixel with `fast`.

        Returns:
            float32 tensor `(height, width, 3)` with `height, width =
            image_size`.
        """
        import tensorflow as tf

        def whole():
            return self(self.decode(contents), training=True, seed=seed)

        if not self.fast:
            return whole()

        def part():
            corner, mirrored = self._draw_crop(seed)
            window = decode_window(
                contents, corner, self.image_size, self.resize_size
            )
            image = _bilinear(window, *self.image_size, self.antialias)
            return self._scale(_mirror(image, mirrored))

        image = tf.cond(is_upright_jpeg(contents), part, whole)
        return tf.ensure_shape(image, (*self.image_size, 3))

    def load(self, images):
        """Read, decode and convert image files, without TensorFlow.

        Args:
            images: list whose items are paths, encoded files as bytes,
                `PIL.Image.Image` objects or arrays `(height, width, 3)` with
                values 0..255; or one such item.

        Returns:
            A float32 NumPy array `(number of images, height, width, 3)`.

        Raises:
            FileNotFoundError: A path does not exist.
            ValueError: An item is not an image; the message names it.

        Example:

        ```python
        from PIL import Image

        AlignImageConverter().load([Image.new("RGB", (400, 300))]).shape
        # (1, 289, 289, 3)
        ```
        """
        if not isinstance(images, (list, tuple)):
            images = [images]
        converted = [
            ops.convert_to_numpy(self(_load_pixels(image, position)))
            for position, image in enumerate(images)
        ]
        empty = np.zeros((0, *self.image_size, 3), "float32")
        return np.stack(converted) if converted else empty

    def get_config(self):
        config = super().get_config()
        # Constants of the paper's pipeline, not arguments of this class.
        for name in (
            "bounding_box_format",
            "crop_to_aspect_ratio",
            "interpolation",
            "pad_to_aspect_ratio",
        ):
            config.pop(name)
        config["image_size"] = self.image_size
        config["resize_size"] = self.resize_size
        config["fast"] = self.fast
        config["mirror"] = self.mirror
        return config

    def _convert_encoded(self, contents, training, seed):
        import tensorflow as tf

        if contents.shape.rank == 0:
            return self.call(self.decode(contents), training, seed)
        # Files differ in size: resize each, then crop all in one operation.
        images = tf.map_fn(
            lambda file: self._resize(self.decode(file)),
            contents,
            fn_output_signature=tf.TensorSpec(
                (*self.resize_size, 3), tf.float32
            ),
        )
        # Resizing again to the same size changes nothing.
        return self.call(images, training, seed)

    def _resize(self, images):
        height, width = self.resize_size
        if not self.antialias:
            return _bilinear(images, height, width)
        # Pillow works on 8-bit images: it resizes the columns, rounds half
        # up, resizes the rows and rounds again.
        images = _bilinear(images, images.shape[-3], width, antialias=True)
        images = (images + 0.5) // 1.0
        images = _bilinear(images, height, width, antialias=True)
        return (images + 0.5) // 1.0

    def _central_crop(self, images):
        height, width = self.image_size
        top = (self.resize_size[0] - height) // 2
        left = (self.resize_size[1] - width) // 2
        return images[..., top : top + height, left : left + width, :]

    def _random_crop(self, images, seed):
        """Resize images and crop them at random."""
        unbatched = len(images.shape) == 3
        if _uses_tensorflow():
            if unbatched:
                return self._random_crop_of_one(images, seed)
            return self._random_crop_tf(self._resize(images), seed)
        images = self._resize(images)
        images = images[None] if unbatched else images
        images = self._random_crop_numpy(images, seed)
        return images[0] if unbatched else images

    def _random_crop_of_one(self, image, seed):
        import tensorflow as tf

        corner, mirrored = self._draw_crop(seed)
        begin = tf.concat([corner, [0]], 0)

        def crop(image):
            part = tf.slice(image, begin, (*self.image_size, 3))
            return _mirror(part, mirrored)

        # Records may be resized already. Cropping bytes is faster than floats.
        resized = tf.reduce_all(tf.shape(image)[:2] == self.resize_size)
        return tf.cond(
            resized,
            lambda: tf.cast(crop(image), tf.float32),
            lambda: crop(self._resize(image)),
        )

    def _draw_crop(self, seed):
        """Draw where a crop begins, `(top, left)`, and whether to mirror it."""
        import tensorflow as tf

        draws = tf.random.stateless_uniform((3,), tf.convert_to_tensor(seed))
        margins = [self._margin(axis) + 1 for axis in (0, 1)]
        # Draws lie in [0, 1), so with `mirror=False` none is below the bound.
        mirrored = draws[2] < 0.5 * self.mirror
        return tf.cast(draws[:2] * margins, tf.int32), mirrored

    def _random_crop_tf(self, images, seed):
        import tensorflow as tf

        draws = tf.random.stateless_uniform(
            (tf.shape(images)[0], 3), tf.convert_to_tensor(seed)
        )
        rows, columns = self._window(
            lambda bound: tf.range(bound)[None],
            tf.cast(draws[:, :1] * (self._margin(0) + 1), tf.int32),
            tf.cast(draws[:, 1:2] * (self._margin(1) + 1), tf.int32),
            tf.cast(draws[:, 2:] < 0.5 * self.mirror, tf.int32),
        )
        images = tf.gather(images, rows, axis=1, batch_dims=1)
        return tf.gather(images, columns, axis=2, batch_dims=1)

    def _random_crop_numpy(self, images, seed):
        generator = np.random.default_rng(np.asarray(seed, "uint64"))
        draws = generator.random((images.shape[0], 3))
        rows, columns = self._window(
            lambda bound: np.arange(bound)[None],
            (draws[:, :1] * (self._margin(0) + 1)).astype("int32"),
            (draws[:, 1:2] * (self._margin(1) + 1)).astype("int32"),
            (draws[:, 2:] < 0.5 * self.mirror).astype("int32"),
        )
        numbers = np.arange(images.shape[0])[:, None, None]
        return images[numbers, rows[:, :, None], columns[:, None, :]]

    def _window(self, indices, top, left, mirrored):
        """Row and column indices of each crop, each `(batch, side)`.

        A mirror image is a crop whose columns run backwards.
        """
        height, width = self.image_size
        columns = indices(width)
        columns = columns + mirrored * (width - 1 - 2 * columns)
        return top + indices(height), left + columns

    def _margin(self, axis):
        return self.resize_size[axis] - self.image_size[axis]


def _pair(size, name):
    size = (size, size) if isinstance(size, int) else tuple(size)
    if len(size) != 2 or any(int(side) < 1 for side in size):
        raise ValueError(
            f"`{name}` must be a positive int or a pair of them. "
            f"Received: {size}."
        )
    return tuple(int(side) for side in size)


def _uses_tensorflow():
    """Whether to compute with TensorFlow instead of NumPy.

    tf.data and SavedModels need TensorFlow under every Keras backend.
    Elsewhere NumPy is used, since the compilers of the other backends would
    run again for each image size.
    """
    return in_tf_graph() or keras.backend.backend() == "tensorflow"


def _to_tensor(images):
    """Return a tensor of the same dtype, or a float32 NumPy array."""
    if _uses_tensorflow():
        import tensorflow as tf

        return tf.convert_to_tensor(images)
    return np.asarray(images, "float32")


def _mirror(image, mirrored):
    import tensorflow as tf

    # A slice that runs backwards takes ten times as long.
    return tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)


def _bilinear(images, height, width, antialias=False):
    if _uses_tensorflow():
        import tensorflow as tf

        height = tf.shape(images)[-3] if height is None else height
        images = tf.image.resize(images, (height, width), antialias=antialias)
        # `resize` returns an image of this size unchanged, in its own dtype.
        return tf.cast(images, tf.float32)
    for axis, side in ((-2, width), (-3, height)):
        weights = _bilinear_weights(images.shape[axis], side, antialias)
        images = np.tensordot(weights, images, (1, axis))
        images = np.moveaxis(images, 0, axis)
    return images


def _bilinear_weights(size, new_size, antialias):
    """Return the weights `(new_size, size)` of old pixels in each new one."""
    scale = size / new_size
    centres = (np.arange(new_size) + 0.5) * scale - 0.5
    distances = np.abs(np.arange(size) - centres[:, None])
    reach = max(scale, 1.0) if antialias else 1.0
    weights = np.maximum(1.0 - distances / reach, 0.0)
    return (weights / weights.sum(1, keepdims=True)).astype("float32")


def _load_pixels(image, position):
    """Return the pixels of a path, bytes, Pillow image or array."""
    if isinstance(image, (str, os.PathLike)):
        name = f"`{image}`"
        try:
            image = read_file(image)
        except OSError as error:
            # When Keras wraps an error of a layer, it keeps only the first
            # argument.
            told = f"{name} cannot be read: {error.strerror or error}."
            raise type(error)(told) from error
    else:
        name = f"Image number {position} of the list"
    if hasattr(image, "shape"):
        return image
    try:
        return decode_with_pillow(image)
    except ValueError as error:
        raise ValueError(f"{name} is not a readable image: {error}.") from (
            error
        )
