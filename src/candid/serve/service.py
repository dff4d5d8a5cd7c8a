"""The path of a request from its checked body to its answer: models, batch queues and threads.

``http`` calls one method of ``Service`` per route. A recommendation is prepared by a
``ModelVersion``, waits in a ``BatchQueue``, and is answered together with others by the same
``ModelVersion``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import torch

from candid.serve.answers import Result
from candid.serve.batching import BatchQueue
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError, internal_error
from candid.serve.logs import error_fields, log_event
from candid.serve.metrics import Metrics
from candid.serve.model_version import ModelVersion, PreparedQuery
from candid.serve.models import Models
from candid.serve.reload_queue import ReloadQueue
from candid.serve.requests import RecommendRequest, SimilarRequest

T = TypeVar("T")
LOOKUP_THREADS: Final = 2


class Service:
    """Entry point for checked requests: prepares, queues and answers them.

    Args:
        models: the models and their versions in use.
        config: limits.
        metrics: of the server.

    Attributes:
        is_draining: whether the server is shutting down.
    """

    def __init__(self, models: Models, *, config: ServeConfig, metrics: Metrics) -> None:
        self.models = models
        self.config = config
        self.metrics = metrics
        self.is_draining = False
        self._queues: dict[bool, BatchQueue[ModelVersion, PreparedQuery, Result]] = {}
        # Models apply one update at a time. A slow disk must not delay look-ups.
        self._update_pool = ThreadPoolExecutor(1, thread_name_prefix="candid-update")
        self._lookup_pool = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="candid-lookup")
        self._reloads = ReloadQueue(models.reload, models.names)

    def __repr__(self) -> str:
        return f"Service({self.models})"

    def start(self) -> None:
        """Start the queues; called in the thread of the event loop, which runs batches too."""
        self._set_num_threads()
        for is_slow, name in ((False, "fast"), (True, "slow")):
            self._queues[is_slow] = BatchQueue(
                name,
                ModelVersion.answer,
                group_of=_model_version_of,
                on_error=_on_error,
                batch_size=self.config.batch_size,
                # Slow queries are searched one by one, so a larger batch is not faster.
                wait=0.0 if is_slow else self.config.batch_wait_ms / 1000,
                max_waiting=self.config.max_waiting,
                timeout=self.config.timeout_ms / 1000,
                quick=0.0 if is_slow else self.config.quick_ms / 1000,
                metrics=self.metrics,
                on_thread_start=self._set_num_threads,
            )

    def stop(self) -> None:
        """Answer the queries in the queues, then stop."""
        for queue in self._queues.values():
            queue.close()
        self._lookup_pool.shutdown(cancel_futures=True)
        self._update_pool.shutdown(cancel_futures=True)
        self.stop_reloads()

    def stop_reloads(self) -> None:
        """Refuse reloads, and end the check of a running one, so that a shutdown need not wait."""
        self._reloads.close()
        self.models.close()

    def check_capacity(self, is_slow: bool) -> None:
        """Check whether the queue of a query can be expected to answer in time.

        Raises:
            RequestError: it has no capacity for another query.
        """
        self._queues[is_slow].check_capacity()

    async def recommend(self, request: RecommendRequest) -> bytes:
        """Return the JSON of the answer to one request.

        Raises:
            RequestError: the request cannot be answered.
        """
        query = self.models.get(request.model).prepare(request)
        [result] = await self._answer([query])
        return _require_answer(result)

    async def recommend_batch(self, requests: Sequence[RecommendRequest]) -> list[bytes]:
        """Return the JSON of the answer to each request.

        Raises:
            RequestError: one of them cannot be answered; its field begins with ``queries.N``.
        """
        queries = []
        for position, request in enumerate(requests):
            try:
                queries.append(self.models.get(request.model).prepare(request))
            except RequestError as error:
                raise error.within(f"queries.{position}") from None
        answers = []
        for position, result in enumerate(await self._answer(queries)):
            if isinstance(result, RequestError):
                raise result.within(f"queries.{position}")
            answers.append(result)
        return answers

    async def similar(self, request: SimilarRequest) -> bytes:
        """Return the JSON of the items near an item; raises like ``recommend``."""
        query = self.models.get(request.model).prepare_similar(request)
        [result] = await self._answer([query])
        return _require_answer(result)

    async def look_up(self, work: Callable[[], T]) -> T:
        """Run a look-up of some milliseconds in a thread.

        Raises:
            RequestError: it does not finish in time.
        """
        try:
            async with asyncio.timeout(self.config.timeout_ms / 1000):
                return await asyncio.get_running_loop().run_in_executor(self._lookup_pool, work)
        except TimeoutError:
            self.metrics.refused.labels("timeout").inc()
            raise RequestError(
                "timeout",
                f"no answer within {self.config.timeout_ms:.0f} ms; try again later",
                retry_after=1,
            ) from None

    async def update(self, work: Callable[[], T]) -> T:
        """Run an item update in a thread, without a timeout: an update is never left half done."""
        return await asyncio.get_running_loop().run_in_executor(self._update_pool, work)

    async def reload(self, name: str | None) -> tuple[dict[str, int], float]:
        """Load a model again in a thread; the current version answers meanwhile.

        One reload runs and one waits; equal requests share the waiting one (``ReloadQueue``).

        Raises:
            RequestError: there is no such model, it cannot be loaded, or a reload of another
                model is waiting.
        """
        if name is not None:
            name = self.models.get(name).name
        # Other requests may wait for the same reload, so a cancelled one must not cancel it.
        return await asyncio.shield(asyncio.wrap_future(self._reloads.submit(name)))

    async def _answer(self, queries: Sequence[PreparedQuery]) -> list[Result]:
        """Return the results of queries, in order; fast and slow ones wait in different queues."""
        slow = [query.is_slow for query in queries]
        if len(set(slow)) == 1:
            return await self._queues[slow[0]].submit(queries)
        results: dict[int, Result] = {}

        async def submit(is_slow: bool) -> None:
            positions = [position for position, each in enumerate(slow) if each == is_slow]
            answers = await self._queues[is_slow].submit([queries[p] for p in positions])
            results.update(zip(positions, answers, strict=True))

        await asyncio.gather(submit(False), submit(True))
        return [results[position] for position in range(len(queries))]

    def _set_num_threads(self) -> None:
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)


def _model_version_of(query: PreparedQuery) -> ModelVersion:
    return query.model_version


def _on_error(error: BaseException) -> Result:
    log_event("failed", logging.ERROR, route="model", **error_fields(error))
    return internal_error()


def _require_answer(result: Result) -> bytes:
    if isinstance(result, RequestError):
        raise result
    return result
