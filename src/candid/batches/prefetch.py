"""Prefetching: results computed in advance by threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(make: Callable[[int], T], steps: range, num_workers: int) -> Iterator[T]:
    """Yield ``make(step)`` in order, computed in advance by threads, up to two per worker.

    An error in a worker is raised at its step. Leaving the loop early stops the workers.

    Args:
        make: function of a step, called in any thread.
        steps: the steps, in order.
        num_workers: number of threads; 0 computes each result when it is requested.
    """
    if num_workers == 0:
        yield from map(make, steps)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="candid-loader")
    try:
        waiting: deque[Future[T]] = deque()
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
