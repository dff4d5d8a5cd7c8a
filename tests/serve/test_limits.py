"""Token buckets, by a clock of the test's own."""

from candid.serve.limits import TokenBuckets


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_burst_then_as_many_as_the_rate():
    clock = Clock()
    buckets = TokenBuckets(2.0, 3, 10, clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 1]
    clock.now = 0.4
    assert buckets.take("a") == 1
    clock.now = 0.5  # one token every half second; to have been refused cost none
    assert [buckets.take("a"), buckets.take("a")] == [0, 1]
    clock.now = 100.0  # a bucket holds no more than a burst
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 1]


def test_retry_after_is_when_there_is_a_token():
    clock = Clock()
    buckets = TokenBuckets(0.1, 1, 10, clock)
    assert [buckets.take("a"), buckets.take("a")] == [0, 10]
    clock.now = 10.0
    assert buckets.take("a") == 0


def test_clients_do_not_share_and_the_idlest_is_forgotten():
    buckets = TokenBuckets(0.001, 1, 2, Clock())
    assert [buckets.take(client) for client in "ab"] == [0, 0]
    assert buckets.take("a") > 0
    assert buckets.take("c") == 0
    assert len(buckets) == 2
    assert buckets.take("a") > 0
    assert buckets.take("b") == 0  # forgotten when c came
