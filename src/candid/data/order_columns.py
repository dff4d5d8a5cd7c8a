"""Columns of a file that may order its interactions, for the message that one is needed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from candid.data.config import DataConfig
from candid.data.readers import Source, columns_of
from candid.errors import ConfigError

MAX_COLUMNS = 10
"""Columns that a message lists."""
TIME_NAME = re.compile(r"time|date|stamp|(^|_)(ts|t|at|when|day|created|updated)($|_)", re.I)
ORDER_NAME = re.compile(
    r"(^|_)(order|position|pos|seq|sequence|step|rank|index|idx|turn)($|_)", re.I
)


def require_order(sources: Sequence[Source], config: DataConfig) -> None:
    """Check that ``config`` names the time or the order that its split needs.

    Raises:
        ConfigError: it does not; the message names columns of the file that may be meant.
    """
    kind = config.split.kind
    if config.split.needs_time and config.time is None:
        raise ConfigError(
            f"a {kind} split needs `time`; name the column with the time (--time COLUMN): "
            f"{_candidates(sources, config, TIME_NAME)}"
        )
    if config.split.needs_order and config.time is None and config.order is None:
        either = re.compile(f"{TIME_NAME.pattern}|{ORDER_NAME.pattern}", re.I)
        raise ConfigError(
            f"a {kind} split needs `time` or `order`; name a column (--time COLUMN or "
            f"--order COLUMN): {_candidates(sources, config, either)}; without either, hold out "
            "at random (--split cross-validation --split-unit interaction), or name a column with "
            "the role of each interaction: train, validation or test (--split column "
            "--split-column COLUMN)"
        )


def _candidates(sources: Sequence[Source], config: DataConfig, pattern: re.Pattern[str]) -> str:
    source = sources[0]
    types = columns_of(source)
    used = {config.user, config.item, config.weight, config.rating, config.event_type}
    free = [name for name in (*types, *source.further_columns) if name not in used]
    likely = [
        name
        for name in free
        if isinstance(types.get(name), pl.Datetime | pl.Date) or pattern.search(name)
    ]
    if likely:
        return f"{source.path} has {', '.join(likely[:MAX_COLUMNS])}"
    if free:
        return f"{source.path} has the other columns {', '.join(free[:MAX_COLUMNS])}"
    return f"{source.path} has no other column"
