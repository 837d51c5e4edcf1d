"""Keep finished plans, because compiling one takes minutes."""

import dataclasses
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import align_keras
from align_keras.io.fingerprints import fingerprint
from align_keras.io.json_files import is_count
from align_keras.io.json_files import is_number
from align_keras.io.json_files import read_object
from align_keras.io.json_files import write_json
from align_keras.models import presets
from align_keras.planning.compile import DoesNotFit
from align_keras.planning.plan import plan
from align_keras.planning.topology import topology_devices
from align_keras.training.recipes import Recipe
from align_keras.training.recipes import load_recipe

# What error messages say about a kept plan.
_ABOUT = "plan", "Remove it, and the plan is made again."


class PlanStore:
    """Makes plans and keeps them, so that a search can be resumed.

    Args:
        directory: string or `pathlib.Path`. Directory of the plans, one JSON
            file each. Defaults to `None`: plans are not kept.
    """

    def __init__(self, directory: str | Path | None = None):
        self.directory = None if directory is None else Path(directory)

    def plan(
        self,
        model: str | Callable,
        recipe: str | Recipe,
        topology: str | None,
        batch_per_core: int | None,
        vocabulary_size: int | None = None,
        shard_state: bool = False,
        microbatch_size: int | None = None,
        **overrides: Any,
    ) -> dict:
        """Return a kept plan, or make it with `align_keras.planning.plan`.

        Args:
            model: string or callable. Plans of a callable are not kept.
            recipe: string or `Recipe`.
            topology: string or `None`. Plans for `None`, the devices of this
                machine, are not kept either.
            batch_per_core: int or `None`. See `plan`.
            vocabulary_size, shard_state, microbatch_size: See `plan`.
            **overrides: Fields of the recipe to replace.

        Returns:
            A dict, see `plan`.

        Raises:
            DoesNotFit: The step needs more memory than a core has.
        """
        recipe = load_recipe(recipe, **overrides)
        arguments = (
            *(model, recipe, topology, batch_per_core),
            *(vocabulary_size, shard_state, microbatch_size),
        )
        if self.directory is None or not isinstance(model, str) or not topology:
            return _plan(*arguments)
        # Fails if libtpu is missing, whose version is part of the fingerprint.
        topology_devices(topology)
        path = self.directory / f"{_fingerprint(*arguments)}.json"
        if path.is_file():
            found = _read(path)
        else:
            try:
                found = _plan(*arguments)
            except DoesNotFit as error:
                found = {"needed": error.needed, "capacity": error.capacity}
            write_json(path, found)
        if "needed" in found:
            raise DoesNotFit.by(found["needed"], found["capacity"])
        return found


def _read(path):
    form = {"needed": is_number, "capacity": is_number}
    if "needed" not in read_object(path, {}, *_ABOUT):
        form = {
            **dict.fromkeys(
                ("cores", "batch_size", "batch_per_core"), is_count
            ),
            "recipe": dict,
            "memory": {"total": is_number, "capacity": is_number},
            "seconds": {"step": is_number},
            "schedule": dict,
        }
    return read_object(path, form, *_ABOUT)


def _plan(*arguments):
    try:
        return plan(*arguments)
    finally:
        # The compiled program of a large model takes some GiB.
        jax.clear_caches()


def _fingerprint(model, recipe, *others):
    """Identify a plan by its model, recipe, devices and versions."""
    path = Path(presets.find_preset(model)) / "config.json"
    packages = "jax", "jaxlib", "libtpu"
    return fingerprint(
        model,
        path.read_text() if path.is_file() else None,
        dataclasses.asdict(recipe),
        *others,
        align_keras.__version__,
        [metadata.version(name) for name in packages],
    )
