"""Run the shorter benchmarks one after the other and update RESULTS.md.

    python benchmarks/run_all.py --photos ../shared/data/photos

This takes about an hour on two cores. If a benchmark fails, because another
library is not installed or memory runs out, the script names it at the end and
leaves its table unchanged.
"""

import argparse
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import tables
import turns

PACKAGES = (
    "tensorflow",
    "keras",
    "jax",
    "torch",
    "transformers",
    "onnxruntime",
    "openvino",
    "pillow",
    "simplejpeg",
    "open_clip_torch",
    "polars",
)
# Processor features on which the speed of convolutions depends.
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")

COMMANDS = (
    "towers.py --case b0 --batch 8",
    "towers.py --case b7 --batch 8 --rounds 5",
    "towers.py --case b7 --batch 2 --rounds 5",
    "training_step.py --case b0 --batch 32 --rounds 3",
    "open_clip_step.py --rounds 3",
    "open_clip_step.py --rounds 3 --full",
    "runtimes.py --case b0 --batch 8",
    "runtimes.py --case b0 --batch 1",
    "runtimes.py --case b7 --batch 2 --runtimes openvino --precisions float32",
    "export_latency.py --batch 1",
    "export_latency.py --batch 8",
    "start.py",
    "growth.py --rounds 3",
    "stores.py --rounds 1",
    "checkpoints.py",
)
WITH_PHOTOS = (
    "input_pipeline.py --photos {photos}",
    "input_pipeline.py --photos {photos} --enlarge 3",
)


def machine():
    """Describe the machine and the packages of the measurements."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    present = set(fields.get("flags", "").split())
    memory = Path("/proc/meminfo").read_text().split()[1]
    versions = []
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        versions.append(f"{package} {version}")
    return (
        f"{turns.THREADS} cores of {fields.get('model name')} (family "
        f"{fields.get('cpu family')}, model {fields.get('model')}; "
        f"{', '.join(flag for flag in FLAGS if flag in present)}), "
        f"{round(int(memory) / 2**20)} GiB, Linux, Python "
        f"{platform.python_version()}.\n\n{', '.join(versions)}.\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", help="folder of photos and captions.csv")
    args = parser.parse_args()
    write = argparse.Namespace(write=True)
    tables.publish(write, "Measured on:", machine(), "machine")
    commands = list(COMMANDS)
    if args.photos:
        commands += [line.format(photos=args.photos) for line in WITH_PHOTOS]
    failed = []
    for command in commands:
        print(f"\n== {command}", flush=True)
        script, *arguments = command.split()
        script = str(Path(__file__).with_name(script))
        line = [sys.executable, script, *arguments, "--write"]
        if subprocess.run(line, check=False).returncode:
            failed.append(command)
    if failed:
        sys.exit(f"These failed, see above: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
