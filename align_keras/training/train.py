import dataclasses
import json
import logging
from pathlib import Path

import keras

from align_keras.data import skipped
from align_keras.data.mixing import describe_order
from align_keras.files import atomic_file
from align_keras.files import remove_leftovers
from align_keras.models import AlignDualEncoder
from align_keras.models import presets
from align_keras.optimizers import describe_exclusions
from align_keras.training.assembly import build_model
from align_keras.training.assembly import compile_model
from align_keras.training.callbacks import SaveBest
from align_keras.training.callbacks import TrainingLog
from align_keras.training.callbacks import read_metrics
from align_keras.training.checkpoints import Checkpoints
from align_keras.training.inputs import check_resized
from align_keras.training.inputs import count_once
from align_keras.training.inputs import find_records
from align_keras.training.inputs import find_tokenizer
from align_keras.training.inputs import make_dataset
from align_keras.training.inputs import name_records
from align_keras.training.recipes import load_recipe
from align_keras.training.safety import LossGuard
from align_keras.training.safety import Preemption
from align_keras.training.safety import nonfinite_error
from align_keras.training.strategies import make_strategy
from align_keras.training.strategies import sum_over_workers
from align_keras.training.strategies import worker_of

logger = logging.getLogger("align_keras")

# What a run writes into its working directory, whole or not at all.
WRITTEN = ("model", "packed*", "saved_model", "*.json", "*.jsonl", "*.txt")


