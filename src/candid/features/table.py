"""The features of one side, users or items: fitted together, with the values of every row."""

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

_FIXES = {
    "features.item": "; name it in data.items.attributes",
    "features.user": "; name it in data.users.attributes",
}
"""Section -> the setting that adds a column to its table."""


@dataclass(frozen=True)
class FeatureTable:
    """Fitted features and their values for the n users or items of a dataset.

    Attributes:
        features: by name, in the order of the recipe; at least one.
        columns: by name, column that the feature reads.
        values: by name, n entries each.
        patterns: by name, regular expression of ``FeatureConfig.pattern``, if there is one.
    """

    features: Mapping[str, Feature]
    columns: Mapping[str, str]
    values: Mapping[str, Values]
    patterns: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __repr__(self) -> str:
        return f"FeatureTable({len(self)} rows, {dict(self.values)})"

    def encode(self, frame: pl.DataFrame) -> dict[str, Values]:
        """Encode other rows: new items or new users.

        Raises:
            DataError: a column is missing or has an unsupported type; the message names feature
                and column.
        """
        return _encode(self.features, self.columns, self.patterns, frame)

    def state(self) -> dict[str, Any]:
        """Return the fitted state of every feature as plain JSON values."""
        return {name: feature.state() for name, feature in self.features.items()}


def fit_table(
    configs: Mapping[str, FeatureConfig],
    frame: pl.DataFrame,
    is_trained: npt.NDArray[np.bool_],
    where: str,
) -> FeatureTable:
    """Fit features on training rows and encode all rows.

    Args:
        configs: by name; at least one.
        frame: n users or items with their attributes.
        is_trained: [n] bool, the training rows. Features are not fitted on other rows, whose
            values are treated like those of new users and items in serving.
        where: config section, such as "features.item"; begins every message.

    Raises:
        ConfigError: a column does not exist, or a feature needs a package that is missing.
        DataError: a feature does not support the values of its column.

    Example:
        >>> from candid.features import Number
        >>> items = pl.DataFrame({"year": [1980, 2000, 1990]})
        >>> is_trained = np.array([True, True, False])
        >>> fit_table({"year": Number.Config()}, items, is_trained, "features.item")
        FeatureTable(3 rows, {'year': Numbers(values=[3, 2])})
    """
    columns = {name: config.column or name for name, config in configs.items()}
    for name, column in columns.items():
        if column not in frame.columns:
            known = sorted(set(frame.columns) - {"source_id"})
            raise ConfigError(
                f"{where}.{name}: the table has no column {column!r}; its columns: "
                f"{', '.join(known) or 'none'}{_FIXES.get(where, '')}"
            )
    trained = frame.filter(pl.Series(is_trained))
    features = {}
    for name, config in configs.items():
        try:
            features[name] = config.fit(_extract(trained[columns[name]], config.pattern))
        except DataError as error:
            raise DataError(f"{where}.{name}, column {columns[name]!r}: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"{where}.{name}: {error}") from None
    patterns = _patterns(configs)
    values = _encode(features, columns, patterns, frame, where)
    return FeatureTable(features, columns, values, patterns)


def extend_table(
    configs: Mapping[str, FeatureConfig],
    table: FeatureTable,
    frame: pl.DataFrame,
    is_trained: npt.NDArray[np.bool_],
    where: str,
) -> FeatureTable:
    """Add the new values of training rows to the features of an earlier run; encode all rows.

    Args:
        configs: by name, as for ``fit_table``.
        table: of the earlier run.
        frame: n users or items with their attributes.
        is_trained: [n] bool, the training rows.
        where: config section; begins every message.

    Raises:
        DataError: a feature does not support the values of its column.
    """
    trained, features = frame.filter(pl.Series(is_trained)), {}
    for name, feature in table.features.items():
        config, column = configs[name], table.columns[name]
        try:
            features[name] = config.extend(feature, _extract(trained[column], config.pattern))
        except DataError as error:
            raise DataError(f"{where}.{name}, column {column!r}: {error}") from None
    values = _encode(features, table.columns, table.patterns, frame, where)
    return FeatureTable(features, table.columns, values, table.patterns)


def restore_table(
    configs: Mapping[str, FeatureConfig],
    states: Mapping[str, Any],
    frame: pl.DataFrame,
    where: str,
) -> FeatureTable:
    """Rebuild the features of a trained model and encode all rows with them.

    Args:
        configs: by name, as for ``fit_table``.
        states: result of ``FeatureTable.state``.
        frame: n users or items with their attributes.
        where: file of the states; begins every message.

    Raises:
        ArtifactError: the states do not belong to these features.
        ConfigError: a feature needs a package that is missing.
        DataError: a column is missing or has an unsupported type.
    """
    features = {}
    for name, config in configs.items():
        try:
            features[name] = config.restore(lookup(states, "feature state", name))
        except (UnknownNameError, KeyError, TypeError, ValueError):
            raise ArtifactError(
                f"{where} has no valid state of feature {name!r}: it is damaged or of another "
                "model; train again"
            ) from None
        except ConfigError as error:
            raise ConfigError(f"{where}, feature {name!r}: {error}") from None
    columns = {name: config.column or name for name, config in configs.items()}
    patterns = _patterns(configs)
    values = _encode(features, columns, patterns, frame, where)
    return FeatureTable(features, columns, values, patterns)


def _patterns(configs: Mapping[str, FeatureConfig]) -> dict[str, str]:
    return {name: c.pattern for name, c in configs.items() if c.pattern is not None}


def _extract(values: pl.Series, pattern: str | None) -> pl.Series:
    """Return a column, or the matches of the first group of a pattern.

    Raises:
        DataError: there is a pattern and the column is neither text nor integers.
    """
    if pattern is None:
        return values
    is_text = isinstance(values.dtype, pl.String | pl.Categorical | pl.Enum | pl.Null)
    if not (is_text or values.dtype.is_integer()):
        raise DataError(
            f"a pattern needs a column of text or integers, got {values.dtype}; remove the pattern"
        )
    return values.cast(pl.String).str.extract(pattern, 1)


def _encode(
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
                f"{where}: feature {name!r} needs column {column!r}, but the table has only "
                f"{', '.join(frame.columns)}; add it, with nulls for unknown values"
            )
        try:
            values[name] = feature.encode(_extract(frame[column], patterns.get(name)))
        except DataError as error:
            raise DataError(f"{where}: feature {name!r}, column {column!r}: {error}") from None
    return values
