"""Input with ``order = "sorted"``: a check that each user's rows stand together, earliest first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from candid.data.config import SORTED, DataConfig
from candid.data.readers import Source, columns_of
from candid.errors import ConfigError, DataError


class SortedInput:
    """Check of rows in the order of the files.

    Args:
        users: source id of each user, ascending.
        config: names the columns and the files.
    """

    def __init__(self, users: pl.Series, config: DataConfig) -> None:
        self._users, self._config = users, config
        self._last: pl.DataFrame | None = None

    def check(self, rows: pl.DataFrame) -> None:
        """Check the next rows.

        Args:
            rows: column user (Int32, by ascending source id), and time (Int64) where declared.

        Raises:
            DataError: a user comes after a larger one, or a time after a later one of its user.
        """
        if not rows.height:
            return
        columns = ["user", *(["time"] if "time" in rows.columns else [])]
        rows = rows.select(columns)
        if self._last is not None:
            rows = pl.concat([self._last, rows])
        self._last = rows[-1:]
        users = rows["user"].to_numpy()
        is_unsorted = users[1:] < users[:-1]
        is_early = np.zeros_like(is_unsorted)
        if "time" in columns:
            # An empty time comes first, as in a sort.
            times = rows["time"].fill_null(np.iinfo(np.int64).min).to_numpy()
            is_early = (users[1:] == users[:-1]) & (times[1:] < times[:-1])
        is_wrong = is_unsorted | is_early
        if not is_wrong.any():
            return
        # The first one of both faults, so that the message is the same for rows in any parts.
        row, config = int(np.argmax(is_wrong)), self._config
        before, after = (self._users[int(users[row + i])] for i in (0, 1))
        if is_early[row]:
            raise DataError(
                f'{config.origin} is not sorted by time, as order = "{SORTED}" states: user '
                f"{after!r} has a row that is earlier than the row before it; sort the rows by "
                f'{config.user!r} and {config.time!r}, or remove order = "{SORTED}"'
            )
        raise DataError(
            f'{config.origin} is not sorted by user, as order = "{SORTED}" states: a row of '
            f"user {after!r} follows one of user {before!r}; sort the rows by {config.user!r}"
            f"{f' and {config.time!r}' if config.time else ''}, or remove order = "
            f'"{SORTED}"'
        )


def check_not_a_column(sources: Sequence[Source], config: DataConfig) -> None:
    """Refuse ``order = "sorted"`` for files that have a column of this name.

    Raises:
        ConfigError: it may be meant as the column that orders the interactions.
    """
    for source in sources:
        if config.is_sorted and SORTED in (*columns_of(source).names(), *source.further_columns):
            raise ConfigError(
                f'order = "{SORTED}" states that the rows of {source.path} are sorted, but the '
                f"file has a column {SORTED!r}; rename the column"
            )
