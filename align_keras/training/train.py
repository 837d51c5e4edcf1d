import dataclasses
import json
import math
from pathlib import Path

import keras

from align_keras.data import iterate_records
from align_keras.data import load_dataset
from align_keras.data import pack
from align_keras.data import skipped
from align_keras.files import atomic_file
from align_keras.losses import ContrastiveLoss
from align_keras.models import AlignDualEncoder
from align_keras.models import presets
from align_keras.optimizers import Lamb
from align_keras.optimizers import WarmupLinearDecay
from align_keras.preprocessing import AlignImageConverter
from align_keras.preprocessing import AlignPreprocessor
from align_keras.preprocessing import AlignTokenizer
from align_keras.training.callbacks import SaveBest
from align_keras.training.callbacks import StopAtStep
from align_keras.training.callbacks import TrainingLog
from align_keras.training.checkpoints import Checkpoints
from align_keras.training.recipes import load_recipe
from align_keras.training.strategies import make_strategy

# Captions read to learn a vocabulary; more change a frequency list little.
VOCABULARY_SAMPLE = 1_000_000


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
    verbose=True,
    **overrides,
):
    """Train ALIGN, or go on with a run that was interrupted.

    The working directory receives `recipe.json` (what was asked for),
    `vocabulary.txt`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, and
    `model/`: the best model so far as a preset directory with its tokenizer
    and preprocessing. A run with the same arguments goes on from the newest
    checkpoint; a finished one returns at once.

    Args:
        model: string or callable. Name or directory of a preset, or a
            function that takes the size of the vocabulary and returns an
            `AlignDualEncoder`, called within the scope of the strategy.
        recipe: string or `Recipe`. See `load_recipe`.
        data: string. TFRecord files: a directory or a glob. Or a folder of
            pictures with a `captions.csv`, `.tsv` or `.jsonl` in it, which is
            packed into the working directory first.
        workdir: string or `pathlib.Path`. The directory of the run.
        validation_data: string. The same for evaluation at each checkpoint.
            Defaults to `None`: no evaluation, and the newest model is best.
        vocabulary: string. WordPiece vocabulary, one token per line. Defaults
            to `None`: that of the preset, or one that is learned from the
            captions.
        strategy: string or `tf.distribute.Strategy`. See `make_strategy`.
        seed: int. Replaces the seed of the recipe.
        evaluate: callable. Takes the model and the validation data and
            returns a dict with `"mean_recall"`. Defaults to recall in
            `align_keras.evaluation.evaluate_retrieval`.
        verbose: bool. Whether to report progress. Defaults to `True`.
        **overrides: Fields of the recipe to replace, such as `steps`.

    Returns:
        A dict with `"step"`, `"model"` (the preset directory), `"best"` (its
        step, score and metrics) and `"skipped"` (records left out).

    Raises:
        ValueError: The recipe does not fit the model, the data or the
            strategy, or the working directory holds another run.
        FileNotFoundError: There is no such data, vocabulary or recipe.

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
    workdir = Path(workdir)
    say = print if verbose else _silent
    # The data is looked for before anything is written.
    data = _records(data, workdir / "packed", say)
    if validation_data is not None:
        validation_data = _records(
            validation_data, workdir / "packed_validation", say
        )
    _claim(workdir, model, recipe)
    checkpoints = Checkpoints(workdir)
    best_directory = workdir / "model"
    if checkpoints.state()["step"] >= recipe.steps:
        say(f"This run is finished: {recipe.steps} steps. See {best_directory}")
        return _result(checkpoints, best_directory)

    keras.utils.set_random_seed(recipe.seed)
    if isinstance(strategy, str):
        strategy = make_strategy(strategy)
    replicas = strategy.num_replicas_in_sync
    if recipe.batch_size % replicas:
        raise ValueError(
            "`batch_size` must be a multiple of the number of replicas. "
            f"Received: batch_size={recipe.batch_size}, {replicas} replicas. "
            "Choose another batch size or strategy."
        )
    tokenizer = _tokenizer(model, vocabulary, data, workdir, recipe, say)
    with strategy.scope():
        model = _build(model, recipe, tokenizer)
        _compile(model, recipe)
        step = checkpoints.restore(model)
    if step:
        say(f"Going on after step {step}.")
    dataset = load_dataset(
        data,
        model.preprocessor,
        recipe.batch_size,
        training=True,
        seed=recipe.seed,
        start_step=step,
    )
    log = TrainingLog(
        workdir, recipe.batch_size, recipe.steps, step, verbose=verbose
    )
    run_evaluation = None
    if validation_data is not None:
        run_evaluation = _evaluation(evaluate, validation_data, say)
    model.fit(
        dataset,
        shuffle=False,  # It is shuffled already.
        initial_epoch=step // recipe.checkpoint_every,
        epochs=math.ceil(recipe.steps / recipe.checkpoint_every),
        steps_per_epoch=min(recipe.checkpoint_every, recipe.steps),
        callbacks=[
            log,
            StopAtStep(log, recipe.steps),
            SaveBest(checkpoints, best_directory, log, run_evaluation),
        ],
        verbose=0,
    )
    result = _result(checkpoints, best_directory)
    _report_skipped(result["skipped"], say)
    say(f"Trained {recipe.steps} steps. The model is in {best_directory}")
    return result


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


def _records(data, packed, say):
    """Return TFRecord files for `data`, packing a folder of pictures."""
    folder = Path(str(data))
    if not folder.is_dir() or list(folder.glob("*.tfrecord*")):
        if next(iterate_records(data), None) is None:
            raise ValueError(f"The files of `{data}` hold no records.")
        return data
    for suffix in ("csv", "tsv", "jsonl"):
        captions = folder / f"captions.{suffix}"
        if captions.is_file():
            say(f"Packing {folder} with {captions.name} into {packed}")
            pack(folder, packed, captions=captions)
            return str(packed)
    raise FileNotFoundError(
        f"`{folder}` holds neither TFRecord files nor pictures with a "
        "captions.csv, captions.tsv or captions.jsonl. Pack your data with "
        "`align-keras pack` first."
    )


def _claim(workdir, model, recipe):
    """Write down what the directory is for, or check that it still holds."""
    asked = {
        "model": model if isinstance(model, str) else "custom",
        **dataclasses.asdict(recipe),
    }
    path = workdir / "recipe.json"
    if not path.is_file():
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


def _tokenizer(model, vocabulary, data, workdir, recipe, say):
    """Find the vocabulary of the run; `None` keeps that of the preset."""
    path = workdir / "vocabulary.txt"
    if vocabulary is not None:
        if not Path(vocabulary).is_file():
            raise FileNotFoundError(
                f"There is no vocabulary file `{vocabulary}`."
            )
        tokens = Path(vocabulary).read_text(encoding="utf-8").splitlines()
    elif isinstance(model, str) and presets.has_preprocessor(
        presets.find_preset(model)
    ):
        return None
    elif path.is_file():
        tokens = path.read_text(encoding="utf-8").splitlines()
    else:
        tokens = AlignTokenizer.learn_vocabulary(
            _captions(data), recipe.vocabulary_size
        )
        say(f"Learned a vocabulary of {len(tokens)} tokens from the captions.")
    tokenizer = AlignTokenizer(tokens)
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return tokenizer


def _captions(data):
    read = 0
    for record in iterate_records(data):
        yield from record["captions"]
        read += len(record["captions"])
        if read >= VOCABULARY_SAMPLE:
            return


def _build(model, recipe, tokenizer):
    """Create the model with the precision and preprocessing of a recipe."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(recipe.precision)
    try:
        if isinstance(model, str):
            built = _from_preset(model, recipe, tokenizer)
        else:
            built = model(tokenizer.vocabulary_size())
    finally:
        keras.config.set_dtype_policy(policy)
    if tokenizer is None:
        tokenizer = built.preprocessor.tokenizer
    built.preprocessor = AlignPreprocessor(
        tokenizer=tokenizer,
        image_converter=AlignImageConverter(
            image_size=(recipe.image_size, recipe.image_size),
            resize_size=(recipe.resize_size, recipe.resize_size),
        ),
        sequence_length=recipe.sequence_length,
    )
    return built


