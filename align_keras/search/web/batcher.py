"""Combine concurrent requests into few calls of a function on lists."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any


class Batcher:
    """Calls `function` in its own thread with a batch of waiting items.

    While one call runs, requests collect for the next one. So batches grow
    with the load, and a single request does not wait.

    Args:
        function: callable. Takes a list of at most `limit` items, and returns
            a result for each. A result that is an exception is raised.
        limit: int. Maximum number of items in one call. Defaults to `32`.
        waiting: int. Maximum number of waiting requests; more are refused.
            Defaults to `1024`.
    """

    def __init__(
        self,
        function: Callable[[list], Any],
        limit: int = 32,
        waiting: int = 1024,
    ):
        self._function = function
        self._limit = limit
        self._most = waiting
        self._items: list[tuple] = []
        self._running = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    async def __call__(self, item: Any) -> Any:
        """Return the function's result for one item.

        Raises:
            Overloaded: too many requests are waiting already.
        """
        if len(self._items) >= self._most:
            raise Overloaded("Too many requests are waiting; try again.")
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._items.append((item, future))
        if not self._running:
            self._running = True
            loop.create_task(self._run(loop))
        return await future

    async def _run(self, loop):
        try:
            while self._items:
                batch = self._items[: self._limit]
                del self._items[: self._limit]
                items = [item for item, _ in batch]
                try:
                    results = await loop.run_in_executor(
                        self._thread, self._function, items
                    )
                except Exception as error:
                    results = [error] * len(batch)
                for (_, future), result in zip(batch, results, strict=True):
                    _answer(future, result)
        finally:
            self._running = False

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Overloaded(RuntimeError):
    """More requests than can be answered in time."""


def _answer(future, result):
    # The client may have disconnected meanwhile.
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
