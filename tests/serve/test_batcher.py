"""Queues: what waits together is answered together, what is too much is refused at once."""

import asyncio
import dataclasses
import threading
import time

import pytest

from candid.serve.batcher import Lane
from candid.serve.metrics import Metrics
from candid.serve.problems import Problem


class Fake:
    """Answers numbers; notes its batches; waits for ``gate``."""

    def __init__(self):
        self.batches = []
        self.threads = []
        self.gate = threading.Event()
        self.gate.set()
        self.seconds = 0.0

    def answer(self, questions):
        self.batches.append([question.number for question in questions])
        self.threads.append(threading.current_thread().name)
        self.gate.wait(5)
        time.sleep(self.seconds * len(questions))
        if any(question.number < 0 for question in questions):
            raise ZeroDivisionError("of a question")
        return [b"%d" % question.number for question in questions]


@dataclasses.dataclass(frozen=True)
class Number:
    served: Fake
    number: int


@pytest.fixture(name="fake")
def _fake():
    return Fake()


@pytest.fixture(name="failures")
def _failures():
    return []


@pytest.fixture(name="make")
def _make(failures):
    lanes = []

    def make(**settings):
        known = {"batch_size": 4, "wait": 0.0, "max_waiting": 10, "timeout": 5.0, "threads": 1}
        known["quick"] = 0.0  # all in the thread
        lane = Lane("fast", **known | settings, metrics=Metrics(), failed=failures.append)
        lanes.append(lane)
        return lane

    yield make
    for lane in lanes:
        lane.close()


def numbers(fake, *values):
    return [Number(fake, value) for value in values]


def test_answers_come_in_order(make, fake):
    lane = make()
    assert asyncio.run(lane.ask(numbers(fake, 5, 3, 8))) == [b"5", b"3", b"8"]


def test_what_waits_is_answered_together(make, fake):
    lane = make()

    async def main():
        fake.gate.clear()
        first = asyncio.create_task(lane.ask(numbers(fake, 0)))
        while not fake.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(lane.ask(numbers(fake, n))) for n in range(1, 7)]
        await asyncio.sleep(0.01)
        fake.gate.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(main()) == [[b"%d" % n] for n in range(7)]
    assert fake.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_the_first_waits_for_company(make, fake):
    lane = make(wait=0.5, batch_size=2)

    async def main():
        first = asyncio.create_task(lane.ask(numbers(fake, 1)))
        await asyncio.sleep(0.02)
        return await asyncio.gather(first, lane.ask(numbers(fake, 2)))

    began = time.monotonic()
    asyncio.run(main())
    assert fake.batches == [[1, 2]]
    assert time.monotonic() - began < 0.4  # a full batch does not wait on


def test_too_many_are_refused_whole(make, fake):
    lane = make(max_waiting=3)

    async def main():
        fake.gate.clear()
        first = asyncio.create_task(lane.ask(numbers(fake, 0)))
        while not fake.batches:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(lane.ask(numbers(fake, 1, 2)))
        await asyncio.sleep(0)
        with pytest.raises(Problem, match="2 queries are waiting") as caught:
            await lane.ask(numbers(fake, 3, 4))
        assert (caught.value.status, caught.value.retry_after) == (503, 1)
        third = asyncio.create_task(lane.ask(numbers(fake, 5)))
        await asyncio.sleep(0)
        fake.gate.set()
        return await asyncio.gather(first, waiting, third)

    assert asyncio.run(main()) == [[b"0"], [b"1", b"2"], [b"5"]]


def test_what_could_not_be_answered_in_time_is_refused_at_once(make, fake):
    lane = make(max_waiting=1000, timeout=1.0, batch_size=1)
    fake.seconds = 0.05

    async def main():
        for _ in range(30):  # it learns how long a query takes
            await lane.ask(numbers(fake, 0))
        asked = [asyncio.create_task(lane.ask(numbers(fake, n))) for n in range(40)]
        return await asyncio.gather(*asked, return_exceptions=True)

    results = asyncio.run(main())
    refused = [result for result in results if isinstance(result, Problem)]
    assert {problem.code for problem in refused} == {"overloaded"}
    # 0.5 s of planned waiting is room for about ten queries of 0.05 s.
    assert 4 <= len(results) - len(refused) <= 16


def test_nobody_waits_longer_than_the_limit(make, fake):
    lane = make(timeout=0.05)

    async def main():
        fake.gate.clear()
        with pytest.raises(Problem, match="no answer within 50 ms") as caught:
            await lane.ask(numbers(fake, 1))
        assert caught.value.status == 503
        late = asyncio.create_task(lane.ask(numbers(fake, 2)))
        await asyncio.sleep(0.08)
        fake.gate.set()
        with pytest.raises(Problem, match="no answer"):
            await late
        return await lane.ask(numbers(fake, 3))

    assert asyncio.run(main()) == [b"3"]
    assert [2] not in fake.batches  # whom nobody waits for is not answered


