import contextlib
import dataclasses
import functools
import logging
import tempfile
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from align_keras import registry
from align_keras.backend.sharded_state import bytes_of_a_device
from align_keras.io.atomic import atomic_file
from align_keras.io.atomic import remove_leftovers
from align_keras.io.claims import check_claim
from align_keras.io.json_files import to_json
from align_keras.io.json_files import write_json
from align_keras.io.locks import directory_lock
from align_keras.io.messages import messages_shown
from align_keras.io.mirrors import stored
from align_keras.io.stores import Store
from align_keras.io.stores import is_store
from align_keras.models import AlignDualEncoder
from align_keras.models import presets
from align_keras.optimizers import describe_exclusions
from align_keras.training.assembly import build_model
from align_keras.training.assembly import compile_model
from align_keras.training.callbacks import SaveBest
from align_keras.training.callbacks import TrainingLog
from align_keras.training.checkpoints import Checkpoints
from align_keras.training.diagnosis import Diagnosis
from align_keras.training.inputs import check_resized
from align_keras.training.inputs import count_once
from align_keras.training.inputs import find_records
from align_keras.training.inputs import find_tokenizer
from align_keras.training.inputs import make_dataset
from align_keras.training.inputs import name_records
from align_keras.training.inputs import tell_languages
from align_keras.training.known_towers import known_towers
from align_keras.training.parts import describe_end
from align_keras.training.parts import is_finished
from align_keras.training.parts import part_at_hand
from align_keras.training.recipes import Recipe
from align_keras.training.recipes import load_recipe
from align_keras.training.reports import advise
from align_keras.training.reports import describe_work
from align_keras.training.reports import report
from align_keras.training.reports import warn
from align_keras.training.safety import LossGuard
from align_keras.training.safety import Preemption
from align_keras.training.safety import nonfinite_error
from align_keras.training.safety import unreadable_named
from align_keras.training.strategies import hosts_of
from align_keras.training.strategies import make_strategy
from align_keras.training.trackers import check_trackers
from align_keras.training.trackers import forget_runs
from align_keras.training.trackers import opened_trackers
from align_keras.training.watch import Watch
from align_keras.training.workers import Workers

# Seconds that a process gets to finish writing after another one has died.
FINISH = 30

logger = logging.getLogger("align_keras")


