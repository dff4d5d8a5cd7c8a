"""Loaders: index arithmetic over a prepared dataset, never a Python loop over rows.

A loader is an array program: an epoch is a permutation of *units* (interactions, or windows
of one user's sequence), a batch is a slice of that permutation turned into packed tensors.
Batch ``i`` of epoch ``e`` is a pure function of (dataset, settings, seed, e, i), which is why
the position (e, i) is all that an exact resume needs and why the number of prefetch workers
cannot change what is seen.
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
from candid.batches.packing import Ints, event_type_of, negatives_of, offsets_of, ranges
from candid.batches.prefetch import prefetch
from candid.batches.records import Batch, History
from candid.batches.windows import windows_of
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError, DataError
from candid.features import Context, Values


@dataclass(slots=True)
class Position:
    """Where a loader stands: ``step`` batches of ``epoch`` have been used."""

    epoch: int = 0
    step: int = 0


class Loader:
    """Endless batches from a position; iterate with ``for batch in loader.epoch()``.

    Args:
        dataset: the prepared dataset.
        config: batch settings.
        seed: with ``position`` it determines every batch to come.
        context: what encodes the moment of each row, or None.

    Attributes:
        position: where the next batch comes from. Assign to resume; it advances when a batch
            is handed out, whatever the workers have prepared ahead.

    Raises:
        DataError: there is nothing to train on.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        config: BatchesConfig,
        seed: int,
        context: Context | None = None,
    ) -> None:
        self.config = config
        self.seed = seed
        self.position = Position()
        self._dataset = dataset
        self._context = context
        self._item_ids = dataset.item_ids
        self._order: tuple[int, Ints] | None = None
        self._lock = threading.Lock()
        is_target = np.asarray(dataset.roles) == Role.TRAIN
        if config.unit == "interaction":
            self._targets = np.flatnonzero(is_target)
            self._owners = (
                np.searchsorted(dataset.user_offsets, self._targets, side="right") - 1
            ).astype(np.int64)
            self.num_units = len(self._targets)
        else:
            self._is_target = is_target
            self._windows = windows_of(dataset, config)
            self.num_units = len(self._windows)
        if self.num_units == 0:
            raise DataError(
                "nothing to train on: no user has "
                + ("a" if config.unit == "interaction" else "two or more")
                + " training interactions; check the split"
            )
        if config.drop_last and self.num_units < config.batch_size:
            raise ConfigError(
                f"batches.batch_size {config.batch_size} exceeds the {self.num_units} units of "
                "an epoch and batches.drop_last leaves nothing; lower batch_size"
            )

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""
        if self.config.drop_last:
            return self.num_units // self.config.batch_size
        return -(-self.num_units // self.config.batch_size)

    def batch(self, epoch: int, step: int) -> Batch:
        """Batch ``step`` of ``epoch``: the same whoever asks, and whenever."""
        size = self.config.batch_size
        chosen = self._permutation(epoch)[step * size : (step + 1) * size]
        if self.config.unit == "interaction":
            return self._interactions(chosen)
        return self._sequences(chosen)

    def epoch(self) -> Generator[Batch, None, None]:
        """The rest of the current epoch; its last batch puts ``position`` at the next one."""
        epoch = self.position.epoch
        steps = range(self.position.step, self.num_batches)
        for batch in prefetch(lambda step: self.batch(epoch, step), steps, self.config.num_workers):
            self.position.step += 1
            if self.position.step == self.num_batches:
                self.position.epoch, self.position.step = epoch + 1, 0
            yield batch

    def _permutation(self, epoch: int) -> Ints:
        with self._lock:
            if self._order is None or self._order[0] != epoch:
                rng = np.random.default_rng([self.seed, epoch])
                self._order = (epoch, rng.permutation(self.num_units))
            return self._order[1]

    def _interactions(self, chosen: Ints) -> Batch:
        events = self._targets[chosen]
        return Batch(
            user_ids=torch.from_numpy(self._owners[chosen]),
            positive_ids=torch.from_numpy(self._item_ids[events].astype(np.int64)),
            weights=self._weights(events),
            negative_ids=negatives_of(self._dataset, events, self.config.max_negatives),
            context=None if self._context is None else self._context.at(events),
        )

    def _sequences(self, chosen: Ints) -> Batch:
        windows = self._windows[chosen]
        # The last interaction of a window is only ever a target, the first only ever history,
        # unless it is asked for from no history.
        lengths = windows.stops - windows.starts - 1
        events = ranges(windows.starts, lengths)
        rows = np.flatnonzero(self._is_target[events + 1])
        opens = windows.openings >= 0
        opening = windows.openings[opens]
        targets = np.concatenate([opening, events[rows] + 1])
        owners = np.concatenate([windows.owners[opens], np.repeat(windows.owners, lengths)[rows]])
        positions = np.concatenate([np.full_like(opening, -1), rows])
        return Batch(
            user_ids=torch.from_numpy(owners),
            positive_ids=torch.from_numpy(self._item_ids[targets].astype(np.int64)),
            weights=self._weights(targets),
            negative_ids=negatives_of(self._dataset, targets, self.config.max_negatives),
            context=self._context_at(targets, positions >= 0),
            history=History(
                item_ids=torch.from_numpy(self._item_ids[events].astype(np.int64)),
                offsets=torch.from_numpy(offsets_of(lengths)),
                query_positions=torch.from_numpy(positions),
                event_types=event_type_of(self._dataset, events),
            ),
        )

    def _context_at(
        self, events: Ints, knows_history: npt.NDArray[np.bool_]
    ) -> Mapping[str, Values] | None:
        return None if self._context is None else self._context.at(events, knows_history)

    def _weights(self, events: Ints) -> Tensor | None:
        weights = self._dataset.weights
        return None if weights is None else torch.from_numpy(weights[events])
