"""Work that goes on beside what the process does."""

import concurrent.futures
from collections.abc import Callable


class Background:
    """Does one job after the other in a thread of its own.

    After a job that has failed none is done, until `check` or `wait` has
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
        # Python waits for its thread before it ends.
        self._executor = concurrent.futures.ThreadPoolExecutor(1)
        self._last: concurrent.futures.Future | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Let a job be done after those that were started before."""
        before = self._last

        def run():
            if before is not None:
                before.result()
            job()

        self._last = self._executor.submit(run)

    def check(self) -> None:
        """Raise the error of a job that has failed, and do not wait."""
        if self._last is not None and self._last.done():
            self.wait()

    def finish(self, seconds: float) -> None:
        """Wait until all jobs are done, or for some time, and raise nothing."""
        if self._last is not None:
            concurrent.futures.wait([self._last], seconds)

    def wait(self) -> None:
        """Wait until all jobs are done, and raise the error of one."""
        last = self._last
        if last is None:
            return
        try:
            last.result()
        finally:
            # A signal may interrupt the wait, and wait itself.
            if last.done() and self._last is last:
                self._last = None
