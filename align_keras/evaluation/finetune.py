"""Fine-tuning for classification, in the paper's two stages."""

import dataclasses
import hashlib
import io
import itertools
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.claim import claim
from align_keras.evaluation.classification import classification_figures
from align_keras.evaluation.classification import label_ranks
from align_keras.evaluation.classification import useful_depths
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.embed import ahead
from align_keras.evaluation.embed import names_digest
from align_keras.evaluation.embedder import read_pixels
from align_keras.evaluation.finetune_recipes import load_finetune_recipe
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize
from align_keras.files import atomic_file
from align_keras.models.towers import declared
from align_keras.models.towers import image_input
from align_keras.models.towers import main_output
from align_keras.preprocessing.decode import decode_in_graph
from align_keras.training.checkpoints import Checkpoints

logger = logging.getLogger("align_keras")

# Share of a picture's shorter side that the evaluation keeps (section 5.3).
CENTRAL_CROP = 0.875


class ImageClassifier(keras.Model):
    """An image encoder with a linear head.

    Args:
        model: an `align_keras.AlignDualEncoder`, whose image encoder is
            taken, without the projection.
        num_classes: integer.
    """

    def __init__(self, model, num_classes):
        super().__init__()
        self.image_encoder = model.image_encoder
        self.pooling = model.image_pooling_layer
        self._pooling_name = model.image_pooling
        self.head = keras.layers.Dense(
            num_classes, kernel_initializer="zeros", dtype="float32"
        )
        self.stage = None

    def set_stage(self, stage):
        """Choose what trains, before `compile`."""
        self.stage = stage
        self.image_encoder.trainable = stage.part == "all"

    def call(self, images, training=False):
        stage = self.stage
        learns = stage.part == "all" and not stage.freeze_statistics
        inputs = images
        if isinstance(declared(self.image_encoder, "input"), dict):
            inputs = {image_input(self.image_encoder).name: images}
        features = self.image_encoder(inputs, training=training and learns)
        features = main_output(features, self._pooling_name)
        features = ops.cast(self.pooling(features), "float32")
        if stage.part == "head":
            features = ops.stop_gradient(features)
        elif stage.encoder_rate != 1.0:
            # Scales the gradient of the encoder, and nothing else.
            rate = stage.encoder_rate
            held = ops.stop_gradient(features)
            features = (1 - rate) * held + rate * features
        return self.head(features)


def finetune_classifier(
    make_model,
    train,
    test,
    recipe,
    workdir,
    runs=1,
    seed=0,
    samples=SAMPLES,
    progress=True,
    identity=None,
):
    """Fine-tune a classifier and measure it.

    A run that was interrupted goes on from its last checkpoint; a finished
    one is not repeated.

    Args:
        make_model: callable that returns a fresh, pre-trained
            `align_keras.AlignDualEncoder`, once for each run.
        train: a `DataSet` with labels. Its files are held in memory, decoded
            they are not.
        test: a `DataSet` with the same classes.
        recipe: `FinetuneRecipe` or its name, see `load_finetune_recipe`.
        workdir: string or `pathlib.Path`. For checkpoints and results.
        runs: integer. Runs with different seeds, of which the mean counts;
            the paper takes 3 on its fine-grained data sets. Defaults to `1`.
        seed: integer. Of the first run. Defaults to `0`.
        samples: integer. Resamples of the intervals. Defaults to `1000`.
        progress: bool. Whether to show Keras' progress. Defaults to `True`.
        identity: string. What tells the model from others, whose runs are
            not taken for its own. Defaults to `None`, `weights_digest`.

    Returns:
        A `Result` with the figures of `classification_figures`, the mean over
        the runs, and `"deviations"` between them. Its task is `"finetune"`,
        or `"finetune-head"` for a recipe that trains nothing else.

    Raises:
        ValueError: the data sets have other classes, `runs` is not positive,
            or `workdir` holds a run of another model or other settings.
    """
    recipe = load_finetune_recipe(recipe)
    if runs < 1:
        raise ValueError(f"`runs` must be positive. Received: runs={runs}")
    if train.class_names != test.class_names:
        raise ValueError(
            f"`{train.name}` and `{test.name}` must have the same classes."
        )
    # Before hours of training: what does not decode, neither then nor after.
    learned, wanted = _check(train), _check(test)
    labels = learned.labels
    pictures = [_held(example[1]) for example in learned.examples()]
    classes = len(train.class_names or ())
    classes = classes or int(max(labels.max(), wanted.labels.max())) + 1
    identity = identity or weights_digest(make_model())
    ranks = []
    for number in range(runs):
        folder = Path(workdir) / f"run-{number}"
        asked = {
            "model": identity,
            **dataclasses.asdict(recipe),
            "train": train.name,
            "test": test.name,
            "train_pictures": learned.pictures,
            "test_pictures": wanted.pictures,
            "seed": seed + number,
        }
        claim(folder / "finetune.json", asked)
        done = folder / "ranks.npy"
        if not done.is_file():
            keras.utils.set_random_seed(seed + number)
            scores = _run(
                ImageClassifier(make_model(), classes),
                (pictures, labels),
                wanted,
                recipe,
                folder,
                seed + number,
                progress,
            )
            with atomic_file(done) as temporary:
                with open(temporary, "wb") as file:
                    np.save(file, label_ranks(scores, wanted.labels))
        ranks.append(np.load(done))
    outcomes = {"label": wanted.labels, "rank": np.stack(ranks)}
    ks = useful_depths((1, 5), classes)
    each = [
        classification_figures({"label": wanted.labels, "rank": rank}, ks=ks)
        for rank in ranks
    ]
    frozen = all(stage.part == "head" for stage in recipe.stages)
    result = summarize(
        "finetune-head" if frozen else "finetune",
        partial(finetune_figures, ks=ks),
        outcomes,
        len(wanted.labels),
        samples,
        dataset=test.name,
        model=identity,
        unit="picture",
        images=len(wanted.labels),
        train_images=len(labels),
        pictures=wanted.pictures,
        train_pictures=learned.pictures,
        pictures_skipped=int(np.count_nonzero(~wanted.readable)),
        runs=runs,
        ks=ks,
        deviations={
            key: float(np.std([figures[key] for figures in each]))
            for key in each[0]
        },
    )
    return Result(result, outcomes)


