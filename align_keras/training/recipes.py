import dataclasses
import difflib
import logging
import math
import re
from pathlib import Path
from typing import Any

from align_keras.io.mirrors import local_copy
from align_keras.io.yaml_files import read_yaml
from align_keras.models.pooling_modes import POOLINGS
from align_keras.models.shipped_presets import presets_directory

# Images are resized to 346 and cropped to 289 (section 4.1 of the paper).
RESIZE_RATIO = 346 / 289
OPTIMIZERS = ("lamb", "adam", "adamw", "sgd")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
LOSSES = ("contrastive", "sigmoid")
# Smallest number of steps between two checkpoints when `checkpoint_every` is a
# share: evaluating after each step tells little and takes longer than the step.
CLOSEST = 20
BATCH_NORMS = ("local", "synchronized", "ghost")


logger = logging.getLogger("align_keras")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters of a training run: everything but the data.

    Attributes:
        steps: int or `None`. Number of optimizer steps.
        epochs: float or `None`. How often each record is seen. Give this
            instead of `steps`, which are then computed from the data.
        batch_size: int. Number of pairs in a step, over all replicas.
        learning_rate: float. Peak learning rate.
        warmup_steps: int or float. Number of steps of linear warm-up, or, if
            below 1, its share of all steps, such as 0.05. A linear decay to
            zero at `steps` follows.
        weight_decay: float. Weight decay of `lamb` and `adamw`.
        loss: string. `"contrastive"` or `"sigmoid"`. The latter adds a bias,
            initially -10, to a preset that has none; use it with an
            `initial_temperature` of 0.1.
        label_smoothing: float. See `ContrastiveLoss`. The sigmoid loss
            ignores it.
        image_size: int. Height and width of the images in pixels.
        resize_size: int or `None`. Height and width to which images are
            resized before they are cropped. `None` means `resize_ratio` times
            `image_size`.
        resize_ratio: float. Size of the resized image relative to the crop;
            1.0 shows the whole image. Defaults to the paper's 346 / 289.
        sequence_length: int. Number of tokens in a text. Longer texts are
            truncated. Padding costs time only on JAX and with XLA, where
            shapes are fixed.
        optimizer: string. `"lamb"`, `"adam"`, `"adamw"` or `"sgd"` (with a
            momentum of 0.9).
        clip_norm: float or `None`. Maximum norm of the gradient over all
            weights together; a larger gradient is scaled down to it. `None`
            turns clipping off.
        ema: float or `None`. Decay of an exponential moving average of the
            weights, such as 0.9999. The averaged weights are evaluated and
            kept as the best model; training continues from the weights
            themselves. `None` turns averaging off.
        microbatch_size: int or `None`. Number of pairs that a replica embeds
            at a time, see `AlignDualEncoder.compile`. `None` embeds its share
            of the batch at once.
        remat: bool. Whether to recompute activations in the backward pass,
            see `AlignDualEncoder.compile`.
        freeze: string, list of strings or `None`. Which weights are not
            trained: `"image"`, `"text"`, or regular expressions for the paths
            of variables, see `align_keras.training.freezing.freeze`.
        unfreeze_after: int or `None`. Number of steps after which all weights
            are trained, with a fresh optimizer and a new warm-up. `None`
            keeps them frozen to the end.
        freeze_statistics: bool. Whether batch normalisation runs in inference
            mode, with the statistics, scale and shift that it starts from.
        layer_decay: float or `None`. Multiplier of the learning rate from a
            block of a tower to the one below it, see
            `align_keras.training.layer_decay.rate_multipliers`. `None` trains
            all layers at one rate.
        lora_rank: int or `None`. Rank of the low-rank updates that are
            trained instead of the towers' dense layers, see
            `align_keras.models.lora.add_lora`. They are merged in the model
            that is kept.
        skip_nonfinite: bool. Whether to skip and count steps whose loss or
            gradient is not finite.
        steps_per_execution: int. Number of steps between two returns to
            Python; it must divide `steps` and `checkpoint_every`.
        precision: string. `"float32"`, `"mixed_bfloat16"` or
            `"mixed_float16"`.
        checkpoint_every: int or float. Number of steps between checkpoints,
            or, if below 1, their share of all steps, but at least 20 steps.
            The model is evaluated at each checkpoint.
        patience: int or `None`. The run stops early after this many
            evaluations in a row without a better model. `None` takes all
            steps.
        mirror: bool. Whether to mirror half of the images at random, as in
            the paper. This makes captions wrong that mention left, right or
            written text.
        seed: int. Seed of the weights and of the order and augmentation of
            the data.
        batch_norm: string or `None`. See `EfficientNetBackbone`; `None` keeps
            the preset's setting.
        initial_temperature: float or `None`. Softmax temperature to start
            from; `None` keeps the preset's.
        text_pooling: string or `None`. How a preset without weights pools
            tokens into one vector, see `AlignDualEncoder`; `None` keeps the
            preset's setting. Trained towers keep their own, which also holds
            for the next two fields.
        text_dropout: float or `None`. Dropout rate of the text encoder of a
            preset without weights.
        drop_connect: float or `None`. Drop rate of the last residual branch
            in the image encoder of a preset without weights, see `dropout` of
            `EfficientNetBackbone`.
        vocabulary_size: int. Maximum number of tokens in a vocabulary that is
            learned from the captions because none was given.
        strip_accents: bool. Whether the tokenizer of a given or learned
            vocabulary removes accents, and with them the vowel signs of
            scripts such as Devanagari and Thai. The vocabulary must have been
            learned with the same setting. Trained presets and towers keep
            their own tokenizer.
        language_exponent: float or `None`. How strongly to favour languages
            with few records: the share of a language in training is
            proportional to its number of records raised to this power. 1
            keeps the shares of the data, 0 gives each language the same
            share, and 0.3 to 0.7 is usual. Each language needs its own folder
            of records. `None` ignores folders.

    Reference:
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), section 5.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int
    learning_rate: float
    warmup_steps: int | float = 0
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
    freeze: str | list | None = None
    unfreeze_after: int | None = None
    freeze_statistics: bool = False
    layer_decay: float | None = None
    lora_rank: int | None = None
    skip_nonfinite: bool = False
    steps_per_execution: int = 1
    precision: str = "float32"
    checkpoint_every: int | float = 1000
    patience: int | None = None
    mirror: bool = False
    seed: int = 0
    batch_norm: str | None = None
    initial_temperature: float | None = None
    text_pooling: str | None = None
    text_dropout: float | None = None
    drop_connect: float | None = None
    vocabulary_size: int = 100_000
    strip_accents: bool = True
    language_exponent: float | None = None

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
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                "Recipe field `steps` must be given, or else `epochs`, but not "
                f"both. Received: steps={self.steps!r}, epochs={self.epochs!r}"
            )
        for name in ("warmup_steps", "weight_decay"):
            holds = 0 <= getattr(self, name) < math.inf
            self._require(name, holds, "at least 0")
        for name in ("warmup_steps", "checkpoint_every"):
            value = getattr(self, name)
            self._require(
                name, value < 1 or isinstance(value, int), "whole or below 1"
            )
        # [CLS], a token and [SEP].
        self._require(
            "sequence_length", self.sequence_length >= 3, "at least 3"
        )
        self._require(
            "warmup_steps",
            self.warmup_steps < (self.steps or math.inf),
            "below `steps`",
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
        holds = 0 <= (self.language_exponent or 0) <= 1
        self._require("language_exponent", holds, "from 0 to 1")
        self._check_freeze()
        self._require(
            "layer_decay",
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            "above 0 and at most 1",
        )
        self._require(
            "microbatch_size",
            self.batch_size % (self.microbatch_size or 1) == 0,
            "a divisor of `batch_size`",
        )
        for name in ("steps", "checkpoint_every", "unfreeze_after"):
            value = getattr(self, name)
            self._require(
                "steps_per_execution",
                not isinstance(value, int)
                or value % self.steps_per_execution == 0,
                f"a divisor of `{name}`",
            )

    def in_steps(self, records: int | None = None) -> "Recipe":
        """Turn epochs and shares into whole numbers of steps.

        Args:
            records: int. The number of records in an epoch. Required if the
                recipe has `epochs`. Defaults to `None`.

        Returns:
            A `Recipe` with `steps`, whose `warmup_steps` and
            `checkpoint_every` are whole numbers.

        Raises:
            ValueError: The recipe has `epochs`, and `records` is not given.
        """
        once = self.steps_per_execution
        steps = self.steps
        if steps is None:
            if self.epochs is None or records is None:
                raise ValueError(
                    "This needs a recipe with `steps`, because there is no "
                    f"data to count. Received: epochs={self.epochs!r}; give "
                    "`steps`."
                )
            steps = self.epochs * records / self.batch_size
            steps = max(once, round(steps / once) * once)
        warmup, every = self.warmup_steps, self.checkpoint_every
        if warmup < 1:
            warmup = int(warmup * steps)
        elif warmup >= steps:
            warmup = _cut_warmup(warmup, steps, 0.1)
        if every < 1:
            every = max(every * steps, min(steps, CLOSEST))
            every = max(once, round(every / once) * once)
        return dataclasses.replace(
            self,
            steps=steps,
            epochs=None,
            warmup_steps=warmup,
            checkpoint_every=every,
        )

    def _check_freeze(self):
        patterns = self.freeze
        if isinstance(patterns, str):
            patterns = [patterns]
        holds = patterns is None or (
            patterns and all(map(_is_pattern, patterns))
        )
        rule = '"image", "text", or regular expressions'
        self._require("freeze", holds, rule)
        after = self.unfreeze_after
        if after is None:
            return
        self._require(
            "unfreeze_after", after < (self.steps or math.inf), "below `steps`"
        )
        rule = "left out where nothing is frozen by `freeze`"
        self._require("unfreeze_after", patterns is not None, rule)
        rule = "left out with `lora_rank`, which leaves the towers frozen"
        self._require("unfreeze_after", self.lora_rank is None, rule)

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
    "epochs",
    "patience",
    "batch_size",
    "learning_rate",
    "clip_norm",
    "image_size",
    "microbatch_size",
    "steps_per_execution",
    "checkpoint_every",
    "initial_temperature",
    "vocabulary_size",
    "unfreeze_after",
    "lora_rank",
)


