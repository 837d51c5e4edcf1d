"""Both towers in other runtimes, from our exports and from transformers.

    python benchmarks/runtimes.py --case b0 --batch 8
    python benchmarks/runtimes.py --case b7 --batch 2 --runtimes openvino \
        --precisions float32

ONNX Runtime and OpenVINO run what `align-keras export` writes, in float32 and
in 8 bits, and the same network converted from transformers, beside that network
on PyTorch. The sides take turns, each in its own process with the same number
of threads. To convert B7 to ONNX takes more than 10 GiB.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import networks
import numpy as np
import tables
import turns

RUNTIMES = {"onnx": ("ONNX Runtime", "onnx"), "openvino": ("OpenVINO", "xml")}
# Images and texts that set the ranges of the integers; only speed is measured.
CALIBRATION = 32


def run(path, tower, batch_size, image_size):
    """Prepare a file for the runtime of its suffix."""
    batch = networks.batch_of(batch_size, image_size)
    if tower == "image":
        inputs = {"images": batch["images"]}
    else:
        inputs = {name: batch[name] for name in ("token_ids", "padding_mask")}
    if path.endswith(".onnx"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = networks.THREADS
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_inputs()]
        inputs = _as_asked(inputs, names)
        return lambda: session.run(None, inputs)[0]
    import openvino

    model = openvino.Core().compile_model(
        path,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": networks.THREADS,
        },
    )
    inputs = _as_asked(inputs, [port.any_name for port in model.inputs])
    return lambda: model(inputs)[0]


def _as_asked(inputs, names):
    """Rename and reshape the inputs for a network of transformers."""
    if set(names) <= set(inputs):
        return inputs
    if "pixel_values" in names:
        images = np.moveaxis(inputs["images"], -1, 1)
        return {"pixel_values": np.ascontiguousarray(images)}
    return {
        "input_ids": inputs["token_ids"].astype("int64"),
        "attention_mask": inputs["padding_mask"].astype("int64"),
    }


def write_ours(args):
    """Export our towers."""
    from align_keras import AlignImageConverter
    from align_keras import AlignPreprocessor
    from align_keras import AlignTokenizer
    from align_keras.evaluation.datasets import DataSet
    from align_keras.serving import export_quantized_towers
    from align_keras.serving import export_towers

    folder, image_size = args.folder, args.image_size
    model = networks.keras_model(args.case)
    model.preprocessor = AlignPreprocessor(
        AlignTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
        AlignImageConverter(image_size),
        sequence_length=networks.TOKENS,
    )
    rng = np.random.default_rng(0)
    shape = (image_size, image_size, 3)
    data = DataSet(
        "random",
        lambda: (
            (str(n), rng.integers(0, 256, shape, "uint8"), ["a " * n])
            for n in range(CALIBRATION)
        ),
    )
    for form in args.runtimes:
        path = folder / f"float32-{form}"
        export_towers(model, path, form)
        if "int8" in args.precisions:
            path = folder / f"int8-{form}"
            export_quantized_towers(model, path, form, data)


def write_theirs(args):
    """Convert the towers of transformers with PyTorch and OpenVINO."""
    import openvino
    import torch

    model = networks.torch_model(args.case, args.image_size).eval()
    # Its average over 320 x 320 places, of which 9 x 9 exist, does not convert.
    model.vision_model.pooler = torch.nn.AdaptiveAvgPool2d(1)
    batch = networks.torch_batch(2, args.image_size)

    class Tower(torch.nn.Module):
        def __init__(self, names):
            super().__init__()
            self.model, self.names = model, names

        def forward(self, *values):
            encode = (
                self.model.get_image_features
                if len(self.names) == 1
                else self.model.get_text_features
            )
            inputs = dict(zip(self.names, values, strict=True))
            return encode(**inputs).pooler_output

    for tower, names in (
        ("image", ["pixel_values"]),
        ("text", ["input_ids", "attention_mask"]),
    ):
        values = tuple(batch[name] for name in names)
        network = Tower(names).eval()
        path = args.folder / f"theirs-{tower}"
        if "onnx" in args.runtimes:
            torch.onnx.export(
                network,
                values,
                path.with_suffix(".onnx"),
                input_names=names,
                output_names=["embeddings"],
                dynamic_axes={name: {0: "batch"} for name in names},
                opset_version=18,
                dynamo=False,
            )
        if "openvino" in args.runtimes:
            graph = openvino.convert_model(network, example_input=values)
            for port, name in zip(graph.inputs, names, strict=True):
                port.get_tensor().set_names({name})
            openvino.save_model(
                graph, path.with_suffix(".xml"), compress_to_fp16=False
            )


def sides(args, tower, folder):
    shared = {
        "tower": tower,
        "batch_size": args.batch,
        "image_size": args.image_size,
    }
    ours = {"backend": "tensorflow", "case": args.case, **shared}
    yield turns.Side("align_keras, TensorFlow", "towers:ours", ours)
    for precision in args.precisions:
        for form in args.runtimes:
            runtime, suffix = RUNTIMES[form]
            name = f"{tower}_encoder.{suffix}"
            path = folder / f"{precision}-{form}" / name
            bits = " in 8 bits" if precision == "int8" else ""
            yield turns.Side(
                f"align_keras{bits}, {runtime}",
                "runtimes:run",
                {"path": str(path), **shared},
            )
    for form in args.runtimes:
        runtime, suffix = RUNTIMES[form]
        path = folder / f"theirs-{tower}.{suffix}"
        yield turns.Side(
            f"transformers, {runtime}",
            "runtimes:run",
            {"path": str(path), **shared},
        )
    for form in ("eager, channels last", "compiled, channels last"):
        theirs = {"form": form, "case": args.case, **shared}
        yield turns.Side(f"transformers, {form}", "towers:theirs", theirs)


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--case", choices=networks.CASES, default="b0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=289)
    parser.add_argument("--towers", nargs="+", default=["image", "text"])
    parser.add_argument(
        "--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES
    )
    precisions = ["float32", "int8"]
    parser.add_argument(
        "--precisions", nargs="+", default=precisions, choices=precisions
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        write_ours(args)
        write_theirs(args)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # In a process of its own, which returns the memory.
        subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--folder", scratch],
            check=True,
        )
        for tower in args.towers:
            times = turns.in_turns(
                list(sides(args, tower, folder)), args.rounds
            )
            ours = [name for name in times[0] if name.startswith("align_keras")]
            exact = [name for name in ours if "8 bits" not in name]
            tables.publish(
                args,
                f"{tower} tower, batch {args.batch} at {args.image_size}:",
                tables.HEAD + tables.rows(times, ours, against=exact),
                f"runtimes-{args.case}-{tower}-{args.batch}",
            )


if __name__ == "__main__":
    main()
