"""Rate limit per client: token buckets for a bounded number of clients."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic


class TokenBuckets:
    """One bucket per client: ``burst`` tokens at first, then ``rate`` per second.

    A request takes one token.

    Args:
        rate: tokens per second.
        burst: capacity of a bucket.
        max_clients: number of buckets; the bucket of the client that is idle longest is dropped
            first, and a dropped client gets a full one when it returns.
        clock: returns seconds.
    """

    def __init__(
        self,
        *,
        rate: float,
        burst: int,
        max_clients: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._max_clients = max_clients
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __repr__(self) -> str:
        return (
            f"TokenBuckets(rate={self._rate}, burst={self._burst}, max_clients={self._max_clients})"
        )

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, client: str) -> int:
        """Take a token.

        Returns:
            0, or whole seconds until the next token if the bucket is empty.
        """
        now = self._clock()
        tokens, last = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - last) * self._rate)
        wait = 0 if tokens >= 1 else max(1, math.ceil((1 - tokens) / self._rate))
        self._buckets[client] = (tokens if wait else tokens - 1, now)
        if len(self._buckets) > self._max_clients:
            self._buckets.popitem(last=False)
        return wait
