import dataclasses
import difflib
import math
from pathlib import Path

import yaml

from align_keras.models.pooling import POOLINGS
from align_keras.models.presets import presets_directory

# Pictures are resized to 346 and cropped to 289 (section 4.1 of the paper).
RESIZE_RATIO = 346 / 289
OPTIMIZERS = ("lamb", "adam", "adamw", "sgd")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
LOSSES = ("contrastive", "sigmoid")
BATCH_NORMS = ("local", "synchronized", "ghost")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that distinguishes one training run from another but the data.

    Attributes:
        steps: int. Number of optimizer steps.
        batch_size: int. Number of pairs of a step, over all replicas.
        learning_rate: float. Peak of the learning rate.
        warmup_steps: int. Steps of the linear warm-up; a linear decay to zero
            at `steps` follows.
        weight_decay: float. Weight decay of `lamb` and `adamw`.
        loss: string. `"contrastive"`, or `"sigmoid"`, which adds a bias that
            starts from -10 to a preset without one; an `initial_temperature`
            of 0.1 goes with it.
        label_smoothing: float. See `ContrastiveLoss`; the sigmoid loss has
            none.
        image_size: int. Height and width of the pictures in pixels.
        resize_size: int or `None`. Height and width from which they are
            cropped. `None` takes `resize_ratio` of `image_size`.
        resize_ratio: float. How much larger than the crop an image is; 1.0
            shows it whole. Defaults to the paper's 346 / 289.
        sequence_length: int. Number of tokens of a text.
        optimizer: string. `"lamb"`, `"adam"`, `"adamw"` or `"sgd"` (with a
            momentum of 0.9).
        clip_norm: float or `None`. Greatest norm of the gradient of all
            weights together, beyond which it is scaled down. `None` leaves it
            as it is.
        ema: float or `None`. Share of the old average at each step in an
            exponential moving average of the weights, such as 0.9999. The
            averages are what is evaluated and kept as the best model;
            training goes on from the weights themselves. `None` for no
            average.
        microbatch_size: int or `None`. Number of pairs that a replica embeds
            at a time, see `AlignDualEncoder.compile`. `None` embeds its share
            of the batch at once.
        remat: bool. Whether activations are computed anew in the backward
            pass, see `AlignDualEncoder.compile`.
        freeze: string or `None`. `"image"` leaves the image encoder as it is
            and trains the text encoder to match.
        skip_nonfinite: bool. Whether to leave out and count steps whose loss
            or gradient is not finite.
        steps_per_execution: int. Number of steps between two returns to
            Python; it must divide `steps` and `checkpoint_every`.
        precision: string. `"float32"`, `"mixed_bfloat16"` or
            `"mixed_float16"`.
        checkpoint_every: int. Number of steps between checkpoints, at which
            the model is evaluated too.
        seed: int. Seed of the weights, the order and the augmentation of the
            data.
        batch_norm: string or `None`. See `EfficientNetBackbone`; `None` keeps
            what the preset says.
        initial_temperature: float or `None`. Softmax temperature to start
            from; `None` keeps what the preset says.
        text_pooling: string or `None`. How a preset without weights turns
            tokens into one vector, see `AlignDualEncoder`; `None` keeps what
            the preset says. Trained towers keep their own, as with the two
            fields that follow.
        text_dropout: float or `None`. Dropout rate of the text encoder of a
            preset without weights.
        drop_connect: float or `None`. Drop rate of the last residual branch
            of the image encoder of a preset without weights, see `dropout` of
            `EfficientNetBackbone`.
        vocabulary_size: int. Greatest number of tokens of a vocabulary that
            is learned from the captions because none was given.

    Reference:
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), section 5.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 0
    weight_decay: float = 1e-5
    loss: str = "contrastive"
    label_smoothing: float = 0.1
    image_size: int = 289
    resize_size: int | None = None
    resize_ratio: float = RESIZE_RATIO
    sequence_length: int = 64
    optimizer: str = "lamb"
    clip_norm: float | None = None
    ema: float | None = None
    microbatch_size: int | None = None
    remat: bool = False
    freeze: str | None = None
    skip_nonfinite: bool = False
    steps_per_execution: int = 1
    precision: str = "float32"
    checkpoint_every: int = 1000
    seed: int = 0
    batch_norm: str | None = None
    initial_temperature: float | None = None
    text_pooling: str | None = None
    text_dropout: float | None = None
    drop_connect: float | None = None
    vocabulary_size: int = 100_000

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, _convert(field, value))
        holds = 1 <= self.resize_ratio < math.inf
        self._require("resize_ratio", holds, "at least 1")
        if self.resize_size is None:
            size = round(self.image_size * self.resize_ratio)
            object.__setattr__(self, "resize_size", size)
        for name in _POSITIVE:
            value = getattr(self, name)
            holds = value is None or 0 < value < math.inf
            self._require(name, holds, "positive")
        for name in ("warmup_steps", "weight_decay"):
            holds = 0 <= getattr(self, name) < math.inf
            self._require(name, holds, "at least 0")
        # [CLS], a token and [SEP].
        self._require(
            "sequence_length", self.sequence_length >= 3, "at least 3"
        )
        self._require(
            "warmup_steps", self.warmup_steps < self.steps, "below `steps`"
        )
        self._require(
            "label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"
        )
        self._require(
            "resize_size",
            self.resize_size >= self.image_size,
            "at least `image_size`",
        )
        self._require(
            "ema", self.ema is None or 0 < self.ema < 1, "between 0 and 1"
        )
        self._require("loss", self.loss in LOSSES, LOSSES)
        self._require("optimizer", self.optimizer in OPTIMIZERS, OPTIMIZERS)
        self._require("precision", self.precision in PRECISIONS, PRECISIONS)
        self._require(
            "batch_norm", self.batch_norm in (None, *BATCH_NORMS), BATCH_NORMS
        )
        self._require(
            "text_pooling", self.text_pooling in (None, *POOLINGS), POOLINGS
        )
        for name in ("text_dropout", "drop_connect"):
            holds = 0 <= (getattr(self, name) or 0) < 1
            self._require(name, holds, "in [0, 1)")
        self._require("freeze", self.freeze in (None, "image"), "image or null")
        self._require(
            "microbatch_size",
            self.batch_size % (self.microbatch_size or 1) == 0,
            "a divisor of `batch_size`",
        )
        for name in ("steps", "checkpoint_every"):
            self._require(
                "steps_per_execution",
                getattr(self, name) % self.steps_per_execution == 0,
                f"a divisor of `{name}`",
            )

    def _require(self, name, holds, rule):
        if holds:
            return
        if isinstance(rule, tuple):
            rule = "one of " + ", ".join(rule)
        raise ValueError(
            f"Recipe field `{name}` must be {rule}. "
            f"Received: {name}={getattr(self, name)!r}"
        )


