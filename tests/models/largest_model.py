"""Run the largest preset on one image and print the peak memory in GiB."""

import resource

import numpy as np

from align_keras import AlignDualEncoder

model = AlignDualEncoder.from_preset("align_l2_bert_large")
outputs = model(
    {
        "images": np.random.uniform(-1, 1, (1, 289, 289, 3)).astype("float32"),
        "token_ids": np.random.randint(0, 100_000, (1, 64)),
        "padding_mask": np.ones((1, 64), "int32"),
    }
)
for name, rows in outputs.items():
    norm = np.linalg.norm(np.asarray(rows))
    assert rows.shape == (1, 1376) and abs(norm - 1) < 1e-4, (name, norm)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
