"""Dynamic batching: queries that wait at the same time are encoded and searched together.

A batch that is expected to take a few milliseconds is answered on the event loop, once the requests
that have arrived are read: a model of hundreds of small operations gives the interpreter up at each
of them, and to fight for it with the thread that reads requests costs more than both do alone. What
takes longer is answered by one thread a lane, so that the loop goes on; there a query alone waits
for company a millisecond at most, and none at all while the thread was busy meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from time import monotonic
from weakref import WeakKeyDictionary

import torch

from candid.serve.metrics import Metrics
from candid.serve.problems import Problem
from candid.serve.served import Question, Result, Served

RETRY_AFTER = 1
"""Seconds that a client is told to wait where too much waits already."""
PLANNED = 0.5
"""Part of the time limit that queries may be expected to wait."""
RECENT = 0.1
"""Weight of the last batch in how long a query is expected to take."""
FADING = 0.02
"""The same for batches quicker than expected, where the event loop would wait for them."""
ROUNDS = 2
"""Of the event loop from a request's arrival to its question: so long others are waited for."""


class _Costs:
    """Seconds that a query of each generation takes at most, as far as is known.

    One that is slow now and then must not hold up the loop: what is known rises at once and fades
    slowly. Of what has answered nothing yet, nothing good is expected.
    """

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Served, float] = WeakKeyDictionary()

    def of(self, jobs: Iterable[_Job]) -> float:
        """What some queries are expected to take."""
        return sum(self._known.get(job.question.served, math.inf) for job in jobs)

    def learn(self, served: Served, seconds_each: float) -> None:
        """Note how long a batch took."""
        before = self._known.get(served, 0.0)
        faded = before + FADING * (seconds_each - before)
        self._known[served] = max(seconds_each, faded)


