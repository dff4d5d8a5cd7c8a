"""The queue of reloads: how many run, which requests share one, and what a shutdown does."""

import threading

import pytest

from candid.serve.errors import RequestError
from candid.serve.reload_queue import ReloadQueue


class Reloads:
    """Reloads that end when the test releases them."""

    def __init__(self):
        self.started = []
        self.errors = {}
        self.may_end = threading.Semaphore(0)
        self.has_started = threading.Semaphore(0)

    def __call__(self, name):
        self.started.append(name)
        number = len(self.started)
        self.has_started.release()
        assert self.may_end.acquire(timeout=10)
        if number in self.errors:
            raise self.errors[number]
        return {str(name): number}, 0.5

    def end_one(self):
        self.may_end.release()

    def wait_for_start(self):
        assert self.has_started.acquire(timeout=10)


@pytest.fixture(name="reloads")
def _reloads():
    return Reloads()


def test_requests_during_a_reload_share_the_next_one(reloads):
    queue = ReloadQueue(reloads)
    first = queue.submit(None)
    reloads.wait_for_start()
    waiting = [queue.submit(None) for _ in range(5)]
    reloads.end_one()
    reloads.end_one()
    assert first.result(10) == ({"None": 1}, 0.5)
    assert [future.result(10) for future in waiting] == [({"None": 2}, 0.5)] * 5
    assert reloads.started == [None, None]


def test_reload_of_another_model_is_refused_while_one_waits(reloads):
    queue = ReloadQueue(reloads)
    queue.submit("films")
    reloads.wait_for_start()
    other = queue.submit("books")  # waits
    for name in ("films", None):
        with pytest.raises(RequestError) as caught:
            queue.submit(name)
        assert caught.value.code == "reload_running"
        assert caught.value.retry_after == 5
    reloads.end_one()
    reloads.wait_for_start()
    again = queue.submit("films")
    reloads.end_one()
    reloads.end_one()
    assert other.result(10)[0] == {"books": 2}
    assert again.result(10)[0] == {"films": 3}


def test_waiting_reload_of_all_models_serves_a_request_for_one(reloads):
    queue = ReloadQueue(reloads, ["films", "books"])
    queue.submit("films")
    reloads.wait_for_start()
    everything = queue.submit(None)
    assert queue.submit("books") is everything


def test_reload_of_all_models_is_that_of_the_only_one(reloads):
    queue = ReloadQueue(reloads, ["films"])
    queue.submit("films")
    reloads.wait_for_start()
    waiting = queue.submit("films")
    assert queue.submit(None) is waiting
    assert queue.submit("films") is waiting


def test_failure_of_a_reload_reaches_all_who_wait_and_the_next_one_runs(reloads):
    reloads.errors[2] = RequestError("reload_failed", "damaged")
    queue = ReloadQueue(reloads)
    queue.submit(None)
    reloads.wait_for_start()
    waiting = [queue.submit(None) for _ in range(2)]
    reloads.end_one()
    reloads.end_one()
    for future in waiting:
        with pytest.raises(RequestError, match="damaged"):
            future.result(10)
    reloads.end_one()
    assert queue.submit(None).result(10)[0] == {"None": 3}


def test_shutdown_refuses_the_waiting_reload_and_later_ones(reloads):
    queue = ReloadQueue(reloads)
    running = queue.submit(None)
    reloads.wait_for_start()
    waiting = queue.submit(None)
    queue.close()
    with pytest.raises(RequestError, match="shutting down"):
        waiting.result(10)
    with pytest.raises(RequestError, match="shutting down"):
        queue.submit(None)
    reloads.end_one()
    assert running.result(10)[0] == {"None": 1}
    assert reloads.started == [None]
