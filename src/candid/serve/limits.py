"""How often one client may ask: token buckets, and memory for so many clients at most."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic


class TokenBuckets:
    """One bucket a client: ``burst`` tokens at first, ``rate`` more a second, one a request.

    Args:
        rate: tokens a second.
        burst: tokens that a bucket holds.
        max_clients: buckets kept; that of whoever asked longest ago goes first, and a client
            that comes back finds a full one.
        clock: seconds.
    """

    def __init__(
        self,
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

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, client: str) -> int:
        """Take a token.

        Returns:
            0, or where there is none the whole seconds until there will be one.
        """
        now = self._clock()
        tokens, then = self._buckets.pop(client, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - then) * self._rate)
        wait = 0 if tokens >= 1 else max(1, math.ceil((1 - tokens) / self._rate))
        self._buckets[client] = (tokens if wait else tokens - 1, now)
        if len(self._buckets) > self._max_clients:
            self._buckets.popitem(last=False)
        return wait
