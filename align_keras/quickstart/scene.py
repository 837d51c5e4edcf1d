"""What a drawn image shows."""

from typing import NamedTuple


class Thing(NamedTuple):
    """One colored shape."""

    size: str
    color: str
    shape: str


class Scene(NamedTuple):
    """What an image shows: one thing, or two in a relation, on a ground.

    `things[0]` is the upper or the inner one. Things beside each other have
    no order and are kept sorted, so that equal scenes are equal tuples.
    """

    things: tuple[Thing, ...]
    relation: str | None
    background: str
