"""KerasHub's own harness, on our backbones and preprocessing."""

import keras
import numpy as np
import pytest

pytest.importorskip("grain", reason="KerasHub's harness runs Grain pipelines")

from keras_hub.src.tests.test_case import TestCase

from align_keras import AlignDualEncoder
from align_keras import AlignImageConverter
from align_keras import AlignPreprocessor
from align_keras import AlignTokenizer
from align_keras import BertTextEncoder
from align_keras import EfficientNetBackbone

if keras.config.backend() == "torch":
    pytest.skip("runs graphs of TensorFlow", allow_module_level=True)

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] a red bus ##es dog".split()
TEXTS = ["a red bus", "dog"]
rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (2, 12, 10, 3)).astype("uint8")


class Harness(TestCase):
    # Their tests take the arguments from here once more.
    init_kwargs: dict = {}

    def assertAllClose(self, x1, x2, atol=1e-5, rtol=1e-5, msg=None):
        # JAX resizes with NumPy, which differs by 4e-6.
        super().assertAllClose(x1, x2, atol=atol, rtol=rtol, msg=msg)


class TestBackbones(Harness):
    def test_efficientnet_backbone(self):
        images = rng.uniform(-1, 1, (2, 32, 32, 3)).astype("float32")
        self.run_vision_backbone_test(
            cls=EfficientNetBackbone,
            init_kwargs={
                "width_coefficient": 0.2,
                "depth_coefficient": 0.2,
                "image_shape": (32, 32, 3),
            },
            input_data=keras.ops.convert_to_tensor(images),
            expected_output_shape=(2, 1, 1, 64),
            expected_pyramid_output_keys=["P1", "P2", "P3", "P4", "P5"],
            expected_pyramid_image_sizes=[(s, s) for s in (16, 8, 4, 2, 1)],
            # In bfloat16, moving statistics stay float32, or would stand still.
            run_mixed_precision_check=False,
            # Its layout is an argument, whatever Keras' own default is.
            run_data_format_check=False,
        )

    def test_bert_text_encoder(self):
        self.run_backbone_test(
            cls=BertTextEncoder,
            init_kwargs={
                "vocabulary_size": 10,
                "num_layers": 1,
                "num_heads": 2,
                "hidden_dim": 8,
                "intermediate_dim": 16,
            },
            input_data={
                "token_ids": np.ones((2, 5), "int32"),
                "padding_mask": np.ones((2, 5), "int32"),
            },
            expected_output_shape={
                "sequence_output": (2, 5, 8),
                "pooled_output": (2, 8),
            },
        )

    def test_align_dual_encoder(self):
        images = keras.Input((8, 8, 3), name="images")
        features = keras.layers.Conv2D(6, 3)(images)
        self.run_backbone_test(
            cls=AlignDualEncoder,
            init_kwargs={
                "image_encoder": keras.Model(images, features),
                "text_encoder": BertTextEncoder(10, 1, 2, 8, 16),
            },
            input_data={
                "images": rng.uniform(-1, 1, (2, 8, 8, 3)).astype("float32"),
                "token_ids": np.ones((2, 5), "int32"),
                "padding_mask": np.ones((2, 5), "int32"),
            },
            expected_output_shape={
                "image_embeddings": (2, 6),
                "text_embeddings": (2, 6),
            },
            # Embeddings are float32 by contract, and encoders come built.
            run_mixed_precision_check=False,
            run_quantization_check=False,
        )


class TestPreprocessing(Harness):
    def test_tokenizer(self):
        self.run_preprocessing_layer_test(
            cls=AlignTokenizer,
            init_kwargs={"vocabulary": VOCABULARY},
            input_data=TEXTS,
            expected_output=[[5, 6, 7], [9]],
        )

    def test_image_converter(self):
        self.run_preprocessing_layer_test(
            cls=AlignImageConverter,
            init_kwargs={"image_size": 8},
            input_data=PIXELS,
        )

    def test_preprocessor(self):
        self.init_kwargs = {
            "tokenizer": AlignTokenizer(VOCABULARY),
            "image_converter": AlignImageConverter(image_size=8),
            "sequence_length": 6,
        }
        output = self.run_preprocessor_test(
            cls=AlignPreprocessor,
            init_kwargs=self.init_kwargs,
            input_data={"images": PIXELS, "texts": TEXTS},
        )
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(output["token_ids"]),
            [[2, 5, 6, 7, 3, 0], [2, 9, 3, 0, 0, 0]],
        )

    def test_preprocessor_with_weights(self):
        self.init_kwargs = {
            "tokenizer": AlignTokenizer(VOCABULARY),
            "image_converter": AlignImageConverter(image_size=8),
            "sequence_length": 6,
        }
        self.run_preprocessor_test(
            cls=AlignPreprocessor,
            init_kwargs=self.init_kwargs,
            input_data=(
                {"images": PIXELS, "texts": TEXTS},
                np.array([0, 1]),
                np.array([1.0, 2.0]),
            ),
        )
