"""What the commands read whose disks fill up, or that are interrupted."""

import yaml
from colors import FIELDS
from colors import write_images
from tiny_align import tiny_align

from align_keras.cli import main


def write_command_inputs(folder, rows):
    """Write images, a preset, vectors, records with a recipe, and two tables
    with rules for them.
    """
    write_images(folder / "photos")
    tiny_align().save_to_preset(str(folder / "preset"))
    for command in (
        ["embed", folder / "photos", "--model", folder / "preset"],
        ["pack", folder / "photos"],
    ):
        output = {"embed": "vectors", "pack": "packed"}[command[0]]
        command += ["--output", folder / output]
        assert main([str(word) for word in command]) == 0
    steps = {"steps": 12, "checkpoint_every": 3, "warmup_steps": 2}
    recipe = {**FIELDS, **steps}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # Two files are read by two processes.
    (folder / "pairs").mkdir()
    for name in "ab":
        lines = [f"http://{name}/{n}.jpg,a text of {n}" for n in range(rows)]
        table = folder / "pairs" / f"{name}.csv"
        table.write_text("\n".join(["url,text", *lines]))
    rules = "rules: [{token_count: {at_least: 3, at_most: 20}}]\n"
    (folder / "rules.yaml").write_text(rules)