def test_one_at_fault_fails_alone(make, fake, failures):
    lane = make()

    async def main():
        return await lane.ask(numbers(fake, 1, -1, 2))

    one, bad, two = asyncio.run(main())
    assert (one, two) == (b"1", b"2")
    assert isinstance(bad, Problem)
    assert bad.status == 500
    assert [type(error) for error in failures] == [ZeroDivisionError]


def test_generations_are_not_mixed(make, fake):
    lane, other = make(wait=0.2), Fake()
    asked = [*numbers(fake, 1), *numbers(other, 2), *numbers(fake, 3)]
    assert asyncio.run(lane.ask(asked)) == [b"1", b"2", b"3"]
    assert (fake.batches, other.batches) == ([[1, 3]], [[2]])


def test_closing_answers_what_waits(make, fake):
    lane = make(wait=10.0)

    async def main():
        asked = asyncio.create_task(lane.ask(numbers(fake, 1)))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(lane.close)
        with pytest.raises(Problem, match="shutting down"):
            await lane.ask(numbers(fake, 2))
        return await asked

    assert asyncio.run(main()) == [b"1"]


HERE, THREAD = threading.current_thread().name, "candid-fast"


def test_what_is_quick_is_answered_on_the_loop(make, fake):
    lane = make(quick=0.5)

    async def main():
        await lane.ask(numbers(fake, 9))
        asked = [asyncio.create_task(lane.ask(numbers(fake, n))) for n in range(6)]
        return await asyncio.gather(*asked)

    assert asyncio.run(main()) == [[b"%d" % n] for n in range(6)]
    assert fake.batches == [[9], [0, 1, 2, 3], [4, 5]]
    # Of the first nobody knew how long it would take.
    assert fake.threads == [THREAD, HERE, HERE]


def test_what_turns_out_slow_goes_to_the_thread_and_comes_back(make, fake):
    lane = make(quick=0.02, batch_size=1)

    async def main():
        for number in (0, 1):
            await lane.ask(numbers(fake, number))
        fake.seconds = 0.05
        for number in (2, 3):
            await lane.ask(numbers(fake, number))
        fake.seconds = 0.0
        for number in range(4, 80):
            await lane.ask(numbers(fake, number))

    asyncio.run(main())
    assert fake.threads[:4] == [THREAD, HERE, HERE, THREAD]
    assert fake.threads[-1] == HERE


def test_a_slow_model_never_holds_up_the_loop(make, fake):
    lane, slow = make(quick=0.02), Fake()
    slow.seconds = 0.05

    async def main():
        for number in range(40):
            await lane.ask(numbers(fake if number % 10 else slow, number))

    asyncio.run(main())
    assert set(slow.threads) == {THREAD}
    assert fake.threads[-1] == HERE


def test_a_queue_that_never_empties_comes_back_to_the_loop(make, fake):
    lane = make(quick=0.02, batch_size=2)
    left = 400

    async def client():
        nonlocal left
        while left > 0:
            left -= 1
            await lane.ask(numbers(fake, left))

    async def main():
        fake.seconds = 0.02
        await lane.ask(numbers(fake, 0))
        fake.seconds = 0.0
        await asyncio.gather(*(client() for _ in range(8)))

    asyncio.run(main())
    assert fake.threads[0] == THREAD
    assert fake.threads[-1] == HERE


def test_a_loop_that_ended_early_is_not_waited_for(make, fake):
    lane = make(quick=0.5)
    loop = asyncio.new_event_loop()
    asked = loop.create_task(lane.ask(numbers(fake, 1)))
    loop.call_soon(loop.stop)
    loop.run_forever()
    asked.cancel()
    loop.run_until_complete(asyncio.gather(asked, return_exceptions=True))
    loop.close()
    assert asyncio.run(lane.ask(numbers(fake, 2))) == [b"2"]


def test_the_loop_goes_on_while_the_thread_answers(make, fake):
    lane = make(quick=0.02)

    async def main():
        fake.seconds = 0.05
        await lane.ask(numbers(fake, 0))
        fake.gate.clear()
        asked = [asyncio.create_task(lane.ask(numbers(fake, n))) for n in (1, 2)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in asked)
        fake.gate.set()
        return await asyncio.gather(*asked)

    assert asyncio.run(main()) == [[b"1"], [b"2"]]


def test_one_at_fault_on_the_loop_fails_alone(make, fake, failures):
    lane = make(quick=1.0)

    async def main():
        await lane.ask(numbers(fake, 0))
        return await lane.ask(numbers(fake, 1, -1, 2))

    one, bad, two = asyncio.run(main())
    assert fake.threads[1] == HERE
    assert (one, two) == (b"1", b"2")
    assert (isinstance(bad, Problem), len(failures)) == (True, 1)
