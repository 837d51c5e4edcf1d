"""Plans that were made before: compiling one takes minutes."""

import dataclasses
import hashlib
import json
from importlib import metadata
from pathlib import Path

import jax

import align_keras
from align_keras.io.atomic import atomic_file
from align_keras.models import presets
from align_keras.planning.compile import DoesNotFit
from align_keras.planning.plan import plan
from align_keras.planning.topology import topology_devices
from align_keras.training.recipes import load_recipe


class PlanStore:
    """Makes plans and keeps them, so that a search goes on where it was.

    Args:
        directory: string or `pathlib.Path`. Where they are kept, one JSON
            file each. `None` keeps nothing.
    """

    def __init__(self, directory=None):
        self.directory = None if directory is None else Path(directory)

    def plan(self, model, recipe, topology, batch_per_core, **options):
        """Return what `align_keras.planning.plan` does, new or kept.

        Args:
            model: string or callable; plans of the latter are not kept.
            recipe: string or `Recipe`.
            topology: string or `None`, for which nothing is kept either.
            batch_per_core: int or `None`.
            **options: Other arguments of `plan`.

        Returns:
            A dict.

        Raises:
            DoesNotFit: As `plan` does.
        """
        arguments = model, recipe, topology, batch_per_core
        if self.directory is None or not isinstance(model, str) or not topology:
            return _plan(*arguments, **options)
        # It must be there before its version is asked for.
        topology_devices(topology)
        path = self.directory / f"{_digest(*arguments, **options)}.json"
        if path.is_file():
            found = json.loads(path.read_text())
        else:
            try:
                found = _plan(*arguments, **options)
            except DoesNotFit as error:
                found = {"needed": error.needed, "capacity": error.capacity}
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(found, indent=2) + "\n")
        if "needed" in found:
            raise DoesNotFit.by(found["needed"], found["capacity"])
        return found


def _plan(*arguments, **options):
    try:
        return plan(*arguments, **options)
    finally:
        # A compiled program of a large model is some GiB.
        jax.clear_caches()


def _digest(model, recipe, topology, batch_per_core, **options):
    fields = {
        name: options.pop(name)
        for name in list(options)
        if name not in ("vocabulary_size", "shard_optimizer")
    }
    preset = presets.find_preset(model)
    local = "://" not in preset
    asked = {
        "model": [model, presets.load_config(preset) if local else None],
        "recipe": dataclasses.asdict(load_recipe(recipe, **fields)),
        "topology": topology,
        "batch_per_core": batch_per_core,
        "versions": [
            metadata.version(name) for name in ("jax", "jaxlib", "libtpu")
        ]
        + [align_keras.__version__],
        **options,
    }
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
