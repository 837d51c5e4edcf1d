"""Save plots as PNG files without a display."""

from align_keras.io.atomic import atomic_file
from align_keras.io.optional import require


def pyplot(extra):
    """Import `matplotlib.pyplot` for drawing into files.

    Args:
        extra: string. The extra of this package that installs matplotlib.

    Returns:
        The module.

    Raises:
        ImportError: matplotlib is not installed. The message names the extra.
    """
    require("matplotlib", extra).use("Agg")
    return require("matplotlib.pyplot", extra)


def save_plot(plt, figure, path, dpi=120):
    """Write a figure atomically as a PNG file, and close it.

    Args:
        plt: module. The return value of `pyplot`.
        figure: `matplotlib.figure.Figure`.
        path: string or `pathlib.Path`.
        dpi: int. Pixels per inch. Defaults to `120`.
    """
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
    plt.close(figure)
