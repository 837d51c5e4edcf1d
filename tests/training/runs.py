"""What a training run has seen and written."""

import json

import h5py
import numpy as np

from align_keras.data import open_records


class Seen:
    """Notes what evaluation sees, and can stop a run there."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.embeddings = []
        self.iterations = []

    def __call__(self, model, data):
        self.iterations.append(int(model.optimizer.iterations.numpy()))
        if len(self.iterations) == self.stop_at:
            raise InterruptedError("stopped by the test")
        self.embeddings.append(embed(model, data))
        images, texts = self.embeddings[-1]
        hits = (images @ texts.T).argmax(axis=1) == np.arange(len(images))
        return {"mean_recall": hits.mean(dtype="float32")}


def embed(model, data):
    examples = list(open_records(data))
    images = model.encode_image([example["image"] for example in examples])
    texts = model.encode_text([e["captions"][0] for e in examples])
    return np.asarray(images), np.asarray(texts)


def metrics_of(workdir):
    """Lines of training, and lines of evaluation."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    training = [line for line in lines if "loss" in line]
    return training, [line for line in lines if "loss" not in line]


def checkpoint(workdir, step):
    """Every array of a checkpoint: weights, moments, iterations."""
    arrays = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    path = workdir / "checkpoints" / f"step-{step:09d}.weights.h5"
    with h5py.File(path) as file:
        file.visititems(collect)
    return arrays
