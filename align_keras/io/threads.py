"""Work ahead of its consumer, in threads."""

import collections
import concurrent.futures
import itertools
import os


def map_ahead(function, items, workers=None):
    """Yield `function(item)` in order, working ahead in threads.

    Args:
        function: callable of one item.
        items: iterable. Read only as far ahead as the threads need.
        workers: int. Number of threads. Defaults to `None`, the number of
            cores.

    Yields:
        The results, in the order of `items`.
    """
    workers = workers or os.cpu_count()
    items = iter(items)
    pending = collections.deque()
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
