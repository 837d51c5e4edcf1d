"""A model that sees mean colors, and small files of every kind for it."""

import csv
import json

import numpy as np
from PIL import Image

from align_keras.embedding import Embedder

COLORS = {"red": (230, 20, 30), "green": (20, 200, 40), "blue": (10, 40, 240)}


class Seer:
    """Embeds images by their mean color and texts by the colors in them."""

    def __init__(self):
        self.embedded = 0

    def images(self, batch):
        self.embedded += len(batch)
        return np.stack([p.mean(axis=(0, 1)) / 255 - 0.4 for p in batch])

    def texts(self, texts):
        rows = []
        for text in texts:
            seen = [COLORS[word] for word in text.split() if word in COLORS]
            rows.append(np.mean(seen or [(90, 90, 110)], axis=0) / 255 - 0.4)
        return np.array(rows)

    def embedder(self, fingerprint=None):
        return Embedder(
            "seer", self.images, self.texts, fingerprint=fingerprint
        )


def paint(path, color, seed):
    rng = np.random.default_rng(seed)
    noise = rng.integers(-9, 10, 3)
    pixels = np.full((4, 4, 3), np.clip(np.add(color, noise), 0, 255), "uint8")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_root(root):
    """Write a data root with a little of most things, and nothing of others."""
    _write_coco(root / "mscoco", root / "cxc")
    for split, count in (("train", 6), ("val", 4)):
        for place, color in enumerate(COLORS.values()):
            folder = root / "imagenet" / split / f"n{place}"
            for number in range(count):
                seed = 10 * place + number + (split == "val") * 99
                paint(folder / f"{number}.png", color, seed)
    classes = {"n0": "red", "n1": ["green", "leaf green"], "n2": "blue"}
    (root / "imagenet" / "classes.json").write_text(
        json.dumps({"classes": {**classes, "n3": "grey"}})
    )
    (root / "imagenet_r").mkdir()
    (root / "simlex999").mkdir()
    header = "word1 word2 POS SimLex999 c1 c2 concQ Assoc SimAssoc333 SD"
    words = [
        "red red A 9.5 1 1 1 1 1 1",
        "red green N 5.5 1 1 2 1 1 1",
        "red blue N 2.5 1 1 2 1 0 1",
        "blue green V 1.5 1 1 3 1 0 1",
        "thing green V 6.5 1 1 3 1 0 1",
    ]
    lines = [line.replace(" ", "\t") for line in (header, *words)]
    (root / "simlex999" / "SimLex-999.txt").write_text("\n".join(lines))
    return root


def _write_coco(folder, ratings):
    """Five images with six captions each, and ratings of some pairs."""
    images = []
    names = list(COLORS)
    for number in range(5):
        name = f"COCO_val2014_{number:012d}.jpg"
        color = names[number % 3]
        paint(folder / "images" / "val2014" / name, COLORS[color], number)
        other = names[(number + number // 3) % 3]
        texts = [f"{color} and {other}", color, other, color, "what", "sixth"]
        sentences = [
            {"raw": text, "sentid": 10 * number + place}
            for place, text in enumerate(texts)
        ]
        images.append(
            {
                "filepath": "val2014",
                "filename": name,
                "split": "test" if number < 4 else "restval",
                "sentences": sentences,
            }
        )
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    rng = np.random.default_rng(0)
    rows = {"sts": [], "sis": [], "sits": []}
    captions = [
        (f"COCO_val2014:sentid:{s['sentid']}", image["filename"])
        for image in images
        for s in image["sentences"][:5]
    ]
    for caption, image in captions:
        score = round(rng.uniform(2, 5), 2)
        rows["sits"].append((caption, image, score, "c2i_original"))
    for _ in range(40):
        (a, left), (b, right) = (captions[n] for n in rng.choice(25, 2, False))
        rows["sts"].append((a, b, round(rng.uniform(0, 5), 2), "c2c_isim"))
        rows["sits"].append((a, right, round(rng.uniform(0, 5), 2), "x"))
        if left != right:
            rows["sis"].append((left, right, round(rng.uniform(0, 5), 2), "y"))
    ratings.mkdir()
    headers = {
        "sts": ("caption1", "caption2"),
        "sis": ("image1", "image2"),
        "sits": ("caption", "image"),
    }
    for task, found in rows.items():
        with open(ratings / f"{task}_test.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow((*headers[task], "agg_score", "sampling_method"))
            writer.writerows(found)
