"""Limit the size and the rate of a client's requests."""

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the web page's server.

    Args:
        upload_bytes: int. Maximum size of an uploaded image. Defaults to 20
            MiB.
        max_pixels: int. Maximum number of pixels of an uploaded image,
            checked before it is decoded. Defaults to 50 million.
        json_bytes: int. Maximum size of a query. Defaults to 64 KiB.
        text_length: int. Maximum number of characters in one text. Defaults
            to `1000`.
        parts: int. Maximum number of texts and images in one query. Defaults
            to `12`.
        labels: int. Maximum number of labels to compare an image with.
            Defaults to `1000`.
        results: int. Maximum number of results of one query. Defaults to
            `200`.
        rate: float. Requests per second from one address. A thumbnail counts
            as a fiftieth of a request, and each new prompt of a label adds a
            thirty-second. Defaults to `20.0`.
        burst: float. Requests at once after a pause, at least 1. Defaults to
            `60.0`.
        seconds: float. How long a request may take to arrive. Defaults to
            `30.0`.
        uploads: int. Number of received images that are processed at the same
            time; others wait. Defaults to `4`.
        held_bytes: int. Maximum size of all images that are arriving or
            waiting; beyond it, another image is refused. Defaults to 256 MiB.

    Raises:
        ValueError: a value is not positive, `burst` is less than 1, or
            `held_bytes` is less than `upload_bytes`.
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
                "`burst` must be 1 or more, because a request costs 1. "
                f"Received: burst={self.burst}"
            )


class RateLimit:
    """Limits the rate of requests with a token bucket for each address.

    Args:
        rate: float. Tokens added per second.
        burst: float. Tokens in a full bucket.
        addresses: int. Maximum number of buckets to keep. Defaults to `4096`.
        clock: callable that returns seconds. Defaults to `time.monotonic`.
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
        """Take tokens, or return how long to wait for them.

        Args:
            address: string.
            cost: float. If it exceeds a full bucket, it needs only a full
                bucket, and leaves a debt. Defaults to `1.0`.

        Returns:
            float. 0 if the tokens were taken, otherwise the seconds to wait.
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
    """A cache of the most recently used values.

    Args:
        size: int. The maximum number of values.
    """

    def __init__(self, size: int):
        self._size = size
        self._values: collections.OrderedDict = collections.OrderedDict()

    def get(self, key: Any) -> Any:
        """Return a value, or `None` if it is not in the cache."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Any, value: Any) -> None:
        """Add a value, and drop the least recently used one if full."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)