def train(
    model,
    recipe,
    data,
    workdir,
    validation_data=None,
    vocabulary=None,
    strategy="auto",
    seed=None,
    evaluate=None,
    hold_out=0.1,
    verbose=True,
    **overrides,
):
    """Train ALIGN, or go on with a run that was interrupted.

    The working directory receives `recipe.json` (what was asked for),
    `vocabulary.txt`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, and
    `model/`: the best model so far as a preset directory with its tokenizer
    and preprocessing. A run with the same arguments goes on from the newest
    checkpoint as if nothing had happened; a finished one returns at once.
    SIGTERM saves a checkpoint after the step at hand, and exits with status
    0. A step whose loss is not finite ends the run, and its records are
    named.

    Args:
        model: string or callable. Name, directory or handle of a preset, or
            of a checkpoint that `AlignDualEncoder.from_preset` opens; or a
            function that takes the size of the vocabulary and returns an
            `AlignDualEncoder`, called within the scope of the strategy.
        recipe: string or `Recipe`. See `load_recipe`.
        data: string or list of strings. TFRecord files: a directory, a glob
            or paths. Or a folder of pictures with a `captions.csv`, `.tsv`,
            `.jsonl`, `.json` or `.parquet` in it, which is packed into the
            working directory first.
        workdir: string or `pathlib.Path`. The directory of the run.
        validation_data: string. The same for evaluation at each checkpoint.
            Defaults to `None`: pictures set aside while packing, if `data` is
            a folder of pictures; else no evaluation, and the newest model is
            best.
        vocabulary: string. WordPiece vocabulary, one token per line. Defaults
            to `None`: that of the preset, or one that is learned from the
            captions.
        strategy: string or `tf.distribute.Strategy`. See `make_strategy`.
        seed: int. Replaces the seed of the recipe.
        evaluate: callable. Takes the model and the validation data and
            returns a dict with `"mean_recall"`. Defaults to recall in
            `align_keras.evaluation.evaluate_retrieval`.
        hold_out: float. Share of a folder of pictures that is set aside for
            evaluation where there is no `validation_data`, see
            `align_keras.data.pack`. Defaults to `0.1`.
        verbose: bool. Whether to report progress. Defaults to `True`.
        **overrides: Fields of the recipe to replace, such as `steps`.

    Returns:
        A dict with `"step"`, `"model"` (the preset directory), `"best"` (its
        step, score and metrics), `"stopped_early"` (bool, see `patience` in
        `Recipe`) and `"skipped"` (records left out).

    Raises:
        ValueError: The recipe does not fit the model, the data or the
            strategy, or the working directory holds another run.
        FileNotFoundError: There is no such data, vocabulary or recipe.
        FloatingPointError: The loss or a weight is no more finite. Nothing
            is saved over the last checkpoint.
        OSError: There is no room to write. The last checkpoint is kept.

    Example:

    ```python
    train(
        "align_b0_bert_mini",
        "cc3m",
        data="packed/*.tfrecord",
        workdir="run",
        batch_size=64,
        steps=1000,
        warmup_steps=100,
    )
    ```
    """
    recipe = load_recipe(recipe, seed=seed, **overrides)
    if isinstance(model, str):
        presets.require_class(presets.find_preset(model), AlignDualEncoder)
    if isinstance(strategy, str):
        strategy = make_strategy(strategy)
    _check_batch(recipe, strategy.num_replicas_in_sync)
    begun = Checkpoints(workdir)
    worker, num_workers = worker_of(strategy)
    say = print if verbose and not worker else _silent
    # Every worker goes through the same motions, for reading a distributed
    # variable may take them all; what the first writes is the result.
    workdir = Path(workdir, f"worker-{worker}") if worker else Path(workdir)
    best_directory = workdir / "model"
    with Preemption(say, alone=num_workers == 1) as preemption:
        # The data is looked for before anything is written.
        data, validation_data = _find_data(
            data, validation_data, workdir, hold_out, say
        )
        state = begun.state()
        step = state["step"]
        _claim(workdir, model, recipe, vocabulary, num_workers, step)
        counts = count_once(data, workdir, step)
        recipe = recipe.in_steps(sum(counts.values()))
        if _is_finished(state, recipe):
            end = _describe_end(state, recipe)
            say(f"This run is finished: {end}. See {best_directory}")
            return _result(begun, best_directory)
        if recipe.patience and validation_data is None and not worker:
            logger.warning(
                "patience=%d has nothing to go by, as no data is held out: the "
                "run takes all its steps.",
                recipe.patience,
            )

        sorted_data = None if step or worker else describe_order(counts)
        if sorted_data:
            logger.warning("%s", sorted_data)
        keras.utils.set_random_seed(recipe.seed)
        tokenizer = find_tokenizer(
            model, vocabulary, data, workdir, step, recipe, say
        )
        with strategy.scope():
            model = build_model(
                model, recipe, tokenizer, strategy.num_replicas_in_sync
            )
            for records in (counts, validation_data):
                if records is not None:
                    check_resized(records, model.preprocessor.image_converter)
            compile_model(model, recipe)
            begun.restore(model)
        if step:
            say(f"Going on after step {step}.")
        say(describe_exclusions(model.optimizer, model.trainable_variables))
        checkpoints = Checkpoints(workdir, state) if worker else begun
        log = TrainingLog(
            workdir,
            recipe,
            checkpoints,
            _guard(counts, recipe, num_workers, workdir, checkpoints),
            verbose=say is not _silent,
        )
        save = SaveBest(
            checkpoints,
            best_directory,
            log,
            preemption,
            _evaluation(evaluate, validation_data, say),
            sum_over_workers(strategy),
        )
        dataset = make_dataset(
            counts, model.preprocessor, recipe, step, strategy, num_workers
        )
        # An evaluation that was cut off comes first, for it may end the run.
        for epochs in (0, 1) if state.get("pending") else (1,):
            if epochs and _is_finished(checkpoints.state(), recipe):
                break
            model.fit(
                dataset,
                shuffle=False,  # It is shuffled already.
                # Reports and checkpoints go by steps, so that a run may begin
                # at any.
                steps_per_epoch=max(1, recipe.steps - step),
                epochs=epochs,
                callbacks=[log, save],
                verbose=0,
            )
        result = _result(checkpoints, best_directory)
        _report_skipped(result["skipped"], say)
        _report_nonfinite(workdir, say)
        _report_recall(result["best"]["metrics"], say)
        end = _describe_end(checkpoints.state(), recipe)
        say(f"Finished: {end}. The model is in {best_directory}")
        return result


def _is_finished(state, recipe):
    ended = state["step"] >= recipe.steps or state.get("stopped")
    return ended and not state.get("pending")


def _describe_end(state, recipe):
    if not state.get("stopped"):
        return f"{recipe.steps} steps"
    return (
        f"it stopped early after step {state['step']} of {recipe.steps}, for "
        f"no evaluation after step {state['best']['step']} (patience="
        f"{recipe.patience}) found a better model"
    )


