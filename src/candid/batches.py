"""Batches: index arithmetic over a prepared dataset, never a Python loop over rows.

A loader is an array program: an epoch is a permutation of *units* (interactions, or windows
of one user's sequence), a batch is a slice of that permutation turned into packed tensors.
Batch ``i`` of epoch ``e`` is a pure function of (dataset, settings, seed, e, i), which is why
the position (e, i) is all that an exact resume needs and why the number of prefetch workers
cannot change what is seen.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from candid.component import ComponentConfig
from candid.data import HeldOut, PreparedDataset, Role
from candid.errors import ConfigError, DataError
from candid.features import Context, Values

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class History:
    """The histories of a batch, packed: S sequences one after the other, no padding.

    Attributes:
        item_ids: [T] int64, the items, earliest first within a sequence.
        offsets: [S + 1] int64, sequence s is ``item_ids[offsets[s]:offsets[s + 1]]``.
        query_positions: [B] int64, for each row the token after which the question is asked:
            the row's history is that token and everything before it in its sequence.
        actions: [T] int64, 1 + the code of each interaction's kind, 0 where it is not known; or
            None where there are no kinds.
    """

    item_ids: Tensor
    offsets: Tensor
    query_positions: Tensor
    actions: Tensor | None = None

    def to(self, device: torch.device) -> History:
        """Move every tensor to ``device``."""
        moved = {
            f.name: value.to(device)
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None
        }
        return History(**moved)


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The user side of a batch: what a query tower reads.

    Attributes:
        user_ids: [B] int64.
        history: the packed histories, or None for loaders of single interactions.
        context: features of the moment each question is asked, by name, B entries each; or
            None.
    """

    user_ids: Tensor
    history: History | None = None
    context: Mapping[str, Values] | None = None

    def __len__(self) -> int:
        return len(self.user_ids)

    def to(self, device: torch.device) -> Self:
        """Move every tensor to ``device``."""
        moved: dict[str, Any] = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor | History)
        }
        if self.context is not None:
            moved["context"] = {name: value.to(device) for name, value in self.context.items()}
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Batch(Queries):
    """B training rows: queries with the item that was really chosen.

    Attributes:
        positive_ids: [B] int64.
        weights: [B] float32 importance of each row, or None for all alike.
    """

    positive_ids: Tensor
    weights: Tensor | None = None


class BatchesConfig(ComponentConfig):
    """How interactions become batches."""

    unit: Literal["sequence", "interaction"] = Field(
        "sequence",
        description="what a batch is made of: windows of user histories, every position a "
        "row (history towers), or single interactions (id towers)",
    )
    batch_size: int = Field(128, ge=1, description="units in a batch")
    max_length: int = Field(200, ge=1, description="longest history, in interactions")
    windows: Literal["last", "all"] = Field(
        "last",
        description="sequence units: only each user's most recent window, or windows over "
        "the whole history",
    )
    num_workers: int = Field(1, ge=0, description="threads that prepare batches ahead of use")
    drop_last: bool = Field(
        False, description="leave out the last batch of an epoch where it is smaller"
    )


@dataclass(slots=True)
class Position:
    """Where a loader stands: ``step`` batches of ``epoch`` have been used."""

    epoch: int = 0
    step: int = 0


def ranges(starts: Ints, lengths: Ints) -> Ints:
    """Concatenate ``arange(starts[i], starts[i] + lengths[i])`` over i, vectorised."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    shift: Ints = np.repeat(starts - (ends - lengths), lengths)
    return np.arange(total, dtype=np.int64) + shift


def offsets_of(lengths: Ints) -> Ints:
    """[S] lengths to [S + 1] offsets."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


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
            self._starts, self._stops, self._owners = _windows(dataset, config)
            self.num_units = len(self._starts)
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
            context=None if self._context is None else self._context.at(events),
        )

    def _sequences(self, chosen: Ints) -> Batch:
        starts, stops = self._starts[chosen], self._stops[chosen]
        # The last interaction of a window is only ever a target, the first only ever history.
        lengths = stops - starts - 1
        events = ranges(starts, lengths)
        rows = np.flatnonzero(self._is_target[events + 1])
        targets = events[rows] + 1
        return Batch(
            user_ids=torch.from_numpy(np.repeat(self._owners[chosen], lengths)[rows]),
            positive_ids=torch.from_numpy(self._item_ids[targets].astype(np.int64)),
            weights=self._weights(targets),
            context=None if self._context is None else self._context.at(targets),
            history=History(
                item_ids=torch.from_numpy(self._item_ids[events].astype(np.int64)),
                offsets=torch.from_numpy(offsets_of(lengths)),
                query_positions=torch.from_numpy(rows),
                actions=actions_of(self._dataset, events),
            ),
        )

    def _weights(self, events: Ints) -> Tensor | None:
        weights = self._dataset.weights
        return None if weights is None else torch.from_numpy(weights[events])