def train(
    model: Any,
    recipe: Any,
    data: Any,
    workdir: str | Path,
    validation_data: Any = None,
    vocabulary: str | Path | None = None,
    strategy: Any = "auto",
    seed: int | None = None,
    evaluate: Callable | None = None,
    hold_out: float = 0.1,
    verbose: bool = True,
    image_weights: str | None = None,
    text_weights: str | None = None,
    diagnostics: bool = True,
    allow_outside: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    log: Sequence[str] = ("tensorboard",),
    shard_state: bool = False,
    **overrides: Any,
) -> dict:
    """Train ALIGN, or resume a run that was interrupted.

    The working directory receives `recipe.json` (the settings of the run),
    `vocabulary.txt`, `metrics.jsonl`, `checkpoints/`, the files of the
    loggers in `log`, and `model/`: the best model so far as a preset
    directory with its tokenizer and preprocessing. Call `train` again with
    the same arguments to resume from the newest checkpoint, as if the run had
    not been interrupted; a finished run returns at once. On SIGTERM the run
    saves a checkpoint after the current step and exits with status 75, on
    which schedulers restart it. A step whose loss is not finite ends the run
    with an error that names its records.

    Several processes may share a run, see `make_strategy`: on TensorFlow the
    workers in `TF_CONFIG`, and on JAX the processes that the environment
    describes, see `align_keras.training.processes`. Each reads its own part
    of the data; only the first one writes. When one of them dies, the others
    exit with status 75.

    Args:
        model: string, callable or `None`. Name, directory or handle of a
            preset, or of a checkpoint that `AlignDualEncoder.from_preset`
            opens; or a function that takes the size of the vocabulary and
            returns an `AlignDualEncoder`, called within the scope of the
            strategy. `None` builds the model from the towers in
            `image_weights` and `text_weights`.
        recipe: string or `Recipe`. See `load_recipe`.
        data: string or list of strings. TFRecord files: a directory, a glob
            or paths. Or a folder of images that contains a `captions.csv`,
            `.tsv`, `.jsonl`, `.json` or `.parquet`; it is packed into the
            working directory first.
        workdir: string or `pathlib.Path`. The directory of the run, or its
            address in a store, see `align_keras.io.mirrors`.
        validation_data: string. Data for the evaluation at each checkpoint,
            in a form that `data` takes. Defaults to `None`: if `data` is a
            folder of images, those that `pack` held out; otherwise the model
            is not evaluated, and the newest one counts as the best.
        vocabulary: string. Path of a WordPiece vocabulary, one token per
            line. Defaults to `None`: that of the preset, or one that is
            learned from the captions.
        strategy: string or `tf.distribute.Strategy`. See `make_strategy`.
        seed: int. Replaces the seed of the recipe.
        evaluate: callable. Takes the model and the validation data and
            returns a dict with `"mean_recall"`; all numbers in it are logged.
            Defaults to `align_keras.evaluation.measure_retrieval`.
        hold_out: float. Share of a folder of images to hold out for
            evaluation if there is no `validation_data`, see
            `align_keras.data.pack`. Defaults to `0.1`.
        verbose: bool. Whether to report progress. Defaults to `True`.
        image_weights: string. Pretrained image encoder: whatever
            `from_preset` of a tower opens, see
            `align_keras.training.known_towers`. Defaults to `None`: fresh
            weights, or those of the preset.
        text_weights: string. Pretrained text encoder, in the same forms. The
            run uses its vocabulary. Defaults to `None`.
        diagnostics: bool. Whether to report how well each encoder separates
            its inputs, and the norm of its gradient, see
            `align_keras.training.diagnostics`. Does not affect the weights.
            Defaults to `True`.
        allow_outside: bool. Whether to read files that a folder of images
            refers to outside of itself, see `align_keras.data.pack`. Defaults
            to `False`.
        callbacks: sequence of `keras.callbacks.Callback`. Further callbacks
            of the run. Defaults to none.
        log: sequence of strings. Loggers besides `metrics.jsonl`:
            `"tensorboard"`, `"wandb"` and `"mlflow"`. Defaults to
            `("tensorboard",)`.
        shard_state: bool. Whether each device holds only a part of the
            weights and the optimizer's state, see `make_strategy`. Defaults
            to `False`.
        **overrides: Fields of the recipe to replace, such as `steps`.

    Returns:
        A dict with `"step"`, `"model"` (the preset directory), `"best"` (its
        step, score and metrics), `"stopped_early"` (bool, see `patience` in
        `Recipe`), `"skipped"` (records that could not be used) and
        `"process"` (the number of this process; process 0 writes the model).

    Raises:
        ValueError: The recipe does not fit the model, the data or the
            strategy, or the working directory holds another run.
        FileNotFoundError: There is no such data, vocabulary or recipe.
        BlockingIOError: Another process trains in the working directory.
        FloatingPointError: The loss or a weight is no longer finite. The last
            checkpoint is kept.
        OSError: There is no space left to write. The last checkpoint is kept.

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
    check_trackers(log)
    towers = known_towers(image_weights, text_weights)
    _check_model(model, towers)
    if isinstance(strategy, str):
        strategy = make_strategy(strategy, join=True, shard_state=shard_state)
    elif shard_state:
        raise ValueError(
            "`shard_state` works only with a strategy that `train` creates: "
            f"pass its name, such as 'auto'. Received: strategy={strategy!r}"
        )
    _check_batch(recipe, strategy.num_replicas_in_sync)
    run = _Run(
        model=model,
        recipe=recipe,
        data=data,
        validation_data=validation_data,
        vocabulary=vocabulary,
        strategy=strategy,
        workers=Workers(strategy),
        evaluate=evaluate,
        hold_out=hold_out,
        verbose=verbose,
        towers=towers,
        diagnostics=diagnostics,
        allow_outside=allow_outside,
        callbacks=callbacks,
        log=log,
        shard_state=shard_state,
    )
    return _train_parts(run, workdir)


@dataclasses.dataclass(frozen=True)
class _Run:
    """The arguments of `train`, and the records that the run skipped.

    `towers` is a dict from kind to `KnownTower`.
    """

    model: Any
    recipe: Recipe
    data: Any
    validation_data: Any
    vocabulary: Any
    strategy: Any
    workers: Workers
    evaluate: Callable | None
    hold_out: float
    verbose: bool
    towers: dict
    diagnostics: bool
    allow_outside: bool
    callbacks: Sequence[keras.callbacks.Callback]
    log: Sequence[str]
    shard_state: bool
    skipped: dict = dataclasses.field(default_factory=dict)


@stored("workdir", but=lambda arguments: not arguments["run"].workers.is_first)
def _train_parts(run, workdir):
    """Train one part after the other, with the working directory locked."""
    workers = run.workers
    with contextlib.ExitStack() as stack:
        own = Path(workdir)
        if not workers.is_first:
            # Its own files only; the result is what the first worker writes.
            if is_store(workdir):
                own = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            own = own / f"worker-{workers.index}"
        stack.enter_context(directory_lock(own))
        watch = stack.enter_context(Watch(workers))
        result = None
        while result is None:
            held = own if is_store(workdir) else workdir
            begun = Checkpoints(held, writes=workers.is_first)
            watch.finish = functools.partial(begun.finish, FINISH)
            begun.share(workers)
            result = _train_part(run, own, begun)
            # No worker may read, or end, before the first one has written.
            workers.wait()
        if not workers.is_first:
            result["model"] = _joined(workdir, "model")
    return {**result, "process": workers.index}


def _joined(workdir, name):
    """Return the path or address of a file in a working directory."""
    if is_store(workdir):
        return f"{Store(workdir)}/{name}"
    return str(Path(workdir, name))


def _train_part(run, workdir, begun):
    """Train the current part of a run, in a locked directory.

    Returns:
        What `train` returns; `None` if another part follows.
    """
    strategy, recipe, workers = run.strategy, run.recipe, run.workers
    best_directory = workdir / "model"
    with (
        messages_shown(progress=run.verbose and workers.is_first),
        Preemption(alone=workers.count == 1) as preemption,
    ):
        if workers.count > 1:
            logger.info(
                "This is process %d of %d.", workers.index, workers.count
            )
        # Find the data before writing anything.
        records, validation_data = _find_data(
            run.data,
            run.validation_data,
            workdir,
            run.hold_out,
            run.allow_outside,
        )
        state = begun.state()
        step = state["step"]
        asked = {
            "model": "custom" if callable(run.model) else run.model,
            "vocabulary": run.vocabulary and str(run.vocabulary),
            **{f"{kind}_weights": t.source for kind, t in run.towers.items()},
            # Workers divide the files among them, so that another number of
            # workers changes the order of the data.
            "workers": workers.count,
            "diagnostics": run.diagnostics,
            **dataclasses.asdict(recipe),
        }
        if workers.is_first:
            _claim(workdir, asked, step)
        # `shard_state` may differ when a run resumes: it does not change the
        # checkpoint.
        alike = {**asked, "shard_state": run.shard_state}
        _compare(alike, workers.send(to_json(alike)))
        records = count_once(records, workdir, step, workers)
        recipe = recipe.in_steps(records.total)
        part = part_at_hand(recipe, state)
        if is_finished(state, recipe):
            end = describe_end(state, recipe)
            logger.info("This run is finished: %s. See %s", end, best_directory)
            return _result(run, begun, best_directory)
        if workers.is_first:
            readers = max(workers.count, hosts_of(strategy))
            warn(recipe, records, validation_data, step, readers)
            describe_work(recipe, records)
        keras.utils.set_random_seed(recipe.seed)
        tokenizer = _find_tokenizer(run, records, workdir, step)
        if not step:
            advise(run.model, run.towers, records.total)
        with strategy.scope():
            model = build_model(
                run.model,
                part.recipe,
                tokenizer,
                strategy.num_replicas_in_sync,
                run.towers,
            )
            for source in (records, validation_data):
                if source is not None:
                    check_resized(source, model.preprocessor.image_converter)
            compile_model(model, part.recipe, part.first_step, run.diagnostics)
            begun.restore(model, fresh_optimizer=step == part.first_step)
            if run.shard_state:
                _describe_state(model)
        if step:
            logger.info("Resuming after step %d.", step)
        logger.info(
            "%s",
            describe_exclusions(model.optimizer, model.trainable_variables),
        )
        diagnose = None
        if run.diagnostics:
            diagnose = Diagnosis(validation_data or records, model, recipe)
        tell_languages(records, recipe.language_exponent)
        dataset = make_dataset(
            records, model.preprocessor, recipe, step, strategy, workers
        )
        preemption.finish = begun.wait
        trackers = run.log if workers.is_first else ()
        with opened_trackers(trackers, workdir, asked) as trackers:
            log = TrainingLog(
                workdir,
                recipe,
                begun,
                _guard(records, recipe, workers.count, workdir, begun),
                verbose=run.verbose and workers.is_first,
                writes=workers.is_first,
                last_step=part.last_step,
                trackers=trackers,
            )
            save = SaveBest(
                begun,
                best_directory,
                log,
                preemption,
                workers,
                _evaluation(run.evaluate, validation_data),
                diagnose,
            )
            # `save` is last: it also saves when a caller's callback stops the
            # run.
            callbacks = [log, *run.callbacks, save]
            with begun:
                _fit(model, dataset, recipe, part, begun, callbacks)
        for source in (records, validation_data):
            run.skipped.update(getattr(source, "skipped", {}))
        state = begun.state()
        if (
            state["step"] == part.last_step
            and not is_finished(state, recipe)
            and not model.stop_training
        ):
            logger.info("From step %d on, nothing is frozen.", part.last_step)
            return None
        result = _result(run, begun, best_directory)
        report(result, workdir, describe_end(state, recipe))
        return result


def _find_tokenizer(run, records, workdir, step):
    """Find the vocabulary; the first worker sends it to the others."""
    path = workdir / "vocabulary.txt"
    find = functools.partial(
        find_tokenizer,
        run.model,
        run.vocabulary,
        records,
        workdir,
        recipe=run.recipe,
        text_tower=run.towers.get("text"),
    )
    if run.workers.count == 1:
        return find(step=step)
    tokenizer = find(step=step) if run.workers.is_first else None
    tokens = path.read_text("utf-8") if path.is_file() else None
    tokens = run.workers.send(tokens)
    if tokenizer is None:
        if tokens is not None:
            with atomic_file(path) as temporary:
                temporary.write_text(tokens, encoding="utf-8")
        tokenizer = find(step=1)
    return tokenizer


def _describe_state(model):
    """Log how much of the state each device holds."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    devices = keras.distribution.distribution().device_mesh.devices
    part, whole = bytes_of_a_device(
        [*model.weights, *model.optimizer.variables]
    )
    logger.info(
        "Each of %d devices holds %.2f MB of weights and optimizer state; "
        "together they take %.2f MB.",
        devices.size,
        part / 1e6,
        whole / 1e6,
    )


