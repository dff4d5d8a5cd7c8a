"""The features of one side (users or items): fitted together, and the values of every row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.component import lookup
from candid.errors import ArtifactError, ConfigError, DataError, UnknownNameError
from candid.features.protocol import Feature, FeatureConfig
from candid.features.values import Values

_CURES = {
    "features.item": "; name it in data.items.attributes",
    "features.user": "; name it in data.users.attributes",
}
"""Where the columns of a section's table come from."""


@dataclass(frozen=True)
class FeatureTable:
    """Fitted features and what they make of the n users or items of a dataset.

    Attributes:
        features: by name, in the order of the recipe; at least one.
        columns: the column that each reads.
        values: by name, n entries each.
        patterns: the regular expression of each feature that has one; see ``FeatureConfig``.
    """

    features: Mapping[str, Feature]
    columns: Mapping[str, str]
    values: Mapping[str, Values]
    patterns: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def encode(self, frame: pl.DataFrame) -> dict[str, Values]:
        """Encode other rows: new items, users that training never saw.

        Raises:
            DataError: a column is missing or of a type that cannot serve; names feature and
                column.
        """
        return _encoded(self.features, self.columns, self.patterns, frame)

    def state(self) -> dict[str, Any]:
        """What was learnt of every feature, as plain JSON values."""
        return {name: feature.state() for name, feature in self.features.items()}


def fit_table(
    configs: Mapping[str, FeatureConfig],
    frame: pl.DataFrame,
    is_trained: npt.NDArray[np.bool_],
    where: str,
) -> FeatureTable:
    """Fit features on the rows that training sees and encode all rows.

    Args:
        configs: by name; at least one.
        frame: n users or items and their attributes.
        is_trained: [n]; what the other rows hold is not learnt: it meets the model as it would
            in service.
        where: the config section, such as "features.item"; begins every message.

    Raises:
        ConfigError: the table has no such column, or a feature needs a package that is missing.
        DataError: a column's values cannot be of the feature's type.
    """
    columns = {name: config.column or name for name, config in configs.items()}
    for name, column in columns.items():
        if column not in frame.columns:
            known = sorted(set(frame.columns) - {"source_id"})
            raise ConfigError(
                f"{where}.{name}: the table has no column {column!r}; it has "
                f"{', '.join(known) or 'none'}{_CURES.get(where, '')}"
            )
    trained = frame.filter(pl.Series(is_trained))
    features = {}
    for name, config in configs.items():
        try:
            features[name] = config.fit(_read(trained[columns[name]], config.pattern))
        except DataError as error:
            raise DataError(f"{where}.{name}, column {columns[name]!r}: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"{where}.{name}: {error}") from None
    patterns = _patterns(configs)
    values = _encoded(features, columns, patterns, frame, where)
    return FeatureTable(features, columns, values, patterns)


def restore_table(
    configs: Mapping[str, FeatureConfig],
    states: Mapping[str, Any],
    frame: pl.DataFrame,
    where: str,
) -> FeatureTable:
    """Make the features of a trained model again and encode all rows with them.

    Args:
        configs: as for ``fit_table``.
        states: what ``FeatureTable.state`` gave.
        frame: n users or items and their attributes.
        where: the file that the states come from; begins every message.

    Raises:
        ArtifactError: the states are not those of these features.
        ConfigError: a feature needs a package that is missing.
        DataError: a column is missing or of a type that cannot serve.
    """
    features = {}
    for name, config in configs.items():
        try:
            features[name] = config.restore(lookup(states, "feature state", name))
        except (UnknownNameError, KeyError, TypeError, ValueError):
            raise ArtifactError(
                f"{where} does not hold what was learnt of feature {name!r}: it is damaged or of "
                "another model; train again"
            ) from None
        except ConfigError as error:
            raise ConfigError(f"{where}, feature {name!r}: {error}") from None
    columns = {name: config.column or name for name, config in configs.items()}
    patterns = _patterns(configs)
    values = _encoded(features, columns, patterns, frame, where)
    return FeatureTable(features, columns, values, patterns)


def _patterns(configs: Mapping[str, FeatureConfig]) -> dict[str, str]:
    return {name: c.pattern for name, c in configs.items() if c.pattern is not None}


def _read(values: pl.Series, pattern: str | None) -> pl.Series:
    """A column, or what the first group of a pattern matches in it.

    Raises:
        DataError: there is a pattern and the column is not text.
    """
    if pattern is None:
        return values
    if not isinstance(values.dtype, pl.String | pl.Categorical | pl.Enum | pl.Null):
        raise DataError(f"a pattern reads text, and the column is {values.dtype}; leave it out")
    return values.cast(pl.String).str.extract(pattern, 1)


def _encoded(
    features: Mapping[str, Feature],
    columns: Mapping[str, str],
    patterns: Mapping[str, str],
    frame: pl.DataFrame,
    where: str = "features",
) -> dict[str, Values]:
    values = {}
    for name, feature in features.items():
        column = columns[name]
        if column not in frame.columns:
            raise DataError(
                f"{where}: feature {name!r} needs column {column!r}, which the table lacks (it "
                f"has {', '.join(frame.columns)}); add it, with nulls where it is not known"
            )
        try:
            values[name] = feature.encode(_read(frame[column], patterns.get(name)))
        except DataError as error:
            raise DataError(f"{where}: feature {name!r}, column {column!r}: {error}") from None
    return values
