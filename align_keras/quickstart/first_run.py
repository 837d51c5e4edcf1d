"""Run all of ALIGN in a few minutes, from drawing scenes to search."""

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from align_keras.data import pack
from align_keras.evaluation import measure_retrieval
from align_keras.evaluation.results import plain
from align_keras.io.claims import claim
from align_keras.io.json_files import write_json
from align_keras.io.mirrors import locked
from align_keras.io.paths import local_path
from align_keras.models import AlignDualEncoder
from align_keras.quickstart.model import quickstart_model
from align_keras.quickstart.scene_queries import ask_by_changes
from align_keras.quickstart.scene_queries import ask_by_words
from align_keras.quickstart.scenes import NOISE_SHARES
from align_keras.quickstart.scenes import plan_scenes
from align_keras.quickstart.scenes import write_scenes
from align_keras.quickstart.search_scenes import SceneSearch
from align_keras.training import Recipe
from align_keras.training import load_recipe
from align_keras.training import train

logger = logging.getLogger("align_keras")

# The quickstart passes if recall is this many times chance.
REQUIRED_TIMES_CHANCE = 20
CLIENT = "ask_saved_model.py"


@locked("workdir")
def run_quickstart(
    workdir: str | Path,
    seed: int = 0,
    train_scenes: int = 16000,
    evaluation_scenes: int = 400,
    recipe: str | Recipe = "quickstart",
    verbose: bool = True,
    **overrides: Any,
) -> dict:
    """Draw data, train a small ALIGN model on it, and use the model.

    Draws colored shapes with partly noisy captions, packs them, trains,
    measures retrieval on combinations that training never showed, exports a
    SavedModel and queries it in another process. It then searches by words,
    and by an image with words added and subtracted (section 7 of the paper),
    and writes a contact sheet and an index for the web page.

    An interrupted run resumes when you start it again. If you start a finished
    run again, only export, evaluation and search are repeated. Progress goes
    to the logger `align_keras`.

    Args:
        workdir: string or `pathlib.Path`. Directory for all output.
        seed: int. Seed of the data and the training. Defaults to `0`.
        train_scenes: int. Number of training images. Defaults to `16000`.
        evaluation_scenes: int. Number of evaluation images, which are also
            the images that are searched. Defaults to `400`.
        recipe: string or `Recipe`. See `align_keras.training.load_recipe`.
            Defaults to `"quickstart"`.
        verbose: bool. Whether to report training progress. Defaults to
            `True`.
        **overrides: Fields of the recipe to replace, such as `steps`.

    Returns:
        A dict, which is also written to `report.json`, with `"retrieval"` (the
        result of `align_keras.evaluation.measure_retrieval`);
        `"times_chance"`, the ratio of recall@1 to chance in the worse
        direction; `"passed"`, whether that ratio suffices; `"changes"`, how
        often an image and changed words found the right image; `"answers"` of
        the exported model; `"seconds"`; and `"files"`.

    Raises:
        ValueError: `workdir` holds a quickstart with other settings, or there
            are too few evaluation scenes to search by a change.

    Example:

    ```python
    report = run_quickstart("quickstart", steps=100, warmup_steps=10)
    report["retrieval"]["text_to_image_recall@1"]
    ```
    """
    start = time.perf_counter()
    if overrides.get("steps"):
        overrides.setdefault("warmup_steps", overrides["steps"] // 10)
    load_recipe(recipe, **overrides)  # A mistake in it should show up now.
    scenes = plan_scenes(evaluation_scenes, seed, "evaluation")
    if not ask_by_changes(scenes):
        raise ValueError(
            "`evaluation_scenes` is too small: the search by an image and "
            "words needs two scenes that differ in only one property. "
            f"Received: evaluation_scenes={evaluation_scenes}; use a hundred "
            "or more."
        )
    workdir = local_path(workdir)
    settings = {
        "seed": seed,
        "train_scenes": train_scenes,
        "evaluation_scenes": evaluation_scenes,
    }
    claim(workdir / "quickstart.json", settings, "a quickstart")
    logger.info(
        "Everything here is drawn: colored shapes with captions, "
        f"{sum(NOISE_SHARES.values()):.0%} of which are noise."
    )
    logger.info(
        f"[1/6] Drawing {train_scenes} images, and {evaluation_scenes} of "
        "combinations that training never shows"
    )
    train_data = _draw(workdir, "train", train_scenes, seed)
    test_data = _draw(workdir, "evaluation", evaluation_scenes, seed)

    logger.info("[2/6] Training a small ALIGN model")
    trained = train(
        quickstart_model,
        recipe,
        data=train_data,
        workdir=workdir / "run",
        strategy="one-device",
        seed=seed,
        verbose=verbose,
        **overrides,
    )
    model = AlignDualEncoder.from_preset(trained["model"])

    logger.info("[3/6] Measuring on the new combinations")
    retrieval = plain(measure_retrieval(model, test_data, progress=False))
    times_chance = _times_chance(retrieval)

    used = _use(model, scenes, workdir, retrieval)
    report = {
        "passed": times_chance >= REQUIRED_TIMES_CHANCE,
        "times_chance": times_chance,
        "retrieval": retrieval,
        "seconds": round(time.perf_counter() - start, 1),
        **used,
    }
    write_json(workdir / "report.json", report)
    _say_what_there_is(report)
    return report


# === Steps ===


def _draw(workdir, split, count, seed):
    """Draw and pack a split, unless done before; return the packed files."""
    folder, packed = workdir / split, workdir / "packed" / split
    captions = folder / "captions.csv"
    # The caption file and the manifest are written last, so if they exist, the
    # split is complete.
    if not captions.is_file():
        write_scenes(folder, count, seed, split)
    if not (packed / "manifest.json").is_file():
        pack(folder, packed, captions=captions)
    return str(packed)


def _times_chance(result):
    """Log the recalls and compare them with chance.

    Returns:
        A float, the ratio of recall@1 to chance in the worse direction.
    """
    times = []
    for way, words in (
        ("image_to_text", "caption of an image"),
        ("text_to_image", "image of a caption"),
    ):
        recall = result[f"{way}_recall@1"]
        chance = result[f"chance_{way}_recall@1"]
        times.append(recall / chance)
        logger.info(
            f"      {words}: recall@1 {recall:.1%}, chance {chance:.2%} "
            f"({times[-1]:.0f} times chance); "
            f"recall@5 {result[f'{way}_recall@5']:.1%}"
        )
    return min(times)


def _use(model, scenes, workdir, retrieval):
    """Export the model, query the export, and search with the model."""
    logger.info("[4/6] Exporting a SavedModel")
    saved_model = workdir / "saved_model"
    model.export(str(saved_model))

    logger.info("[5/6] Querying it in a new process that has only TensorFlow")
    questions = ask_by_words(scenes)
    answers = _ask_elsewhere(workdir, saved_model, questions)
    for answer in answers:
        logger.info(f"      {answer['text']}: {Path(answer['image']).name}")

    logger.info("[6/6] Searching by words, and by an image and words")
    images = sorted((workdir / "evaluation" / "images").glob("*.jpg"))
    search = SceneSearch(model, scenes, images)
    changes = search.measure_changes()
    logger.info(
        "      an image changed by words finds the right one first in "
        f"{changes['recall@1']:.0%} of {changes['count']} cases, in the "
        f"first five in {changes['recall@5']:.0%}"
    )
    sheet, index = workdir / "contact_sheet.png", workdir / "index"
    search.draw(sheet, questions, retrieval)
    search.write_index(index, workdir / "run" / "model")
    files = {
        "contact sheet": sheet,
        "model": workdir / "run" / "model",
        "SavedModel": saved_model,
        "its client": workdir / CLIENT,
        "images": images[0].parent,
        "index": index,
        "report": workdir / "report.json",
    }
    files = {name: str(path) for name, path in files.items()}
    return {"changes": changes, "answers": answers, "files": files}


def _ask_elsewhere(workdir, saved_model, questions):
    """Query the exported model in a process without this package."""
    client = workdir / CLIENT
    shutil.copyfile(Path(__file__).with_name(CLIENT), client)
    texts = [question.text for question in questions]
    images = workdir / "evaluation" / "images"
    done = subprocess.run(
        [sys.executable, client, saved_model, images, *texts],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f"`{client}` failed on `{saved_model}`: {done.stderr.strip()}"
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _say_what_there_is(report):
    minutes, python = report["seconds"] / 60, sys.executable
    logger.info(f"Done in {minutes:.1f} minutes. You now have:")
    for name, path in report["files"].items():
        logger.info(f"      {name:14}{path}")
    logger.info("Search it yourself, on a web page:")
    if not all(map(importlib.util.find_spec, ("starlette", "uvicorn"))):
        logger.info(f'      {python} -m pip install "align-keras[serve]"')
    index = report["files"]["index"]
    logger.info(f"      {python} -m align_keras serve {index} --open")
