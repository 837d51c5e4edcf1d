"""What a client may ask for, and how often."""

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the web page.

    Args:
        upload_bytes: int. Size of a dropped image. Defaults to 20 MiB.
        max_pixels: int. Pixels of a dropped image, checked before it is
            decoded. Defaults to 50 million.
        json_bytes: int. Size of a query. Defaults to 64 KiB.
        text_length: int. Characters of one text. Defaults to `1000`.
        parts: int. Words and images of one query. Defaults to `12`.
        labels: int. Labels of one question. Defaults to `1000`.
        results: int. Results of one query. Defaults to `200`.
        rate: float. Requests per second from one address; thumbnails count a
            fiftieth, and each new prompt of a label a thirty-second more.
            Defaults to `20.0`.
        burst: float. Requests at once after a pause, one or more. Defaults to
            `60.0`.
        seconds: float. How long a request may take to arrive. Defaults to
            `30.0`.
        uploads: int. Images that are embedded at the same time; others wait,
            once they have arrived. Defaults to `4`.
        held_bytes: int. Bytes of all images that arrive or wait; when there
            are more, another image is refused. Defaults to 256 MiB.

    Raises:
        ValueError: one of them is not positive, `burst` is less than 1, or
            `held_bytes` less than `upload_bytes`.
    """

    upload_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    json_bytes: int = 64 * 2**10
    text_length: int = 1000
    parts: int = 12
    labels: int = 1000
    results: int = 200
    rate: float = 20.0
    burst: float = 60.0
    seconds: float = 30.0
    uploads: int = 4
    held_bytes: int = 256 * 2**20

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise ValueError(
                    f"`{name}` must be positive. Received: {name}={value}"
                )
        if self.held_bytes < self.upload_bytes:
            raise ValueError(
                "`held_bytes` must be at least `upload_bytes`, the size of one "
                f"image. Received: held_bytes={self.held_bytes}, "
                f"upload_bytes={self.upload_bytes}"
            )
        if self.burst < 1:
            raise ValueError(
                "`burst` must be 1 or more, for a request costs 1. Received: "
                f"burst={self.burst}"
            )


class RateLimit:
    """A bucket of tokens for each address, which fills up steadily.

    Args:
        rate: float. Tokens per second.
        burst: float. Tokens that a full bucket holds.
        addresses: int. Buckets that are remembered. Defaults to `4096`.
        clock: callable that gives seconds. Defaults to `time.monotonic`.
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        addresses: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._rate, self._burst = rate, burst
        self._addresses, self._clock = addresses, clock
        self._buckets: collections.OrderedDict = collections.OrderedDict()

    def take(self, address: str, cost: float = 1.0) -> float:
        """Take tokens, or tell that there are too few.

        Args:
            address: string.
            cost: float. One that is more than a full bucket takes it all,
                and leaves a debt. Defaults to `1.0`.

        Returns:
            float. 0 where they were taken, else the seconds to wait.
        """
        now = self._clock()
        tokens, then = self._buckets.pop(address, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        wait = 0.0
        needed = min(cost, self._burst)
        if tokens >= needed:
            tokens -= cost
        else:
            wait = (needed - tokens) / self._rate
        self._buckets[address] = tokens, now
        if len(self._buckets) > self._addresses:
            self._buckets.popitem(last=False)
        return wait


class Memory:
    """The values that were used last, up to a number.

    Args:
        size: int.
    """

    def __init__(self, size: int):
        self._size = size
        self._values: collections.OrderedDict = collections.OrderedDict()

    def get(self, key: Any) -> Any:
        """Return a value, or `None` where it is not there any more."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Any, value: Any) -> None:
        """Remember a value."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)