def _is_pattern(text):
    try:
        re.compile(text)
    except (re.error, TypeError):
        return False
    return bool(text)


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
            number = float(value)
            # Where a field may be either, a whole number counts steps.
            both = "int" in kind and number.is_integer()
            return int(number) if both else number
        if "int" in kind:
            if not float(value).is_integer():
                raise ValueError
            return int(float(value))
        if not isinstance(value, (str, list) if "list" in kind else str):
            raise TypeError
        return value
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"Recipe field `{field.name}` must be of type {kind}. "
            f"Received: {field.name}={value!r}"
        ) from None


def _cut_warmup(warmup, steps, share):
    cut = int(share * steps)
    logger.warning(
        "A warm-up of %d steps is too long for a run of %d: it is cut to %d.",
        warmup,
        steps,
        cut,
    )
    return cut


def recipe_names():
    """Return the names of the shipped recipes, sorted."""
    return sorted(p.stem for p in (presets_directory() / "recipes").iterdir())


def load_recipe(recipe: str | Path | Recipe, /, **overrides: Any) -> Recipe:
    """Load and validate a recipe.

    Args:
        recipe: string or `Recipe`. The name of a shipped recipe (`"small"`,
            `"finetune"`, `"align"`, `"align_multilingual"`, `"coyo700m"`,
            `"cc3m"`, `"finetune_flickr30k"`, `"finetune_coco"`,
            `"quickstart"`), or the path of a YAML file with the fields of
            `Recipe`.
        **overrides: Fields that replace those of the recipe. A field that is
            `None` is ignored.

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
        # A size that follows from the others follows the new ones.
        derived = round(recipe.image_size * recipe.resize_ratio)
        if recipe.resize_size == derived:
            fields["resize_size"] = None
    else:
        path = _find_recipe(str(recipe))
        origin, fields = f"Recipe `{path}`", _read(path)
    known = [field.name for field in dataclasses.fields(Recipe)]
    fields = _override(fields, overrides)
    for name in fields:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0)
            raise ValueError(
                f"{origin} has the unknown field `{name}`. Did you mean "
                f"`{nearest[0]}`? Known fields: {', '.join(known)}."
            )
    for name in ("batch_size", "learning_rate"):
        if name not in fields:
            raise ValueError(f"{origin} lacks the field `{name}`.")
    if "steps" not in fields and "epochs" not in fields:
        raise ValueError(f"{origin} lacks the field `steps` or `epochs`.")
    try:
        return Recipe(**fields)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def _override(fields, overrides):
    """Replace fields, and adjust others that depend on them."""
    merged = {**fields, **overrides}
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        if name in overrides and other not in overrides:
            merged.pop(other, None)
    if "steps" in overrides and "warmup_steps" not in overrides:
        try:
            steps, warmup, before = (
                float(given.get(name) or 0)
                for given, name in (
                    (overrides, "steps"),
                    (fields, "warmup_steps"),
                    (fields, "steps"),
                )
            )
        except (TypeError, ValueError):
            return merged  # `Recipe` refuses wrong types, here as elsewhere.
        if 1 <= steps <= warmup:
            share = warmup / before if warmup < before else 0.1
            merged["warmup_steps"] = _cut_warmup(warmup, int(steps), share)
    return merged


def _read(path):
    fields = read_yaml(path)
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
    path = Path(local_copy(recipe))
    if path.is_file():
        return path
    names = recipe_names()
    nearest = difflib.get_close_matches(recipe, names, n=1, cutoff=0)
    raise FileNotFoundError(
        f"There is no recipe named `{recipe}` and no such file. Did you mean "
        f"`{nearest[0]}`? Shipped recipes: {', '.join(names)}."
    )
