"""Draw scenes with captions, as a small data set to try ALIGN on.

The images show one colored shape, or two in a relation, on a tinted
background. The captions vary like alt texts, and a documented share of them is
noise. Some pairs of color and shape, and some arrangements of two shapes, never
occur in the training split, in images or in captions; every scene of the
evaluation split has at least one of them. A model that finds these scenes has
learned what the words mean, and not only which phrases go with which images.

All relations stay true under a horizontal flip, because ALIGN flips its
training images. So there is no "left of".
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from align_keras.io.atomic import atomic_file
from align_keras.io.mirrors import locked
from align_keras.io.paths import local_path
from align_keras.quickstart.scene import Scene
from align_keras.quickstart.scene import Thing
from align_keras.quickstart.scene_captions import BACKGROUNDS
from align_keras.quickstart.scene_captions import COLORS
from align_keras.quickstart.scene_captions import SHAPES
from align_keras.quickstart.scene_captions import SIZES
from align_keras.quickstart.scene_captions import alt_text
from align_keras.quickstart.scene_captions import boilerplate
from align_keras.quickstart.scene_captions import describe
from align_keras.quickstart.scene_captions import truncate
from align_keras.quickstart.scene_images import draw_image

SPLITS = ("train", "evaluation")
# Draws of an evaluation scene, after which all are taken to be drawn already.
_MAX_DRAWS = 10_000
# Shares of the training captions. The rest are true but often incomplete.
NOISE_SHARES = {"wrong": 0.08, "boilerplate": 0.05, "truncated": 0.07}
HELD_OUT_PAIRS = frozenset(
    (color, shape)
    for color, shapes in {
        "red": ("star", "ring"),
        "orange": ("heart", "square"),
        "yellow": ("circle", "cross"),
        "green": ("moon", "triangle"),
        "blue": ("heart", "star"),
        "purple": ("square", "moon"),
        "pink": ("triangle", "ring"),
        "black": ("cross", "circle"),
    }.items()
    for shape in shapes
)
HELD_OUT_ARRANGEMENTS = frozenset(
    {
        ("above", "star", "circle"),
        ("above", "heart", "triangle"),
        ("above", "square", "moon"),
        ("above", "ring", "cross"),
        ("inside", "star", "circle"),
        ("inside", "heart", "square"),
        ("inside", "cross", "ring"),
        ("beside", "heart", "star"),
        ("beside", "circle", "moon"),
        ("beside", "ring", "square"),
    }
)
# Crosses and moons have no room for another shape inside.
_OUTER_SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")


def is_held_out(scene: Scene) -> bool:
    """Tell whether a scene has a combination that training never shows."""
    if any((t.color, t.shape) in HELD_OUT_PAIRS for t in scene.things):
        return True
    shapes = tuple(thing.shape for thing in scene.things)
    if scene.relation == "beside":
        shapes = tuple(sorted(shapes))
    return (scene.relation, *shapes) in HELD_OUT_ARRANGEMENTS


def plan_scenes(count: int, seed: int = 0, split: str = "train") -> list[Scene]:
    """List the scenes of a split without drawing them.

    Args:
        count: int. Number of scenes. The first scenes do not depend on the
            count.
        seed: int. Random seed. Defaults to `0`.
        split: string. `"train"` or `"evaluation"`. Training scenes may
            repeat; evaluation scenes are all different, and each has a
            combination that training never shows. Defaults to `"train"`.

    Returns:
        A list of `Scene`.

    Raises:
        ValueError: The split is unknown, or the count is negative.
    """
    return [scene for scene, _ in _plan(count, seed, split)]


def draw_scenes(
    count: int, seed: int = 0, split: str = "train"
) -> Iterator[dict]:
    """Draw scenes and write their captions.

    Args:
        count: int. Number of scenes.
        seed: int. Random seed. Defaults to `0`.
        split: string. `"train"` or `"evaluation"`, see `plan_scenes`.
            Training captions are varied and noisy (`NOISE_SHARES`);
            evaluation captions are clean and complete. Defaults to `"train"`.

    Yields:
        Dicts with `"key"` (string), `"image"` (bytes of a JPEG file, RGB,
        96 × 96), `"captions"` (list of one string), `"scene"` (`Scene`) and
        `"noise"` (a key of `NOISE_SHARES`, or `None` for a true caption).

    Example:

    ```python
    for record in draw_scenes(3, seed=1):
        print(record["key"], record["captions"][0])
    ```
    """
    for index, (scene, rng) in enumerate(_plan(count, seed, split)):
        noise = None
        if split == "train":
            noise, caption = _noisy_caption(scene, rng)
        else:
            caption = describe(scene, rng)
        file = io.BytesIO()
        draw_image(scene, rng).save(file, "JPEG", quality=92, subsampling=0)
        yield {
            "key": f"{split}-{index:05d}",
            "image": file.getvalue(),
            "captions": [caption],
            "scene": scene,
            "noise": noise,
        }


@locked("directory")
def write_scenes(
    directory: str | Path, count: int, seed: int = 0, split: str = "train"
) -> Path:
    """Write drawn scenes as a folder of images with a caption file.

    `align_keras.data.pack` accepts this folder. It contains `images/*.jpg`, and
    `captions.csv` with the columns `image` (path relative to the folder) and
    `caption`.

    Args:
        directory: string or `pathlib.Path`. The folder, which is created if it
            does not exist.
        count: int. Number of scenes.
        seed: int. Random seed. Defaults to `0`.
        split: string. `"train"` or `"evaluation"`, see `plan_scenes`. Defaults
            to `"train"`.

    Returns:
        A `pathlib.Path`, the caption file, which is written last.
    """
    directory = local_path(directory)
    (directory / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for record in draw_scenes(count, seed, split):
        name = f"images/{record['key']}.jpg"
        (directory / name).write_bytes(record["image"])
        rows += [(name, caption) for caption in record["captions"]]
    path = directory / "captions.csv"
    with atomic_file(path) as part:
        with open(part, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "caption"), *rows])
    return path


def _plan(count, seed, split):
    """Yield each scene with its own random generator."""
    if split not in SPLITS:
        raise ValueError(
            f"`split` must be one of {SPLITS}. Received: split={split!r}"
        )
    if count < 0:
        raise ValueError(f"`count` must be >= 0. Received: count={count}")
    seen = set()
    for index in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        draws = (_sample(rng, split) for _ in range(_MAX_DRAWS))
        new = (s for s in draws if split == "train" or s not in seen)
        scene = next(new, None)
        if scene is None:
            raise ValueError(
                f"Evaluation scenes all differ, and no more than {len(seen):,} "
                f"were found. Ask for fewer. Received: count={count}"
            )
        seen.add(scene)
        yield scene, rng


def _sample(rng, split):
    while True:
        scene = _sample_any(rng)
        if is_held_out(scene) == (split == "evaluation"):
            return scene


def _sample_any(rng):
    kind = rng.random()
    background = _pick(BACKGROUNDS, rng)
    if kind < 0.25:
        return Scene((_sample_thing(rng),), None, background)
    things = _sample_thing(rng), _sample_thing(rng)
    if kind < 0.5:
        inner, outer = things
        outer = Thing("large", outer.color, _pick(_OUTER_SHAPES, rng))
        while outer.color == inner.color:
            outer = outer._replace(color=_pick(COLORS, rng))
        things = inner._replace(size="small"), outer
        return Scene(things, "inside", background)
    if kind < 0.8:
        return Scene(things, "above", background)
    return Scene(tuple(sorted(things, key=_by_shape)), "beside", background)


def _sample_thing(rng):
    return Thing(_pick(SIZES, rng), _pick(COLORS, rng), _pick(SHAPES, rng))


def _by_shape(thing):
    return thing.shape, thing.color, thing.size


def _noisy_caption(scene, rng):
    draw = rng.random()
    limits = np.cumsum(list(NOISE_SHARES.values()))
    place = int(np.searchsorted(limits, draw, side="right"))
    noise = (*NOISE_SHARES, None)[place]
    if noise is None:
        return None, alt_text(scene, rng)
    if noise == "boilerplate":
        return noise, boilerplate(rng)
    if noise == "truncated":
        return noise, truncate(alt_text(scene, rng), rng)
    other = scene
    while set(other.things) & set(scene.things):
        other = _sample(rng, "train")
    return noise, alt_text(other, rng)


def _pick(options, rng):
    options = tuple(options)
    return options[rng.integers(len(options))]
