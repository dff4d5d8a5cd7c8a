"""Number and timestamps of each user's interactions, and release times of the items."""

from __future__ import annotations

import datetime

import numpy as np
import numpy.typing as npt

from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counter_rng import Ints, Keys, derive, root_key, uniform

_SECOND = 1_000_000
_HOUR = 3_600 * _SECOND
_DAY = 24 * _HOUR
_SAME_SESSION_SHARE = 0.75
"""Share of interactions that follow the previous one within minutes instead of days."""


class Activity:
    """Interaction counts and timestamps of users."""

    def __init__(self, config: SyntheticConfig) -> None:
        self._config = config
        self._length_cdf = _length_cdf(config)
        start = datetime.datetime.combine(
            config.start_date, datetime.time(), tzinfo=datetime.UTC
        ).timestamp()
        self._start = round(start) * _SECOND
        self._span = config.num_days * _DAY

    def lengths(self, user_ids: Ints) -> Ints:
        """Return the number of interactions of each user: [B] int64."""
        keys = derive(root_key(self._config.seed, "length"), user_ids)
        return self._config.interactions_min + np.searchsorted(
            self._length_cdf, uniform(keys), side="right"
        )

    def release_times(self) -> Ints:
        """Return the first time each item can be chosen: [V] int64, microseconds since 1970 UTC.

        The released share is chosen independently of popularity and spread evenly over the
        period; all other items can be chosen from its start.
        """
        num_items = self._config.num_items
        count = min(int(self._config.released_share * num_items), num_items - 1)
        keys = derive(root_key(self._config.seed, "release"), np.arange(num_items))
        late = np.argsort(keys, kind="stable")[:count]
        times = np.full(num_items, self._start)
        times[late] += np.linspace(0.0, self._span, count + 2)[1:-1].astype(np.int64)
        return times

    def timestamps(self, user_ids: Ints, lengths: Ints) -> Ints:
        """Return microseconds since 1970-01-01 UTC, strictly increasing within a user.

        A user's first interaction falls in the first four fifths of the period. Interactions
        come in sessions: minutes apart within a session, days apart between sessions. Gaps are
        scaled down for users whose history would exceed the period.

        Args:
            user_ids: [B] int64.
            lengths: [B] int64, at least 1.

        Returns:
            [sum of lengths] int64, packed.
        """
        stops = np.cumsum(lengths)
        steps = np.arange(int(stops[-1])) - np.repeat(stops - lengths, lengths)
        user_keys = derive(root_key(self._config.seed, "time"), user_ids)
        arrival = 0.8 * self._span * uniform(derive(user_keys, 0))
        gaps = self._gaps(derive(np.repeat(user_keys, lengths), 1, steps))
        gaps[steps == 0] = 0
        # Integers: a float sum over all users would round each user by the preceding ones.
        elapsed = np.cumsum(gaps)
        elapsed -= np.repeat(elapsed[stops - lengths], lengths)
        # One second per step is added after scaling, so that no two steps coincide.
        available = np.maximum(self._span - arrival - lengths * _SECOND, 0.0)
        total = np.maximum(elapsed[stops - 1], 1)
        scaled = elapsed * np.repeat(np.minimum(1.0, available / total), lengths)
        first_times = self._start + np.repeat(arrival.astype(np.int64), lengths)
        return np.asarray(first_times + scaled.astype(np.int64) + steps * _SECOND)

    def _gaps(self, keys: Keys) -> Ints:
        exponential = -np.log(uniform(derive(keys, 0)))
        is_same_session = uniform(derive(keys, 1)) < _SAME_SESSION_SHARE
        return (exponential * np.where(is_same_session, 0.1 * _HOUR, 4.0 * _DAY)).astype(np.int64)


def _length_cdf(config: SyntheticConfig) -> npt.NDArray[np.float64]:
    """Return the CDF of the geometric distribution on min..max with the configured mean.

    Entry i is P(length ≤ min + i); the last entry, which is 1, is left out.
    """
    extra = np.arange(config.interactions_max - config.interactions_min + 1, dtype=np.float64)
    target = config.interactions_mean - config.interactions_min
    low, high = -50.0, 50.0
    for _ in range(200):
        rate = (low + high) / 2
        exponent = rate * extra
        mass = np.exp(exponent - exponent.max())
        mass /= mass.sum()
        low, high = (rate, high) if mass @ extra < target else (low, rate)
    return np.cumsum(mass)[:-1]
