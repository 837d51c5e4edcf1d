"""Progress of long work, on the standard error stream."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import SpinnerColumn
from rich.progress import TaskID
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.progress import TimeRemainingColumn

# Beside a bar stands how much is left; a step of unknown length has a spinner.
_BAR = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
)
_STEPS = (
    SpinnerColumn(finished_text="✓"),
    TextColumn("{task.description}"),
    TimeElapsedColumn(),
)


@contextlib.contextmanager
def progress_bar(
    description: str, total: int | None = None, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Show how much of some work is done.

    Args:
        description: string. What is being done, such as `"Packing"`.
        total: int or `None`. How much there is to do; `None` if unknown.
        shown: bool. Whether anything is drawn. Defaults to `True`.

    Yields:
        A callable that takes how many more are done, by default 1, and, if
        wanted, another description.

    Example:

    ```python
    with progress_bar("Embedding images", len(images)) as advance:
        for image in images:
            embed(image)
            advance()
    ```
    """
    console = Console(stderr=True)
    with Progress(*_BAR, console=console, disable=not shown) as bar:
        task = bar.add_task(description, total=total)

        def advance(count=1, description=None):
            bar.update(task, advance=count, description=description)

        yield advance


@contextlib.contextmanager
def progress_steps(shown: bool = True) -> Iterator[Callable[..., None]]:
    """Show which step of a job is running, and how long each one took.

    Args:
        shown: bool. Whether anything is drawn. Defaults to `True`.

    Yields:
        A callable that takes the name of the step that begins, which ends
        the step before, or, with `update=True`, another name for it.
    """
    console = Console(stderr=True)
    with Progress(*_STEPS, console=console, disable=not shown) as bar:
        tasks: list[TaskID] = []

        def step(name, update=False):
            if tasks and update:
                bar.update(tasks[-1], description=name)
                return
            for task in tasks[-1:]:
                bar.update(task, total=1, completed=1)
            tasks.append(bar.add_task(name, total=None))

        yield step
        for task in tasks[-1:]:
            bar.update(task, total=1, completed=1)
