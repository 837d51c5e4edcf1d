"""Build and compile the model of a recipe."""

import logging

import keras

from align_keras import optimizers
from align_keras.losses import ContrastiveLoss
from align_keras.losses import SigmoidLoss
from align_keras.models import AlignDualEncoder
from align_keras.models import presets
from align_keras.models.lora import add_lora
from align_keras.preprocessing import AlignImageConverter
from align_keras.preprocessing import AlignPreprocessor
from align_keras.training.freezing import freeze
from align_keras.training.freezing import freeze_statistics
from align_keras.training.known_towers import copy_weights
from align_keras.training.known_towers import fit_to_preset
from align_keras.training.layer_decay import rate_multipliers

logger = logging.getLogger("align_keras")

# Initial bias of the sigmoid loss, as its authors chose it.
INITIAL_BIAS = -10.0


def build_model(model, recipe, tokenizer, replicas=1, towers=None):
    """Create the model with the precision and preprocessing of a recipe."""
    size = None if tokenizer is None else tokenizer.vocabulary_size()
    built = build_network(model, recipe, size, replicas, towers=towers)
    if tokenizer is None:
        tokenizer = built.preprocessor.tokenizer
    converter = built.preprocessor and built.preprocessor.image_converter
    if towers and "image" in towers:
        converter = towers["image"].image_converter()
    built.preprocessor = AlignPreprocessor(
        tokenizer=tokenizer,
        image_converter=_image_converter(converter, recipe),
        sequence_length=recipe.sequence_length,
    )
    return built


def build_network(
    model, recipe, vocabulary_size, replicas=1, load_weights=True, towers=None
):
    """Create the model with the precision of a recipe.

    Args:
        model: string or callable. See `train`.
        recipe: `Recipe`.
        vocabulary_size: int. Number of tokens; `None` keeps the preset's.
        replicas: int. Number of devices that share a batch.
        load_weights: bool. Whether to load a preset's weights. Defaults to
            `True`.
        towers: dict from `"image"` or `"text"` to `KnownTower`. Pretrained
            towers. Defaults to `None`: the weights come from the preset.

    Returns:
        An `AlignDualEncoder`.
    """
    if recipe.freeze_statistics and load_weights and not callable(model):
        _require_statistics(model, towers or {})
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(recipe.precision)
    try:
        if model is None:
            built = _from_towers(
                towers, recipe, vocabulary_size, replicas, load_weights
            )
        elif isinstance(model, str):
            built = _from_preset(
                model,
                recipe,
                vocabulary_size,
                replicas,
                load_weights,
                towers or {},
            )
        else:
            _refuse_fields(
                recipe,
                ("batch_norm", "initial_temperature", *_OF_FRESH_TOWERS),
            )
            built = model(vocabulary_size)
        hold_still(built, recipe)
    finally:
        keras.config.set_dtype_policy(policy)
    return built


def _require_statistics(preset, towers):
    """Refuse to freeze the statistics of an encoder without weights."""
    known = towers.get("image")
    path = known.path if known else presets.find_preset(preset)
    if not presets.has_weights(path):
        raise ValueError(
            "Recipe field `freeze_statistics` needs an image encoder that has "
            f"been trained, and `{path}` is an architecture without weights. "
            "Give weights, or `freeze_statistics=false`."
        )


def hold_still(model, recipe):
    """Freeze the weights that a recipe does not train, and add LoRA."""
    if recipe.freeze is not None:
        freeze(model, recipe.freeze)
    if recipe.lora_rank is not None:
        add_lora(model, recipe.lora_rank)
    if recipe.freeze_statistics and not freeze_statistics(model):
        raise ValueError(
            "Recipe field `freeze_statistics` is about batch normalisation, "
            "and this model has none: leave it out. "
            "Received: freeze_statistics=True"
        )


def _image_converter(converter, recipe):
    """Take the sizes from the recipe, the rest from pretrained weights."""
    config = {} if converter is None else converter.get_config()
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


# Fields that apply only to towers without weights, and the encoder and argument
# that each one sets.
_OF_FRESH_TOWERS = {
    "text_pooling": (None, "text_pooling"),
    "text_dropout": ("text_encoder", "dropout"),
    "drop_connect": ("image_encoder", "dropout"),
}


def _fresh_towers(recipe, path):
    """Return the arguments that a recipe sets for towers without weights."""
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


