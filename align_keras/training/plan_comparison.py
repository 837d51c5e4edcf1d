"""The duration of a step in a run, beside the planned one."""

import statistics

from align_keras.io.json_files import read_json
from align_keras.training.callbacks import read_metrics

# What changes the work of a step; the rest of a recipe may differ.
FIELDS = (
    "batch_size",
    "image_size",
    "sequence_length",
    "optimizer",
    "microbatch_size",
    "remat",
    "freeze",
    "freeze_statistics",
    "lora_rank",
    "precision",
    "batch_norm",
)


def load_plan(path, preset, recipe, shard_state=False):
    """Read a plan and check that it is one of a run.

    Args:
        path: string. A JSON file that `align-keras plan` wrote.
        preset: string. The preset of the run.
        recipe: `Recipe`. That of the run.
        shard_state: bool. That of the run. Defaults to `False`.

    Returns:
        A dict.

    Raises:
        ValueError: It is no plan, or that of another run.
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
            f"`{path}` is no plan. Write one with `align-keras plan --output "
            f"DIR` and give its plan.json. Received: {error!r}"
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

    Args:
        plan: dict. What `load_plan` returned.
        workdir: string or `pathlib.Path`. The directory of the run.

    Returns:
        A dict with `"topology"`, which the plan is for; `"measured"`, the
        median over the reports of the run but the first, which compiles;
        `"planned"`, both in seconds; and `"ratio"`, the first of these by the
        second. `None` if there are no reports.
    """
    speeds = [
        metrics["images_per_second"]
        for _, metrics in read_metrics(workdir)
        if "images_per_second" in metrics
    ]
    if len(speeds) < 2:
        return None
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
    """Put what `compare_with_plan` returned into a line."""
    if found is None:
        return "The run is too short to compare with the plan."
    return (
        f"A step took {found['measured']:.4f} s (median), "
        f"{found['ratio']:.2f} times the {found['planned']:.4f} s planned for "
        f"{found['topology']}."
    )
