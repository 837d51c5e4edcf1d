"""Define recipes for fine-tuning: the paper's, or read from a file."""

import dataclasses
from pathlib import Path
from typing import Any

from align_keras.io.mirrors import local_copy
from align_keras.io.yaml_files import read_yaml

PARTS = ("head", "all")
AUGMENTATIONS = ("inception", "none")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of fine-tuning.

    Attributes:
        part: string. `"head"` trains the classifier on frozen features;
            `"all"` trains everything.
        learning_rate: float. The initial learning rate.
        image_size: int. Side of the training images in pixels.
        eval_size: int. Side of the evaluation images in pixels.
        epochs: float. Passes over the training images. Not used if `steps` is
            given.
        steps: int or `None`. Optimizer steps, instead of `epochs`.
        batch_size: int. Images per optimizer step.
        drop: float. The learning rate is multiplied by it every `drop_every`
            epochs; `0.0` selects a cosine decay to zero instead.
        drop_every: float. Epochs between drops.
        encoder_rate: float. Factor on the learning rate of the encoder.
        freeze_statistics: bool. Whether batch normalisation uses the
            statistics from pretraining; this also turns drop-connect off.
        augmentation: string. `"inception"`, a random crop of the image with a
            random flip, or `"none"`.
    """

    part: str
    learning_rate: float
    image_size: int
    eval_size: int
    epochs: float = 0.0
    steps: int | None = None
    batch_size: int = 256
    drop: float = 0.0
    drop_every: float = 30.0
    encoder_rate: float = 1.0
    freeze_statistics: bool = False
    augmentation: str = "inception"

    def __post_init__(self):
        for name, allowed in (
            ("part", PARTS),
            ("augmentation", AUGMENTATIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"Stage field `{name}` must be one of {allowed}. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        if not (self.steps or self.epochs):
            raise ValueError("A stage needs `steps` or `epochs` above 0.")
        for name in ("learning_rate", "image_size", "eval_size", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"Stage field `{name}` must be positive. "
                    f"Received: {name}={getattr(self, name)!r}"
                )


@dataclasses.dataclass(frozen=True)
class FinetuneRecipe:
    """How a classifier is fine-tuned.

    Attributes:
        stages: tuple of `Stage`. They run one after the other.
        weight_decay: float. Decoupled, in proportion to the learning rate.
        momentum: float. The momentum of SGD.
        checkpoint_every: int. Steps between checkpoints.
    """

    stages: tuple[Stage, ...]
    weight_decay: float = 0.0
    momentum: float = 0.9
    checkpoint_every: int = 500


_IMAGENET: dict[str, Any] = {"batch_size": 1024, "epochs": 100, "drop": 0.2}
_FINE_GRAINED: dict[str, Any] = {
    "image_size": 289,
    "eval_size": 360,
    "steps": 20_000,
    "freeze_statistics": True,
}
_IMAGENET_HEAD = Stage("head", 0.1, 289, 360, **_IMAGENET)
# Section 5.3 of the paper.
RECIPES = {
    # The frozen features of Table 5.
    "imagenet_frozen": FinetuneRecipe((_IMAGENET_HEAD,)),
    "imagenet": FinetuneRecipe(
        (
            _IMAGENET_HEAD,
            Stage("all", 0.01, 475, 600, encoder_rate=0.1, **_IMAGENET),
        )
    ),
    "fine_grained": FinetuneRecipe(
        (
            Stage("head", 1e-2, **_FINE_GRAINED),
            Stage("all", 1e-3, **_FINE_GRAINED),
        ),
        weight_decay=1e-5,
    ),
}


def load_finetune_recipe(
    recipe: FinetuneRecipe | str | Path,
) -> FinetuneRecipe:
    """Load a fine-tuning recipe.

    Args:
        recipe: `FinetuneRecipe`; or a string, `"imagenet"`,
            `"imagenet_frozen"` or `"fine_grained"`; or the path of a YAML
            file with the fields of `FinetuneRecipe`, where `stages` is a list
            of mappings with the fields of `Stage`.

    Returns:
        A `FinetuneRecipe`.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: a field is unknown or has a wrong value.
    """
    if isinstance(recipe, FinetuneRecipe):
        return recipe
    if recipe in RECIPES:
        return RECIPES[str(recipe)]
    recipe = local_copy(recipe)
    if not Path(recipe).is_file():
        raise FileNotFoundError(
            f"There is no fine-tuning recipe `{recipe}` and no such file. "
            f"Shipped recipes: {', '.join(RECIPES)}."
        )
    fields: Any = read_yaml(recipe)
    try:
        stages = tuple(Stage(**stage) for stage in fields.pop("stages"))
        return FinetuneRecipe(stages, **fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The fine-tuning recipe `{recipe}` is invalid: {error}"
        ) from None
