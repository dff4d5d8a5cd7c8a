"""Dynamic batching: requests that wait at the same time run together.

A batch that is expected to take a few milliseconds runs on the event loop, after all requests that
have arrived are read. A model of hundreds of small operations releases the interpreter lock at each
of them, and contention for the lock with the thread that reads requests would cost more than the
work itself. Longer batches run in one thread per queue, and the event loop stays free. In the
thread a single request waits for others until ``wait`` seconds after its arrival; the time of the
previous batch counts.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from time import monotonic
from typing import Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from candid.serve.errors import RequestError
from candid.serve.metrics import Metrics

GroupT = TypeVar("GroupT")
RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")

RETRY_AFTER: Final = 1
"""Seconds after which a refused client may retry."""
PLANNED_SHARE: Final = 0.5
"""Share of the timeout that a request may be expected to wait."""
MEAN_WEIGHT: Final = 0.1
"""Weight of the last batch in the mean seconds per request."""
DECAY: Final = 0.02
"""Weight of the last batch in the cost of a group, for batches cheaper than estimated."""
LOOP_ROUNDS: Final = 2
"""Rounds of the event loop from the arrival of a request to its submission: a batch waits for as
many rounds, so that it gets all requests that have arrived."""


class _CostEstimates:
    """Upper estimates of the seconds per request of each group.

    An estimate rises at once and decays slowly, so that a group with occasional slow batches does
    not block the event loop. A group without a measured batch counts as infinitely slow.
    """

    def __init__(self) -> None:
        self._seconds: WeakKeyDictionary[object, float] = WeakKeyDictionary()

    def total(self, groups: Iterable[object]) -> float:
        """Return the expected seconds of requests of these groups."""
        return sum(self._seconds.get(group, math.inf) for group in groups)

    def update(self, group: object, seconds_each: float) -> None:
        """Add the measured seconds per request of one batch."""
        before = self._seconds.get(group, 0.0)
        decayed = before + DECAY * (seconds_each - before)
        self._seconds[group] = max(seconds_each, decayed)


class _Job(Generic[GroupT, RequestT, ResultT]):
    """One request in the queue, and the future of its result."""

    __slots__ = ("deadline", "future", "group", "loop", "request", "since")

    def __init__(
        self,
        request: RequestT,
        group: GroupT,
        loop: asyncio.AbstractEventLoop,
        since: float,
        deadline: float,
    ) -> None:
        self.request = request
        self.group = group
        self.loop = loop
        self.future: asyncio.Future[ResultT] = loop.create_future()
        self.since = since
        self.deadline = deadline


class BatchQueue(Generic[GroupT, RequestT, ResultT]):
    """A bounded queue whose requests run in batches, on the event loop or in a thread.

    Args:
        name: label of the metrics.
        run: runs a batch of one group: (group, requests) -> results, in the same order.
        group_of: group of a request. Only requests of one group run together, and the cost of a
            request is estimated per group. Groups are hashable and weakly referenceable.
        on_error: result of a request whose run raised this error.
        batch_size: requests of a batch.
        wait: seconds that the first request of a batch waits for others.
        max_waiting: requests in the queue; more are refused.
        timeout: seconds after which a request fails.
        quick: seconds; batches expected to take less run on the event loop.
        metrics: of the server.
        on_thread_start: called once in the thread of the queue.

    Example:
        >>> queue = BatchQueue(
        ...     "numbers",
        ...     lambda group, numbers: [2 * number for number in numbers],
        ...     group_of=type,
        ...     on_error=lambda error: error,
        ...     batch_size=8, wait=0.001, max_waiting=100, timeout=1.0, quick=0.02,
        ...     metrics=Metrics(),
        ... )
        >>> asyncio.run(queue.submit([1, 2]))
        [2, 4]
        >>> queue.close()
    """

    def __init__(
        self,
        name: str,
        run: Callable[[GroupT, list[RequestT]], Sequence[ResultT]],
        *,
        group_of: Callable[[RequestT], GroupT],
        on_error: Callable[[BaseException], ResultT],
        batch_size: int,
        wait: float,
        max_waiting: int,
        timeout: float,
        quick: float,
        metrics: Metrics,
        on_thread_start: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._run = run
        self._group_of = group_of
        self._on_error = on_error
        self._batch_size = batch_size
        self._wait = wait
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._quick = quick
        self._metrics = metrics
        self._on_thread_start = on_thread_start
        self._jobs: deque[_Job[GroupT, RequestT, ResultT]] = deque()
        self._changed = threading.Condition()  # With a lock that one thread may take twice.
        self._is_closed = False
        self._is_thread_busy = False
        self._has_cancelled = False
        self._scheduled_on: asyncio.AbstractEventLoop | None = None
        self._costs = _CostEstimates()
        self._mean_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name=f"candid-{name}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return (
            f"BatchQueue({self._name!r}, batch_size={self._batch_size}, wait={self._wait}, "
            f"max_waiting={self._max_waiting}, timeout={self._timeout}, quick={self._quick})"
        )

    async def submit(self, requests: Sequence[RequestT]) -> list[ResultT]:
        """Return the results of some requests, in order; all are accepted, or none.

        Raises:
            RequestError: the queue is full or closed, or a result did not arrive in time.
        """
        loop = asyncio.get_running_loop()
        now = monotonic()
        jobs = [
            _Job[GroupT, RequestT, ResultT](
                request, self._group_of(request), loop, now, now + self._timeout
            )
            for request in requests
        ]
        with self._changed:
            if self._is_closed:
                raise RequestError(
                    "not_ready", "the server is shutting down", retry_after=RETRY_AFTER
                )
            self.check_capacity(len(jobs))
            self._jobs.extend(jobs)
        self._schedule(loop)
        try:
            async with asyncio.timeout(self._timeout):
                return [await job.future for job in jobs]
        except TimeoutError:
            self._metrics.refused.labels("timeout").inc()
            raise RequestError(
                "timeout",
                f"no answer within {self._timeout * 1000:.0f} ms; try again later",
                retry_after=RETRY_AFTER,
            ) from None
        finally:
            # After a timeout, or when the client has gone, nothing reads the other results.
            for job in jobs:
                if job.future.cancel():
                    self._has_cancelled = True

    @property
    def expected_wait(self) -> float:
        """Seconds until a request that is submitted now can be expected to run."""
        return len(self._jobs) * self._mean_seconds

    def check_capacity(self, count: int = 1) -> None:
        """Check whether ``count`` more requests can be expected to run in time.

        Raises:
            RequestError: the queue is full, or the wait would take too much of the timeout.
        """
        if not self._has_capacity(count) and self._has_cancelled:
            self._has_cancelled = False
            with self._changed:
                self._jobs = deque(job for job in self._jobs if not job.future.done())
        if not self._has_capacity(count):
            self._metrics.refused.labels("queue_full").inc()
            raise RequestError(
                "overloaded",
                f"{len(self._jobs)} queries are waiting; try again later",
                retry_after=RETRY_AFTER,
            )

    def close(self) -> None:
        """Run the requests in the queue, then stop."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _has_capacity(self, count: int) -> bool:
        """Whether ``count`` more requests can be expected to run in time.

        Only a share of the timeout is planned for: answering requests that have already timed out
        only delays the others.
        """
        if len(self._jobs) + count > self._max_waiting:
            return False
        # An empty queue accepts a request of any size.
        return not self._jobs or (
            self.expected_wait + count * self._mean_seconds <= PLANNED_SHARE * self._timeout
        )

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the next batch on the loop, or wake the thread, after some rounds of the loop."""
        if self._scheduled_on is not loop:
            self._scheduled_on = loop
            loop.call_soon(self._run_if_quick, loop, LOOP_ROUNDS)

    def _run_if_quick(self, loop: asyncio.AbstractEventLoop, rounds: int) -> None:
        """Run a quick batch here; leave a slow one to the thread."""
        if rounds:
            loop.call_soon(self._run_if_quick, loop, rounds - 1)
            return
        self._scheduled_on = None
        with self._changed:
            if not self._jobs:
                return  # The thread was faster.
            if self._is_thread_busy or not self._is_quick():
                self._changed.notify()  # The thread may be waiting for more requests.
                return
            batch = self._take_batch()
        if not batch:
            return  # All of them had been cancelled.
        try:
            _deliver(*self._run_batch(batch), current_loop=loop)
        finally:
            if self._jobs:
                self._schedule(loop)

    def _is_quick(self) -> bool:
        """Whether the next batch is expected to be quick enough for the event loop."""
        jobs = islice(self._jobs, self._batch_size)
        return self._costs.total(job.group for job in jobs) < self._quick

    def _take_batch(self) -> list[_Job[GroupT, RequestT, ResultT]]:
        """Take the next jobs; drop those whose request has timed out or whose client has gone."""
        batch: list[_Job[GroupT, RequestT, ResultT]] = []
        while self._jobs and len(batch) < self._batch_size:
            job = self._jobs.popleft()
            if not job.future.done():
                batch.append(job)
        return batch

    def _work(self) -> None:
        """Run batches in the thread until the queue is closed and empty."""
        if self._on_thread_start is not None:
            self._on_thread_start()
        while batch := self._wait_for_batch():
            _deliver(*self._run_batch(batch))

    def _wait_for_batch(self) -> list[_Job[GroupT, RequestT, ResultT]]:
        """Wait for a batch for the thread; empty once the queue is closed and empty."""
        with self._changed:
            while True:
                self._is_thread_busy = False
                while not self._is_closed and (not self._jobs or self._hand_to_loop()):
                    self._changed.wait()
                if not self._jobs:
                    return []
                self._is_thread_busy = True
                end = self._jobs[0].since + self._wait
                while len(self._jobs) < self._batch_size and not self._is_closed:
                    remaining = end - monotonic()
                    if remaining <= 0 or not self._changed.wait(remaining):
                        break
                batch = self._take_batch()
                if batch:  # Otherwise all of them had been cancelled.
                    return batch

    def _hand_to_loop(self) -> bool:
        """Leave the next batch to the event loop if it is quick; return whether it was left."""
        loop = self._jobs[0].loop
        if loop.is_closed() or not self._is_quick():
            return False
        loop.call_soon_threadsafe(self._schedule, loop)
        return True

    def _run_batch(
        self, batch: Sequence[_Job[GroupT, RequestT, ResultT]]
    ) -> tuple[list[_Job[GroupT, RequestT, ResultT]], list[ResultT]]:
        """Run the jobs whose deadline has not passed; return them and their results."""
        started = monotonic()
        # The others have been refused already.
        live = [job for job in batch if job.deadline > started]
        for job in live:
            self._metrics.wait_seconds.labels(self._name).observe(started - job.since)
        results = self._run_groups(live)
        seconds = monotonic() - started
        if live:
            self._mean_seconds += MEAN_WEIGHT * (seconds / len(live) - self._mean_seconds)
        self._metrics.batch_size.labels(self._name).observe(len(live))
        self._metrics.batch_seconds.labels(self._name).observe(seconds)
        return live, results

    def _run_groups(self, jobs: Sequence[_Job[GroupT, RequestT, ResultT]]) -> list[ResultT]:
        """Run the jobs of each group together; return the results in the order of the jobs."""
        results: dict[int, ResultT] = {}
        positions_of: dict[int, list[int]] = {}
        for position, job in enumerate(jobs):
            positions_of.setdefault(id(job.group), []).append(position)
        for positions in positions_of.values():
            group = jobs[positions[0]].group
            started = monotonic()
            answers = self._run_group(group, [jobs[position].request for position in positions])
            self._costs.update(group, (monotonic() - started) / len(positions))
            results |= zip(positions, answers, strict=True)
        return [results[position] for position in range(len(jobs))]

    def _run_group(self, group: GroupT, requests: list[RequestT]) -> Sequence[ResultT]:
        try:
            return self._run(group, requests)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # A native library may raise a BaseException, and the thread must survive it. One bad
            # request must not fail the others of its batch: run each alone.
            if len(requests) == 1:
                return [self._on_error(error)]
            return [self._run_group(group, [request])[0] for request in requests]


def _deliver(
    jobs: Sequence[_Job[GroupT, RequestT, ResultT]],
    results: Sequence[ResultT],
    current_loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Set the results of jobs on their loops; ``current_loop`` is the loop of the caller."""
    for loop in {job.loop for job in jobs}:
        pairs = [
            (job, result) for job, result in zip(jobs, results, strict=True) if job.loop is loop
        ]
        if loop is current_loop:
            _set_results(pairs)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(_set_results, pairs)


def _set_results(pairs: Iterable[tuple[_Job[GroupT, RequestT, ResultT], ResultT]]) -> None:
    for job, result in pairs:
        if not job.future.done():
            job.future.set_result(result)
