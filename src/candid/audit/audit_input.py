"""Input of an audit: queries, positives and item vectors of one model, and its training rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from candid.audit.batch_source import BatchSource, IndependentRows, TrainingRows
from candid.errors import ArtifactError, ConfigError, DataError
from candid.samplers import checked_item_vectors

SLICES = ("rare", "middle", "popular")
"""Slices of the rows by popularity of the positive."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AuditInput:
    """One model and the Q training rows on which it is audited.

    Attributes:
        name: name in the report.
        query: [Q, D] float32, scaled so that the dot product with an item vector is the logit.
        item_vectors: [V, D] float32.
        positive_ids: [Q] int64, the chosen item of each row.
        user_ids: [Q] int64.
        counts: [V], how often each item is a target in an epoch.
        training_positive_ids: [E] int64, the item of each training row.
        training_user_ids: [E] int64, the user of each training row.
        batches: source of real batches for in-batch samplers, such as whole windows of users.
            None: a batch is a number of independent training rows.

    Raises:
        ConfigError: the shapes do not match.
        DataError: an id outside the catalog (the message names the row), or no rows.
        ArtifactError: a vector is not finite (the message names the row).
    """

    name: str
    query: Tensor
    item_vectors: Tensor
    positive_ids: Tensor
    user_ids: Tensor
    counts: Tensor
    training_positive_ids: Tensor
    training_user_ids: Tensor
    batches: BatchSource | None = None

    def __post_init__(self) -> None:
        for name in ("query", "item_vectors"):
            # Detached, because they may be parameters of a model.
            object.__setattr__(self, name, getattr(self, name).detach().float())
        checked_item_vectors(self.item_vectors, len(self.counts))
        num_rows = len(self.query)
        if num_rows == 0 or not len(self.training_positive_ids):
            raise DataError("there are no training rows to audit")
        if self.query.ndim != 2 or self.query.shape[1] != self.item_vectors.shape[1]:
            raise ConfigError(
                f"query must be [Q, {self.item_vectors.shape[1]}] like the item vectors, got "
                f"{list(self.query.shape)}"
            )
        if len(self.positive_ids) != num_rows or len(self.user_ids) != num_rows:
            raise ConfigError(
                f"{num_rows} queries need {num_rows} positive_ids and user_ids, got "
                f"{len(self.positive_ids)} and {len(self.user_ids)}"
            )
        bad = torch.nonzero(~torch.isfinite(self.query).all(dim=1))
        if len(bad):
            row = int(bad[0])
            raise ArtifactError(
                f"the query of row {row} (user {int(self.user_ids[row])}) has NaN or infinite "
                f"values, like {len(bad)} of {num_rows} queries: the model has diverged; lower the "
                "learning rate or start from an earlier checkpoint"
            )
        for ids, name in (
            (self.positive_ids, "positive"),
            (self.training_positive_ids, "training positive"),
        ):
            outside = torch.nonzero((ids < 0) | (ids >= self.num_items))
            if len(outside):
                row = int(outside[0])
                raise DataError(
                    f"the {name} of row {row} is item {int(ids[row])}, outside the catalog: ids "
                    f"must be 0 to {self.num_items - 1}"
                )

    @property
    def num_items(self) -> int:
        """V, the number of items."""
        return len(self.counts)

    def independent_rows(self, num_rows: int) -> IndependentRows:
        """Return a source of batches of independent training rows.

        Args:
            num_rows: other rows of each batch.
        """
        rows = TrainingRows(self.training_positive_ids, self.training_user_ids)
        return IndependentRows(rows, num_rows)

    def restricted_to(self, is_kept: Tensor) -> AuditInput:
        """Return the model over a part of its catalog, whose items have new ids in their order.

        Args:
            is_kept: [V] bool, the items of the part; every item of a training row is one of them.

        Raises:
            DataError: an item of a training row is not in the part.
        """
        if bool(is_kept.all()):
            return self
        new_ids = torch.where(is_kept, is_kept.cumsum(0) - 1, self.num_items)
        training = new_ids[self.training_positive_ids]
        return replace(
            self,
            item_vectors=self.item_vectors[is_kept],
            counts=self.counts[is_kept],
            positive_ids=new_ids[self.positive_ids],
            training_positive_ids=training,
            batches=None if self.batches is None else self.batches.with_items(training),
        )

    def slices(self) -> Tensor:
        """Return the index in ``SLICES`` of each row's positive: [Q] int64."""
        return popularity_thirds(self.counts)[self.positive_ids]


def popularity_thirds(counts: Tensor) -> Tensor:
    """Divide items into thirds with about the same number of training rows each.

    Items of one count stay together, in the third that contains the middle of their common
    share; a third may therefore be empty.

    Args:
        counts: [V].

    Returns:
        [V] int64: 0 for rare items, 2 for popular ones.
    """
    distinct, inverse, sizes = torch.unique(counts, return_inverse=True, return_counts=True)
    mass = distinct.double() * sizes
    middle = mass.cumsum(0) - mass / 2
    total = mass.sum()
    third = (middle / torch.where(total > 0, total, 1.0) * 3).floor().clamp(max=2)
    third_of_item: Tensor = third.long()[inverse]
    return third_of_item
