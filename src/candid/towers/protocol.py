"""The base classes of towers and of their configs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from torch import Tensor, nn

from candid.batches import Queries
from candid.component import ComponentConfig, tagged
from candid.errors import ConfigError
from candid.features import FeatureTable, Values
from candid.towers.padded import PaddedContext, PaddedModule, no_padded_form
from candid.towers.registry import TOWERS

EncodeProgress = Callable[[int, int], None]
"""Callback of long encodings: (items encoded, total items)."""


class QueryTower(nn.Module, ABC):
    """An encoder of queries: users with their histories, features and context.

    Attributes:
        dim: D, width of the output.
        reads_history: whether the vector depends on the history.
        reads_times: whether it depends on the times of the interactions of the history.
        reads_query_gap: whether it depends on the time from the last interaction to the query.
        needs_history: whether a query without history cannot be encoded.
        needs_user: whether a user outside the dataset cannot be encoded.
        reads_user_features: whether the vector depends on the features of the user.
        reads_context: whether the vector depends on the context.
    """

    dim: int
    reads_history: bool = False
    reads_times: bool = False
    reads_query_gap: bool = False
    needs_history: bool
    needs_user: bool = False
    reads_user_features: bool = False
    reads_context: bool = False

    @abstractmethod
    def forward(self, queries: Queries) -> Tensor:
        """Encode B queries: [B, D] float."""

    def to_padded(self, context: PaddedContext) -> PaddedModule:
        """Return the tower as a computation on padded tensors, for ``candid export``.

        Args:
            context: longest history, and the form of the features.

        Raises:
            ConfigError: the tower has no padded form.
        """
        raise no_padded_form(self)


class ItemTower(nn.Module, ABC):
    """An encoder of items.

    Attributes:
        dim: D, width of the output.
        num_items: V; ids are 0..V-1.
        reads_features: whether vectors depend on the features of the items.
    """

    dim: int
    num_items: int
    reads_features: bool = False

    @property
    def table(self) -> nn.Embedding | None:
        """Table whose rows are the item vectors and which a query tower can share, or None."""
        return None

    @property
    def own_items(self) -> range | None:
        """Items whose vectors this process holds, where others hold the rest; None: all items."""
        return None

    def own_vectors(self) -> Tensor:
        """Return the vectors of ``own_items``, with gradient: [n, D] float.

        Raises:
            ConfigError: the tower holds all items.
        """
        raise ConfigError("this item tower is not sharded: call catalog")

    @abstractmethod
    def forward(self, item_ids: Tensor) -> Tensor:
        """Encode items [n] int64: [n, D] float."""

    @abstractmethod
    def catalog(self, progress: EncodeProgress | None = None) -> Tensor:
        """Encode every item, with gradient: [V, D] float.

        Args:
            progress: called after each chunk by towers that compute more than a look-up.
        """

    def encode_values(self, values: Mapping[str, Values], item_ids: Tensor | None = None) -> Tensor:
        """Encode new items, or items with new feature values: [n, D].

        Args:
            values: by feature name, from ``FeatureTable.encode``.
            item_ids: [n] int64, items that have these values now; None: new items.

        Raises:
            ConfigError: the tower reads no features.
            DataError: a feature is missing.
        """
        raise ConfigError(
            "this model has no features of items; train one with model.item_tower = "
            "'item_features' to encode new items"
        )

    def to_padded(self, context: PaddedContext) -> PaddedModule:
        """Return the computation from item features to vectors on padded tensors.

        ``candid export`` calls it only for a tower that reads features: the item vectors of every
        tower are exported as a table.

        Args:
            context: the form of the features.

        Raises:
            ConfigError: the tower has no padded form.
        """
        raise no_padded_form(self)


@dataclass(frozen=True, slots=True)
class TowerContext:
    """The properties of a dataset that a config needs to build a tower.

    Attributes:
        num_users: U.
        num_items: V.
        max_length: L, the longest history in a batch.
        item_tower: item tower whose vectors a query tower may share; None while the item tower
            itself is built.
        item_features: features of the V items; None without any in the recipe.
        user_features: features of the U users, or None.
        context_features: features of the context (without rows, only their form), or None.
        num_event_types: event types in histories; 0 without event types.
        has_times: whether the interactions of histories have times.
        item_is_trained: [V] bool, whether an item is ever a training target; None: all are.
        user_is_trained: [U] bool, whether training has a row of a user; None: all have one.
        empty_histories: whether training includes queries without history.
        initial_item_vectors: computes vectors [V, D] float32 of a given width D from the data;
            None where the weights are read from a file afterwards.
    """

    num_users: int
    num_items: int
    max_length: int
    item_tower: ItemTower | None = None
    item_features: FeatureTable | None = None
    user_features: FeatureTable | None = None
    context_features: FeatureTable | None = None
    num_event_types: int = 0
    has_times: bool = False
    item_is_trained: Tensor | None = None
    user_is_trained: Tensor | None = None
    empty_histories: bool = False
    initial_item_vectors: Callable[[int], Tensor] | None = None


MAX_WIDTH: Final = 65_536
"""Largest width of a vector or a layer in a recipe."""
MAX_LAYERS: Final = 1_000
"""Largest number of layers of a kind in a recipe."""


class TowerConfig(ComponentConfig, ABC):
    """Base of the nested ``Config`` of every tower."""

    @abstractmethod
    def build(self, context: TowerContext) -> QueryTower | ItemTower:
        """Build the tower for a dataset.

        Raises:
            ConfigError: the settings do not fit the dataset.
        """


TowerComponent = Annotated[TowerConfig, tagged(TOWERS, "tower")]
"""A config field that holds the config of any registered tower."""
