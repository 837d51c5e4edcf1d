import keras

from align_keras.models.efficientnet_backbone import EfficientNetBackbone


@keras.saving.register_keras_serializable(package="align_keras")
class EfficientNetL2Backbone(EfficientNetBackbone):
    """EfficientNet-L2, the image encoder of the largest ALIGN model.

    An `EfficientNetBackbone` with the coefficients of L2: 88 blocks, 467
    million trainable parameters, and 1376 channels in its last feature map.

    Args:
        width_coefficient: float. Defaults to `4.3`.
        depth_coefficient: float. Defaults to `5.3`.
        **kwargs: Arguments of `EfficientNetBackbone`.

    Example:

    ```python
    model = AlignDualEncoder(
        image_encoder=EfficientNetL2Backbone(),
        text_encoder=BertTextEncoder.from_preset("bert_large"),
    )
    ```

    Reference:
        - [Xie et al., 2020](https://arxiv.org/abs/1911.04252)
        - [Jia et al., 2021](https://arxiv.org/abs/2102.05918), section 5.
    """

    def __init__(self, width_coefficient=4.3, depth_coefficient=5.3, **kwargs):
        super().__init__(
            width_coefficient=width_coefficient,
            depth_coefficient=depth_coefficient,
            **kwargs,
        )
