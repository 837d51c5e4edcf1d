"""Time to import and to answer `--help`, each in a fresh process.

python benchmarks/start.py
"""

import statistics
import subprocess
import sys
import time

import tables
import turns

IMPORTS = {
    "Keras": "import keras",
    "Keras, then align_keras": "import keras, align_keras",
    "Keras, then KerasHub": "import keras, keras_hub",
    "Keras, KerasHub, then the model's class": (
        "import keras, keras_hub\nfrom align_keras import AlignDualEncoder"
    ),
}
ADDED = (
    ("`import align_keras`", "Keras, then align_keras", "Keras"),
    (
        "`from align_keras import AlignDualEncoder`",
        "Keras, KerasHub, then the model's class",
        "Keras, then KerasHub",
    ),
)
HELP = "`align-keras --help`"


def measure(rounds):
    """Run all in turns; return a dict from name to a list of seconds."""
    commands = {
        name: [sys.executable, "-c", code] for name, code in IMPORTS.items()
    }
    commands[HELP] = [sys.executable, "-m", "align_keras", "--help"]
    commands["Python alone"] = [sys.executable, "-c", ""]
    seconds = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(
                command,
                env=turns.quiet(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            # The first round fills the disk cache.
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main():
    args = tables.parser(__doc__).parse_args()
    seconds = measure(args.rounds)
    text = "| | seconds | spread |\n|---|---:|---:|\n"
    for name, values in seconds.items():
        text += (
            f"| {name} | {statistics.median(values):.2f} | "
            f"{100 * turns.spread(values):.0f} % |\n"
        )
    for name, whole, part in ADDED:
        pairs = zip(seconds[whole], seconds[part], strict=True)
        added = statistics.median(w - p for w, p in pairs)
        text += f"| **{name} adds** | **{added:.2f}** | |\n"
    tables.publish(args, "Fresh processes:", text, "start")


if __name__ == "__main__":
    main()
