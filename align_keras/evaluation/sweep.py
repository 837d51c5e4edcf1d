"""Measure weighted averages of two models, from one to the other."""

import logging

from keras import ops

from align_keras.evaluation.datasets import captioned
from align_keras.evaluation.results import plain
from align_keras.evaluation.retrieval import measure_retrieval
from align_keras.io.json_files import write_json
from align_keras.io.mirrors import locked
from align_keras.io.paths import local_path
from align_keras.io.plots import pyplot
from align_keras.io.plots import save_plot
from align_keras.training.averaging import average
from align_keras.training.averaging import mix_weights

logger = logging.getLogger("align_keras")

WEIGHTS = tuple(number / 10 for number in range(11))


@locked("directory")
def sweep(
    first,
    second,
    old_data,
    new_data,
    directory,
    weights=WEIGHTS,
    batch_size=64,
    samples=1000,
    allow_outside=False,
):
    """Measure averages of two models on the old and on the new task.

    Writes `sweep.json` and, if matplotlib is installed, `sweep.png`, which
    plots the two recalls against each other.

    Args:
        first: string. The model before fine-tuning, see `average`.
        second: string. The model after fine-tuning.
        old_data: string. TFRecord files of the task that `first` can do.
        new_data: string. TFRecord files of the task that `second` was trained
            for.
        directory: string or `pathlib.Path`. The directory to write.
        weights: sequence of floats from 0 to 1. Shares of the second model.
            Defaults to tenths.
        batch_size: int. Images per call of the network. Defaults to `64`.
        samples: int. Resamples for the intervals. Defaults to `1000`.
        allow_outside: bool. Whether links may lead out of a folder of data.
            Defaults to `False`.

    Returns:
        A list of dicts, one for each weight, with `"weight"`, `"old"` and
        `"new"`; the last two are results of `measure_retrieval`.

    Raises:
        ValueError: The models cannot be averaged.
        FileNotFoundError: The data do not exist.
    """
    weights = [float(weight) for weight in weights]
    ends = [average(first, second, end) for end in (0.0, 1.0)]
    values = [
        [ops.convert_to_numpy(weight) for weight in end.weights] for end in ends
    ]
    model = ends[1]
    tasks = {
        task: captioned(data, allow_outside=allow_outside)
        for task, data in (("old", old_data), ("new", new_data))
    }
    rows = []
    for weight in weights:
        mix_weights(*values, weight, model)
        row = {"weight": weight}
        for task, data in tasks.items():
            row[task] = measure_retrieval(
                model,
                data,
                batch_size=batch_size,
                progress=False,
                samples=samples,
            )
        logger.info(
            "weight %.2f: mean recall %.1f%% on the old task, %.1f%% on the "
            "new one",
            weight,
            100 * row["old"]["mean_recall"],
            100 * row["new"]["mean_recall"],
        )
        rows.append(row)
    directory = local_path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "sweep.json", plain(rows))
    try:
        plot_sweep(rows, directory / "sweep.png")
    except ImportError as error:
        logger.warning("There is no plot: %s", error)
    return rows


def plot_sweep(rows, path):
    """Plot the recall on the new task against that on the old task.

    Args:
        rows: list of dicts. What `sweep` returned.
        path: string or `pathlib.Path`. The PNG to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    plt = pyplot("evaluation")
    figure, axes = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    points = {
        task: [100 * row[task]["mean_recall"] for row in rows]
        for task in ("old", "new")
    }
    spans = {
        task: [
            [
                abs(100 * row[task]["intervals"]["mean_recall"][end] - value)
                if "intervals" in row[task]
                else 0.0
                for row, value in zip(rows, values, strict=True)
            ]
            for end in (0, 1)
        ]
        for task, values in points.items()
    }
    axes.errorbar(
        points["old"],
        points["new"],
        xerr=spans["old"],
        yerr=spans["new"],
        fmt="o-",
        elinewidth=0.6,
    )
    for row, x, y in zip(rows, points["old"], points["new"], strict=True):
        axes.annotate(
            f"{row['weight']:g}",
            (x, y),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize="small",
        )
    axes.set_xlabel("mean recall on the old task, %")
    axes.set_ylabel("mean recall on the new task, %")
    save_plot(plt, figure, path, dpi=150)
