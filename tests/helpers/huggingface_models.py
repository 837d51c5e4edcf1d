"""Small random models of Hugging Face's, saved as published ones are."""

import numpy as np
import torch
import transformers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = (
    "a the red bus cafe naive strasse house dog ##s ##es ##e ##ing un ##able "
    "日 本 語 ß ﬁ ς σ б ё е й ##й ##а , . ! ? ' \" $ + ~ ^ ( ) [ ] - — … 😀 👩 "
    "👩👧 ab ##b x ##x 1 2 ##0 cls mask ¿ « » ﷺ า ##า"
).split()
VOCABULARY = [*SPECIAL, *dict.fromkeys(PIECES)]


def randomize(model, seed):
    """Fill in weights and statistics as a trained network could have them."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name == "temperature" or "running" in name:
                continue
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(int(torch.randint(9999, (), generator=generator)))
            elif name.endswith("bias"):
                uniform(tensor, -0.3, 0.3)
            elif tensor.ndim == 1:
                uniform(tensor, 0.7, 1.3)
            elif "embeddings" in name and "convolution" not in name:
                tensor.normal_(0, 0.7, generator=generator)
            else:
                fan_in = tensor[0].numel()
                tensor.normal_(0, (1.5 / fan_in) ** 0.5, generator=generator)
        _set_statistics(model)
    return model.eval()


def _set_statistics(model):
    """Let batch normalisation see images, as in training."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    images = make_images(np.random.default_rng(9), 12, (65, 65))
    images = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    getattr(model, "vision_model", model)(images)


def make_images(rng, batch, size):
    """Make smooth images with values from -1 to 1, each of its own kind."""
    y, x = np.meshgrid(
        *(np.linspace(0, 1, side) for side in size), indexing="ij"
    )
    waves = rng.uniform(1, 9, (4, batch, 1, 1, 3))
    photos = np.sin(waves[0] * y[..., None] + waves[1] * x[..., None])
    photos = photos * np.cos(waves[2] * x[..., None] + waves[3])
    return photos.astype("float32")


def make_align(seed=0, vision=(), text=(), **config):
    """Make an `AlignModel`; the arguments are fields of the configurations."""
    vision = {
        "width_coefficient": 0.3,
        "depth_coefficient": 0.4,
        **dict(vision),
    }
    width = int(320 * vision["width_coefficient"] + 4) // 8 * 8
    vision.setdefault("hidden_dim", width)
    config = transformers.AlignConfig(
        vision_config=vision,
        text_config={
            "vocab_size": len(VOCABULARY),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 70,
            **dict(text),
        },
        **{"projection_dim": width, "temperature_init_value": 0.7, **config},
    )
    return randomize(transformers.AlignModel(config), seed)


def make_processor(**settings):
    """Make an `AlignProcessor` with the settings of the public checkpoints."""
    tokenizer = transformers.BertTokenizerFast(
        vocab={token: i for i, token in enumerate(VOCABULARY)},
        model_max_length=64,
    )
    # The other variant needs torchvision.
    from transformers.models.efficientnet import (
        image_processing_pil_efficientnet as pil,
    )

    settings = {
        "size": {"height": 346, "width": 346},
        "crop_size": {"height": 289, "width": 289},
        "resample": 2,
        "do_center_crop": True,
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "do_normalize": False,
        "include_top": False,
        **settings,
    }
    images = pil.EfficientNetImageProcessorPil(**settings)
    return transformers.AlignProcessor(images, tokenizer)


def make_inputs(seed=0, batch=4, size=(65, 65), vocabulary=None):
    """Make images, and texts of 1 to 64 tokens, for our models."""
    rng = np.random.default_rng(seed)
    lengths = np.array([1, 64, *rng.integers(2, 64, batch - 2)])[:, None]
    vocabulary = vocabulary or len(VOCABULARY)
    mask = (np.arange(64) < lengths).astype("int32")
    token_ids = rng.integers(5, vocabulary, (batch, 64)).astype("int32") * mask
    return {
        "images": make_images(rng, batch, size),
        "token_ids": token_ids,
        "padding_mask": mask,
    }


def outputs_of(model, inputs):
    """Run an `AlignModel` on inputs of ours."""
    with torch.no_grad():
        return model(
            pixel_values=torch.tensor(
                inputs["images"].transpose(0, 3, 1, 2).copy()
            ),
            input_ids=torch.tensor(inputs["token_ids"]).long(),
            attention_mask=torch.tensor(inputs["padding_mask"]).long(),
            return_loss=True,
        )
