"""Search the drawn scenes by words, and by an image and words."""

import itertools
import shutil
from pathlib import Path

import numpy as np

from align_keras.data import read_captions
from align_keras.embedding.embed_files import thumbnail
from align_keras.embedding.embed_streams import embed_images
from align_keras.embedding.embedder import read_pixels
from align_keras.models import AlignDualEncoder
from align_keras.quickstart.scene_captions import COLORS
from align_keras.quickstart.scene_captions import SHAPES
from align_keras.quickstart.scene_queries import Question
from align_keras.quickstart.scene_queries import ask_by_changes
from align_keras.quickstart.scene_queries import with_article
from align_keras.quickstart.scenes import Scene
from align_keras.search import compose_query
from align_keras.search import top_k
from align_keras.search import write_index
from align_keras.search.contact_sheet import Match
from align_keras.search.contact_sheet import Row
from align_keras.search.contact_sheet import contact_sheet

# Number of results of a query, and the most changes that are measured.
RESULTS = 6
CHANGES = 100


class SceneSearch:
    """Search among drawn images.

    Args:
        model: `align_keras.AlignDualEncoder`. It must have a preprocessor.
        scenes: list of `Scene`. They must all be different.
        images: list of `pathlib.Path`. The image of each scene.
    """

    def __init__(
        self, model: AlignDualEncoder, scenes: list[Scene], images: list[Path]
    ):
        self.model = model
        self.images = images
        self.vectors = embed_images(model, images, progress=False)
        self.changes = ask_by_changes(scenes)

    def find(
        self, question: Question, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best images and scores, except the start's own."""
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

    def measure_changes(self) -> dict[str, float]:
        """Measure how often an image and changed words find the right image.

        Asks at most `CHANGES` questions, evenly spread over all of them.

        Returns:
            A dict with `"count"`, the number of questions asked, and with
            `"recall@1"` and `"recall@5"`, the shares of them that found a
            right image first or among the first five.
        """
        step = -(-len(self.changes) // CHANGES)
        ranks = []
        for question in self.changes[:: max(1, step)]:
            found, _ = self.find(question, 5)
            hits = [index in question.answers for index in found]
            ranks.append(hits.index(True) if any(hits) else len(hits))
        return {
            "count": len(ranks),
            "recall@1": float(np.mean(np.array(ranks) < 1)),
            "recall@5": float(np.mean(np.array(ranks) < 5)),
        }

    def draw(
        self, path: Path, questions: list[Question], metrics: dict
    ) -> None:
        """Write the contact sheet.

        Args:
            path: `pathlib.Path`. The PNG file to write.
            questions: list of `Question`. Queries of words only.
            metrics: dict. The result of `measure_retrieval`.
        """
        # Show the first change of each kind, not the best one.
        kinds = {question.kind: question for question in self.changes[::-1]}
        rows = [self._row(question) for question in questions]
        rows[0] = rows[0]._replace(section="By words")
        changed = [
            self._row(kinds[kind])
            for kind in ("color", "shape", "size", "background")
            if kind in kinds
        ]
        if changed:
            heading = "By an image, with words added and subtracted"
            changed[0] = changed[0]._replace(section=heading)
        recall = metrics["text_to_image_recall@1"]
        chance = metrics["chance_text_to_image_recall@1"]
        contact_sheet(
            rows + changed,
            path,
            title="ALIGN finds what it has never seen",
            subtitle=(
                f"{len(self.images)} drawn images, each with a combination "
                "that training never showed. The right one comes first for "
                f"{recall:.0%} of their captions; by chance, {chance:.2%}.\n"
                "A green frame marks what was asked for. Numbers are cosine "
                "similarities."
            ),
        )

    def write_index(self, path: Path, model: Path) -> None:
        """Write an index of the images for the web page, replacing an old one.

        Args:
            path: `pathlib.Path`. The directory of the index.
            model: `pathlib.Path`. The preset directory of the model.
        """
        folder = self.images[0].parents[1]
        captions = read_captions(folder / "captions.csv")
        row = (
            [image.name for image in self.images],
            [
                captions[image.relative_to(folder).as_posix()][0]
                for image in self.images
            ],
            self.vectors,
            [thumbnail(read_pixels(image), 256) for image in self.images],
        )
        shutil.rmtree(path, ignore_errors=True)
        things = itertools.product(COLORS, SHAPES)
        labels = [with_article(f"{color} {shape}") for color, shape in things]
        write_index([row], len(self.images), path, model, labels=labels)

    def _row(self, question):
        results = [
            Match(self.images[index], score, index in question.answers)
            for index, score in zip(*self.find(question, RESULTS), strict=True)
        ]
        start = question.start
        image = None if start is None else self.images[start]
        return Row(question.text, results, image, question.minus_text)