def _compare(asked, first):
    """Refuse a worker whose settings differ from those of the first."""
    for name, value in to_json(asked).items():
        if value != first.get(name):
            raise ValueError(
                "All processes of a run must be started in the same way. "
                f"Process 0 has {name}={first.get(name)!r}, and this one "
                f"{name}={value!r}."
            )


def _fit(model, dataset, recipe, part, checkpoints, callbacks):
    """Take the remaining steps of a part of a run."""
    state = checkpoints.state()
    # First repeat an evaluation that was interrupted: it may end the run.
    # With no epochs, `fit` only runs the callbacks' `on_train_begin`.
    for epochs in (0, 1) if state.get("pending") else (1,):
        ended = is_finished(checkpoints.state(), recipe)
        if epochs and (ended or state["step"] == part.last_step):
            break
        with unreadable_named(checkpoints):
            model.fit(
                dataset,
                shuffle=False,  # It is shuffled already.
                # Reports and checkpoints count steps, so that a run may
                # resume at any of them.
                steps_per_epoch=max(1, part.last_step - state["step"]),
                epochs=epochs,
                callbacks=callbacks,
                verbose=0,
            )
        checkpoints.wait()


def _find_data(data, validation_data, workdir, hold_out, allow_outside):
    """Return the training records, and the validation data or `None`."""
    find = functools.partial(find_records, allow_outside=allow_outside)
    if validation_data is None:
        return find(data, workdir / "packed", hold_out)
    validation, _ = find(validation_data, workdir / "packed_validation")
    records, _ = find(data, workdir / "packed", 0)
    return records, validation


