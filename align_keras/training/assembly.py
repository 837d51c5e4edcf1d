"""From a recipe to a compiled model."""

import logging

import keras

from align_keras import optimizers
from align_keras.losses import ContrastiveLoss
from align_keras.losses import SigmoidLoss
from align_keras.models import AlignDualEncoder
from align_keras.models import presets
from align_keras.preprocessing import AlignImageConverter
from align_keras.preprocessing import AlignPreprocessor

logger = logging.getLogger("align_keras")

# Where training with the sigmoid loss starts, as its authors chose.
INITIAL_BIAS = -10.0


def build_model(model, recipe, tokenizer, replicas=1):
    """Create the model with the precision and preprocessing of a recipe."""
    size = None if tokenizer is None else tokenizer.vocabulary_size()
    built = build_network(model, recipe, size, replicas)
    if tokenizer is None:
        tokenizer = built.preprocessor.tokenizer
    built.preprocessor = AlignPreprocessor(
        tokenizer=tokenizer,
        image_converter=_image_converter(built.preprocessor, recipe),
        sequence_length=recipe.sequence_length,
    )
    return built


def build_network(
    model, recipe, vocabulary_size, replicas=1, load_weights=True
):
    """Create the model with the precision of a recipe.

    Args:
        model: string or callable. See `train`.
        recipe: `Recipe`.
        vocabulary_size: int. Number of tokens; `None` takes the preset's.
        replicas: int. Number of devices that share a batch.
        load_weights: bool. Whether a preset's weights are loaded. Defaults to
            `True`.

    Returns:
        An `AlignDualEncoder`.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(recipe.precision)
    try:
        if isinstance(model, str):
            built = _from_preset(
                model, recipe, vocabulary_size, replicas, load_weights
            )
        else:
            _refuse_fields(
                recipe,
                ("batch_norm", "initial_temperature", *_OF_FRESH_TOWERS),
            )
            built = model(vocabulary_size)
    finally:
        keras.config.set_dtype_policy(policy)
    if recipe.freeze == "image":
        built.image_encoder.trainable = False
    return built


def _image_converter(preprocessor, recipe):
    """Take sizes and mirror of the recipe, and the rest from a preset."""
    config = {}
    if preprocessor is not None and preprocessor.image_converter is not None:
        config = preprocessor.image_converter.get_config()
    config["image_size"] = recipe.image_size
    config["resize_size"] = recipe.resize_size
    config["mirror"] = recipe.mirror
    return AlignImageConverter.from_config(config)


def _refuse_fields(recipe, names):
    for name in names:
        value = getattr(recipe, name)
        if value is not None:
            raise ValueError(
                f"Recipe field `{name}` changes a preset, and this run has a "
                f"model of its own: set it there. Received: {name}={value!r}"
            )


# Fields that say how fresh towers are made, and the argument that they set.
_OF_FRESH_TOWERS = {
    "text_pooling": (None, "text_pooling"),
    "text_dropout": ("text_encoder", "dropout"),
    "drop_connect": ("image_encoder", "dropout"),
}


def _fresh_towers(recipe, path):
    """Return arguments of the model that the recipe has for fresh towers."""
    given = {
        name: getattr(recipe, name)
        for name in _OF_FRESH_TOWERS
        if getattr(recipe, name) is not None
    }
    overrides = {"text_encoder": {}, "image_encoder": {}}
    if not presets.has_weights(path):
        for name, value in given.items():
            tower, argument = _OF_FRESH_TOWERS[name]
            target = overrides if tower is None else overrides[tower]
            target[argument] = value
    elif given:
        logger.info(
            "The towers of `%s` are trained, and keep their pooling and "
            "dropout: the fields %s of the recipe are for fresh ones.",
            path,
            ", ".join(given),
        )
    return overrides


def _from_preset(preset, recipe, size, replicas, load_weights):
    path = presets.find_preset(preset)
    overrides = _fresh_towers(recipe, path)
    if size is not None and not presets.has_weights(path):
        overrides["text_encoder"]["vocabulary_size"] = size
    batch_norm = recipe.batch_norm
    whole = replicas > 1 and recipe.microbatch_size is None
    if batch_norm is None and whole and _has_local_statistics(path):
        # One device would take the statistics of the whole batch.
        batch_norm = "synchronized"
    if batch_norm is not None:
        overrides["image_encoder"]["batch_norm"] = batch_norm
    if recipe.initial_temperature is not None:
        overrides["initial_temperature"] = recipe.initial_temperature
    if recipe.loss == "sigmoid" and not _has_bias(path):
        overrides["initial_bias"] = INITIAL_BIAS
    overrides = {k: value for k, value in overrides.items() if value != {}}
    model = AlignDualEncoder.from_preset(preset, load_weights, **overrides)
    if size is not None:
        _check_vocabulary(model, preset, size)
    if recipe.initial_temperature is not None:
        # Weights of the preset would have replaced it.
        model.contrastive_head.set_temperature(recipe.initial_temperature)
    return model


def _has_local_statistics(path):
    if presets.foreign_weights(path) is not None:
        # Other libraries know no other kind.
        return True
    tower = presets.load_config(path)["config"]["image_encoder"]["config"]
    return tower.get("batch_norm") == "local"


def _has_bias(path):
    if presets.foreign_weights(path) is not None:
        return False
    return presets.load_config(path)["config"].get("initial_bias") is not None


def _check_vocabulary(model, preset, size):
    rows = _table_sizes(model.text_encoder)
    if rows and size not in rows:
        raise ValueError(
            f"The text encoder of preset `{preset}` belongs to a vocabulary of "
            f"{rows[0]} tokens. Received a vocabulary of {size}; pass the one "
            "that the preset was made for."
        )


def _table_sizes(encoder):
    """List the rows of the tables in an encoder; one is that of the tokens."""
    if hasattr(encoder, "vocabulary_size"):
        return [encoder.vocabulary_size]
    return [
        layer.input_dim
        for layer in getattr(encoder, "layers", ())
        if isinstance(layer, keras.layers.Embedding)
    ]


def compile_model(model, recipe):
    recipe = recipe.in_steps()
    schedule = optimizers.WarmupLinearDecay(
        recipe.learning_rate, recipe.warmup_steps, recipe.steps
    )
    settings = {"global_clipnorm": recipe.clip_norm}
    if recipe.ema is not None:
        settings.update(use_ema=True, ema_momentum=recipe.ema)
    decay = {"weight_decay": recipe.weight_decay}
    make = {
        "lamb": lambda: optimizers.Lamb(schedule, **decay, **settings),
        "adam": lambda: optimizers.Adam(schedule, **settings),
        "adamw": lambda: optimizers.AdamW(schedule, **decay, **settings),
        "sgd": lambda: optimizers.SGD(schedule, momentum=0.9, **settings),
    }
    losses = {
        "contrastive": lambda: ContrastiveLoss(recipe.label_smoothing),
        "sigmoid": SigmoidLoss,
    }
    model.compile(
        optimizer=make[recipe.optimizer](),
        loss=losses[recipe.loss](),
        microbatch_size=recipe.microbatch_size,
        remat=recipe.remat,
        skip_nonfinite=recipe.skip_nonfinite,
        steps_per_execution=recipe.steps_per_execution,
    )
