"""What a server needs of a trained run, opened: handed to it by whoever opens runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from candid.data import PreparedDataset
from candid.features import Context, Values
from candid.index import LiveIndex, Snapshot
from candid.towers import RetrievalModel

People = Callable[[Sequence[Mapping[str, Any]]], dict[str, Values]]
"""Attributes of people, by column, to features; raises DataError."""
NewRows = Callable[[Sequence[Mapping[str, Any]]], tuple[pl.DataFrame, dict[str, Values]]]
"""``title`` and attributes of items, by column, to a table and features; raises DataError."""


@dataclass(frozen=True)
class ServedParts:
    """A model with what it belongs to, ready to answer.

    Attributes:
        model: in inference mode.
        dataset: what it was trained on.
        snapshot: the index over its item vectors; its first V items are the dataset's.
        max_length: the longest history that the model reads.
        context: what encodes the moment of a question; None: the model reads none.
        context_columns: what the model reads of it, as columns of ``context_frame``.
        people: encodes people who are no users; None: the model reads no features of users.
        user_attributes: what these may say, with types.
        new_rows: encodes new items; None: the model knows items by their ids alone.
        item_features: attributes that the vectors of items depend on.
        no_probability: why scores are no log-probabilities up to a constant; None: they are.
    """

    model: RetrievalModel
    dataset: PreparedDataset
    snapshot: Snapshot
    max_length: int
    context: Context | None = None
    context_columns: frozenset[str] = frozenset()
    people: People | None = None
    user_attributes: Mapping[str, pl.DataType] = field(default_factory=dict)
    new_rows: NewRows | None = None
    item_features: Sequence[str] = ()
    no_probability: str | None = None

    @property
    def index(self) -> LiveIndex:
        """Searches the item vectors."""
        return self.snapshot.index

    @property
    def dim(self) -> int:
        """D."""
        return self.index.item_vectors.shape[1]