_POSITIVE = (
    "steps",
    "batch_size",
    "learning_rate",
    "clip_norm",
    "image_size",
    "microbatch_size",
    "steps_per_execution",
    "checkpoint_every",
    "initial_temperature",
    "vocabulary_size",
)


def _convert(field, value):
    """Check the type of a field; YAML reads `1e-3` as a string."""
    kind = getattr(field.type, "__name__", str(field.type))
    if value is None and "None" in kind:
        return None
    try:
        if isinstance(value, bool) != (kind == "bool"):
            raise TypeError
        if kind == "bool":
            return value
        if "float" in kind:
            return float(value)
        if "int" in kind:
            if not float(value).is_integer():
                raise ValueError
            return int(float(value))
        if not isinstance(value, str):
            raise TypeError
        return value
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"Recipe field `{field.name}` must be of type {kind}. "
            f"Received: {field.name}={value!r}"
        ) from None


def recipe_names():
    """Return the names of the shipped recipes, sorted."""
    return sorted(p.stem for p in (presets_directory() / "recipes").iterdir())


def load_recipe(recipe, /, **overrides):
    """Load and validate a recipe.

    Args:
        recipe: string or `Recipe`. The name of a shipped recipe (`"small"`,
            `"align"`, `"coyo700m"`, `"cc3m"`, `"finetune_flickr30k"`,
            `"finetune_coco"`, `"quickstart"`), or the path of a YAML file
            with the fields of `Recipe`.
        **overrides: Fields that replace those of the recipe, where not
            `None`.

    Returns:
        A `Recipe`.

    Raises:
        FileNotFoundError: There is no such recipe.
        ValueError: A field is unknown, missing, or has a wrong value.

    Example:

    ```python
    recipe = load_recipe("align", batch_size=1024, steps=10_000)
    ```
    """
    overrides = {k: v for k, v in overrides.items() if v is not None}
    if isinstance(recipe, Recipe):
        origin, fields = "The given recipe", dataclasses.asdict(recipe)
        if {"image_size", "resize_ratio"} & set(overrides):
            fields["resize_size"] = None
    else:
        path = _find_recipe(str(recipe))
        origin, fields = f"Recipe `{path}`", _read(path)
    known = [field.name for field in dataclasses.fields(Recipe)]
    fields = {**fields, **overrides}
    for name in fields:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0)
            raise ValueError(
                f"{origin} has the unknown field `{name}`. Did you mean "
                f"`{nearest[0]}`? Known fields: {', '.join(known)}."
            )
    for name in ("steps", "batch_size", "learning_rate"):
        if name not in fields:
            raise ValueError(f"{origin} lacks the field `{name}`.")
    try:
        return Recipe(**fields)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def _read(path):
    try:
        fields = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Recipe `{path}` is no valid YAML: {reason}"
        ) from None
    if not isinstance(fields, dict):
        raise ValueError(
            f"Recipe `{path}` must be a YAML mapping of fields such as "
            f"`steps: 1000`. Received: {fields!r}"
        )
    return fields


def _find_recipe(recipe):
    shipped = presets_directory() / "recipes" / f"{recipe}.yaml"
    if shipped.is_file():
        return shipped
    if Path(recipe).is_file():
        return Path(recipe)
    names = recipe_names()
    nearest = difflib.get_close_matches(recipe, names, n=1, cutoff=0)
    raise FileNotFoundError(
        f"There is no recipe named `{recipe}` and no such file. Did you mean "
        f"`{nearest[0]}`? Shipped recipes: {', '.join(names)}."
    )
