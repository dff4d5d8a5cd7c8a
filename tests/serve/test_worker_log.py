"""The log of item updates in a worker: what the supervisor stores is in memory, nothing else."""

import pytest

from candid.serve.channel import ChannelClosedError
from candid.serve.errors import RequestError
from candid.serve.update_log import ItemUpdate
from candid.serve.worker_log import WorkerLog

DARK = ItemUpdate("Dark Wood", {"genres": ["Horror"]})
CONTENT = {"title": "Dark Wood", "attributes": {"genres": ["Horror"]}}


class FakeChannel:
    """A channel whose supervisor answers with ``error``, or stores the update."""

    def __init__(self):
        self.calls, self.error, self.log = [], None, None

    def call(self, method, **params):
        self.calls.append((method, params))
        if self.error is not None:
            raise self.error
        # The notice that an update is stored comes before the answer.
        self.log.set(params["model"], params["item"], DARK)


@pytest.fixture(name="channel")
def _channel():
    return FakeChannel()


@pytest.fixture(name="log")
def _log(channel):
    channel.log = WorkerLog(channel, [("films", 2**53 + 1, None), ("films", "500", CONTENT)])
    return channel.log


def test_log_begins_with_the_updates_of_the_supervisor(log):
    assert list(log.latest("films").items()) == [(2**53 + 1, None), ("500", DARK)]
    assert log.latest("other") == {}
    assert log.get("films", "500") == DARK
    assert log.get("films", 500) is None


def test_append_sends_the_update_and_returns_when_it_is_stored(log, channel):
    log.append("films", 7, DARK)
    assert channel.calls == [("append", {"model": "films", "item": 7, "update": CONTENT})]
    assert log.get("films", 7) == DARK


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("not_stored", "the disk is full", retry_after=30), "not_stored"),
        (ChannelClosedError("closed"), "not_ready"),
    ],
)
def test_update_that_is_not_stored_changes_nothing(log, channel, error, code):
    channel.error = error
    before = log.latest("films")
    with pytest.raises(RequestError) as caught:
        log.append("films", 7, None)
    assert caught.value.code == code
    assert caught.value.retry_after is not None
    assert log.latest("films") == before


def test_later_update_comes_last(log):
    log.set("films", 2**53 + 1, DARK)
    assert list(log.latest("films")) == ["500", 2**53 + 1]
    copy = log.latest("films")
    log.set("films", 9, None)
    assert 9 not in copy
