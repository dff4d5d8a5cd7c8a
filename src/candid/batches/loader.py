"""Loaders of training batches: array operations over a prepared dataset.

An epoch is a permutation of *units* (interactions, or windows of one user's sequence); a batch
is a slice of that permutation as packed tensors. Batch ``i`` of epoch ``e`` is a pure function
of (dataset, settings, seed, e, i). The position (e, i) is therefore all that an exact resume
needs, and the number of prefetch workers does not change the batches.

A loader holds some numbers for each user. The interactions stay where the dataset has them: in
mapped files, whose pages all processes of a machine share.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.batches.config import BatchesConfig
from candid.batches.new_targets import NewTargets, target_parts
from candid.batches.packing import (
    Ints,
    event_type_of,
    negatives_of,
    offsets_of,
    ranges,
    times_of,
)
from candid.batches.permutation import EpochOrder
from candid.batches.prefetch import prefetch
from candid.batches.records import Batch, History
from candid.batches.targets import num_batches_of, units_of
from candid.batches.windows import Windows
from candid.data import PreparedDataset, Role
from candid.features import Context, Values


@dataclass(slots=True)
class Position:
    """Position of a loader: ``step`` batches of ``epoch`` have been used."""

    epoch: int = 0
    step: int = 0


class Loader:
    """Training batches from a position on; iterate with ``for batch in loader.epoch()``.

    Args:
        dataset: the prepared dataset.
        config: batch settings.
        seed: with ``position`` it determines all following batches.
        context: encoder of the query context of each row, or None.
        new: train on new targets and a share of the earlier ones; None: on all.

    Attributes:
        position: position of the next batch. Assign to resume; it advances when a batch is
            yielded, independently of the batches that workers have prepared.
        num_units: number of units in an epoch.
        num_batches: number of batches in an epoch.

    Raises:
        DataError: there are no training interactions.
        ConfigError: ``drop_last`` is set and an epoch is smaller than one batch.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        config: BatchesConfig,
        *,
        seed: int,
        context: Context | None = None,
        new: NewTargets | None = None,
    ) -> None:
        self.config = config
        self.seed = seed
        self.position = Position()
        self._dataset = dataset
        self._context = context
        self._item_ids, self._roles = np.asarray(dataset.item_ids), np.asarray(dataset.roles)
        self._first_new = None if new is None else new.first_new
        self._is_single = config.unit == "interaction"
        self._order: EpochOrder | None = None
        self._lock = threading.Lock()
        self._parts = [units_of(part, config) for part in target_parts(dataset, new)]
        sizes = [len(units) for units in self._parts]
        self._num_first, self._num_earlier = sizes[0], sum(sizes[1:])
        self._num_replayed = 0 if new is None else new.num_replayed(self._num_earlier)
        self.num_units = self._num_first + self._num_replayed
        self.num_batches = num_batches_of(self.num_units, config)

    def batch(self, epoch: int, step: int) -> Batch:
        """Return batch ``step`` of ``epoch``; the same at every call."""
        size = self.config.batch_size
        units = self._order_of(epoch)[step * size : (step + 1) * size]
        return self._interactions(units) if self._is_single else self._sequences(units)

    def epoch(self) -> Generator[Batch, None, None]:
        """Yield the rest of the current epoch; afterwards ``position`` is the next epoch."""
        epoch = self.position.epoch
        steps = range(self.position.step, self.num_batches)
        for batch in prefetch(lambda step: self.batch(epoch, step), steps, self.config.num_workers):
            self.position.step += 1
            if self.position.step == self.num_batches:
                self.position.epoch, self.position.step = epoch + 1, 0
            yield batch

    def _order_of(self, epoch: int) -> EpochOrder:
        with self._lock:
            if self._order is None or self._order.epoch != epoch:
                self._order = EpochOrder(
                    self.seed,
                    epoch,
                    num_always=self._num_first,
                    num_further=self._num_earlier,
                    num_sampled=self._num_replayed,
                )
            return self._order

    def _units(self, units: Ints) -> tuple[Ints, ...]:
        """Return the arrays of units [B]; those of the second part follow those of the first."""
        if len(self._parts) == 1:
            return self._parts[0][units]
        is_first = units < self._num_first
        first = self._parts[0][units[is_first]]
        second = self._parts[1][units[~is_first] - self._num_first]
        arrays = tuple(np.empty_like(units) for _ in first)
        for array, values, others in zip(arrays, first, second, strict=True):
            array[is_first], array[~is_first] = values, others
        return arrays

    def _interactions(self, units: Ints) -> Batch:
        events, owners = self._units(units)
        return Batch(
            user_ids=torch.from_numpy(owners),
            positive_ids=torch.from_numpy(self._item_ids[events].astype(np.int64)),
            weights=self._weights(events),
            negative_ids=negatives_of(self._dataset, events, self.config.max_negatives),
            context=self._context_at(events, self._dataset.user_offsets[owners] < events),
            times=times_of(self._dataset, events),
        )

    def _sequences(self, units: Ints) -> Batch:
        windows = Windows(*self._units(units))
        # The last interaction of a window is only a target, and the first is only history, unless
        # it is the target of an empty history.
        lengths = windows.stops - windows.starts - 1
        events = ranges(windows.starts, lengths)
        owners = np.repeat(windows.owners, lengths)
        is_row = self._roles[events + 1] == Role.TRAIN
        if self._first_new is not None:
            is_new = np.repeat(units < self._num_first, lengths)
            is_row &= (events + 1 >= self._first_new[owners]) == is_new
        rows = np.flatnonzero(is_row)
        has_opening = windows.openings >= 0
        openings = windows.openings[has_opening]
        targets = np.concatenate([openings, events[rows] + 1])
        user_ids = np.concatenate([windows.owners[has_opening], owners[rows]])
        positions = np.concatenate([np.full_like(openings, -1), rows])
        return Batch(
            user_ids=torch.from_numpy(user_ids),
            positive_ids=torch.from_numpy(self._item_ids[targets].astype(np.int64)),
            weights=self._weights(targets),
            negative_ids=negatives_of(self._dataset, targets, self.config.max_negatives),
            context=self._context_at(targets, positions >= 0),
            times=times_of(self._dataset, targets),
            history=History(
                item_ids=torch.from_numpy(self._item_ids[events].astype(np.int64)),
                offsets=torch.from_numpy(offsets_of(lengths)),
                query_positions=torch.from_numpy(positions),
                event_types=event_type_of(self._dataset, events),
                times=times_of(self._dataset, events),
            ),
        )

    def _context_at(
        self, events: Ints, has_last: npt.NDArray[np.bool_]
    ) -> Mapping[str, Values] | None:
        return None if self._context is None else self._context.at(events, has_last)

    def _weights(self, events: Ints) -> Tensor | None:
        weights = self._dataset.weights
        return None if weights is None else torch.from_numpy(weights[events])
