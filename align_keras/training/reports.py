"""Log warnings and advice before a run, and its results afterwards."""

import logging

from align_keras.data.mixing import describe_order
from align_keras.models import presets
from align_keras.training.callbacks import read_metrics

logger = logging.getLogger("align_keras")

# With fewer images, fresh towers are mostly limited by words and shapes that
# they have never seen.
FEW = 100_000
# After this many epochs, a model mostly memorizes its images.
MANY = 300


def warn(recipe, records, validation_data, step, readers=1):
    """Warn about settings or data that are likely to be mistakes.

    Args:
        recipe: `Recipe`.
        records: `RecordFiles`.
        validation_data: the data to evaluate on, or `None`.
        step: int. The number of steps done so far.
        readers: int. The number of workers, or hosts of a TPU slice, that
            read the records.
    """
    if len(records.paths) < readers:
        logger.warning(
            "%d files cannot be shared out to %d readers: each of them reads "
            "all %d. Pack again with fewer `records_per_shard`.",
            len(records.paths),
            readers,
            len(records.paths),
        )
    if recipe.patience and validation_data is None:
        logger.warning(
            "patience=%d has nothing to go by, as no data is held out: the "
            "run takes all its steps.",
            recipe.patience,
        )
    if step:
        return
    order = describe_order(records)
    if order:
        logger.warning("%s", order)
    if validation_data is None:
        logger.warning(
            "Nothing is held out, so overfitting cannot be detected, and the "
            "newest model is kept as the best: pass `--validation-data`, or a "
            "folder of images."
        )
    if recipe.batch_size > records.total:
        logger.warning(
            "A batch of %d holds some of the %d images more than once, as "
            "their own negatives: lower `batch_size`.",
            recipe.batch_size,
            records.total,
        )
    epochs = recipe.steps * recipe.batch_size / records.total
    if epochs > MANY:
        logger.warning(
            "Each image will be seen %.0f times; the model will memorise them. "
            "Lower `steps`, or set `patience`, which ends a run that no longer "
            "improves.",
            epochs,
        )


def describe_work(recipe, records):
    """Log the size of a run before it starts."""
    epochs = recipe.steps * recipe.batch_size / records.total
    logger.info(
        "%d images; %d steps of %d pairs show each of them %.1f times. By "
        "chance, %.1f%% of a batch find their pair.",
        records.total,
        recipe.steps,
        recipe.batch_size,
        epochs,
        100 / recipe.batch_size,
    )


def advise(model, towers, pairs):
    """Suggest pretrained weights to a run with few images and fresh weights."""
    fresh = isinstance(model, str) and not presets.has_weights(
        presets.find_preset(model)
    )
    if fresh and not towers and pairs < FEW:
        logger.info(
            "%d images are few for fresh weights: known towers "
            "(`--image-weights`, `--text-weights`) or a trained pair with "
            "the recipe `finetune` learn more from them, see "
            "docs/finetuning.md.",
            pairs,
        )


def report(result, workdir, end):
    """Log how a run ended.

    Args:
        result: dict. What `train` returns.
        workdir: `pathlib.Path`. The directory of the run.
        end: string. Why it ended, such as "100 steps".
    """
    _report_skipped(result["skipped"])
    _report_nonfinite(workdir)
    _report_recall(result["best"]["metrics"])
    logger.info("Finished: %s. The model is in %s", end, result["model"])


def _report_skipped(names, shown=5):
    for name, reason in list(names.items())[:shown]:
        logger.info("Skipped %s: %s", name, reason)
    if len(names) > shown:
        logger.info("Skipped %d records in all.", len(names))


def _report_nonfinite(workdir):
    """Log how many steps `skip_nonfinite` skipped in the whole run."""
    count = sum(
        metrics.get("nonfinite_steps", 0)
        for _, metrics in read_metrics(workdir)
    )
    if count:
        logger.info("Left out %d steps that were not finite.", count)


def _report_recall(metrics):
    """Log the recall@1 of the best model, and that of chance."""
    for way, words in (
        ("image_to_text", "caption of an image"),
        ("text_to_image", "image of a caption"),
    ):
        name = f"{way}_recall@1"
        if f"chance_{name}" in metrics:
            logger.info(
                "Recall@1, %s: %.1f%% (chance %.1f%%) among %d images",
                words,
                100 * metrics[name],
                100 * metrics[f"chance_{name}"],
                metrics["images"],
            )
