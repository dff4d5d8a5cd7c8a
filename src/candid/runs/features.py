"""The features of a run: fitted once, written beside the checkpoint, read ever after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch

from candid.atomic import write_json
from candid.batches import BatchesConfig
from candid.data import PreparedDataset
from candid.errors import ArtifactError, ConfigError
from candid.features import (
    Context,
    FeaturesConfig,
    FeatureTable,
    Values,
    fit_context,
    fit_table,
    no_context,
    restore_table,
)
from candid.runs.people import frame_of
from candid.towers import RetrievalModel, TowerContext

FEATURES = "features.json"


@dataclass(frozen=True)
class RunFeatures:
    """What a run knows of its users and items.

    Attributes:
        item: features of the V items, or None.
        user: features of the U users, or None.
        context: features of the moment of a question, or None.
        user_columns: type of each column of the table of users.
    """

    item: FeatureTable | None = None
    user: FeatureTable | None = None
    context: FeatureTable | None = None
    user_columns: Mapping[str, pl.DataType] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """What was learnt, as plain JSON values; empty without features."""
        tables = {"item": self.item, "user": self.user, "context": self.context}
        return {side: table.state() for side, table in tables.items() if table is not None}

    def context_of(self, dataset: PreparedDataset) -> Context | None:
        """What encodes the moments of questions about ``dataset``; None without features."""
        return None if self.context is None else Context(dataset, self.context)

    def people(self, attributes: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
        """Encode people who are no users of the dataset.

        Args:
            attributes: of each person, by column of the table of users; what is left out is not
                known. Text is read as the column's type: "25" is a number where ages are, and
                "a|b" two values where the column holds lists.

        Raises:
            ConfigError: the run reads no features of users.
            DataError: no such column, or a value that is not of its type.
        """
        if self.user is None:
            raise ConfigError(
                "the model of this run reads no features of users: leave their attributes out, or "
                "train one with [features.user.NAME] sections"
            )
        schema = {column: self.user_columns[column] for column in self.user.columns.values()}
        return self.user.encode(frame_of(attributes, schema))

    @property
    def fingerprint(self) -> str | None:
        """Hash of ``state``; None without features."""
        return _fingerprint(self.state())

    def write(self, folder: Path) -> None:
        """Write ``features.json`` where there are any."""
        if state := self.state():
            write_json(folder / FEATURES, state)


def fit_features(config: FeaturesConfig, dataset: PreparedDataset) -> RunFeatures:
    """Learn from the users and items that training sees.

    Raises:
        ConfigError: a table has no such column.
        DataError: a column's values cannot be of the feature's type.
    """
    items = users = context = None
    if config.item:
        items = fit_table(config.item, dataset.items, dataset.train_counts > 0, "features.item")
    if config.user:
        users = fit_table(config.user, dataset.users, dataset.user_is_trained, "features.user")
    if config.context:
        context = fit_context(config.context, dataset)
    return RunFeatures(items, users, context, dataset.users.schema)


def read_features(
    config: FeaturesConfig, dataset: PreparedDataset, folder: Path, fingerprint: str | None
) -> RunFeatures:
    """The features of a trained run, as training left them.

    Args:
        config: of the run.
        dataset: whose users and items to encode.
        folder: of the run.
        fingerprint: what the run's manifest says of them.

    Raises:
        ArtifactError: the file is missing, damaged or not the one that training wrote.
    """
    if config.is_empty:
        return RunFeatures()
    path = folder / FEATURES
    try:
        states: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        is_same = _fingerprint(states) == fingerprint
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} has no {FEATURES}, what training learnt of the features: train again"
        ) from None
    except (ValueError, AttributeError):
        raise ArtifactError(f"{path} is damaged; train again") from None
    if not is_same:
        raise ArtifactError(
            f"{path} is not what this model was trained with (a vocabulary or a scale has "
            "changed): restore the file, or train again"
        )
    items = users = context = None
    if config.item:
        items = restore_table(config.item, states.get("item", {}), dataset.items, str(path))
    if config.user:
        users = restore_table(config.user, states.get("user", {}), dataset.users, str(path))
    if config.context:
        state = states.get("context", {})
        context = restore_table(config.context, state, no_context(), str(path))
    return RunFeatures(items, users, context, dataset.users.schema)


def check_are_read(features: RunFeatures, model: RetrievalModel) -> None:
    """Refuse features that no tower reads: they would change nothing, in silence.

    Raises:
        ConfigError: there are such.
    """
    query = "a query tower, alone or in one of type 'joined',"
    for side, table, is_read, tower in (
        ("item", features.item, model.reads_item_features, "an item tower"),
        ("user", features.user, model.reads_user_features, query),
        ("context", features.context, model.reads_context, query),
    ):
        if table is not None and not is_read:
            raise ConfigError(
                f"no tower reads [features.{side}]: leave the section out, or give the model "
                f"{tower} of type '{side}_features'"
            )


def tower_context(
    dataset: PreparedDataset, batches: BatchesConfig, features: RunFeatures
) -> TowerContext:
    """All that towers are built from."""
    return TowerContext(
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        max_length=batches.max_length,
        item_features=features.item,
        user_features=features.user,
        context_features=features.context,
        num_event_types=len(dataset.event_type_names),
        item_is_trained=torch.from_numpy(dataset.train_counts > 0),
        user_is_trained=None
        if features.user is None
        else torch.from_numpy(dataset.user_is_trained),
        empty_histories=batches.empty_histories,
    )


def _fingerprint(state: dict[str, Any]) -> str | None:
    if not state:
        return None
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