def finetune_figures(outcomes, weights=None, ks=(1, 5)):
    """Mean over runs of `classification_figures`; `"rank"` is `(runs, n)`."""
    figures = [
        classification_figures(
            {"label": outcomes["label"], "rank": rank}, weights, ks
        )
        for rank in outcomes["rank"]
    ]
    return {
        name: float(np.mean([run[name] for run in figures]))
        for name in figures[0]
    }


def weights_digest(model):
    """Tell the image encoder of a model from others, by its weights.

    Args:
        model: an `align_keras.AlignDualEncoder`.

    Returns:
        A string.
    """
    digest = hashlib.sha256(str(model.image_pooling).encode())
    for weight in model.image_encoder.weights:
        digest.update(ops.convert_to_numpy(weight).tobytes())
    return digest.hexdigest()[:16]


# === Training ===


def _run(classifier, train, test, recipe, folder, seed, progress):
    """Train all stages; return the scores of the test pictures."""
    pictures, labels = train
    size = recipe.stages[0].image_size
    classifier.set_stage(recipe.stages[0])
    classifier(np.zeros((1, size, size, 3), "float32"))
    for number, stage in enumerate(recipe.stages):
        checkpoints = Checkpoints(folder / f"stage-{number}")
        per_epoch = max(1, -(-len(labels) // stage.batch_size))
        steps = stage.steps or max(1, round(stage.epochs * per_epoch))
        classifier.set_stage(stage)
        classifier.compile(
            optimizer=keras.optimizers.SGD(
                _schedule(stage, steps, per_epoch),
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay or None,
            ),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        step = checkpoints.restore(classifier)
        every = min(recipe.checkpoint_every, steps)
        batches = _training_batches(pictures, labels, stage, seed, step)
        batches = iter(batches.take(steps - step))
        while step < steps:
            count = min(every, steps - step)
            classifier.fit(
                # Keras knows generators, but no other iterators.
                (batch for batch in itertools.islice(batches, count)),
                steps_per_epoch=count,
                verbose=2 if progress else 0,
            )
            step += count
            checkpoints.save(classifier, step)
    batches = _test_batches(test, recipe.stages[-1])
    return np.concatenate(
        [classifier.predict_on_batch(batch) for batch in batches]
    )


def _schedule(stage, steps, per_epoch):
    if not stage.drop:
        return keras.optimizers.schedules.CosineDecay(
            stage.learning_rate, steps
        )
    return keras.optimizers.schedules.ExponentialDecay(
        stage.learning_rate,
        max(1, round(stage.drop_every * per_epoch)),
        stage.drop,
        staircase=True,
    )


def _training_batches(pictures, labels, stage, seed, start_step):
    """Endless batches whose order and crops follow from seed and step."""
    import tensorflow as tf

    def examples():
        place = start_step * stage.batch_size
        while True:
            epoch, first = divmod(place, len(labels))
            order = np.random.default_rng([seed, epoch])
            for index in order.permutation(len(labels))[first:]:
                yield _bytes(pictures[index]), labels[index], place
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


def _test_batches(test, stage):
    import tensorflow as tf

    def pictures():
        for _, picture, _ in test.examples():
            yield _bytes(picture)

    def convert(contents):
        pixels = _central_part(decode_in_graph(contents))
        return _to_input(pixels, stage.eval_size)

    dataset = tf.data.Dataset.from_generator(
        pictures, output_signature=tf.TensorSpec((), tf.string)
    )
    dataset = dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(min(stage.batch_size, 64)).as_numpy_iterator()


def _random_part(pixels, seed):
    """A part of 8% to 100% of the area, and perhaps its mirror image."""
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


class _Checked(NamedTuple):
    """What a data set holds that decodes.

    Attributes:
        data: `DataSet`.
        labels: int64 array, of the readable pictures.
        readable: bool array, of all pictures.
        pictures: string. Digest of the names of the readable ones.
    """

    data: DataSet
    labels: np.ndarray
    readable: np.ndarray
    pictures: str

    def examples(self):
        return itertools.compress(self.data.examples(), self.readable)


def _check(data):
    """Decode all pictures once; name those that do not."""

    def check(example):
        key, picture, label = example
        try:
            read_pixels(picture)
        except ValueError as error:
            return key, label, error
        return key, label, None

    keys, labels, readable = [], [], []
    for key, label, error in ahead(check, data.examples()):
        readable.append(error is None)
        if error is not None:
            logger.warning("Picture %s is left out: %s", key, error)
            continue
        keys.append(key)
        labels.append(label)
    if not keys:
        raise ValueError(f"No picture of `{data.name}` is readable.")
    return _Checked(
        data,
        np.array(labels, "int64"),
        np.array(readable),
        names_digest(keys),
    )


def _held(picture):
    """A picture as a path or as the bytes of a file, not as pixels."""
    return _bytes(picture) if isinstance(picture, np.ndarray) else picture


def _bytes(picture):
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, np.ndarray):
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(picture).convert("RGB").save(file, "PNG")
        return file.getvalue()
    return Path(picture).read_bytes()
