"""Fine-tune for classification, in the paper's two stages."""

import dataclasses
import itertools
from collections.abc import Callable
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np
from keras import ops

from align_keras.evaluation.accuracy import check_labels
from align_keras.evaluation.accuracy import classification_accuracies
from align_keras.evaluation.accuracy import label_ranks
from align_keras.evaluation.accuracy import useful_depths
from align_keras.evaluation.bootstrap import SAMPLES
from align_keras.evaluation.datasets import DataSet
from align_keras.evaluation.datasets import require_same_classes
from align_keras.evaluation.finetune_data import as_file
from align_keras.evaluation.finetune_data import check_images
from align_keras.evaluation.finetune_data import test_batches
from align_keras.evaluation.finetune_data import training_batches
from align_keras.evaluation.finetune_recipes import FinetuneRecipe
from align_keras.evaluation.finetune_recipes import load_finetune_recipe
from align_keras.evaluation.results import Result
from align_keras.evaluation.results import summarize
from align_keras.io.atomic import atomic_file
from align_keras.io.claims import claim
from align_keras.io.fingerprints import arrays_fingerprint
from align_keras.io.mirrors import locked
from align_keras.models.towers import declared
from align_keras.models.towers import image_input
from align_keras.models.towers import main_output
from align_keras.training.checkpoints import Checkpoints


class ImageClassifier(keras.Model):
    """An image encoder with a linear head.

    Args:
        model: an `align_keras.AlignDualEncoder`. Its image encoder is used
            without the projection.
        num_classes: integer. The number of classes.
    """

    def __init__(self, model: keras.Model, num_classes: int):
        super().__init__()
        self.image_encoder = model.image_encoder
        self.pooling = model.image_pooling_layer
        self._pooling_name = model.image_pooling
        self.head = keras.layers.Dense(
            num_classes, kernel_initializer="zeros", dtype="float32"
        )
        self.stage = None

    def set_stage(self, stage):
        """Choose what is trained; call this before `compile`."""
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
            # This scales only the gradient of the encoder.
            rate = stage.encoder_rate
            held = ops.stop_gradient(features)
            features = (1 - rate) * held + rate * features
        return self.head(features)


