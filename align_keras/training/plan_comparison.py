"""Compare the duration of a step in a run with the planned one."""

import dataclasses
import logging
import statistics
from pathlib import Path

from align_keras.io.json_files import read_json
from align_keras.io.word_pieces import read_vocabulary
from align_keras.training.callbacks import read_metrics
from align_keras.training.recipes import Recipe

# Fields that leave the work of a step as it is; a plan must have all others in
# common with the run.
FREE = {
    "steps",
    "epochs",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "label_smoothing",
    "resize_size",
    "resize_ratio",
    "steps_per_execution",
    "checkpoint_every",
    "patience",
    "mirror",
    "seed",
    "initial_temperature",
    "vocabulary_size",  # of a vocabulary to be learned; see `compare_with_plan`
    "strip_accents",
    "language_exponent",
}
FIELDS = tuple(
    field.name for field in dataclasses.fields(Recipe) if field.name not in FREE
)

logger = logging.getLogger("align_keras")


def load_plan(path, preset, recipe, shard_state=False):
    """Read a plan and check that it fits a run.

    Args:
        path: string. A JSON file that `align-keras plan` wrote.
        preset: string. The preset of the run.
        recipe: `Recipe`. The recipe of the run.
        shard_state: bool. The `shard_state` of the run. Defaults to `False`.

    Returns:
        A dict, the plan.

    Raises:
        ValueError: The file is not a plan, or the plan of another run.
    """
    try:
        plan = read_json(path)
        planned = {
            **plan["recipe"],
            **{name: plan[name] for name in ("preset", "shard_state")},
        }
        float(plan["seconds"]["step"])
        plan["topology"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`{path}` is not a plan. Write one with `align-keras plan "
            f"--output DIR` and pass its plan.json. Received: {error!r}"
        ) from None
    asked = {
        "preset": preset,
        "shard_state": shard_state,
        **{field: getattr(recipe, field) for field in FIELDS},
    }
    for name, value in asked.items():
        if planned.get(name) != value:
            raise ValueError(
                f"The plan `{path}` has {name}={planned.get(name)!r}, and "
                f"this run {name}={value!r}. Plan again, or leave out `--plan`."
            )
    return plan


def compare_with_plan(plan, workdir):
    """Compare the duration of a step with the planned one.

    Warns if the plan is for a vocabulary of another size, which may be known
    only once it has been learned.

    Args:
        plan: dict. What `load_plan` returned.
        workdir: string or `pathlib.Path`. The directory of the run.

    Returns:
        A dict with `"topology"`, the hardware of the plan; `"measured"` and
        `"planned"`, in seconds; and `"ratio"`, measured divided by planned.
        The measured value is the median over all reports but the first, whose
        time includes compiling. `None` if there are fewer than two reports.
    """
    speeds = [
        metrics["images_per_second"]
        for _, metrics in read_metrics(workdir)
        if "images_per_second" in metrics
    ]
    if len(speeds) < 2:
        return None
    path, planned = Path(workdir, "vocabulary.txt"), plan.get("vocabulary_size")
    if planned is not None and path.is_file():
        tokens = len(read_vocabulary(path))
        if tokens != planned:
            logger.warning(
                "The plan is for a vocabulary of %d tokens, and this run has "
                "%d: plan again with `--vocabulary-size %d`.",
                planned,
                tokens,
                tokens,
            )
    size = plan["recipe"]["batch_size"]
    measured = size / statistics.median(speeds[1:])
    planned = plan["seconds"]["step"]
    return {
        "topology": plan["topology"],
        "measured": measured,
        "planned": planned,
        "ratio": measured / planned,
    }


def describe_step_time(found):
    """Describe the result of `compare_with_plan` in one line."""
    if found is None:
        return "The run is too short to compare with the plan."
    return (
        f"A step took {found['measured']:.4f} s (median), "
        f"{found['ratio']:.2f} times the {found['planned']:.4f} s planned for "
        f"{found['topology']}."
    )
