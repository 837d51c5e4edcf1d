"""Write captions of drawn scenes, the way people caption images."""

import numpy as np

from align_keras.quickstart.scene import Scene

COLORS = {
    "red": ("red", "red", "red", "crimson", "scarlet"),
    "orange": ("orange", "orange", "orange", "tangerine"),
    "yellow": ("yellow", "yellow", "yellow", "golden"),
    "green": ("green", "green", "green", "emerald"),
    "blue": ("blue", "blue", "blue", "azure"),
    "purple": ("purple", "purple", "purple", "violet"),
    "pink": ("pink", "pink", "pink", "rosy"),
    "black": ("black", "black", "black", "jet black"),
}
SHAPES = {
    "circle": ("circle", "circle", "disc", "dot"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle", "triangle", "pyramid"),
    "star": ("star",),
    "heart": ("heart",),
    "ring": ("ring", "ring", "hoop"),
    "cross": ("cross", "cross", "plus sign"),
    "moon": ("moon", "moon", "crescent"),
}
SIZES = {
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "big", "big", "huge"),
}
BACKGROUNDS = {
    "white": ("white",),
    "gray": ("gray", "grey"),
    "cream": ("cream", "beige"),
    "sky": ("light blue", "pale blue", "sky blue"),
    "mint": ("light green", "pale green", "mint"),
}
# {a} is the upper, inner or first thing, and {b} is the other one.
RELATIONS = {
    "above": (
        "{a} above {b}",
        "{a} over {b}",
        "{b} below {a}",
        "{b} under {a}",
        "{a} with {b} below it",
        "{b} with {a} above it",
        "{a} hovering above {b}",
        "{b} underneath {a}",
        "at the top {a}, at the bottom {b}",
    ),
    "inside": (
        "{a} inside {b}",
        "{a} in {b}",
        "{a} within {b}",
        "{b} around {a}",
        "{b} with {a} inside",
        "{b} with {a} in it",
        "{b} containing {a}",
    ),
    "beside": (
        "{a} next to {b}",
        "{a} beside {b}",
        "{a} and {b} side by side",
        "{a} with {b} beside it",
        "{a} at the side of {b}",
    ),
}
ON_BACKGROUND = (
    "{text} on a {tint} background",
    "{text} on {tint}",
    "{text} against a {tint} background",
    "{text}, {tint} background",
    "{tint} background, {text}",
    "on {tint}: {text}",
)
FRAMES = (
    "a picture of {text}",
    "a drawing of {text}",
    "drawing with {text}",
    "{text}, illustration",
    "{text} clip art",
    "here you see {text}",
    "there is {text}",
    "my drawing: {text}",
)
BOILERPLATE = (
    "image {w}x{h}",
    "stock photo",
    "stock photo {n}",
    "IMG_{n}.jpg",
    "click to enlarge",
    "free download, high quality",
    "thumbnail",
    "untitled {n}",
    "picture no. {n}",
    "share this image",
)


def describe(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Write one clean caption that names everything in a scene.

    The wording varies (synonyms, order of the things, position of the
    background), but the content does not: the caption always has the size,
    color and shape of every thing, the relation and the background.

    Args:
        scene: `Scene`. The scene to describe.
        rng: `numpy.random.Generator`. Draws the wording. Defaults to `None`,
            which uses the plainest words.

    Returns:
        A string, in lower case.

    Example:

    ```python
    scene = Scene((Thing("small", "red", "star"),), None, "white")
    describe(scene)  # "a small red star on a white background"
    ```
    """
    parts = [_thing(thing, rng, article=True) for thing in scene.things]
    return _with_background(_related(parts, scene.relation, rng), scene, rng)


def alt_text(scene: Scene, rng: np.random.Generator) -> str:
    """Write one true caption in the style of alt texts.

    Most captions omit something: a size, a color, the background, the
    relation, or sometimes everything but one word. Some are framed ("a drawing
    of …"), some are in capitals, and some end in a full stop.

    Args:
        scene: `Scene`. The scene to describe.
        rng: `numpy.random.Generator`. Draws the wording.

    Returns:
        A string that says nothing false about the scene.
    """
    kind = rng.random()
    if kind < 0.08:
        text = _few_words(scene, rng)
    elif kind < 0.16:
        text = _thing(_pick(scene.things, rng), rng, article=True)
    else:
        article = rng.random() < 0.75
        parts = [
            _thing(
                thing,
                rng,
                article=article,
                size=rng.random() < 0.6,
                color=rng.random() < 0.93,
                shape=rng.random() < 0.97,
            )
            for thing in scene.things
        ]
        relation = scene.relation if rng.random() < 0.88 else "together"
        text = _related(parts, scene.relation and relation, rng)
        if rng.random() < 0.45:
            text = _with_background(text, scene, rng)
    if rng.random() < 0.2:
        text = _pick(FRAMES, rng).format(text=text)
    return _typeset(text, rng)


def boilerplate(rng: np.random.Generator) -> str:
    """Write a caption that says nothing, such as web pages often have."""
    width, height = rng.integers(2, 20, size=2) * 64
    number = rng.integers(100, 10_000)
    return _pick(BOILERPLATE, rng).format(w=width, h=height, n=number)


def truncate(text: str, rng: np.random.Generator) -> str:
    """Cut a caption off somewhere in the middle, as short alt fields do."""
    length = len(text)
    cut = rng.integers(max(1, length // 4), max(2, 3 * length // 4))
    return text[:cut].rstrip() + _pick(("", "", "...", "…"), rng)


def _thing(thing, rng, article, size=True, color=True, shape=True):
    words = []
    if size:
        words.append(_pick(SIZES[thing.size], rng))
    if color:
        words.append(_pick(COLORS[thing.color], rng))
    words.append(_pick(SHAPES[thing.shape], rng) if shape else "shape")
    if color and shape and _chance(0.05, rng):
        words = [*words[:-2], words[-1], "in", words[-2]]
    text = " ".join(words)
    if not article:
        return text
    return ("an " if text[0] in "aeiou" else "a ") + text


def _related(parts, relation, rng):
    if relation is None:
        return parts[0]
    first, second = parts
    if relation in ("beside", "together") and _chance(0.5, rng):
        first, second = second, first
    if relation == "together":
        return _pick(("{} and {}", "{}, {}", "{} with {}"), rng).format(
            first, second
        )
    return _pick(RELATIONS[relation], rng).format(a=first, b=second)


def _with_background(text, scene, rng):
    tint = _pick(BACKGROUNDS[scene.background], rng)
    return _pick(ON_BACKGROUND, rng).format(text=text, tint=tint)


def _few_words(scene, rng):
    thing = _pick(scene.things, rng)
    return _pick(
        (
            thing.color,
            thing.shape,
            f"{thing.color} {thing.shape}",
            f"{thing.size} {thing.shape}",
            f"{BACKGROUNDS[scene.background][0]} background",
        ),
        rng,
    )


def _typeset(text, rng):
    style = rng.random()
    if style < 0.05:
        text = text.upper()
    elif style < 0.35:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.15 else "")


def _chance(share, rng):
    return rng is not None and rng.random() < share


def _pick(options, rng):
    return options[0 if rng is None else rng.integers(len(options))]
