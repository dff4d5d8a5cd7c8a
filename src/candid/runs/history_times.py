"""Times of queries and of anonymous histories, checked and converted to microseconds."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from candid.errors import ConfigError, DataError

Time = int | datetime.datetime
"""Microseconds since 1970-01-01 UTC, or a time; without a time zone it is in UTC."""


def history_times(
    histories: Sequence[Sequence[Any] | npt.NDArray[Any]],
    times: Sequence[Sequence[Time | None]],
) -> list[list[int | None]]:
    """Return the time of each interaction in microseconds since 1970-01-01 UTC.

    Args:
        histories: B histories, earliest first.
        times: of each interaction of each history; None where it is unknown.

    Raises:
        DataError: there is not one time for each interaction, one is of another type or a
            negative integer, or a history is not earliest first; the message names the place.
    """
    if isinstance(times, str | Mapping) or not isinstance(times, Iterable):
        raise DataError(f"times must be one list of times for each history, got {times!r}")
    times = list(times)
    if not histories:
        raise DataError("there are times and no histories: leave the times out")
    if len(times) != len(histories):
        raise DataError(
            f"there are times of {len(times)} histories and {len(histories)} histories: give one "
            "list of times for each"
        )
    return [
        _times_of_one(number, len(history), one)
        for number, (history, one) in enumerate(zip(histories, times, strict=True))
    ]


def query_time(time: Time | None) -> int | None:
    """Return the time of a query in microseconds since 1970-01-01 UTC; None stays None.

    Raises:
        ConfigError: it is neither a time nor an integer.
    """
    if time is None:
        return None
    if isinstance(time, datetime.datetime):
        return to_microseconds(time)
    if not isinstance(time, int | np.integer) or isinstance(time, bool):
        raise ConfigError(
            f"time must be a datetime, or microseconds since 1970 as an integer, got {time!r}"
        )
    return int(time)


def to_microseconds(time: datetime.datetime) -> int:
    """Convert a time to microseconds since 1970-01-01 UTC; without a time zone it is in UTC."""
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    return round(time.timestamp() * 1_000_000)


def _times_of_one(number: int, length: int, times: Sequence[Time | None]) -> list[int | None]:
    if isinstance(times, str | Mapping) or not isinstance(times, Iterable):
        raise DataError(f"history {number}: its times must be a list, got {times!r}")
    times = list(times)
    if len(times) != length:
        raise DataError(
            f"history {number} has {length} items and {len(times)} times: give one time for each "
            "item, None where it is unknown"
        )
    converted = [_one(number, position, time) for position, time in enumerate(times)]
    latest = None
    for position, time in enumerate(converted):
        if time is None:
            continue
        if latest is not None and time < latest:
            raise DataError(
                f"history {number}: time {position} is before an earlier one: order the items "
                "earliest first"
            )
        latest = time
    return converted


def _one(number: int, position: int, time: Any) -> int | None:
    if time is None:
        return None
    if isinstance(time, datetime.datetime):
        return to_microseconds(time)
    # A negative integer is more often a mark for "unknown" than a time before 1970.
    if not isinstance(time, int | np.integer) or isinstance(time, bool) or time < 0:
        raise DataError(
            f"history {number}: time {position} is {time!r}: give a datetime, or microseconds "
            "since 1970 as an integer, or None where it is unknown"
        )
    return int(time)
