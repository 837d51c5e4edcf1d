"""Map the layers of other EfficientNets to those of our backbone."""

from align_keras.interop.links import torch_links
from align_keras.interop.links import torch_pointwise_links
from align_keras.models import presets
from align_keras.models.efficientnet_backbone import block_specs

# The layers of a block that have weights, in the order in which they run.
PARTS = (
    "expand_conv",
    "expand_bn",
    "depthwise_conv",
    "depthwise_bn",
    "squeeze_reduce",
    "squeeze_expand",
    "project_conv",
    "project_bn",
)


def parts(block):
    """Return the layers of an `MBConvBlock` that have weights, by name."""
    return {
        name: getattr(block, name) for name in PARTS if hasattr(block, name)
    }


def torch_efficientnet_links(backbone, stem, names):
    """Link a backbone with the tensors of a PyTorch EfficientNet.

    Args:
        backbone: `EfficientNetBackbone`.
        stem: pair of strings. The names of the stem's convolution and
            normalisation.
        names: callable. Takes the index of a block and the block, and returns
            a dict from the name of a part to the name of its module.

    Returns:
        A dict from the name of a tensor to its `Link`.
    """
    links = torch_links(stem[0], backbone.stem_conv)
    links |= torch_links(stem[1], backbone.stem_bn)
    for index, block in enumerate(backbone.blocks):
        modules = names(index, block)
        for part, layer in parts(block).items():
            pointwise = part in ("squeeze_reduce", "squeeze_expand")
            link = torch_pointwise_links if pointwise else torch_links
            links |= link(modules[part], layer)
    return links


def coefficients(size):
    """Return the width and depth coefficients of a size from b0 to b7 or l2.

    Raises:
        ValueError: There is no such size.
    """
    name = f"efficientnet_{size}"
    if not presets.is_shipped(name):
        raise ValueError(
            "The sizes of EfficientNet are b0 to b7 and l2. "
            f"Received: {size!r}."
        )
    config = presets.load_config(name)["config"]
    return config["width_coefficient"], config["depth_coefficient"]


def find_coefficients(repeats, filters):
    """Find the size of an EfficientNet by its stages.

    Args:
        repeats: list of int. Number of blocks in each stage.
        filters: list of int. Number of output channels of each stage.

    Returns:
        The width and depth coefficients of that size.

    Raises:
        ValueError: No size has such stages.
    """
    for size in (*(f"b{i}" for i in range(8)), "l2"):
        stages = {}
        for spec in block_specs(*coefficients(size)):
            stage = spec["name"].partition("_")[0]
            stages.setdefault(stage, []).append(spec["output_filters"])
        sizes = [len(stage) for stage in stages.values()]
        widths = [stage[0] for stage in stages.values()]
        if (sizes, widths) == (list(repeats), list(filters)):
            return coefficients(size)
    raise ValueError(
        "No EfficientNet from B0 to B7 or L2 has such stages. Received: "
        f"blocks={list(repeats)}, channels={list(filters)}."
    )
