"""Read the runs of an ablation from a YAML file."""

import dataclasses
from pathlib import Path
from typing import Any

from align_keras.io.mirrors import local_copy
from align_keras.io.yaml_files import read_yaml

TOP = ("base", "runs", "grid", "encoders", "recipe", "overrides", "data")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One run of an ablation.

    Attributes:
        image: string or dict. The name of an entry of `encoders.image` or of
            an `EfficientNetBackbone` preset, or arguments of that backbone.
        text: string or dict. The same for `BertTextEncoder`.
        embedding_dim: int or `None`. See `AlignDualEncoder`.
        temperature: float or `None`. A fixed temperature; `None` learns it.
        initial_temperature: float. The initial value of a learned temperature.
        negatives: float. The share of the other pairs in a batch that serve
            as negatives.
        data_share: float. The share of the training images to use.
        noise: float. The share of them that get the captions of others.
    """

    image: str | dict[str, Any]
    text: str | dict[str, Any]
    embedding_dim: int | None = None
    temperature: float | None = None
    initial_temperature: float = 1.0
    negatives: float = 1.0
    data_share: float = 1.0
    noise: float = 0.0

    def __post_init__(self):
        for name in ("negatives", "data_share"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(
                    f"`{name}` must lie in (0, 1]. Received: {name}={value}"
                )
        if not 0 <= self.noise <= 1:
            raise ValueError(
                f"`noise` must lie in [0, 1]. Received: noise={self.noise}"
            )


def folder_name(name: str) -> str:
    """Return the name of the folder of a run."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def read_plan(path: str | Path) -> tuple[dict[str, Any], dict[str, Variant]]:
    """Read an ablation from a YAML file.

    Args:
        path: string or `pathlib.Path`. A mapping with `base` (fields of
            `Variant`), `runs` (for each name, the fields that differ), `grid`
            (lists of `image` and `text` encoders, to run all combinations),
            `encoders` (named arguments of both kinds), `recipe` and
            `overrides` (see `align_keras.training.load_recipe`), and `data`:
            either `scenes` and `evaluation_scenes`, numbers of images to
            draw; or `images` (a folder), `captions` (a file), optionally
            `split`, and `evaluation` (TFRecord files).

    Returns:
        A pair: the mapping, and a dictionary from name to `Variant`, in which
        `"baseline"` comes first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a field is unknown or has a wrong value.
    """
    plan = read_yaml(local_copy(path))
    if not isinstance(plan, dict) or not {"base", "data"} <= set(plan):
        raise ValueError(
            f"The ablation `{path}` must be a mapping with `base` and `data`."
        )
    unknown = set(plan) - set(TOP)
    if unknown:
        raise ValueError(
            f"The ablation `{path}` has the unknown field "
            f"`{min(map(str, unknown))}`. Known fields: {', '.join(TOP)}."
        )
    grid = plan.get("grid") or {}
    if grid and not (set(grid) == {"image", "text"} and all(grid.values())):
        raise ValueError(
            f"The `grid` of the ablation `{path}` must list encoders under "
            f"`image` and under `text`. Received: {grid}"
        )
    fields: list[tuple[str, dict]] = [
        ("baseline", {}),
        *(plan.get("runs") or {}).items(),
        *(
            (f"{image} + {text}", {"image": image, "text": text})
            for image in grid.get("image", ())
            for text in grid.get("text", ())
        ),
    ]
    variants: dict[str, Variant] = {}
    taken: dict[str, str] = {}
    for name, changes in fields:
        other = taken.setdefault(folder_name(name), name)
        if name in variants or other != name:
            raise ValueError(
                f"The run {name!r} of the ablation `{path}` has the name, or "
                f"the folder `{folder_name(name)}`, of the run {other!r}: "
                "rename it."
            )
        try:
            variants[name] = Variant(**{**plan["base"], **(changes or {})})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The run {name!r} of the ablation `{path}` is invalid: {error}"
            ) from None
    return plan, variants
