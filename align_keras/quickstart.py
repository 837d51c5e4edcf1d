"""All of ALIGN in a few minutes: from drawn scenes to searching them."""

import json
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from align_keras.data.scene_captions import COLORS
from align_keras.data.scene_captions import SHAPES
from align_keras.data.scene_queries import ask_by_changes
from align_keras.data.scene_queries import ask_by_words
from align_keras.data.scenes import NOISE_SHARES
from align_keras.data.scenes import plan_scenes
from align_keras.data.scenes import write_scenes
from align_keras.data.sources import read_captions
from align_keras.files import atomic_file

# The model counts as having learned when it beats chance by this factor.
REQUIRED_TIMES_CHANCE = 20
# Pictures that a query shows, and changed pictures that are looked for.
RESULTS = 6
CHANGES = 100
CLIENT = "ask_saved_model.py"


def quickstart_model(vocabulary_size):
    """Create the small ALIGN of the quickstart, with fresh weights.

    Both towers are those of the paper, made small: an EfficientNet of seven
    blocks and a BERT of two layers, whose tokens are averaged.

    Args:
        vocabulary_size: int. Number of tokens.

    Returns:
        An `align_keras.AlignDualEncoder` without a preprocessor.
    """
    from align_keras import AlignDualEncoder
    from align_keras import BertTextEncoder
    from align_keras import EfficientNetBackbone

    return AlignDualEncoder(
        image_encoder=EfficientNetBackbone(0.35, 0.25, dropout=0.0),
        text_encoder=BertTextEncoder(
            vocabulary_size,
            num_layers=2,
            num_heads=4,
            hidden_dim=96,
            intermediate_dim=192,
            dropout=0.0,
            max_sequence_length=64,
        ),
        embedding_dim=128,
        initial_temperature=0.07,
        text_pooling="average",
    )


