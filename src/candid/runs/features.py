"""The features of a run: fitted before training, stored beside the checkpoint and read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from candid.atomic import write_json
from candid.batches import BatchesConfig, target_counts, users_with_rows
from candid.checksums import read_error
from candid.data import PreparedDataset
from candid.errors import ArtifactError, ConfigError
from candid.features import (
    Context,
    FeaturesConfig,
    FeatureTable,
    Values,
    extend_table,
    fit_context,
    fit_table,
    no_context,
    restore_table,
)
from candid.json_text import read_json
from candid.runs.anonymous_users import parse_attributes
from candid.runs.folder import TRAIN_AGAIN
from candid.towers import RetrievalModel, TowerContext

FEATURES = "features.json"


@dataclass(frozen=True)
class RunFeatures:
    """Features of the items, users and query contexts of a run.

    Attributes:
        item: features of the V items, or None.
        user: features of the U users, or None.
        context: features of the context of a query, or None.
        user_columns: type of each column of the user table.
    """

    item: FeatureTable | None = None
    user: FeatureTable | None = None
    context: FeatureTable | None = None
    user_columns: Mapping[str, pl.DataType] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values; empty without features."""
        tables = {"item": self.item, "user": self.user, "context": self.context}
        return {side: table.state() for side, table in tables.items() if table is not None}

    def context_for(self, dataset: PreparedDataset) -> Context | None:
        """Return the encoder of query contexts of ``dataset``; None without context features."""
        return None if self.context is None else Context(dataset, self.context)

    def encode_users(self, attributes: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
        """Encode the attributes of anonymous users, who are not users of the dataset.

        Args:
            attributes: of each user, by column of the user table; an attribute that is left out
                is unknown. Text is parsed as the type of the column: "25" is a number in a column
                of numbers, "a|b" two values in a column of lists.

        Raises:
            ConfigError: the run reads no user features.
            DataError: there is no such column, or a value is of another type.
        """
        if self.user is None:
            raise ConfigError(
                "the model of this run reads no user features: leave the attributes out, or train "
                "a model with [features.user.NAME] sections and a tower 'user_features'"
            )
        schema = {column: self.user_columns[column] for column in self.user.columns.values()}
        return self.user.encode(parse_attributes(attributes, schema))

    @property
    def fingerprint(self) -> str | None:
        """Return a hash of ``state``; None without features."""
        return _fingerprint(self.state())

    def write(self, folder: Path) -> None:
        """Write ``features.json`` if there are features."""
        if state := self.state():
            write_json(folder / FEATURES, state)


def fit_features(config: FeaturesConfig, dataset: PreparedDataset) -> RunFeatures:
    """Fit features on the users and items that are trained on.

    Raises:
        ConfigError: a table has no such column.
        DataError: the values of a column do not fit the type of the feature.
    """
    item = user = context = None
    if config.item:
        item = fit_table(config.item, dataset.items, dataset.train_counts > 0, "features.item")
    if config.user:
        user = fit_table(config.user, dataset.users, dataset.user_is_trained, "features.user")
    if config.context:
        context = fit_context(config.context, dataset)
    return RunFeatures(item, user, context, dataset.users.schema)


def extend_features(
    features: RunFeatures, config: FeaturesConfig, dataset: PreparedDataset
) -> RunFeatures:
    """Add the new values of the training rows of a dataset to the features of an earlier run.

    Args:
        features: from ``read_features`` for ``dataset``.
        config: of both runs.
        dataset: of the warm start.

    Raises:
        DataError: a feature does not support the values of its column.
    """
    item, user = features.item, features.user
    if item is not None:
        is_trained = dataset.train_counts > 0
        item = extend_table(config.item, item, dataset.items, is_trained, "features.item")
    if user is not None:
        is_trained = dataset.user_is_trained
        user = extend_table(config.user, user, dataset.users, is_trained, "features.user")
    return replace(features, item=item, user=user)


def read_features(
    config: FeaturesConfig, dataset: PreparedDataset, folder: Path, fingerprint: str | None
) -> RunFeatures:
    """Read the features of a trained run.

    Args:
        config: of the run.
        dataset: whose users and items are encoded.
        folder: of the run.
        fingerprint: of the features, from the manifest of the run.

    Raises:
        ArtifactError: the file is missing, damaged or not the one that training wrote.
    """
    if config.is_empty:
        return RunFeatures()
    path = folder / FEATURES
    states = read_states(folder, fingerprint)
    item = user = context = None
    if config.item:
        item = restore_table(config.item, states.get("item", {}), dataset.items, str(path))
    if config.user:
        user = restore_table(config.user, states.get("user", {}), dataset.users, str(path))
    if config.context:
        state = states.get("context", {})
        context = restore_table(config.context, state, no_context(), str(path))
    return RunFeatures(item, user, context, dataset.users.schema)


def read_states(folder: Path, fingerprint: str | None) -> dict[str, Any]:
    """Read the fitted state of the features of a run: plain JSON values, by side and name.

    Args:
        folder: of the run.
        fingerprint: of the features, from the manifest of the run.

    Raises:
        ArtifactError: the file is missing, damaged or not the one that training wrote.
    """
    path = folder / FEATURES
    try:
        states: dict[str, Any] = read_json(path)
        is_same = _fingerprint(states) == fingerprint
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} has no {FEATURES}, which holds the fitted features: train again"
        ) from None
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, AttributeError):
        raise ArtifactError(f"{path} is damaged; {TRAIN_AGAIN}") from None
    if not is_same:
        raise ArtifactError(
            f"{path} has changed since training (a vocabulary or a scale differs): restore the "
            "file, or train again"
        )
    return states


def check_features_are_read(features: RunFeatures, model: RetrievalModel) -> None:
    """Refuse features that no tower reads, because they would have no effect.

    Raises:
        ConfigError: there are such features.
    """
    query_tower = "a query tower, alone or in one of type 'joined',"
    for side, table, is_read, tower in (
        ("item", features.item, model.reads_item_features, "an item tower"),
        ("user", features.user, model.reads_user_features, query_tower),
        ("context", features.context, model.reads_context, query_tower),
    ):
        if table is not None and not is_read:
            raise ConfigError(
                f"no tower reads [features.{side}]: leave the section out, or give the model "
                f"{tower} of type '{side}_features'"
            )


def tower_context(
    dataset: PreparedDataset,
    batches: BatchesConfig,
    features: RunFeatures,
    *,
    initial_item_vectors: Callable[[int], Tensor] | None = None,
) -> TowerContext:
    """Collect the properties of a dataset that towers are built from."""
    return TowerContext(
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        max_length=batches.max_length,
        item_features=features.item,
        user_features=features.user,
        context_features=features.context,
        num_event_types=len(dataset.event_type_names),
        has_times=dataset.timestamps is not None,
        item_is_trained=None
        if features.item is None
        else torch.from_numpy(target_counts(dataset, batches) > 0),
        user_is_trained=None
        if features.user is None
        else torch.from_numpy(users_with_rows(dataset, batches)),
        empty_histories=batches.empty_histories,
        initial_item_vectors=initial_item_vectors,
    )


def _fingerprint(state: dict[str, Any]) -> str | None:
    if not state:
        return None
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