def _find_data(data, validation_data, workdir, hold_out, say):
    """Return the files to train on, and those to measure on or `None`."""
    if validation_data is None:
        return find_records(data, workdir / "packed", say, hold_out)
    validation_data, _ = find_records(
        validation_data, workdir / "packed_validation", say
    )
    return find_records(data, workdir / "packed", say, 0)[0], validation_data


def _guard(counts, recipe, num_workers, workdir, checkpoints):
    """Watch the loss; a step that is not finite is blamed on its records."""

    def blame(steps, reason):
        return nonfinite_error(
            steps,
            reason,
            name_records(counts, recipe, steps, num_workers),
            workdir / "nonfinite.json",
            checkpoints.state()["step"],
        )

    return LossGuard(blame)


def _check_batch(recipe, replicas):
    if recipe.batch_size % replicas:
        raise ValueError(
            "`batch_size` must be a multiple of the number of replicas. "
            f"Received: batch_size={recipe.batch_size}, {replicas} replicas. "
            "Choose another batch size or strategy."
        )
    local = recipe.batch_size // replicas
    if recipe.batch_norm == "ghost" and local > 16 and local % 16:
        raise ValueError(
            "With batch_norm='ghost', the batch of a replica must be a "
            f"multiple of 16. Received: batch_size={recipe.batch_size}, "
            f"{replicas} replicas. Choose another batch size or `batch_norm`."
        )


def _silent(*_):
    pass


def _result(checkpoints, directory):
    state = checkpoints.state()
    return {
        "step": state["step"],
        "best": state.get("best"),
        "model": str(directory),
        "stopped_early": state.get("stopped", False),
        "skipped": skipped(),
    }


def _report_skipped(names, say, shown=5):
    for name, reason in list(names.items())[:shown]:
        say(f"Skipped {name}: {reason}")
    if len(names) > shown:
        say(f"Skipped {len(names)} records in all.")


def _report_nonfinite(workdir, say):
    """Tell how many steps `skip_nonfinite` left out in the whole run."""
    count = sum(
        figures.get("nonfinite_steps", 0)
        for _, figures in read_metrics(workdir)
    )
    if count:
        say(f"Left out {count:.0f} steps that were not finite.")


def _report_recall(metrics, say):
    """Tell how often the best model finds the pair, and how often chance."""
    for way, words in (
        ("image_to_text", "caption of a picture"),
        ("text_to_image", "picture of a caption"),
    ):
        name = f"{way}_recall@1"
        if f"chance_{name}" in metrics:
            say(
                f"Recall@1, {words}: {metrics[name]:.1%} "
                f"(chance {metrics[f'chance_{name}']:.1%}) among "
                f"{metrics['images']} pictures"
            )


def _claim(workdir, model, recipe, vocabulary, num_workers, step):
    """Write down what the directory is for, or check that it still holds."""
    asked = {
        "model": model if isinstance(model, str) else "custom",
        "vocabulary": vocabulary and str(vocabulary),
        # Workers share out the files, so another number is another order.
        "workers": num_workers,
        **dataclasses.asdict(recipe),
    }
    remove_leftovers(workdir, WRITTEN)
    remove_leftovers(workdir / "checkpoints", ["step-*"])
    path = workdir / "recipe.json"
    # An attempt that failed before its first checkpoint binds nobody.
    if not step:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asked, indent=2) + "\n")
        return
    begun = json.loads(path.read_text())
    for name, value in asked.items():
        if begun.get(name) != value:
            raise ValueError(
                f"`{workdir}` holds a run with {name}={begun.get(name)!r}, "
                f"but {name}={value!r} was asked for. Use another working "
                "directory, or the settings of that run."
            )


def _evaluation(evaluate, data, say):
    """Return a function from the model to its metrics, or `None`."""
    if data is None:
        return None
    if evaluate is None:
        # Evaluation stands a floor above; only this default reaches up.
        from align_keras.evaluation import evaluate_retrieval

        def evaluate(model, data):
            return evaluate_retrieval(model, data, progress=False)

    def run(model):
        metrics = evaluate(model, data)
        say(f"Evaluation: mean recall {metrics['mean_recall']:.1%} on {data}")
        return metrics

    return run
