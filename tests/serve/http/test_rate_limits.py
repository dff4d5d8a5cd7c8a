"""Token buckets with a clock of the test."""

from candid.serve.http.rate_limits import TokenBuckets


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_take_allows_a_burst_then_the_rate():
    clock = Clock()
    buckets = TokenBuckets(rate=2.0, burst=3, max_clients=10, clock=clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 1]
    clock.now = 0.4
    assert buckets.take("a") == 1
    clock.now = 0.5  # one token every half second; a refusal costs none
    assert [buckets.take("a"), buckets.take("a")] == [0, 1]
    clock.now = 100.0  # a bucket holds at most a burst
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 1]


def test_take_returns_the_seconds_until_the_next_token():
    clock = Clock()
    buckets = TokenBuckets(rate=0.1, burst=1, max_clients=10, clock=clock)
    assert [buckets.take("a"), buckets.take("a")] == [0, 10]
    clock.now = 10.0
    assert buckets.take("a") == 0


def test_take_drops_the_client_that_is_idle_longest():
    buckets = TokenBuckets(rate=0.001, burst=1, max_clients=2, clock=Clock())
    assert [buckets.take(client) for client in "ab"] == [0, 0]
    assert buckets.take("a") > 0
    assert buckets.take("c") == 0
    assert len(buckets) == 2
    assert buckets.take("a") > 0
    assert buckets.take("b") == 0  # dropped when c came


def test_repr_shows_the_settings():
    text = repr(TokenBuckets(rate=2.0, burst=3, max_clients=10))
    assert text == "TokenBuckets(rate=2.0, burst=3, max_clients=10)"