def _check_model(model, towers):
    if isinstance(model, str):
        presets.require_class(presets.find_preset(model), AlignDualEncoder)
    elif model is not None and towers:
        raise ValueError(
            "`image_weights` and `text_weights` can be used with a preset or "
            "without one, but this run has a model of its own: set its weights "
            "there."
        )
    elif model is None and len(towers) < 2:
        raise ValueError(
            "A run needs a preset, or both `image_weights` and "
            f"`text_weights`. Received: {', '.join(towers) or 'neither'}"
        )


def _guard(records, recipe, num_workers, workdir, checkpoints):
    """Make a `LossGuard` whose error names the records of the step."""

    def blame(steps, reason):
        return nonfinite_error(
            steps,
            reason,
            name_records(records, recipe, steps, num_workers),
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


def _result(run, checkpoints, directory):
    state = checkpoints.state()
    return {
        "step": state["step"],
        "best": state.get("best"),
        "model": str(directory),
        "stopped_early": state.get("stopped", False),
        "skipped": run.skipped,
    }


def _claim(workdir, asked, step):
    """Record the settings of the run, or check that they are unchanged."""
    remove_leftovers(workdir)
    remove_leftovers(workdir / "checkpoints")
    path = workdir / "recipe.json"
    # A run that failed before its first checkpoint may change its settings.
    if not step:
        write_json(path, asked)
        forget_runs(workdir)
    try:
        check_claim(path, asked, "a run")
    except ValueError as error:
        raise ValueError(
            f"{error} To train its model further, pass another directory and "
            f"`--preset {workdir / 'model'}`."
        ) from error


def _evaluation(evaluate, data):
    """Return a function from the model to its metrics, or `None`."""
    if data is None:
        return None
    if evaluate is None:
        measure = registry.find("measure_retrieval")

        def evaluate(model, data):
            return measure(model, data, progress=False, samples=0)

    def run(model):
        # Leave out lists and dicts, such as intervals and counts by class.
        metrics = {
            name: value if isinstance(value, int) else float(value)
            for name, value in evaluate(model, data).items()
            if hasattr(value, "__float__") and np.ndim(value) == 0
        }
        if "mean_recall" not in metrics:
            raise ValueError(
                "`evaluate` must return a dict with the number `mean_recall`, "
                "by which the best model is chosen. Received the numbers: "
                f"{', '.join(metrics) or 'none'}"
            )
        chance = metrics.get("chance_mean_recall")
        logger.info(
            "Evaluation: mean recall %.1f%%%s on %s",
            100 * metrics["mean_recall"],
            f" (chance {100 * chance:.1f}%)" if chance is not None else "",
            data,
        )
        return metrics

    return run