def _windows(dataset: PreparedDataset, config: BatchesConfig) -> tuple[Ints, Ints, Ints]:
    """Windows [start, stop) of at most ``max_length + 1`` interactions, and their users.

    A window ends at a user's last training target (nothing after it can teach) and the
    earlier ones are laid end to end before it, each sharing one interaction with the next:
    the target of one is the first history of the other, so no target is lost or repeated.
    """
    is_target = np.asarray(dataset.roles) == Role.TRAIN
    events = np.flatnonzero(is_target)
    owners = np.searchsorted(dataset.user_offsets, events, side="right") - 1
    user_ids, reversed_first = np.unique(owners[::-1], return_index=True)
    stops = events[::-1][reversed_first] + 1
    starts = dataset.user_offsets[user_ids].astype(np.int64)
    steps = stops - starts - 1
    keep = steps > 0
    user_ids, starts, stops, steps = user_ids[keep], starts[keep], stops[keep], steps[keep]
    num = np.ones_like(steps) if config.windows == "last" else -(-steps // config.max_length)
    owners = np.repeat(user_ids, num).astype(np.int64)
    index = ranges(np.zeros_like(num), num)
    window_stops = np.repeat(stops, num) - index * config.max_length
    window_starts = np.maximum(window_stops - config.max_length - 1, np.repeat(starts, num))
    has_target = np.add.reduceat(
        np.append(is_target, False), np.stack([window_starts + 1, window_stops], 1).ravel()
    )[::2]
    taught = np.asarray(has_target, dtype=bool)
    return window_starts[taught], window_stops[taught], owners[taught]


T = TypeVar("T")


def prefetch(make: Callable[[int], T], steps: range, num_workers: int) -> Iterator[T]:
    """Yield ``make(step)`` in order, with up to two a worker prepared ahead in threads.

    An error in a worker is raised at the step it belongs to; leaving the loop early stops
    the workers.
    """
    if num_workers == 0:
        yield from map(make, steps)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="candid-loader")
    try:
        waiting: deque[Future[T]] = deque()
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def held_out_queries(
    dataset: PreparedDataset,
    questions: HeldOut,
    max_length: int,
    batch_size: int,
    context: Context | None = None,
) -> Iterator[tuple[slice, Queries]]:
    """Batches of evaluation queries, in the order of ``questions``.

    Args:
        dataset: the prepared dataset.
        questions: from ``data.held_out``; every history must hold at least one interaction.
        max_length: longest history; the most recent interactions are kept.
        batch_size: queries in a batch.
        context: what encodes the moment of each question, that of its first target; or None.

    Yields:
        the slice of ``questions`` and its queries, one packed sequence a query.
    """
    starts = dataset.user_offsets[questions.user_ids]
    starts = np.maximum(starts, questions.history_stop - max_length)
    lengths = questions.history_stop - starts
    for begin in range(0, len(questions), batch_size):
        rows = slice(begin, min(begin + batch_size, len(questions)))
        events = ranges(starts[rows], lengths[rows])
        yield (
            rows,
            pack_histories(
                questions.user_ids[rows],
                dataset.item_ids[events].astype(np.int64),
                lengths[rows],
                actions=actions_of(dataset, events),
                context=None if context is None else context.at(questions.history_stop[rows]),
            ),
        )


def actions_of(dataset: PreparedDataset, events: Ints) -> Tensor | None:
    """Kinds of interactions [T] as ``History.actions`` holds them; None where there are none."""
    if dataset.actions is None:
        return None
    return torch.from_numpy(dataset.actions[events].astype(np.int64) + 1)


def pack_histories(
    user_ids: Ints,
    item_ids: Ints,
    lengths: Ints,
    *,
    actions: Tensor | None = None,
    context: Mapping[str, Values] | None = None,
) -> Queries:
    """One query a sequence, asked after its last interaction.

    Args:
        user_ids: [B].
        item_ids: [sum of lengths], the histories one after the other.
        lengths: [B], each at least 1.
        actions: see ``History``; None where they are not known.
        context: of the B questions, or None.
    """
    offsets = offsets_of(lengths)
    return Queries(
        user_ids=torch.from_numpy(user_ids),
        context=context,
        history=History(
            item_ids=torch.from_numpy(item_ids),
            offsets=torch.from_numpy(offsets),
            query_positions=torch.from_numpy(offsets[1:] - 1),
            actions=actions,
        ),
    )
