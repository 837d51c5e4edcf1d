"""The same network in align_keras, in transformers and in open_clip."""

import os

import numpy as np

# EfficientNet: width, depth and channels of its last map. BERT: layers, heads
# and width.
CASES = {
    "tiny": ("align_b0_bert_tiny", (1.0, 1.0, 320), (2, 2, 128)),
    "b0": ("align_b0_bert_mini", (1.0, 1.0, 320), (4, 4, 256)),
    "b7": ("align_b7_bert_base", (2.0, 3.1, 640), (12, 12, 768)),
}
VOCABULARY_SIZE = 100_000
TOKENS = 64
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


def batch_of(batch_size, image_size):
    """Make random pairs; images have their channels last."""
    rng = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, 3)
    tokens = rng.integers(5, VOCABULARY_SIZE, (batch_size, TOKENS), "int32")
    return {
        "images": rng.uniform(-1, 1, shape).astype("float32"),
        "token_ids": tokens,
        "padding_mask": np.ones_like(tokens),
    }


def keras_model(case, dtype=None):
    """Create the model in align_keras."""
    import keras

    from align_keras import AlignDualEncoder

    keras.utils.set_random_seed(0)
    return AlignDualEncoder.from_preset(
        CASES[case][0], load_weights=False, dtype=dtype
    )


def torch_model(case, image_size):
    """Create the same architecture in transformers."""
    import torch

    register_operators()
    from transformers import AlignConfig
    from transformers import AlignModel

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    _, (width, depth, channels), (layers, heads, dim) = CASES[case]
    vision = {
        "width_coefficient": width,
        "depth_coefficient": depth,
        "hidden_dim": channels,
        "image_size": image_size,
    }
    text = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": dim,
        "intermediate_size": 4 * dim,
        "vocab_size": VOCABULARY_SIZE,
    }
    config = AlignConfig(
        text_config=text, vision_config=vision, projection_dim=channels
    )
    return AlignModel(config)


def open_clip_model(image_size, tokens, seed=0):
    """Create a pair like `align_b0_bert_mini` in open_clip, with timm's B0."""
    import torch

    register_operators()
    import open_clip

    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    _, _, (layers, heads, width) = CASES["b0"]
    return open_clip.model.CustomTextCLIP(
        embed_dim=640,
        vision_cfg={
            "timm_model_name": "efficientnet_b0",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": image_size,
        },
        text_cfg={
            "context_length": tokens,
            "width": width,
            "heads": heads,
            "layers": layers,
        },
    ).to(memory_format=torch.channels_last)


def open_clip_optimizer(model):
    """Create open_clip's AdamW, with its defaults for such towers."""
    import torch

    decayed, plain = [], []
    for name, weight in model.named_parameters():
        alone = weight.ndim < 2 or any(
            part in name for part in ("bn", "ln", "bias", "logit_scale")
        )
        (plain if alone else decayed).append(weight)
    return torch.optim.AdamW(
        [
            {"params": plain, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": 0.2},
        ],
        lr=5e-4,
        betas=(0.9, 0.999),
        eps=1e-8,
    )


def register_operators():
    """Make torchvision importable with a PyTorch that lacks its operators.

    Only detection needs them. The parts that open_clip and transformers use are
    made of PyTorch's and Pillow's own operators.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        _KEPT.append(library)


_KEPT = []  # A library forgets its operators when it is collected.


def torch_batch(batch_size, image_size, device="cpu"):
    """Convert the pairs of `batch_of` to the form that transformers takes."""
    import torch

    batch = {
        name: torch.from_numpy(value).to(device)
        for name, value in batch_of(batch_size, image_size).items()
    }
    return {
        "pixel_values": batch["images"].permute(0, 3, 1, 2).contiguous(),
        "input_ids": batch["token_ids"].long(),
        "attention_mask": batch["padding_mask"].long(),
    }


def set_layout(model, batch, channels_last):
    """Store images and kernels of PyTorch with their channels last."""
    import torch

    if channels_last:
        layout = torch.channels_last
        model.to(memory_format=layout)
        batch["pixel_values"] = batch["pixel_values"].to(memory_format=layout)


def over_and_over(batch):
    """Repeat one batch as a data set, without copies.

    Autotuning is off, because the end of `fit` may wait for its thread.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensors(batch).repeat()
    return data.with_options(options)