class Lane:
    """A bounded queue, and who answers it: the event loop or a thread.

    Args:
        name: for metrics.
        batch_size: queries answered at once.
        wait: seconds that the first query of a batch waits for others.
        max_waiting: queries in the queue; more are refused.
        timeout: seconds after which nobody waits for an answer any more.
        threads: CPU threads of a search; None: torch's choice.
        quick: seconds; batches expected to take less are answered on the event loop.
        metrics: told of batches and waits.
        failed: told of what nobody foresaw.
    """

    def __init__(
        self,
        name: str,
        *,
        batch_size: int,
        wait: float,
        max_waiting: int,
        timeout: float,
        threads: int | None,
        quick: float,
        metrics: Metrics,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._name = name
        self._batch_size = batch_size
        self._wait = wait
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._threads = threads
        self._quick = quick
        self._metrics = metrics
        self._failed = failed
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._is_working = False  # the thread
        self._planned: asyncio.AbstractEventLoop | None = None  # will look at what waits
        self._costs = _Costs()
        self._seconds_each = 0.0
        self._thread = threading.Thread(target=self._work, name=f"candid-{name}", daemon=True)
        self._thread.start()

    async def ask(self, questions: Sequence[Question]) -> list[Result]:
        """Wait for the answers of some questions; all are taken in, or none.

        Raises:
            Problem: too many wait already, or no answer came in time.
        """
        loop = asyncio.get_running_loop()
        now = monotonic()
        jobs = [_Job(q, loop, loop.create_future(), now, now + self._timeout) for q in questions]
        with self._changed:
            if self._is_closed:
                raise Problem("not_ready", "the server is shutting down", retry_after=RETRY_AFTER)
            if not self._has_room(len(jobs)):
                self._metrics.refused.labels("queue_full").inc()
                raise Problem(
                    "overloaded",
                    f"{len(self._waiting)} queries are waiting: try again in a moment",
                    retry_after=RETRY_AFTER,
                )
            self._waiting.extend(jobs)
        self._plan(loop)
        try:
            async with asyncio.timeout(self._timeout):
                return [await job.future for job in jobs]
        except TimeoutError:
            for job in jobs:
                job.future.cancel()
            self._metrics.refused.labels("timeout").inc()
            raise Problem(
                "timeout",
                f"no answer within {self._timeout * 1000:.0f} ms: try again in a moment",
                retry_after=RETRY_AFTER,
            ) from None

    def _has_room(self, count: int) -> bool:
        """Whether so many more would be answered in time, by how long queries took lately.

        Half of the time is enough to plan with: to answer late whoever then has gone costs as much
        as to answer, and leaves nobody answered.
        """
        if len(self._waiting) + count > self._max_waiting:
            return False
        # A request that finds nobody before it is tried, however large.
        return not self._waiting or (
            (len(self._waiting) + count) * self._seconds_each <= PLANNED * self._timeout
        )

    def close(self) -> None:
        """Answer what waits, then stop."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at what waits after some rounds of the loop."""
        if self._planned is not loop:
            self._planned = loop
            loop.call_soon(self._look, loop, ROUNDS)

    def _look(self, loop: asyncio.AbstractEventLoop, rounds: int) -> None:
        """Answer here what is quick, and leave the rest to the thread."""
        if rounds:
            loop.call_soon(self._look, loop, rounds - 1)
            return
        self._planned = None
        with self._changed:
            if not self._waiting:
                return  # The thread was faster.
            if self._is_working or not self._is_quick():
                self._changed.notify()  # At work it may be waiting for company.
                return
            batch = self._popped()
        try:
            _deliver(*self._timed(batch), here=loop)
        finally:
            if self._waiting:
                self._plan(loop)

    def _is_quick(self) -> bool:
        """Whether the next batch is expected to take so little that the loop can wait for it."""
        return self._costs.of(islice(self._waiting, self._batch_size)) < self._quick

    def _popped(self) -> list[_Job]:
        count = min(self._batch_size, len(self._waiting))
        return [self._waiting.popleft() for _ in range(count)]

    def _work(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        while batch := self._taken():
            _deliver(*self._timed(batch))

    def _timed(self, batch: Sequence[_Job]) -> tuple[list[_Job], list[Result]]:
        """Answer those who still wait: they, and what they are told."""
        started = monotonic()
        # Who asked has been told already.
        live = [job for job in batch if job.deadline > started]
        for job in live:
            self._metrics.waited.labels(self._name).observe(started - job.since)
        results = self._answered(live)
        seconds = monotonic() - started
        if live:
            self._seconds_each += RECENT * (seconds / len(live) - self._seconds_each)
        self._metrics.batch_size.labels(self._name).observe(len(live))
        self._metrics.batch_seconds.labels(self._name).observe(seconds)
        return live, results

    def _taken(self) -> list[_Job]:
        """Wait for a batch; empty once the lane is closed and nothing waits."""
        with self._changed:
            self._is_working = False
            while not self._is_closed and (not self._waiting or self._is_handed_back()):
                self._changed.wait()
            if not self._waiting:
                return []
            self._is_working = True
            end = self._waiting[0].since + self._wait
            while len(self._waiting) < self._batch_size and not self._is_closed:
                left = end - monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return self._popped()

    def _is_handed_back(self) -> bool:
        """Have the loop look at what waits, if that is quick."""
        loop = self._waiting[0].loop
        if loop.is_closed() or not self._is_quick():
            return False
        loop.call_soon_threadsafe(self._plan, loop)
        return True

    def _answered(self, jobs: Sequence[_Job]) -> list[Result]:
        results: list[Result] = [Problem("internal", "no answer")] * len(jobs)
        by_generation: dict[int, tuple[Served, list[int]]] = {}
        for place, job in enumerate(jobs):
            served = job.question.served
            by_generation.setdefault(id(served), (served, []))[1].append(place)
        for served, places in by_generation.values():
            started = monotonic()
            answers = self._tried(served, [jobs[place].question for place in places])
            self._costs.learn(served, (monotonic() - started) / len(places))
            for place, answer in zip(places, answers, strict=True):
                results[place] = answer
        return results

    def _tried(self, served: Served, questions: list[Question]) -> list[Result]:
        try:
            return served.answer(questions)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # A library may panic past Exception, and the thread must live on: the outermost
            # boundary. One question at fault must not fail those beside it.
            if len(questions) == 1:
                self._failed(error)
                problem = Problem("internal", "the server failed; its log says where")
                return [problem]
            return [self._tried(served, [question])[0] for question in questions]


class _Job:
    __slots__ = ("deadline", "future", "loop", "question", "since")

    def __init__(
        self,
        question: Question,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Result],
        since: float,
        deadline: float,
    ) -> None:
        self.question = question
        self.loop = loop
        self.future = future
        self.since = since
        self.deadline = deadline


def _deliver(
    jobs: Sequence[_Job], results: Sequence[Result], here: asyncio.AbstractEventLoop | None = None
) -> None:
    """Tell each loop what its questions are answered; ``here``: the one that runs this."""
    for loop in {job.loop for job in jobs}:
        mine = [
            (job, result) for job, result in zip(jobs, results, strict=True) if job.loop is loop
        ]
        if loop is here:
            _tell(mine)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(_tell, mine)


def _tell(answers: Iterable[tuple[_Job, Result]]) -> None:
    for job, result in answers:
        if not job.future.done():
            job.future.set_result(result)