def run_quickstart(
    workdir,
    seed=0,
    train_scenes=16000,
    evaluation_scenes=400,
    recipe="quickstart",
    verbose=True,
    **overrides,
):
    """Draw data, train a small ALIGN on them, and use it.

    Draws colored shapes with captions of which a part is noise, packs them,
    trains, measures retrieval on combinations that training never showed,
    exports a SavedModel, asks it in another process, searches by words and by
    a picture with words added and taken off (section 7 of the paper), and
    writes a contact sheet, and an index for the web page.

    A run that was interrupted goes on where it stopped when it is started
    again; after a finished one, only measuring and searching are repeated.

    Args:
        workdir: string or `pathlib.Path`. Directory for all that is written.
        seed: int. Seed of the data and the training. Defaults to `0`.
        train_scenes: int. Number of training pictures. Defaults to `16000`.
        evaluation_scenes: int. Number of evaluation pictures, which are also
            the library that is searched. Defaults to `400`.
        recipe: string or `Recipe`. See `align_keras.training.load_recipe`.
        verbose: bool. Whether to tell what happens. Defaults to `True`.
        **overrides: Fields of the recipe to replace, such as `steps`.

    Returns:
        A dict that is also written to `report.json`: `"retrieval"` (that of
        `align_keras.evaluation.evaluate_retrieval`); `"times_chance"`, the
        lower recall@1 over chance, and `"passed"`, whether that suffices;
        `"changes"`, how often a picture changed by words found the right one;
        `"answers"` of the exported model; `"seconds"`; and `"files"`.

    Raises:
        ValueError: `workdir` holds a quickstart with other settings.

    Example:

    ```python
    report = run_quickstart("quickstart", steps=100, warmup_steps=10)
    report["retrieval"]["text_to_image_recall@1"]
    ```
    """
    # Imported here, since it brings all of Keras with it.
    from align_keras.training import load_recipe

    start = time.perf_counter()
    if overrides.get("steps"):
        overrides.setdefault("warmup_steps", overrides["steps"] // 10)
    load_recipe(recipe, **overrides)  # A mistake in it is better known now.
    workdir = Path(workdir)
    say = _say if verbose else _silent
    _claim(
        workdir,
        seed=seed,
        train_scenes=train_scenes,
        evaluation_scenes=evaluation_scenes,
    )
    say(
        "Everything here is drawn: colored shapes, with captions of which "
        f"{sum(NOISE_SHARES.values()):.0%} are noise."
    )
    say(
        f"[1/6] Drawing {train_scenes} pictures, and {evaluation_scenes} of "
        "combinations that training never shows"
    )
    train_data = _draw(workdir, "train", train_scenes, seed)
    test_data = _draw(workdir, "evaluation", evaluation_scenes, seed)
    scenes = plan_scenes(evaluation_scenes, seed, "evaluation")
    pictures = sorted((workdir / "evaluation" / "images").glob("*.jpg"))

    say("[2/6] Training a small ALIGN")
    model = _train(workdir, recipe, train_data, seed, verbose, overrides)

    say("[3/6] Measuring on the new combinations")
    retrieval, times_chance = _measure(model, test_data, say)

    say("[4/6] Exporting a SavedModel")
    saved_model = workdir / "saved_model"
    model.export(str(saved_model))

    say("[5/6] Asking it in a new process, with nothing but TensorFlow")
    questions = ask_by_words(scenes)
    answers = _ask_elsewhere(workdir, saved_model, questions)
    for answer in answers:
        say(f"      {answer['text']}: {Path(answer['picture']).name}")

    say("[6/6] Searching by words, and by a picture and words")
    search = _Search(model, scenes, pictures)
    changes = search.measure_changes()
    say(
        f"      a picture changed by words finds the right one first in "
        f"{changes['recall@1']:.0%} of {changes['count']} cases, in the "
        f"first five in {changes['recall@5']:.0%}"
    )
    sheet = workdir / "contact_sheet.png"
    search.draw(sheet, questions, retrieval)
    index = search.write_index(workdir / "index", workdir / "run" / "model")

    report = {
        "passed": times_chance >= REQUIRED_TIMES_CHANCE,
        "times_chance": times_chance,
        "retrieval": retrieval,
        "changes": changes,
        "answers": answers,
        "seconds": round(time.perf_counter() - start, 1),
        "files": {
            "contact sheet": str(sheet),
            "model": str(workdir / "run" / "model"),
            "SavedModel": str(saved_model),
            "its client": str(workdir / CLIENT),
            "pictures": str(pictures[0].parent),
            "index": str(index),
            "report": str(workdir / "report.json"),
        },
    }
    with atomic_file(workdir / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
    say(f"Done in {report['seconds'] / 60:.1f} minutes. What there is now:")
    for name, path in report["files"].items():
        say(f"      {name:14}{path}")
    say("Search in it yourself, on a web page:")
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        say(f'      {sys.executable} -m pip install "align-keras[serve]"')
    say(f"      {sys.executable} -m align_keras serve {index} --open")
    return report


# === Steps ===


def _draw(workdir, split, count, seed):
    """Draw and pack a split, unless that is done; return the packed files."""
    from align_keras.data import pack

    folder, packed = workdir / split, workdir / "packed" / split
    captions = folder / "captions.csv"
    # The caption file is written last, the manifest too.
    if not captions.is_file():
        write_scenes(folder, count, seed, split)
    if not (packed / "manifest.json").is_file():
        pack(folder, packed, captions=captions)
    return str(packed)


def _train(workdir, recipe, data, seed, verbose, overrides):
    from align_keras import AlignDualEncoder
    from align_keras.training import train

    trained = train(
        quickstart_model,
        recipe,
        data=data,
        workdir=workdir / "run",
        strategy="one-device",
        seed=seed,
        verbose=verbose,
        **overrides,
    )
    return AlignDualEncoder.from_preset(trained["model"])


def _measure(model, data, say):
    """Measure retrieval and how many times better than chance it is."""
    from align_keras.evaluation import evaluate_retrieval

    result = evaluate_retrieval(model, data, progress=False)
    times = []
    for way, words in (
        ("image_to_text", "caption of a picture"),
        ("text_to_image", "picture of a caption"),
    ):
        recall = result[f"{way}_recall@1"]
        chance = result[f"chance_{way}_recall@1"]
        times.append(recall / chance)
        say(
            f"      {words}: recall@1 {recall:.1%}, chance {chance:.2%} "
            f"({times[-1]:.0f} times chance); "
            f"recall@5 {result[f'{way}_recall@5']:.1%}"
        )
    return result, min(times)


def _ask_elsewhere(workdir, saved_model, questions):
    """Let the exported model answer in a process without this package."""
    client = workdir / CLIENT
    shutil.copyfile(Path(__file__).with_name(CLIENT), client)
    texts = [question.text for question in questions]
    pictures = workdir / "evaluation" / "images"
    done = subprocess.run(
        [sys.executable, client, saved_model, pictures, *texts],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f"`{client}` failed on `{saved_model}`: {done.stderr.strip()}"
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


class _Search:
    """The evaluation pictures as a library to search in."""

    def __init__(self, model, scenes, pictures):
        from align_keras.evaluation import embed_images

        self.model = model
        self.pictures = pictures
        self.vectors = embed_images(model, pictures, progress=False)
        self.changes = ask_by_changes(scenes)

    def find(self, question, count):
        """Return the best pictures and their scores, the start left out."""
        from align_keras.search import compose_query
        from align_keras.search import top_k

        start = question.start
        query = compose_query(
            self.model,
            text=question.text,
            image=None if start is None else self.vectors[start],
            minus_text=question.minus_text,
        )
        indices, scores = top_k(query, self.vectors, count + 1)
        others = indices != start
        return indices[others][:count], scores[others][:count]

    def measure_changes(self):
        """Look for changed pictures, spread over all there are."""
        step = -(-len(self.changes) // CHANGES)
        ranks = []
        for question in self.changes[:: max(1, step)]:
            found, _ = self.find(question, 5)
            hits = [index in question.answers for index in found]
            ranks.append(hits.index(True) if any(hits) else len(hits))
        ranks = np.array(ranks)
        return {
            "count": len(ranks),
            "recall@1": float(np.mean(ranks < 1)),
            "recall@5": float(np.mean(ranks < 5)),
        }

    def draw(self, path, questions, retrieval):
        """Write the contact sheet."""
        from align_keras.search.contact_sheet import contact_sheet

        # The first change of each kind, not the best one.
        kinds = {question.kind: question for question in self.changes[::-1]}
        rows = [self._row(question) for question in questions]
        rows[0] = rows[0]._replace(section="By words")
        changed = [
            self._row(kinds[kind])
            for kind in ("color", "shape", "size", "background")
            if kind in kinds
        ]
        if changed:
            heading = "By a picture, with words added and taken off"
            changed[0] = changed[0]._replace(section=heading)
        recall = retrieval["text_to_image_recall@1"]
        chance = retrieval["chance_text_to_image_recall@1"]
        contact_sheet(
            rows + changed,
            path,
            title="ALIGN finds what it has never seen",
            subtitle=(
                f"{len(self.pictures)} drawn pictures, each with a combination "
                "that training never showed. The right one comes first for "
                f"{recall:.0%} of their captions; by chance, {chance:.2%}.\n"
                "A green frame marks what was asked for. Numbers are cosine "
                "similarities."
            ),
        )

    def write_index(self, path, model):
        """Write an index of the pictures for the web page, anew."""
        from align_keras.preprocessing.decode import decode_with_pillow
        from align_keras.search import write_index
        from align_keras.search.embedding import thumbnail

        names = [picture.name for picture in self.pictures]
        folder = self.pictures[0].parents[1]
        captions = read_captions(folder / "captions.csv")
        captions = [
            captions[picture.relative_to(folder).as_posix()][0]
            for picture in self.pictures
        ]
        thumbnails = [
            thumbnail(decode_with_pillow(picture.read_bytes()), 256)
            for picture in self.pictures
        ]
        rows = [(names, captions, self.vectors, thumbnails)]
        shutil.rmtree(path, ignore_errors=True)
        labels = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]
        write_index(rows, len(names), path, model, labels=labels)
        return path

    def _row(self, question):
        from align_keras.search.contact_sheet import Result
        from align_keras.search.contact_sheet import Row

        results = [
            Result(self.pictures[index], score, index in question.answers)
            for index, score in zip(*self.find(question, RESULTS), strict=True)
        ]
        start = question.start
        image = None if start is None else self.pictures[start]
        return Row(question.text, results, image, question.minus_text)


# === Housekeeping ===


def _say(words):
    print(words, flush=True)


def _silent(words):
    pass


def _claim(workdir, **settings):
    """Write down what the directory is for, or check that it still holds."""
    path = workdir / "quickstart.json"
    if not path.is_file():
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(settings) + "\n")
        return
    begun = json.loads(path.read_text())
    for name, value in settings.items():
        if begun.get(name) != value:
            raise ValueError(
                f"`{workdir}` holds a quickstart with {name}="
                f"{begun.get(name)!r}, but {name}={value!r} was asked for. "
                "Choose another directory."
            )
