"""Connections: places, the order of closing, the time of a head, and the limit of descriptors."""

import logging
import resource

import pytest

from candid.errors import ConfigError
from candid.serve.config import ServeConfig
from candid.serve.http.connections import (
    DEFAULT_CONNECTIONS,
    RESERVED_DESCRIPTORS,
    Connections,
    with_connection_limit,
)
from candid.serve.metrics import Metrics


class Fake:
    """A connection that records why it was closed."""

    def __init__(self, connections):
        self.connections = connections
        self.closed = None

    def close_idle(self):
        self.closed = "idle"
        self.connections.remove(self)

    def refuse_slow_head(self):
        self.closed = "slow"
        self.connections.remove(self)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(name="clock")
def _clock():
    return Clock()


@pytest.fixture(name="connections")
def _connections(clock):
    config = ServeConfig(max_connections=3, head_timeout_ms=10_000)
    return Connections(config, Metrics(), clock)


def open_one(connections):
    fake = Fake(connections)
    return fake, connections.add(fake)


def test_the_longest_waiting_connection_makes_place(connections, clock):
    first, second, third = (open_one(connections)[0] for _ in range(3))
    connections.end_wait(first)  # It has a request, and waits again later than the others.
    clock.now += 1
    connections.begin_wait(first)
    connections.end_wait(third)  # It has a request.
    assert open_one(connections)[1]
    assert (first.closed, second.closed, third.closed) == (None, "idle", None)
    assert open_one(connections)[1]
    assert (first.closed, third.closed) == ("idle", None)


def test_begin_of_a_head_does_not_make_a_connection_younger(connections, clock):
    first, second, third = (open_one(connections)[0] for _ in range(3))
    connections.end_wait(first)
    connections.begin_wait(first)
    connections.end_wait(second)
    clock.now += 1
    connections.begin_wait(second)
    clock.now += 1
    connections.end_wait(third)
    connections.begin_head(first)
    assert open_one(connections)[1]
    assert (first.closed, second.closed) == ("idle", None)


def test_connection_is_refused_where_all_others_have_a_request(connections):
    others = [open_one(connections)[0] for _ in range(3)]
    for each in others:
        connections.end_wait(each)
    assert not open_one(connections)[1]
    assert [each.closed for each in others] == [None] * 3


def test_late_heads_are_refused_and_idle_connections_stay(connections, clock):
    late, kept, new = (open_one(connections)[0] for _ in range(3))
    connections.end_wait(kept)
    connections.begin_wait(kept)
    clock.now += 9.9
    connections.end_wait(new)
    connections.begin_head(new)
    connections.sweep()
    assert late.closed is None
    clock.now += 0.2
    connections.sweep()
    assert (late.closed, kept.closed, new.closed) == ("slow", None, None)
    clock.now += 10
    connections.begin_head(new)  # More bytes of the same head.
    connections.sweep()
    assert (kept.closed, new.closed) == (None, "slow")


def test_closed_connections_are_logged_at_most_once_in_ten_seconds(connections, clock, caplog):
    logging.getLogger("candid.serve").propagate = True
    opened = [open_one(connections)[0] for _ in range(5)]
    for each in opened[2:]:
        connections.end_wait(each)  # Each of them has a request.
    connections.count_closed("bad_request")
    for _ in range(99):
        connections.sweep()
        clock.now += 0.1
    connections.count_closed("bad_request")
    connections.sweep()
    assert [record.fields["reasons"] for record in caplog.records] == [
        {"limit": 2, "bad_request": 1}
    ]
    clock.now += 1
    connections.sweep()
    assert caplog.records[1].fields["reasons"] == {"bad_request": 1}
    assert (caplog.records[1].levelname, caplog.records[1].fields["open"]) == ("WARNING", 3)


@pytest.fixture(name="limits")
def _limits(monkeypatch):
    """The limits of descriptors, soft and hard, as the process sees them."""
    limits = {"now": (1024, 1024)}

    def setrlimit(_, pair):
        limits["now"] = pair

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    return limits


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (1024, 1024, 1024 - RESERVED_DESCRIPTORS),
        (1024, 4096, 4096 - RESERVED_DESCRIPTORS),
        (1024, 1_000_000, DEFAULT_CONNECTIONS),
        (64, 64, 1),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, DEFAULT_CONNECTIONS),
    ],
)
def test_default_number_of_connections_fits_the_descriptors(limits, soft, hard, expected):
    limits["now"] = (soft, hard)
    assert with_connection_limit(ServeConfig()).max_connections == expected
    assert limits["now"] == (hard, hard)


def test_more_connections_than_descriptors_are_refused(limits):
    limits["now"] = (512, 1024)
    assert with_connection_limit(ServeConfig(max_connections=824)).max_connections == 824
    with pytest.raises(ConfigError, match="max_connections = 825 needs 1025 file descriptors"):
        with_connection_limit(ServeConfig(max_connections=825))


def test_limit_stays_where_it_cannot_be_raised(limits, monkeypatch):
    limits["now"] = (1024, 4096)

    def refuse(*_):
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    config = with_connection_limit(ServeConfig())
    assert config.max_connections == 1024 - RESERVED_DESCRIPTORS
