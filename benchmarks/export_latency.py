"""Time to answer a request, from JPEG files to image vectors.

    python benchmarks/export_latency.py --case b0 --batch 1

Our SavedModel takes the bytes; beside it, Pillow and transformers' processor
prepare the same files for AlignModel, as its documentation shows.
"""

import io
import os
import tempfile

import networks
import numpy as np
import tables
import turns


def files(batch_size):
    """Encode smooth images of 640 x 480 pixels."""
    from PIL import Image

    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(batch_size):
        noise = rng.integers(0, 256, (12, 16, 3), "uint8")
        buffer = io.BytesIO()
        image = Image.fromarray(noise).resize((640, 480))
        image.save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def ours(case, batch_size):
    """Prepare a SavedModel."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    from align_keras import AlignImageConverter
    from align_keras import AlignPreprocessor
    from align_keras import AlignTokenizer
    from align_keras.serving import export_saved_model

    model = networks.keras_model(case)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    model.preprocessor = AlignPreprocessor(
        AlignTokenizer(words), AlignImageConverter(), sequence_length=64
    )
    with tempfile.TemporaryDirectory() as directory:
        export_saved_model(model, f"{directory}/export")
        loaded = tf.saved_model.load(f"{directory}/export")
    encode = loaded.signatures["encode_image"]
    images = tf.constant(files(batch_size))
    # The loaded object must outlive the calls of its function.
    return lambda: (loaded, encode(image_bytes=images)["embeddings"].numpy())


def theirs(case, batch_size):
    """Prepare transformers, compiled and with channels last."""
    import torch
    from PIL import Image
    from transformers import EfficientNetImageProcessor

    model = networks.torch_model(case, 289).eval()
    model.to(memory_format=torch.channels_last)
    encode = torch.compile(model.get_image_features)
    process = EfficientNetImageProcessor(
        size={"height": 346, "width": 346},
        crop_size={"height": 289, "width": 289},
        do_center_crop=True,
    )
    encoded = files(batch_size)

    def run():
        images = [Image.open(io.BytesIO(data)) for data in encoded]
        pixels = process(images, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(memory_format=torch.channels_last)
        with torch.inference_mode():
            return encode(pixel_values=pixels).pooler_output.numpy()

    return run


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--case", choices=networks.CASES, default="b0")
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    work = {"case": args.case, "batch_size": args.batch}
    sides = [
        turns.Side("our SavedModel", "export_latency:ours", work),
        turns.Side("transformers", "export_latency:theirs", work),
    ]
    times = turns.in_turns(sides, args.rounds, warm_up=2)
    tables.publish(
        args,
        f"{args.batch} JPEG of 640 x 480:",
        tables.HEAD + tables.rows(times, ["our SavedModel"]),
        f"export-{args.batch}",
    )


if __name__ == "__main__":
    main()
