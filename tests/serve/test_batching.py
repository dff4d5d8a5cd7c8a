"""Batch queues: waiting requests run together, requests beyond the capacity are refused at once."""

import asyncio
import dataclasses
import threading
import time

import pytest

from candid.serve.batching import BatchQueue
from candid.serve.errors import RequestError
from candid.serve.metrics import Metrics


class Fake:
    """A group that answers numbers, records its batches, and waits for ``gate``."""

    def __init__(self):
        self.batches = []
        self.threads = []
        self.gate = threading.Event()
        self.gate.set()
        self.seconds = 0.0

    def answer(self, requests):
        self.batches.append([request.number for request in requests])
        self.threads.append(threading.current_thread().name)
        self.gate.wait(5)
        time.sleep(self.seconds * len(requests))
        if any(request.number < 0 for request in requests):
            raise ZeroDivisionError("of a request")
        return [b"%d" % request.number for request in requests]


@dataclasses.dataclass(frozen=True)
class Number:
    group: Fake
    number: int


@pytest.fixture(name="fake")
def _fake():
    return Fake()


@pytest.fixture(name="failures")
def _failures():
    return []


@pytest.fixture(name="make")
def _make(failures):
    queues = []

    def on_error(error):
        failures.append(error)
        return error

    def make(**settings):
        defaults = {"batch_size": 4, "wait": 0.0, "max_waiting": 10, "timeout": 5.0}
        defaults["quick"] = 0.0  # all in the thread
        queue = BatchQueue(
            "fast",
            lambda group, requests: group.answer(requests),
            group_of=lambda request: request.group,
            on_error=on_error,
            metrics=Metrics(),
            **defaults | settings,
        )
        queues.append(queue)
        return queue

    yield make
    for queue in queues:
        queue.close()


def numbers(fake, *values):
    return [Number(fake, value) for value in values]


def test_results_keep_the_order_of_requests(make, fake):
    queue = make()
    assert asyncio.run(queue.submit(numbers(fake, 5, 3, 8))) == [b"5", b"3", b"8"]


def test_waiting_requests_run_together(make, fake):
    queue = make()

    async def main():
        fake.gate.clear()
        first = asyncio.create_task(queue.submit(numbers(fake, 0)))
        while not fake.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(queue.submit(numbers(fake, n))) for n in range(1, 7)]
        await asyncio.sleep(0.01)
        fake.gate.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(main()) == [[b"%d" % n] for n in range(7)]
    assert fake.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_first_request_waits_for_a_full_batch(make, fake):
    queue = make(wait=0.5, batch_size=2)

    async def main():
        first = asyncio.create_task(queue.submit(numbers(fake, 1)))
        await asyncio.sleep(0.02)
        return await asyncio.gather(first, queue.submit(numbers(fake, 2)))

    began = time.monotonic()
    asyncio.run(main())
    assert fake.batches == [[1, 2]]
    assert time.monotonic() - began < 0.4  # a full batch does not wait


def test_requests_beyond_the_capacity_are_refused_together(make, fake):
    queue = make(max_waiting=3)

    async def main():
        fake.gate.clear()
        first = asyncio.create_task(queue.submit(numbers(fake, 0)))
        while not fake.batches:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(queue.submit(numbers(fake, 1, 2)))
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="2 queries are waiting") as caught:
            await queue.submit(numbers(fake, 3, 4))
        assert (caught.value.code, caught.value.retry_after) == ("overloaded", 1)
        third = asyncio.create_task(queue.submit(numbers(fake, 5)))
        await asyncio.sleep(0)
        fake.gate.set()
        return await asyncio.gather(first, waiting, third)

    assert asyncio.run(main()) == [[b"0"], [b"1", b"2"], [b"5"]]


