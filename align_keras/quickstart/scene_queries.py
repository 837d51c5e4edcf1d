"""Ask questions with known answers about drawn scenes."""

import collections
from typing import NamedTuple

from align_keras.quickstart.scene import Scene
from align_keras.quickstart.scene_captions import BACKGROUNDS
from align_keras.quickstart.scene_captions import describe
from align_keras.quickstart.scenes import HELD_OUT_ARRANGEMENTS
from align_keras.quickstart.scenes import HELD_OUT_PAIRS


class Question(NamedTuple):
    """A query of words, with or without an image, and the right answers.

    `start` is the index of the scene whose image the query starts from, or
    `None`. `answers` are indices of scenes. `kind` is `"words"`, or what the
    query changes.
    """

    kind: str
    text: str
    answers: frozenset[int]
    start: int | None = None
    minus_text: str | None = None


def ask_by_words(scenes: list[Scene]) -> list[Question]:
    """Ask for scenes in words, by complete and by partial descriptions.

    Args:
        scenes: list of `Scene`. They must all be different.

    Returns:
        A list of `Question`: complete descriptions of a scene with one thing
        above the other and of one with one thing inside the other, then the
        held-out arrangement and the held-out pair of color and shape that
        most scenes show.
    """
    questions = []
    for relation in ("above", "inside"):
        for index, scene in enumerate(scenes):
            if scene.relation == relation:
                answers = frozenset({index})
                questions.append(Question("words", describe(scene), answers))
                break
    arrangements = collections.defaultdict(set)
    pairs = collections.defaultdict(set)
    for index, scene in enumerate(scenes):
        shapes = tuple(thing.shape for thing in scene.things)
        arrangements[(scene.relation, *shapes)].add(index)
        for thing in scene.things:
            pairs[thing.color, thing.shape].add(index)
    found = _most_shown(arrangements, HELD_OUT_ARRANGEMENTS)
    if found:
        (relation, first, second), answers = found
        text = f"a {first} {relation} a {second}"
        questions.append(Question("words", text, answers))
    found = _most_shown(pairs, HELD_OUT_PAIRS)
    if found:
        (color, shape), answers = found
        text = with_article(f"{color} {shape}")
        questions.append(Question("words", text, answers))
    return questions


def with_article(words):
    """Put `a` or `an` before words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def ask_by_changes(scenes: list[Scene]) -> list[Question]:
    """Ask for scenes that differ from another scene in one property.

    Args:
        scenes: list of `Scene`. They must all be different.

    Returns:
        A list of `Question`. Each starts from a scene, adds the words for a
        color, shape, size or background, and subtracts the words for the old
        value. Its answers are the scenes that differ from the first one only
        in this property.
    """
    by_rest = collections.defaultdict(list)
    for index, scene in enumerate(scenes):
        for kind, rest, words in _without_one(scene):
            by_rest[kind, rest].append((index, words))
    changes = collections.defaultdict(set)
    for (kind, _), members in by_rest.items():
        for start, old in members:
            for answer, new in members:
                if new != old:
                    changes[start, kind, new, old].add(answer)
    return [
        Question(kind, new, frozenset(answers), start, old)
        for (start, kind, new, old), answers in sorted(changes.items())
    ]


def _without_one(scene):
    """Yield for each property of a scene its kind, the rest, and its words."""
    tint = f"{BACKGROUNDS[scene.background][0]} background"
    yield "background", scene._replace(background=None), tint
    for place, thing in enumerate(scene.things):
        for kind in ("color", "shape", "size"):
            blank = thing._replace(**{kind: None})
            things = list(scene.things)
            things[place] = blank
            rest = scene._replace(things=tuple(things))
            yield kind, rest, getattr(thing, kind)


def _most_shown(found, wanted):
    # Sort, because the order of a set differs between processes.
    known = [key for key in sorted(wanted) if key in found]
    if not known:
        return None
    best = max(known, key=lambda key: len(found[key]))
    return best, frozenset(found[best])