@locked("workdir")
def measure_finetune(
    make_model: Callable[[], keras.Model],
    train: DataSet,
    test: DataSet,
    recipe: FinetuneRecipe | str,
    workdir: str | Path,
    runs: int = 1,
    seed: int = 0,
    samples: int = SAMPLES,
    progress: bool = True,
    identity: str | None = None,
) -> Result:
    """Fine-tune a classifier and measure it.

    An interrupted run resumes from its last checkpoint, and finished runs are
    not repeated.

    Args:
        make_model: callable. Returns a new, pretrained
            `align_keras.AlignDualEncoder`; called once for each run.
        train: a `DataSet` with labels. Images that it does not yield as paths
            are held in memory, encoded.
        test: a `DataSet` with the same classes.
        recipe: `FinetuneRecipe` or its name. See `load_finetune_recipe`.
        workdir: string or `pathlib.Path`. The directory for checkpoints and
            results.
        runs: integer. The number of runs with different seeds, whose metrics
            are averaged; the paper uses 3 on its fine-grained data sets.
            Defaults to `1`.
        seed: integer. The seed of the first run; each further run adds 1.
            Defaults to `0`.
        samples: integer. Resamples for the intervals. Defaults to `1000`.
        progress: bool. Whether to show Keras' progress. Defaults to `True`.
        identity: string. Identifies the model, so that runs of other models
            are not mistaken for its own. Defaults to `None`:
            `encoder_fingerprint` of the model.

    Returns:
        A `Result` with the accuracies of `classification_accuracies`, averaged
        over the runs, and, with several runs, their `"deviations"`. Its task
        is `"finetune"`, or `"finetune-head"` if the recipe trains only the
        head.

    Raises:
        ValueError: the data sets have different classes, `runs` is not
            positive, or `workdir` holds a run of another model or with other
            settings.
    """
    recipe = load_finetune_recipe(recipe)
    if runs < 1:
        raise ValueError(f"`runs` must be positive. Received: runs={runs}")
    require_same_classes(train, test)
    # Find images that do not decode before hours of training.
    learned, wanted = check_images(train), check_images(test)
    labels = learned.labels
    images = [as_file(example[1]) for example in learned.examples()]
    classes = len(train.class_names or ())
    classes = classes or int(max(labels.max(), wanted.labels.max())) + 1
    for found in (learned, wanted):
        check_labels(found.labels, len(found.labels), classes)
    identity = identity or encoder_fingerprint(make_model())
    ranks = []
    for number in range(runs):
        folder = Path(workdir) / f"run-{number}"
        asked = {
            "model": identity,
            **dataclasses.asdict(recipe),
            "train": train.name,
            "test": test.name,
            "train_image_digest": learned.digest,
            "test_image_digest": wanted.digest,
            "seed": seed + number,
        }
        claim(folder / "finetune.json", asked, "a run")
        done = folder / "ranks.npy"
        if not done.is_file():
            keras.utils.set_random_seed(seed + number)
            scores = _run(
                ImageClassifier(make_model(), classes),
                (images, labels),
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
    return _summary(
        "finetune"
        if any(s.part == "all" for s in recipe.stages)
        else "finetune-head",
        {"label": wanted.labels, "rank": np.stack(ranks)},
        useful_depths((1, 5), classes),
        samples,
        dataset=test.name,
        model=identity,
        train_images=len(labels),
        image_digest=wanted.digest,
        train_image_digest=learned.digest,
        images_skipped=int(np.count_nonzero(~wanted.readable)),
    )


def _summary(task, outcomes, ks, samples, **values):
    runs = [
        finetune_accuracies({**outcomes, "rank": rank[None]}, ks=ks)
        for rank in outcomes["rank"]
    ]
    # A single run has no deviation.
    names = runs[0] if len(runs) > 1 else ()
    return summarize(
        task,
        partial(finetune_accuracies, ks=ks),
        outcomes,
        len(outcomes["label"]),
        samples,
        **values,
        unit="image",
        images=len(outcomes["label"]),
        runs=len(runs),
        ks=ks,
        deviations={
            name: float(np.std([metrics[name] for metrics in runs]))
            for name in names
        },
    )


def finetune_accuracies(
    outcomes: dict[str, np.ndarray],
    weights: np.ndarray | None = None,
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Average accuracies over runs; `"rank"` has the shape `(runs, count)`."""
    metrics = [
        classification_accuracies(
            {"label": outcomes["label"], "rank": rank}, weights, ks
        )
        for rank in outcomes["rank"]
    ]
    return {
        name: float(np.mean([run[name] for run in metrics]))
        for name in metrics[0]
    }


def encoder_fingerprint(model: keras.Model) -> str:
    """Compute a fingerprint of the weights of a model's image encoder.

    Args:
        model: an `align_keras.AlignDualEncoder`.

    Returns:
        A string.
    """
    weights = map(ops.convert_to_numpy, model.image_encoder.weights)
    return arrays_fingerprint(weights, model.image_pooling)


# === Training ===


def _run(classifier, train, test, recipe, folder, seed, progress):
    """Train all stages and return the scores of the test images."""
    images, labels = train
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
        batches = training_batches(images, labels, stage, seed, step)
        batches = iter(batches.take(steps - step))
        with checkpoints:
            while step < steps:
                count = min(every, steps - step)
                classifier.fit(
                    # Keras accepts generators, but no other iterators.
                    (batch for batch in itertools.islice(batches, count)),
                    steps_per_epoch=count,
                    verbose=2 if progress else 0,
                )
                step += count
                checkpoints.save(classifier, step)
    batches = test_batches(test, recipe.stages[-1])
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
