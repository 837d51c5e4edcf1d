import dataclasses
import functools
import json
from pathlib import Path

import keras

from align_keras import registry
from align_keras.data import skipped
from align_keras.io.atomic import atomic_file
from align_keras.io.atomic import remove_leftovers
from align_keras.models import AlignDualEncoder
from align_keras.models import presets
from align_keras.optimizers import describe_exclusions
from align_keras.training.assembly import build_model
from align_keras.training.assembly import compile_model
from align_keras.training.callbacks import SaveBest
from align_keras.training.callbacks import TrainingLog
from align_keras.training.callbacks import read_metrics
from align_keras.training.checkpoints import Checkpoints
from align_keras.training.diagnosis import Diagnosis
from align_keras.training.inputs import count_once
from align_keras.training.inputs import find_records
from align_keras.training.inputs import find_tokenizer
from align_keras.training.inputs import make_dataset
from align_keras.training.inputs import name_records
from align_keras.training.known_towers import known_towers
from align_keras.training.recipes import Recipe
from align_keras.training.recipes import load_recipe
from align_keras.training.safety import LossGuard
from align_keras.training.safety import Preemption
from align_keras.training.safety import nonfinite_error
from align_keras.training.strategies import make_strategy
from align_keras.training.strategies import sum_over_workers
from align_keras.training.strategies import worker_of

# Images below which fresh towers are mostly limited by the words and shapes
# that they have never seen.
FEW = 100_000


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
    image_weights=None,
    text_weights=None,
    diagnostics=True,
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
            `None` makes a pair of the towers of `image_weights` and
            `text_weights`.
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
        image_weights: string. Image encoder to start from: whatever
            `from_preset` of a tower opens, see
            `align_keras.training.known_towers`. Defaults to `None`: fresh
            weights, or those of the preset.
        text_weights: string. The same for the text encoder, whose vocabulary
            the run takes. Defaults to `None`.
        diagnostics: bool. Whether to report how well each encoder tells its
            inputs apart, and the norm of its gradient, see
            `align_keras.training.diagnostics`. Makes no difference to the
            weights. Defaults to `True`.
        **overrides: Fields of the recipe to replace, such as `steps`.

    Returns:
        A dict with `"step"`, `"model"` (the preset directory), `"best"` (its
        step, score and metrics) and `"skipped"` (records left out).

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
    towers = known_towers(image_weights, text_weights)
    _check_model(model, towers)
    if isinstance(strategy, str):
        strategy = make_strategy(strategy)
    resume = functools.partial(
        train,
        model,
        recipe,
        data,
        workdir,
        validation_data,
        vocabulary,
        strategy,
        evaluate=evaluate,
        hold_out=hold_out,
        verbose=verbose,
        image_weights=image_weights,
        text_weights=text_weights,
        diagnostics=diagnostics,
    )
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
        asked = {
            "model": "custom" if callable(model) else model,
            "vocabulary": vocabulary and str(vocabulary),
            **{f"{kind}_weights": t.source for kind, t in towers.items()},
            # Workers share out the files, so another number is another order.
            "workers": num_workers,
            "diagnostics": diagnostics,
            **dataclasses.asdict(recipe),
        }
        _claim(workdir, asked, step)
        part = _part_at_hand(recipe, state)
        if step >= recipe.steps and not state.get("pending"):
            say(
                f"This run is finished: {recipe.steps} steps. "
                f"See {best_directory}"
            )
            return _result(begun, best_directory)

        counts = count_once(data, workdir, step)
        keras.utils.set_random_seed(recipe.seed)
        tokenizer = find_tokenizer(
            model,
            vocabulary,
            data,
            workdir,
            step,
            recipe,
            say,
            towers.get("text"),
        )
        if not step:
            _advise(model, towers, sum(counts.values()), say)
        with strategy.scope():
            model = build_model(
                model,
                part.recipe,
                tokenizer,
                strategy.num_replicas_in_sync,
                towers,
            )
            compile_model(model, part.recipe, part.first_step, diagnostics)
            begun.restore(model, fresh_optimizer=step == part.first_step)
        if step:
            say(f"Going on after step {step}.")
        say(describe_exclusions(model.optimizer, model.trainable_variables))
        checkpoints = Checkpoints(workdir, state) if worker else begun
        diagnose = None
        if diagnostics:
            diagnose = Diagnosis(validation_data or counts, model, recipe, say)
        log = TrainingLog(
            workdir,
            recipe,
            checkpoints,
            _guard(counts, recipe, num_workers, workdir, checkpoints),
            verbose=say is not _silent,
            last_step=part.last_step,
        )
        save = SaveBest(
            checkpoints,
            best_directory,
            log,
            preemption,
            _evaluation(evaluate, validation_data, say),
            sum_over_workers(strategy),
            diagnose,
        )
        model.fit(
            make_dataset(
                counts, model.preprocessor, recipe, step, strategy, num_workers
            ),
            shuffle=False,  # It is shuffled already.
            # Reports and checkpoints go by steps, so that a run may begin at
            # any.
            steps_per_epoch=max(1, part.last_step - step),
            epochs=1 if step < part.last_step else 0,
            callbacks=[log, save],
            verbose=0,
        )
        if checkpoints.state()["step"] == part.last_step < recipe.steps:
            say(f"From step {part.last_step} on, nothing is frozen.")
            if num_workers > 1:
                # None may read what the first has not written yet.
                sum_over_workers(strategy)(1.0)
            return resume()
        result = _result(checkpoints, best_directory)
        _report_skipped(result["skipped"], say)
        _report_nonfinite(workdir, say)
        _report_recall(result["best"]["metrics"], say)
        say(f"Trained {recipe.steps} steps. The model is in {best_directory}")
        return result


