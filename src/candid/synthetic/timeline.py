"""How much each user does, and when."""

from __future__ import annotations

import datetime

import numpy as np
import numpy.typing as npt

from candid.synthetic.catalog import Ints
from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counters import Keys, derive, root_key, uniform

_SECOND = 1_000_000
_HOUR = 3_600 * _SECOND
_DAY = 24 * _HOUR
_IN_SESSION = 0.75
"""Share of interactions that follow the one before within minutes rather than days."""


class Timeline:
    """Interactions a user, and their timestamps."""

    def __init__(self, config: SyntheticConfig) -> None:
        self._config = config
        self._lengths = _length_cdf(config)
        start = datetime.datetime.combine(
            config.start_date, datetime.time(), tzinfo=datetime.UTC
        ).timestamp()
        self._start = round(start) * _SECOND
        self._span = config.num_days * _DAY

    def lengths(self, user_ids: Ints) -> Ints:
        """Interactions of each user: [B] int64, between the configured least and most."""
        keys = derive(root_key(self._config.seed, "length"), user_ids)
        return self._config.interactions_min + np.searchsorted(
            self._lengths, uniform(keys), side="right"
        )

    def releases(self) -> Ints:
        """When each item can first be chosen: [V] int64, microseconds since 1970-01-01 UTC.

        The released share, drawn without regard to popularity, is spread evenly over the span;
        all other items are there from its start.
        """
        num_items = self._config.num_items
        count = min(int(self._config.released_share * num_items), num_items - 1)
        keys = derive(root_key(self._config.seed, "release"), np.arange(num_items))
        late = np.argsort(keys, kind="stable")[:count]
        moments = np.full(num_items, self._start)
        moments[late] += np.linspace(0.0, self._span, count + 2)[1:-1].astype(np.int64)
        return moments

    def timestamps(self, user_ids: Ints, lengths: Ints) -> Ints:
        """Microseconds since 1970-01-01 UTC, strictly increasing within a user.

        A user arrives at some moment of the first four fifths of the span and comes in
        sessions: minutes between interactions within one, days between sessions. Users whose
        history would outlast the span live proportionally faster.

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
        # Integers: a float sum over users would round each by what came before it.
        elapsed = np.cumsum(gaps)
        elapsed -= np.repeat(elapsed[stops - lengths], lengths)
        # One second a step is kept apart, so that scaling can never make two steps coincide.
        room = np.maximum(self._span - arrival - lengths * _SECOND, 0.0)
        total = np.maximum(elapsed[stops - 1], 1)
        scaled = elapsed * np.repeat(np.minimum(1.0, room / total), lengths)
        moments = self._start + np.repeat(arrival.astype(np.int64), lengths)
        return np.asarray(moments + scaled.astype(np.int64) + steps * _SECOND)

    def _gaps(self, keys: Keys) -> Ints:
        waiting = -np.log(uniform(derive(keys, 0)))
        is_session = uniform(derive(keys, 1)) < _IN_SESSION
        return (waiting * np.where(is_session, 0.1 * _HOUR, 4.0 * _DAY)).astype(np.int64)


def _length_cdf(config: SyntheticConfig) -> npt.NDArray[np.float64]:
    """CDF of the geometric law on min..max whose mean is the configured one.

    Entry i is P(length ≤ min + i), without the last (it is 1).
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
