"""The parts of a run, and how far it has come."""

import dataclasses

from align_keras.training.recipes import Recipe


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a run that trains the same variables throughout.

    Attributes:
        recipe: `Recipe`. The recipe of the run, with the `freeze` of this
            part.
        first_step: int. The step at which its optimizer starts.
        last_step: int. The step after which it ends.
    """

    recipe: Recipe
    first_step: int
    last_step: int


def part_at_hand(recipe, state):
    """Return the part of the run to train next, given a checkpoint's state."""
    after = recipe.unfreeze_after
    if after is None:
        return Part(recipe, 0, recipe.steps)
    step = state["step"]
    # A pending evaluation belongs to the part that trained the weights.
    if step < after or (step == after and state.get("pending")):
        return Part(recipe, 0, after)
    whole = dataclasses.replace(recipe, freeze=None, unfreeze_after=None)
    return Part(whole, after, recipe.steps)


def is_finished(state, recipe):
    ended = state["step"] >= recipe.steps or state.get("stopped")
    return ended and not state.get("pending")


def describe_end(state, recipe):
    if not state.get("stopped"):
        if state["step"] < recipe.steps:
            return (
                f"a callback ended it after step {state['step']} of "
                f"{recipe.steps}; the same call resumes from there"
            )
        return f"{recipe.steps} steps"
    return (
        f"it stopped early after step {state['step']} of {recipe.steps}, "
        f"because no evaluation after step {state['best']['step']} "
        f"(patience={recipe.patience}) found a better model"
    )
