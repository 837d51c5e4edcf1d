"""Prepare the data of an ablation: draw, thin out and corrupt them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from align_keras.data import pack
from align_keras.data import read_captions
from align_keras.evaluation.ablation_plan import Variant
from align_keras.io.atomic import atomic_file


def prepare_data(
    data: dict, folder: Path, draw: Callable | None
) -> tuple[dict, str]:
    """Draw and pack the data of an ablation, unless this is already done.

    Args:
        data: dict. The field `data` of the plan.
        folder: `pathlib.Path`. The directory for drawn data.
        draw: callable or `None`. See `ablate`.

    Returns:
        A pair: dict of the training `"images"`, `"captions"` and perhaps
        `"split"`; and the path of the packed evaluation data.

    Raises:
        ValueError: a field is missing, or the plan asks for scenes and `draw`
            is `None`.
    """
    if "scenes" not in data:
        for name in ("images", "captions", "evaluation"):
            if name not in data:
                raise ValueError(
                    f"The ablation's `data` lacks `{name}`; it needs either "
                    "`scenes` and `evaluation_scenes`, or `images`, "
                    "`captions` and `evaluation`."
                )
        return data, str(data["evaluation"])
    if "evaluation_scenes" not in data:
        raise ValueError(
            "The ablation's `data` lacks `evaluation_scenes`, which it needs "
            f"with `scenes`. Received: {data}"
        )
    if draw is None:
        raise ValueError(
            "The ablation's `data` asks for `scenes`: pass `draw`, such as "
            "`align_keras.quickstart.write_scenes`."
        )
    counts = {"train": data["scenes"], "evaluation": data["evaluation_scenes"]}
    for split, count in counts.items():
        if not (folder / split / "captions.csv").is_file():
            draw(folder / split, count, 0, split)
    packed = folder / "packed_evaluation"
    if not (packed / "manifest.json").is_file():
        pack(
            folder / "evaluation",
            packed,
            captions=folder / "evaluation" / "captions.csv",
        )
    train = folder / "train"
    source = {"images": train, "captions": train / "captions.csv"}
    return source, str(packed)


def pack_variant(source: dict, variant: Variant, folder: Path) -> str:
    """Pack the share of the data that a run uses, with its noise.

    Args:
        source: dict. See `prepare_data`.
        variant: `Variant`.
        folder: `pathlib.Path`. The directory for packed data.

    Returns:
        The directory of the TFRecord files, which later runs reuse.
    """
    name = f"packed_share-{variant.data_share}_noise-{variant.noise}"
    packed = folder / name
    if (packed / "manifest.json").is_file():
        return str(packed)
    captions = read_captions(source["captions"], split=source.get("split"))
    chosen = corrupt(captions, variant.data_share, variant.noise)
    listed = folder / f"{name}.jsonl"
    with atomic_file(listed) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            for image, texts in chosen.items():
                row = {"image": image, "caption": texts}
                # ASCII, because names may hold bytes that are not UTF-8.
                file.write(json.dumps(row) + "\n")
    outside = source.get("allow_outside", False)
    pack(source["images"], packed, captions=listed, allow_outside=outside)
    return str(packed)


def corrupt(
    captions: dict[str, list[str]], share: float, noise: float, seed: int = 0
) -> dict[str, list[str]]:
    """Take a share of the images, and swap the captions of some of them.

    A larger share contains the images of a smaller one, and more noise
    changes all the images that less noise changes.

    Args:
        captions: dictionary from image to list of captions.
        share: float. The share of images to take.
        noise: float. The share of these that get the captions of another.
        seed: integer. Defaults to `0`.

    Returns:
        A dictionary of the same form as `captions`.
    """
    rng = np.random.default_rng(seed)
    names = list(captions)
    order = rng.permutation(len(names))
    kept = [names[n] for n in order[: max(1, round(share * len(names)))]]
    wrong = kept[: round(noise * len(kept))]
    chosen = {name: captions[name] for name in kept}
    for name, other in zip(wrong, wrong[1:] + wrong[:1], strict=True):
        chosen[name] = captions[other]
    return chosen