def _from_preset(preset, recipe, tokenizer):
    overrides = {}
    if tokenizer is not None:
        size = {"vocabulary_size": tokenizer.vocabulary_size()}
        overrides["text_encoder"] = size
    if recipe.batch_norm is not None:
        overrides["image_encoder"] = {"batch_norm": recipe.batch_norm}
    if recipe.initial_temperature is not None:
        overrides["initial_temperature"] = recipe.initial_temperature
    return AlignDualEncoder.from_preset(preset, **overrides)


def _compile(model, recipe):
    schedule = WarmupLinearDecay(
        recipe.learning_rate, recipe.warmup_steps, recipe.steps
    )
    optimizers = {
        "lamb": lambda: Lamb(schedule, weight_decay=recipe.weight_decay),
        "adam": lambda: keras.optimizers.Adam(schedule),
        "adamw": lambda: keras.optimizers.AdamW(
            schedule, weight_decay=recipe.weight_decay
        ),
        "sgd": lambda: keras.optimizers.SGD(schedule, momentum=0.9),
    }
    model.compile(
        optimizer=optimizers[recipe.optimizer](),
        loss=ContrastiveLoss(label_smoothing=recipe.label_smoothing),
    )


def _evaluation(evaluate, data, say):
    if evaluate is None:
        # Evaluation stands beside training; only this default reaches over.
        from align_keras.evaluation import evaluate_retrieval

        def evaluate(model, data):
            return evaluate_retrieval(model, data, progress=False)

    def run(model):
        metrics = evaluate(model, data)
        say(
            f"Evaluation: mean recall {metrics['mean_recall']:.1%} "
            f"on {data}"
        )
        return metrics

    return run