def test_requests_that_would_time_out_are_refused_at_once(make, fake):
    queue = make(max_waiting=1000, timeout=1.0, batch_size=1)
    fake.seconds = 0.05

    async def main():
        for _ in range(30):  # measures the time of a request
            await queue.submit(numbers(fake, 0))
        tasks = [asyncio.create_task(queue.submit(numbers(fake, n))) for n in range(40)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(main())
    refused = [result for result in results if isinstance(result, RequestError)]
    assert {error.code for error in refused} == {"overloaded"}
    # 0.5 s of planned waiting is room for about ten queries of 0.05 s.
    assert 4 <= len(results) - len(refused) <= 16


def test_timeout_ends_the_wait(make, fake):
    queue = make(timeout=0.05)

    async def main():
        fake.gate.clear()
        with pytest.raises(RequestError, match="no answer within 50 ms") as caught:
            await queue.submit(numbers(fake, 1))
        assert caught.value.code == "timeout"
        late = asyncio.create_task(queue.submit(numbers(fake, 2)))
        await asyncio.sleep(0.08)
        fake.gate.set()
        with pytest.raises(RequestError, match="no answer"):
            await late
        return await queue.submit(numbers(fake, 3))

    assert asyncio.run(main()) == [b"3"]
    assert [2] not in fake.batches  # a request that timed out does not run


def test_bad_request_fails_alone_in_the_thread(make, fake, failures):
    queue = make()

    async def main():
        return await queue.submit(numbers(fake, 1, -1, 2))

    one, bad, two = asyncio.run(main())
    assert (one, two) == (b"1", b"2")
    assert isinstance(bad, ZeroDivisionError)
    assert [type(error) for error in failures] == [ZeroDivisionError]


def test_groups_run_separately(make, fake):
    queue, other = make(wait=0.2), Fake()
    tasks = [*numbers(fake, 1), *numbers(other, 2), *numbers(fake, 3)]
    assert asyncio.run(queue.submit(tasks)) == [b"1", b"2", b"3"]
    assert (fake.batches, other.batches) == ([[1, 3]], [[2]])


def test_close_runs_waiting_requests(make, fake):
    queue = make(wait=10.0)

    async def main():
        task = asyncio.create_task(queue.submit(numbers(fake, 1)))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(queue.close)
        with pytest.raises(RequestError, match="shutting down"):
            await queue.submit(numbers(fake, 2))
        return await task

    assert asyncio.run(main()) == [b"1"]


HERE, THREAD = threading.current_thread().name, "candid-fast"


def test_quick_batches_run_on_the_loop(make, fake):
    queue = make(quick=0.5)

    async def main():
        await queue.submit(numbers(fake, 9))
        tasks = [asyncio.create_task(queue.submit(numbers(fake, n))) for n in range(6)]
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [[b"%d" % n] for n in range(6)]
    assert fake.batches == [[9], [0, 1, 2, 3], [4, 5]]
    # The cost of the first batch was unknown.
    assert fake.threads == [THREAD, HERE, HERE]


def test_batches_that_become_slow_move_to_the_thread_and_back(make, fake):
    queue = make(quick=0.02, batch_size=1)

    async def main():
        for number in (0, 1):
            await queue.submit(numbers(fake, number))
        fake.seconds = 0.05
        for number in (2, 3):
            await queue.submit(numbers(fake, number))
        fake.seconds = 0.0
        for number in range(4, 80):
            await queue.submit(numbers(fake, number))

    asyncio.run(main())
    assert fake.threads[:4] == [THREAD, HERE, HERE, THREAD]
    assert fake.threads[-1] == HERE


def test_slow_group_never_blocks_the_loop(make, fake):
    queue, slow = make(quick=0.02), Fake()
    slow.seconds = 0.05

    async def main():
        for number in range(40):
            await queue.submit(numbers(fake if number % 10 else slow, number))

    asyncio.run(main())
    assert set(slow.threads) == {THREAD}
    assert fake.threads[-1] == HERE


def test_queue_that_never_empties_returns_to_the_loop(make, fake):
    queue = make(quick=0.02, batch_size=2)
    left = 400

    async def client():
        nonlocal left
        while left > 0:
            left -= 1
            await queue.submit(numbers(fake, left))

    async def main():
        fake.seconds = 0.02
        await queue.submit(numbers(fake, 0))
        fake.seconds = 0.0
        await asyncio.gather(*(client() for _ in range(8)))

    asyncio.run(main())
    assert fake.threads[0] == THREAD
    assert fake.threads[-1] == HERE


def test_closed_loop_does_not_block_the_queue(make, fake):
    queue = make(quick=0.5)
    loop = asyncio.new_event_loop()
    task = loop.create_task(queue.submit(numbers(fake, 1)))
    loop.call_soon(loop.stop)
    loop.run_forever()
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    assert asyncio.run(queue.submit(numbers(fake, 2))) == [b"2"]


def test_loop_stays_free_while_the_thread_runs(make, fake):
    queue = make(quick=0.02)

    async def main():
        fake.seconds = 0.05
        await queue.submit(numbers(fake, 0))
        fake.gate.clear()
        tasks = [asyncio.create_task(queue.submit(numbers(fake, n))) for n in (1, 2)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in tasks)
        fake.gate.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [[b"1"], [b"2"]]


def test_bad_request_fails_alone_on_the_loop(make, fake, failures):
    queue = make(quick=1.0)

    async def main():
        await queue.submit(numbers(fake, 0))
        return await queue.submit(numbers(fake, 1, -1, 2))

    one, bad, two = asyncio.run(main())
    assert fake.threads[1] == HERE
    assert (one, two) == (b"1", b"2")
    assert (isinstance(bad, ZeroDivisionError), len(failures)) == (True, 1)


@pytest.mark.parametrize("quick", [0.0, 1.0])
def test_cancelled_requests_do_not_run(make, fake, quick):
    queue = make(quick=quick, batch_size=2)

    async def main():
        await queue.submit(numbers(fake, 0))
        fake.gate.clear()
        first = asyncio.create_task(queue.submit(numbers(fake, 1)))
        if quick:
            fake.gate.set()
            gone = asyncio.create_task(queue.submit(numbers(fake, 2, 3)))
            last = asyncio.create_task(queue.submit(numbers(fake, 4, 5)))
            await asyncio.sleep(0)  # All of them are in the queue, none has run.
        else:
            while len(fake.batches) < 2:
                await asyncio.sleep(0.001)
            gone = asyncio.create_task(queue.submit(numbers(fake, 2, 3)))
            last = asyncio.create_task(queue.submit(numbers(fake, 4, 5)))
            await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        fake.gate.set()
        return await asyncio.gather(first, last)

    assert asyncio.run(main()) == [[b"1"], [b"4", b"5"]]
    ran = [number for batch in fake.batches for number in batch]
    assert ran == [0, 1, 4, 5]


def test_thread_continues_after_a_batch_of_cancelled_requests(make, fake):
    queue = make(batch_size=2)

    async def main():
        fake.gate.clear()
        first = asyncio.create_task(queue.submit(numbers(fake, 1)))
        while not fake.batches:
            await asyncio.sleep(0.001)
        gone = asyncio.create_task(queue.submit(numbers(fake, 2, 3)))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        fake.gate.set()
        await first
        await asyncio.sleep(0.02)
        return await queue.submit(numbers(fake, 4))

    assert asyncio.run(main()) == [b"4"]


def test_cancelled_requests_free_their_places_in_the_queue(make, fake):
    queue = make(max_waiting=3)

    async def main():
        fake.gate.clear()
        first = asyncio.create_task(queue.submit(numbers(fake, 0)))
        while not fake.batches:
            await asyncio.sleep(0.001)
        gone = asyncio.create_task(queue.submit(numbers(fake, 1, 2, 3)))
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="3 queries are waiting"):
            queue.check_capacity()
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        queue.check_capacity(3)
        last = asyncio.create_task(queue.submit(numbers(fake, 4, 5, 6)))
        await asyncio.sleep(0)
        fake.gate.set()
        return await asyncio.gather(first, last)

    assert asyncio.run(main()) == [[b"0"], [b"4", b"5", b"6"]]


def test_expected_wait_is_the_mean_time_of_the_waiting_requests(make, fake):
    queue = make(batch_size=1)
    fake.seconds = 0.02

    async def main():
        assert queue.expected_wait == 0
        for _ in range(40):
            await queue.submit(numbers(fake, 0))
        fake.gate.clear()
        tasks = [asyncio.create_task(queue.submit(numbers(fake, n))) for n in range(5)]
        await asyncio.sleep(0.01)  # One runs, four wait.
        expected = queue.expected_wait
        fake.gate.set()
        await asyncio.gather(*tasks)
        return expected

    # The mean gives the last batches the weight 1 - 0.9 ** 40.
    assert 4 * 0.02 * 0.95 < asyncio.run(main()) < 4 * 0.04
