"""Messages between two processes: order, answers, errors, and the end of the other side."""

import queue
import socket
import threading

import pytest

from candid.serve import channel as channels
from candid.serve.channel import Channel, ChannelClosedError
from candid.serve.errors import RequestError


@pytest.fixture
def pair():
    """Makes two connected channels from their handlers; returns them and an event of each end."""
    opened = []

    def connect(handle_left, handle_right):
        ends = []
        for sock, handle in zip(socket.socketpair(), (handle_left, handle_right), strict=True):
            closed = threading.Event()
            ends.append((Channel(sock, handle, closed.set, name="test"), closed))
        for channel, _ in ends:
            channel.start()
        opened.extend(ends)
        return ends

    yield connect
    for channel, closed in opened:
        channel.close()
        assert closed.wait(5)


def refuse(request):
    raise AssertionError(request)


def test_calls_in_both_directions(pair):
    def double(request):
        request.answer(2 * request.params["number"])

    (left, _), (right, _) = pair(double, double)
    assert left.call("double", number=21) == 42
    assert right.call("double", number="ü") == "üü"
    big = "x" * 3_000_000
    assert left.call("double", number=big) == big * 2


def test_messages_arrive_in_the_order_of_sending(pair):
    seen = []

    def note(request):
        seen.append(request.params["n"])
        request.answer(list(seen))

    (left, _), _ = pair(refuse, note)
    for number in range(100):
        left.notify("note", n=number)
    assert left.call("note", n=100) == list(range(101))


def test_error_of_a_request_is_raised_by_the_caller(pair):
    error = RequestError("not_stored", "no space", "id", retry_after=30)
    (left, _), _ = pair(refuse, lambda request: request.fail(error))
    with pytest.raises(RequestError) as raised:
        left.call("append")
    for name in ("code", "message", "field", "retry_after"):
        assert getattr(raised.value, name) == getattr(error, name)


def test_answers_may_come_in_another_order(pair):
    requests = queue.SimpleQueue()
    (left, _), _ = pair(refuse, requests.put)
    first, second = left.begin("a"), left.begin("b")
    waiting = {request.method: request for request in (requests.get(), requests.get())}
    waiting["b"].answer("for b")
    waiting["a"].answer("for a")
    assert (first.result(5), second.result(5)) == ("for a", "for b")


def test_open_and_later_calls_fail_when_the_other_end_closes(pair):
    requests = queue.SimpleQueue()
    (left, closed), (right, _) = pair(refuse, requests.put)
    future = left.begin("never answered")
    requests.get()
    right.close()
    with pytest.raises(ChannelClosedError):
        future.result(5)
    assert closed.wait(5)
    with pytest.raises(ChannelClosedError):
        left.call("later")
    with pytest.raises(ChannelClosedError):
        left.notify("later")


def test_end_in_the_middle_of_a_message_is_an_end():
    ours, theirs = socket.socketpair()
    closed = threading.Event()
    Channel(ours, refuse, closed.set, name="test").start()
    theirs.sendall(channels.LENGTH.pack(100) + b'{"method": ')
    theirs.close()
    assert closed.wait(5)


def test_process_that_does_not_read_is_given_up(pair, monkeypatch):
    monkeypatch.setattr(channels, "SEND_SECONDS", 1)
    ours, theirs = socket.socketpair()
    closed = threading.Event()
    channel = Channel(ours, refuse, closed.set, name="test")
    channel.start()
    for _ in range(100):
        try:
            channel.notify("fill", text="x" * 100_000)
        except ChannelClosedError:
            break
    else:
        raise AssertionError
    assert closed.wait(5)
    theirs.close()
