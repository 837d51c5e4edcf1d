"""Drawn scenes: what they show, what their captions say, and what not."""

import csv
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from align_keras.data import pack
from align_keras.data import read_captions
from align_keras.quickstart import scenes
from align_keras.quickstart.scene import Scene
from align_keras.quickstart.scene import Thing
from align_keras.quickstart.scene_captions import BACKGROUNDS
from align_keras.quickstart.scene_captions import COLORS
from align_keras.quickstart.scene_captions import RELATIONS
from align_keras.quickstart.scene_captions import SHAPES
from align_keras.quickstart.scene_captions import SIZES
from align_keras.quickstart.scene_images import BACKGROUND_VALUES
from align_keras.quickstart.scene_images import COLOR_VALUES
from align_keras.quickstart.scene_images import draw_image
from align_keras.quickstart.scenes import HELD_OUT_ARRANGEMENTS
from align_keras.quickstart.scenes import HELD_OUT_PAIRS
from align_keras.quickstart.scenes import NOISE_SHARES
from align_keras.quickstart.scenes import draw_scenes
from align_keras.quickstart.scenes import plan_scenes
from align_keras.quickstart.scenes import write_scenes

# Adjectives that name the background, so that they are no thing's color.
TINTS = {
    word: name
    for name, words in BACKGROUNDS.items()
    for word in sorted(words, key=len, reverse=True)
}


@pytest.fixture(scope="module")
def training_records():
    return list(draw_scenes(3000, seed=5))


@pytest.fixture(scope="module")
def evaluation_records():
    return list(draw_scenes(400, seed=5, split="evaluation"))


def pixels(record):
    return np.asarray(Image.open(io.BytesIO(record["image"])), "float32")


def words_to_values(vocabulary):
    return {word: name for name, words in vocabulary.items() for word in words}


def read_things(caption):
    """Reads (size, color, shape) out of a caption, with `None` for gaps.

    A reader of its own: it knows the words, not the templates.
    """
    text = caption.lower()
    for tint in sorted(TINTS, key=len, reverse=True):
        text = text.replace(tint, " ")
    text = text.replace("jet black", "black").replace("plus sign", "cross")
    words = re.findall(r"[a-z]+", text)
    sizes, colors, shapes = map(words_to_values, (SIZES, COLORS, SHAPES))
    shapes["shape"] = None
    things, size, color = [], None, None
    for position, word in enumerate(words):
        size = sizes.get(word, size)
        if word in colors:
            if position and words[position - 1] == "in" and things:
                # "star in red", unless another thing follows: "star in red
                # ring" has a color of its own.
                following = words[position + 1 : position + 2]
                if not following or following[0] not in shapes:
                    things[-1] = (things[-1][0], colors[word], things[-1][2])
                    continue
            color = colors[word]
        if word in shapes:
            things.append((size, color, shapes[word]))
            size = color = None
    return things


def agrees(thing, scene):
    return any(
        all(
            said in (None, shown)
            for said, shown in zip(thing, one, strict=True)
        )
        for one in scene.things
    )


def test_same_seed_gives_same_scenes_and_another_seed_others():
    first = list(draw_scenes(20, seed=3))
    assert first == list(draw_scenes(20, seed=3))
    # A longer run starts with the shorter one.
    assert first == list(draw_scenes(40, seed=3))[:20]
    assert [r["scene"] for r in first] == plan_scenes(20, seed=3)
    other = list(draw_scenes(20, seed=4))
    assert (
        sum(a["image"] == b["image"] for a, b in zip(first, other, strict=True))
        == 0
    )


def test_training_images_never_show_held_out_combinations(training_records):
    for record in training_records:
        scene = record["scene"]
        for thing in scene.things:
            assert (thing.color, thing.shape) not in HELD_OUT_PAIRS
        shapes = [thing.shape for thing in scene.things]
        assert (scene.relation, *shapes) not in HELD_OUT_ARRANGEMENTS
        if scene.relation == "beside":
            shapes = shapes[::-1]
            assert (scene.relation, *shapes) not in HELD_OUT_ARRANGEMENTS


def test_training_captions_never_name_held_out_pairs(training_records):
    for record in training_records:
        for caption in record["captions"]:
            for _, color, shape in read_things(caption):
                assert (color, shape) not in HELD_OUT_PAIRS, caption


