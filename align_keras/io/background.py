"""Run jobs in the background."""

import concurrent.futures
from collections.abc import Callable


class Background:
    """Runs one job after the other in a separate thread.

    After a job has failed, no more jobs are run until `check` or `wait` has
    raised its error.

    Example:

    ```python
    background = Background()
    background.start(lambda: write(snapshot))
    train_on()
    background.wait()
    ```
    """

    def __init__(self):
        # Python waits for this thread before it exits.
        self._executor = concurrent.futures.ThreadPoolExecutor(1)
        self._last: concurrent.futures.Future | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Start a job, which runs after those started before."""
        before = self._last

        def run():
            if before is not None:
                before.result()
            job()

        self._last = self._executor.submit(run)

    def check(self) -> None:
        """Raise the error of a failed job, without waiting."""
        if self._last is not None and self._last.done():
            self.wait()

    def finish(self, seconds: float) -> None:
        """Wait for all jobs for a limited time, without raising errors."""
        if self._last is not None:
            concurrent.futures.wait([self._last], seconds)

    def wait(self) -> None:
        """Wait until all jobs are done, and raise the error of a failed one."""
        last = self._last
        if last is None:
            return
        try:
            last.result()
        finally:
            # A signal handler may interrupt this wait, and call `wait` itself.
            if last.done() and self._last is last:
                self._last = None
