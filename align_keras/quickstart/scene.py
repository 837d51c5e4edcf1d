"""Describe the content of a drawn image."""

from typing import NamedTuple


class Thing(NamedTuple):
    """A colored shape of some size."""

    size: str
    color: str
    shape: str


class Scene(NamedTuple):
    """The content of an image: one or two things on a background.

    Two things are in a relation; `things[0]` is the upper or the inner one.
    Things beside each other have no order. They are sorted, so that equal
    scenes are equal tuples.
    """

    things: tuple[Thing, ...]
    relation: str | None
    background: str