def test_training_covers_every_combination_that_is_not_held_out(
    training_records,
):
    pairs = {
        (thing.color, thing.shape)
        for record in training_records
        for thing in record["scene"].things
    }
    assert len(pairs) == len(COLORS) * len(SHAPES) - len(HELD_OUT_PAIRS)
    # Each held-out word is learned from other combinations.
    for color, shape in HELD_OUT_PAIRS:
        assert sum(color == pair[0] for pair in pairs) >= 5
        assert sum(shape == pair[1] for pair in pairs) >= 5


def test_evaluation_scenes_differ_and_hold_new_combinations(evaluation_records):
    scenes = [record["scene"] for record in evaluation_records]
    assert len(set(scenes)) == len(scenes)
    # Beside has no order, so no scene may be another one mirrored.
    mirrored = {
        (frozenset(s.things), s.background)
        for s in scenes
        if s.relation == "beside" and s.things[0] != s.things[1]
    }
    assert len(mirrored) == sum(
        s.relation == "beside" and s.things[0] != s.things[1] for s in scenes
    )
    for scene in scenes:
        shapes = tuple(thing.shape for thing in scene.things)
        arrangements = {(scene.relation, *shapes)}
        if scene.relation == "beside":
            arrangements.add((scene.relation, *shapes[::-1]))
        pairs = {(thing.color, thing.shape) for thing in scene.things}
        assert pairs & HELD_OUT_PAIRS or arrangements & HELD_OUT_ARRANGEMENTS


def test_evaluation_captions_say_everything(evaluation_records):
    for record in evaluation_records:
        (caption,) = record["captions"]
        scene = record["scene"]
        assert record["noise"] is None
        assert sorted(read_things(caption)) == sorted(scene.things), caption
        tints = BACKGROUNDS[scene.background]
        assert any(tint in caption for tint in tints), caption


def test_evaluation_captions_name_the_relation_in_its_order(
    evaluation_records,
):
    first_named_first = {
        "above": (" above ", " over ", "below it", "at the top"),
        "inside": (" inside ", " within "),
    }
    other_first = {
        "above": (" below ", " under ", " underneath ", "above it"),
        "inside": (" around ", " containing ", " inside", " in it"),
    }
    checked = 0
    for record in evaluation_records:
        scene, (caption,) = record["scene"], record["captions"]
        if scene.relation not in ("above", "inside"):
            continue
        named = read_things(caption)
        in_order = named == list(scene.things)
        if in_order == (named == list(scene.things[::-1])):
            continue
        phrases = first_named_first if in_order else other_first
        if scene.relation == "inside" and in_order and " in " in caption:
            continue
        assert any(p in caption for p in phrases[scene.relation]), caption
        checked += 1
    assert checked > 100


def test_true_training_captions_say_nothing_false(training_records):
    named = 0
    for record in training_records:
        if record["noise"] is not None:
            continue
        caption = record["captions"][0]
        for thing in read_things(caption):
            assert agrees(thing, record["scene"]), (caption, record["scene"])
            named += thing[2] is not None
        for tint in sorted(TINTS, key=len, reverse=True):
            if tint in caption.lower():
                shown = BACKGROUNDS[record["scene"].background]
                assert tint in shown, caption
                break
    assert named > 2500


def test_wrong_captions_describe_another_image(training_records):
    wrong = [r for r in training_records if r["noise"] == "wrong"]
    complete = [
        (thing, record["scene"])
        for record in wrong
        for thing in read_things(record["captions"][0])
        if None not in thing
    ]
    assert len(complete) > 50
    assert not any(agrees(thing, scene) for thing, scene in complete)


@pytest.mark.parametrize("noise", NOISE_SHARES)
def test_share_of_noise_is_as_stated(training_records, noise):
    count = len(training_records)
    share = NOISE_SHARES[noise]
    # Four standard deviations: one false alarm in 16,000 seeds.
    slack = 4 * math.sqrt(share * (1 - share) / count)
    found = sum(record["noise"] == noise for record in training_records)
    assert abs(found / count - share) < slack


def test_boilerplate_and_truncated_captions_look_like_it(training_records):
    boilerplate = [r for r in training_records if r["noise"] == "boilerplate"]
    for record in boilerplate:
        assert not read_things(record["captions"][0])
    lengths = {
        noise: np.mean(
            [
                len(r["captions"][0])
                for r in training_records
                if r["noise"] == noise
            ]
        )
        for noise in ("truncated", None)
    }
    assert lengths["truncated"] < 0.7 * lengths[None]


