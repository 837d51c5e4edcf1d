"""Map functions over items in threads, ahead of the consumer."""

import collections
import concurrent.futures
import itertools
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` in order, working ahead in threads.

    Args:
        function: callable. Takes an item.
        items: iterable. Read only as far ahead as the threads need.
        workers: int. The number of threads. Defaults to `None`, the number of
            cores.

    Yields:
        The results, in the order of `items`.
    """
    workers = workers or os.cpu_count() or 1
    items = iter(items)
    pending: collections.deque = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            for item in itertools.islice(items, 4 * workers):
                pending.append(pool.submit(function, item))
            while pending:
                result = pending.popleft().result()
                for item in itertools.islice(items, 1):
                    pending.append(pool.submit(function, item))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
