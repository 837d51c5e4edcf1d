"""Speed and memory of the evaluations on arrays, compared with others.

python benchmarks/evaluation.py retrieval   # against a top-k, with a ratio
python benchmarks/evaluation.py large       # 25,000 x 1,000,000, in memory
python benchmarks/evaluation.py large --images 2500    # a tenth of the time
python benchmarks/evaluation.py knn         # a part of 1.28 million x 640
"""

import argparse
import json
import resource
import time

import numpy as np

from align_keras.evaluation.knn import nearest_neighbours
from align_keras.evaluation.retrieval import retrieval_metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["retrieval", "large", "knn"])
    parser.add_argument("--images", type=int)
    parser.add_argument("--dim", type=int, default=640)
    parser.add_argument("--queries", type=int, default=4_096)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    parts = {"retrieval": retrieval, "large": large, "knn": knn}
    print(json.dumps(parts[options.part](options), indent=2))


def retrieval(options):
    """Measure recall at 1, 5 and 10 both ways, at MSCOCO's size.

    The other side computes what CLIP_benchmark's retrieval does in PyTorch.
    It computes the whole score matrix, finds the first K in batches of
    queries, separately for each K and direction, and multiplies a one-hot
    tensor `(batch, K, candidates)` of these with the positives. The lean
    variant finds the first ten once, and looks up the positives without the
    one-hot tensor.
    """
    images, texts, owners = _pairs(options.images or 5_000, 5, options.dim)
    sides = {
        "align_keras": lambda: retrieval_metrics(images, texts, owners),
        "lean top-k": lambda: _top_k(images, texts, owners),
        "one-hot top-k": lambda: _one_hot(images, texts, owners),
    }
    spent, recalls = {"seconds": {}, "CPU seconds": {}}, {}
    for name, run in sides.items():
        repeats = 1 if name == "one-hot top-k" else options.repeats
        results, *times = zip(
            *(timed(run) for _ in range(repeats)), strict=True
        )
        for unit, values in zip(spent, times, strict=True):
            spent[unit][name] = round(min(values), 2)
        recalls[name] = results[0]["text_to_image_recall@1"]
    return {
        **spent,
        "times faster": {
            unit: {
                name: round(value / values["align_keras"], 2)
                for name, value in values.items()
            }
            for unit, values in spent.items()
        },
        "text to image recall@1": recalls,
    }


def timed(run):
    """Call a function; return its result, wall seconds and CPU seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - start, time.process_time() - cpu


def _pairs(count, captions, dim):
    rng = np.random.default_rng(0)
    images = _unit(rng.standard_normal((count, dim), "float32"))
    owners = np.arange(count * captions) // captions
    noise = rng.standard_normal((len(owners), dim), "float32")
    return images, _unit(images[owners] + 0.25 * noise), owners


def _unit(values):
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def _scores(images, texts, owners):
    import torch

    scores = torch.from_numpy(texts) @ torch.from_numpy(images).T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), torch.from_numpy(owners)] = True
    ways = {
        "text_to_image": (scores, positive),
        "image_to_text": (scores.T, positive.T),
    }
    return ways


def _top_k(images, texts, owners):
    recalls = {}
    for way, (scores, positive) in _scores(images, texts, owners).items():
        found = scores.topk(10, dim=1).indices
        hits = positive.gather(1, found).cumsum(dim=1) > 0
        for k in (1, 5, 10):
            recalls[f"{way}_recall@{k}"] = hits[:, k - 1].float().mean().item()
    return recalls


def _one_hot(images, texts, owners, batch=64):
    import torch

    recalls = {}
    for way, (scores, positive) in _scores(images, texts, owners).items():
        for k in (1, 5, 10):
            hits = []
            for start in range(0, len(scores), batch):
                rows = slice(start, start + batch)
                found = scores[rows].topk(k, dim=1).indices
                chosen = torch.nn.functional.one_hot(found, scores.shape[1])
                right = chosen * positive[rows, None, :]
                hits.append(right.sum(dim=(1, 2)) > 0)
            recalls[f"{way}_recall@{k}"] = torch.cat(hits).float().mean().item()
    return recalls


def large(options):
    """Rank 25,000 images and a million texts in both directions."""
    rng = np.random.default_rng(0)
    count = options.images or 25_000
    images = _unit(rng.standard_normal((count, options.dim), "float32"))
    texts = np.empty((1_000_000, options.dim), "float32")
    owners = rng.integers(0, len(images), len(texts))
    for start in range(0, len(texts), 10_000):
        rows = slice(start, start + 10_000)
        noise = rng.standard_normal((10_000, options.dim), "float32")
        texts[rows] = _unit(images[owners[rows]] + 0.2 * noise)
    before = _peak()
    result, seconds, cpu = timed(
        lambda: retrieval_metrics(images, texts, owners)
    )
    return {
        "seconds": round(seconds, 1),
        "CPU seconds": round(cpu, 1),
        "billion products a second": round(
            len(images) * len(texts) * options.dim / seconds / 1e9, 1
        ),
        "GiB before": before,
        "GiB at most": _peak(),
        **result,
    }


def knn(options):
    """Search a part of the queries among 1,281,167 vectors, and scale up."""
    rng = np.random.default_rng(0)
    train = np.empty((1_281_167, options.dim), "float32")
    for start in range(0, len(train), 10_000):
        rows = train[start : start + 10_000]
        rows[:] = _unit(rng.standard_normal(rows.shape, "float32"))
    queries = _unit(
        rng.standard_normal((options.queries, options.dim), "float32")
    )
    _, seconds, cpu = timed(lambda: nearest_neighbours(queries, train, 1))
    return {
        "queries": options.queries,
        "seconds": round(seconds, 1),
        "CPU seconds": round(cpu, 1),
        "minutes for 50,000": round(seconds * 50_000 / options.queries / 60, 1),
        "GiB at most": _peak(),
    }


def _peak():
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kilobytes / 2**20, 2)


if __name__ == "__main__":
    main()