def test_captions_vary(training_records):
    true = [r["captions"][0] for r in training_records if not r["noise"]]
    assert len(set(true)) > 0.6 * len(true)
    every_phrase = [
        phrase.replace("{a}", "").replace("{b}", "").strip()
        for phrases in RELATIONS.values()
        for phrase in phrases
    ]
    text = " ".join(true).lower()
    for phrase in every_phrase:
        for part in re.split(r"\s{2,}|,", phrase):
            assert part.strip() in text, part


def nearest(color, values):
    names = list(values)
    table = np.array([values[name] for name in names], "float32")
    return names[np.argmin(np.linalg.norm(table - color, axis=1))]


def test_images_show_the_named_colors():
    records = list(draw_scenes(400, seed=9)) + list(
        draw_scenes(200, seed=9, split="evaluation")
    )
    seen = set()
    for record in records:
        scene, image = record["scene"], pixels(record)
        assert image.shape == (96, 96, 3)
        # The outermost pixels are ground; a median ignores the rest.
        border = np.concatenate([image[:2].reshape(-1, 3), image[-2:, 0]])
        ground = np.median(border, axis=0)
        assert nearest(ground, BACKGROUND_VALUES) == scene.background
        if scene.relation is not None:
            continue
        distance = np.linalg.norm(image - ground, axis=2)
        # A shadow darkens by less than a quarter of a thing's contrast.
        shown = image[distance > 0.8 * distance.max()]
        (thing,) = scene.things
        assert nearest(np.median(shown, axis=0), COLOR_VALUES) == thing.color
        seen.add(thing.color)
    assert seen == set(COLORS)


def center_of(image, color):
    """Middle (x, y) of the pixels that are nearest to a color."""
    names = list(COLOR_VALUES)
    values = list(COLOR_VALUES.values()) + list(BACKGROUND_VALUES.values())
    table = np.array(values, "float32")
    distance = np.linalg.norm(image[:, :, None] - table, axis=3)
    y, x = np.nonzero(distance.argmin(axis=2) == names.index(color))
    return np.array([x.mean(), y.mean()])


@pytest.mark.parametrize("relation", RELATIONS)
def test_images_show_the_relation(relation):
    rng = np.random.default_rng(0)
    sides = []
    for shape in ("circle", "heart", "square", "star"):
        for _ in range(6):
            things = (
                Thing("small", "blue", shape),
                Thing("large", "yellow", "circle"),
            )
            scene = Scene(things, relation, "white")
            image = np.asarray(draw_image(scene, rng), "float32")
            blue, yellow = (center_of(image, c) for c in ("blue", "yellow"))
            right, down = yellow - blue
            if relation == "above":
                assert down > 2 * abs(right)
            elif relation == "inside":
                assert math.hypot(right, down) < 6
            else:
                assert abs(right) > 2 * abs(down)
            sides.append(right > 0)
    if relation == "beside":
        assert 0 < sum(sides) < len(sides)


def test_large_things_cover_more_than_small_ones():
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        areas = []
        for size in SIZES:
            scene = Scene((Thing(size, "black", shape),), None, "white")
            image = np.asarray(draw_image(scene, rng), "float32")
            areas.append((image.mean(axis=2) < 100).mean())
        small, large = areas
        assert 0.005 < 2 * small < large < 0.3


def test_written_scenes_can_be_packed(tmp_path):
    captions = write_scenes(tmp_path / "scenes", 12, seed=2)
    records = list(draw_scenes(12, seed=2))
    with captions.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows] == [
        record["captions"][0] for record in records
    ]
    first = (tmp_path / "scenes" / rows[0]["image"]).read_bytes()
    assert first == records[0]["image"]
    assert len(read_captions(captions)) == 12

    manifest = pack(tmp_path / "scenes", tmp_path / "packed", captions=captions)
    assert manifest["records"] == 12
    assert manifest["skipped_count"] == 0


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="split='test'"):
        plan_scenes(1, split="test")
    with pytest.raises(ValueError, match="count=-1"):
        plan_scenes(-1)


def test_more_evaluation_scenes_than_there_are_is_refused(monkeypatch):
    drawn = plan_scenes(60)
    monkeypatch.setattr(scenes, "_MAX_DRAWS", 1)
    with pytest.raises(ValueError, match=r"no more than [\d,]+ .*count=5000"):
        plan_scenes(5000, split="evaluation")
    # Scenes of training may repeat.
    assert plan_scenes(60) == drawn