def _find_data(data, validation_data, workdir, hold_out, say):
    """Return the files to train on, and those to measure on or `None`."""
    if validation_data is None:
        return find_records(data, workdir / "packed", say, hold_out)
    validation_data, _ = find_records(
        validation_data, workdir / "packed_validation", say
    )
    return find_records(data, workdir / "packed", say, 0)[0], validation_data


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of a run in which the same variables are trained.

    Attributes:
        recipe: `Recipe`. That of the run, with what this part freezes.
        first_step: int. The step at which its optimizer begins.
        last_step: int. The step after which it ends.
    """

    recipe: Recipe
    first_step: int
    last_step: int


def _part_at_hand(recipe, state):
    """Find the part of the run that a checkpoint begins or is within."""
    after = recipe.unfreeze_after
    if after is None:
        return _Part(recipe, 0, recipe.steps)
    step = state["step"]
    # An evaluation that is due belongs to the part that made the weights.
    if step < after or (step == after and state.get("pending")):
        return _Part(recipe, 0, after)
    whole = dataclasses.replace(recipe, freeze=None, unfreeze_after=None)
    return _Part(whole, after, recipe.steps)


def _check_model(model, towers):
    if isinstance(model, str):
        presets.require_class(presets.find_preset(model), AlignDualEncoder)
    elif model is not None and towers:
        raise ValueError(
            "`image_weights` and `text_weights` go with a preset or without "
            "one, and this run has a model of its own: set its weights there."
        )
    elif model is None and len(towers) < 2:
        raise ValueError(
            "A run needs a preset, or both `image_weights` and "
            f"`text_weights`. Received: {', '.join(towers) or 'neither'}"
        )


def _advise(model, towers, pairs, say):
    """Tell who has little data and fresh weights that there is a better way."""
    fresh = isinstance(model, str) and not presets.has_weights(
        presets.find_preset(model)
    )
    if fresh and not towers and pairs < FEW:
        say(
            f"{pairs} images are few for fresh weights: known towers "
            "(`--image-weights`, `--text-weights`) or a trained pair with "
            "the recipe `finetune` learn more from them, see "
            "docs/finetuning.md."
        )


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


def _claim(workdir, asked, step):
    """Write down what the directory is for, or check that it still holds."""
    remove_leftovers(workdir)
    remove_leftovers(workdir / "checkpoints")
    path = workdir / "recipe.json"
    # An attempt that failed before its first checkpoint binds nobody.
    if not step:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asked, indent=2) + "\n")
        return
    begun = json.loads(path.read_text())
    # What was given then and not now differs as well.
    for name in asked | begun:
        value = asked.get(name)
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
        evaluate_retrieval = registry.find("evaluate_retrieval")

        def evaluate(model, data):
            return evaluate_retrieval(model, data, progress=False)

    def run(model):
        metrics = evaluate(model, data)
        say(f"Evaluation: mean recall {metrics['mean_recall']:.1%} on {data}")
        return metrics

    return run
