"""Inference of both towers, compared with transformers' AlignModel.

    python benchmarks/towers.py --case b0 --batch 8

The sides take turns, each in its own process with the same number of threads,
and embed the same random images and token ids.
"""

import os

import networks
import numpy as np
import tables
import turns


def ours(backend, case, tower, batch_size, image_size):
    """Prepare a tower of align_keras, compiled as in the evaluations."""
    os.environ["KERAS_BACKEND"] = backend
    from keras import ops

    from align_keras import backend

    model = networks.keras_model(case)
    batch = networks.batch_of(batch_size, image_size)
    if tower == "image":
        function = model.encode_image
        inputs = ops.convert_to_tensor(batch["images"])
    else:
        function = model.encode_text
        inputs = {
            name: ops.convert_to_tensor(batch[name])
            for name in ("token_ids", "padding_mask")
        }
    encode = backend.compile_inference(model, function)
    return lambda: np.asarray(encode(inputs))


def theirs(form, case, tower, batch_size, image_size):
    """Prepare a tower of transformers."""
    import torch

    model = networks.torch_model(case, image_size).eval()
    batch = networks.torch_batch(batch_size, image_size)
    networks.set_layout(model, batch, "channels last" in form)
    if tower == "image":
        encode = model.get_image_features
        inputs = {"pixel_values": batch["pixel_values"]}
    else:
        encode = model.get_text_features
        inputs = {n: batch[n] for n in ("input_ids", "attention_mask")}
    if "compiled" in form:
        encode = torch.compile(encode)

    def run():
        with torch.inference_mode():
            return encode(**inputs).pooler_output.numpy()

    return run


FORMS = (
    "eager",
    "eager, channels last",
    "compiled",
    "compiled, channels last",
)


def sides(args, tower):
    work = {
        "case": args.case,
        "tower": tower,
        "batch_size": args.batch,
        "image_size": args.image_size,
    }
    for backend in args.backends:
        yield turns.Side(
            f"align_keras, {backend}",
            "towers:ours",
            {"backend": backend, **work},
        )
    for form in FORMS:
        if form in args.forms:
            yield turns.Side(
                f"transformers, {form}", "towers:theirs", {"form": form, **work}
            )


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--case", choices=networks.CASES, default="b0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=289)
    parser.add_argument("--towers", nargs="+", default=["image", "text"])
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "jax"])
    args = parser.parse_args()
    for tower in args.towers:
        times = turns.in_turns(list(sides(args, tower)), args.rounds)
        ours = [name for name in times[0] if name.startswith("align_keras")]
        tables.publish(
            args,
            f"{tower} tower, batch {args.batch} at {args.image_size}:",
            tables.HEAD + tables.rows(times, ours),
            f"{args.case}-{tower}-{args.batch}",
        )


if __name__ == "__main__":
    main()