def _from_preset(preset, recipe, size, replicas, load_weights, towers):
    path = presets.find_preset(preset)
    overrides = _fresh_towers(recipe, path)
    if size is not None and not presets.has_weights(path):
        overrides["text_encoder"]["vocabulary_size"] = size
    known = {}
    for kind, tower in towers.items():
        known[kind] = tower.open(load_weights, **_fresh_table(tower, size))
        overrides[f"{kind}_encoder"] |= fit_to_preset(known[kind], tower, path)
    batch_norm = _batch_norm(recipe, replicas, _has_local_statistics(path))
    if batch_norm is not None:
        overrides["image_encoder"]["batch_norm"] = batch_norm
    overrides |= _head(recipe, _has_bias(path), towers)
    overrides = {k: value for k, value in overrides.items() if value != {}}
    model = AlignDualEncoder.from_preset(preset, load_weights, **overrides)
    for kind, tower in known.items():
        copy_weights(tower, getattr(model, f"{kind}_encoder"))
    if size is not None:
        _check_vocabulary(model, f"preset `{preset}`", size)
    if recipe.initial_temperature is not None:
        # Loading the preset's weights has replaced it.
        model.contrastive_head.set_temperature(recipe.initial_temperature)
    return model


def _from_towers(towers, recipe, size, replicas, load_weights):
    """Build the model from two pretrained towers, unchanged."""
    options = {
        "image": {
            "batch_norm": _batch_norm(recipe, replicas, True),
            "dropout": recipe.drop_connect,
        },
        "text": {
            "dropout": recipe.text_dropout,
            **_fresh_table(towers["text"], size),
        },
    }
    opened = {}
    for kind, tower in towers.items():
        given = {k: v for k, v in options[kind].items() if v is not None}
        if not tower.is_ours():
            _refuse_fields(recipe, _OF_TOWERS[kind])
            given = {}
        opened[kind] = tower.open(load_weights, **given)
    head = _head(recipe, False, towers)
    if recipe.text_pooling is not None:
        head = {"text_pooling": recipe.text_pooling, **head}
    model = AlignDualEncoder(opened["image"], opened["text"], **head)
    _check_vocabulary(model, f"`{towers['text'].source}`", size)
    return model


# Fields of a recipe that change a tower of one of this package's classes.
_OF_TOWERS = {
    "image": ("batch_norm", "drop_connect"),
    "text": ("text_dropout",),
}


def _fresh_table(tower, size):
    """Set the size of the vocabulary, if the text tower has no weights."""
    fresh = tower.kind == "text" and not tower.has_weights()
    return {"vocabulary_size": size} if fresh else {}


def _batch_norm(recipe, replicas, is_local):
    """Choose the batch normalisation; `None` keeps that of the preset."""
    whole = replicas > 1 and recipe.microbatch_size is None
    if recipe.batch_norm is None and whole and is_local:
        # As on a single device, statistics come from the whole batch.
        return "synchronized"
    return recipe.batch_norm


def _head(recipe, has_bias, towers):
    """Return arguments of `AlignDualEncoder` besides those of its towers."""
    arguments = {}
    if recipe.initial_temperature is not None:
        arguments["initial_temperature"] = recipe.initial_temperature
    if recipe.loss == "sigmoid" and not has_bias:
        arguments["initial_bias"] = INITIAL_BIAS
    pooling = towers["text"].pooling() if "text" in towers else None
    if pooling is not None:
        arguments["text_pooling"] = pooling
    return arguments


def _has_local_statistics(path):
    if presets.foreign_weights(path) is not None:
        # Other libraries have no other kind.
        return True
    tower = presets.load_config(path)["config"]["image_encoder"]["config"]
    return tower.get("batch_norm") == "local"


def _has_bias(path):
    if presets.foreign_weights(path) is not None:
        return False
    return presets.load_config(path)["config"].get("initial_bias") is not None


def _check_vocabulary(model, source, size):
    rows = _table_sizes(model.text_encoder)
    if rows and size not in rows:
        raise ValueError(
            f"The text encoder of {source} belongs to a vocabulary of "
            f"{rows[0]} tokens. Received a vocabulary of {size}; pass the one "
            "that it was made for."
        )


def _table_sizes(encoder):
    """List the row counts of an encoder's embedding tables."""
    if hasattr(encoder, "vocabulary_size"):
        return [encoder.vocabulary_size]
    return [
        layer.input_dim
        for layer in getattr(encoder, "layers", ())
        if isinstance(layer, keras.layers.Embedding)
    ]


def compile_model(model, recipe, first_step=0, gradient_norms=False):
    """Compile a model with the optimizer and the loss of a recipe.

    Args:
        model: `AlignDualEncoder`.
        recipe: `Recipe`.
        first_step: int. Number of steps that another optimizer took before.
        gradient_norms: bool. See `AlignDualEncoder.compile`.
    """
    recipe = recipe.in_steps()
    schedule = optimizers.WarmupLinearDecay(
        recipe.learning_rate,
        recipe.warmup_steps,
        recipe.steps,
        first_step=first_step,
    )
    settings = {"global_clipnorm": recipe.clip_norm}
    if recipe.layer_decay is not None:
        settings["rate_multipliers"] = rate_multipliers(
            model, recipe.layer_decay
        )
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
        gradient_norms=gradient_norms,
        steps_per_execution=recipe.steps_per_execution,
    )
