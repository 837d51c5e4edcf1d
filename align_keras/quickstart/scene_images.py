"""Draw scenes with Pillow, as smooth shapes with a soft shadow."""

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFilter

from align_keras.quickstart.scene import Scene

CANVAS = 96
_SUPERSAMPLING = 4

COLOR_VALUES = {
    "red": (214, 48, 49),
    "orange": (240, 133, 30),
    "yellow": (246, 205, 46),
    "green": (56, 158, 84),
    "blue": (43, 101, 217),
    "purple": (126, 62, 176),
    "pink": (245, 130, 180),
    "black": (38, 38, 44),
}
BACKGROUND_VALUES = {
    "white": (251, 251, 250),
    "gray": (196, 199, 203),
    "cream": (247, 229, 192),
    "sky": (189, 220, 246),
    "mint": (190, 234, 205),
}
# Radius of the circle around a thing, as a share of the canvas.
RADII = {"small": (0.115, 0.135), "large": (0.205, 0.235)}
_OUTER_RADIUS = (0.34, 0.39)


def draw_image(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw one scene.

    Args:
        scene: `Scene`. The scene to draw.
        rng: `numpy.random.Generator`. Draws position, rotation, shade and
            noise.

    Returns:
        A `PIL.Image.Image`, RGB, `CANVAS` × `CANVAS` pixels.
    """
    pixels = _background(scene.background, rng)
    placed = list(zip(scene.things, _layout(scene, rng), strict=True))
    # Paint the last thing first, so that the outer one does not cover the
    # inner one.
    for thing, (center, radius) in reversed(placed):
        _paint(pixels, thing, center, radius, rng)
    pixels += rng.normal(0.0, rng.uniform(1.0, 4.0), pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype("uint8"))


def _background(name, rng):
    tint = np.array(BACKGROUND_VALUES[name], "float32")
    tint += rng.normal(0.0, 2.0, 3)
    slope = rng.uniform(-4.0, 4.0, 2)
    axis = np.linspace(-1.0, 1.0, CANVAS)
    light = slope[0] * axis[:, None] + slope[1] * axis[None, :]
    return tint + light[:, :, None].astype("float32")


def _paint(pixels, thing, center, radius, rng):
    mask = _mask(thing.shape, center, radius, rng.uniform(-0.22, 0.22))
    shadow = mask.filter(ImageFilter.GaussianBlur(2.0))
    shadow = np.asarray(shadow, "float32")[:, :, None] / 255.0
    shadow = np.roll(shadow, (2, 1), axis=(0, 1))
    pixels *= 1.0 - 0.22 * shadow
    color = np.array(COLOR_VALUES[thing.color], "float32")
    color = color + rng.normal(0.0, 7.0, 3) + rng.normal(0.0, 6.0)
    # Light from above makes things look less like stencils.
    height = (np.arange(CANVAS) / CANVAS - center[1]) / radius
    shade = color + np.clip(-10.0 * height, -12, 12)[:, None, None]
    alpha = np.asarray(mask, "float32")[:, :, None] / 255.0
    pixels += alpha * (shade - pixels)


def _mask(shape, center, radius, turn):
    size = CANVAS * _SUPERSAMPLING
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    rotation = np.array(
        [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    )
    for points, fill in _OUTLINES[shape]:
        placed = (points @ rotation * radius + center) * size
        draw.polygon([tuple(point) for point in placed], fill=fill)
    return image.reduce(_SUPERSAMPLING)


def _layout(scene, rng):
    """Return a center and radius per thing, as shares of the canvas."""
    radii = [rng.uniform(*RADII[thing.size]) for thing in scene.things]
    if scene.relation is None:
        room = 0.43 - radii[0]
        return [(0.5 + rng.uniform(-room, room, 2), radii[0])]
    if scene.relation == "inside":
        outer = rng.uniform(*_OUTER_RADIUS)
        center = 0.5 + rng.uniform(-1, 1, 2) * (0.45 - outer)
        return [(center, radii[0]), (center, outer)]
    step = np.array([sum(radii) + rng.uniform(0.03, 0.07), 0.0])
    step[1] = rng.uniform(-0.1, 0.1)
    if scene.relation == "above":
        step = step[::-1]
    ends = np.array([-step / 2, step / 2])
    # In "beside", either thing may be on the left.
    if scene.relation == "beside" and rng.random() < 0.5:
        ends[:, 0] *= -1.0
    # Move both together, as far as both stay on the canvas.
    reach = np.array(radii)[:, None]
    lowest = 0.06 - (ends - reach).min(axis=0)
    highest = 0.94 - (ends + reach).max(axis=0)
    middle = (lowest + highest) / 2
    room = np.clip((highest - lowest) / 2, 0.0, 0.16)
    ends += middle + rng.uniform(-1, 1, 2) * room
    return list(zip(ends, radii, strict=True))


def _circle(radius=1.0, center=(0.0, 0.0)):
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return radius * points + center


def _polygon(corners, turn=0.0):
    angle = 2 * np.pi * np.arange(corners) / corners - np.pi / 2 + turn
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _star():
    reach = np.where(np.arange(10) % 2 == 0, 1.12, 0.5)
    return _polygon(10) * reach[:, None]


def _heart():
    t = np.linspace(0, 2 * np.pi, 96)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], axis=1) / 16


def _cross(arm=0.34):
    one = np.array([[arm, arm], [arm, 1.0], [-arm, 1.0]])
    turns = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
    return np.concatenate([one @ np.reshape(t, (2, 2)) for t in turns])


# Polygons in units of the radius. A second polygon is a hole.
_OUTLINES = {
    "circle": [(_circle(0.95), 255)],
    "square": [(1.18 * _polygon(4, np.pi / 4), 255)],
    "triangle": [(1.12 * _polygon(3) + [0.0, 0.15], 255)],
    "star": [(_star(), 255)],
    "heart": [(_heart(), 255)],
    "ring": [(_circle(1.0), 255), (_circle(0.62), 0)],
    "cross": [(_cross(), 255)],
    "moon": [(_circle(1.0), 255), (_circle(0.86, (0.46, -0.12)), 0)],
}
