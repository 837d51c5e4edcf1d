"""Show the progress of long jobs on standard error."""

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

# A bar shows the remaining time; a step of unknown length has a spinner.
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
    """Show a progress bar.

    Args:
        description: string. The name of the job, such as `"Packing"`.
        total: int or `None`. The total number of items, or `None` if unknown.
            Defaults to `None`.
        shown: bool. Whether to show the bar. Defaults to `True`.

    Yields:
        A callable. Takes how many more items are done, by default 1, and
        optionally a new description.

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
        shown: bool. Whether to show the steps. Defaults to `True`.

    Yields:
        A callable. Takes the name of the next step, and marks the previous one
        as finished. With `update=True`, it renames the current step instead.
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
