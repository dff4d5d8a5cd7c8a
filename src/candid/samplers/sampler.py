"""The base class of samplers, and samples for groups of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from candid.candidates import Candidates
from candid.row_counts import RowCounts
from candid.samplers.expected_count import CountParts
from candid.samplers.table_module import TableModule


class Sampler(TableModule, ABC):
    """A source of candidates that states the expected count of each.

    To write one, implement ``sample`` and ``log_expected_count_of``. All other methods are hooks
    with a default: a sampler that follows the model overrides ``refresh_every`` and ``refresh``,
    one that reads the stream of batches overrides ``observe``, one that contains other samplers
    overrides ``parts``.

    A sampler is a module without parameters. Its tables are buffers, so that
    ``sampler.to(device)`` moves them, and ``state_dict`` holds what a resumed run needs. Tables
    that are rebuilt from item counts are not part of ``state_dict``. Candidates live on the
    device of ``positive_ids``, which must be that of the sampler.

    Args:
        num_items: V, the size of the catalog.

    Attributes:
        num_items: V.
        has_exact: whether ``sample`` returns exact candidates (``Candidates.exact``).
        takes_batch_rows: whether some candidates are the positives of rows of this or of earlier
            batches, of which a row loses those of its own user; ``count_parts`` must then name
            them.
    """

    has_exact: bool = False
    takes_batch_rows: bool = False

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items = num_items

    @abstractmethod
    def sample(
        self,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Candidates:
        """Sample the candidates of one step.

        Args:
            positive_ids: [B] int64.
            user_ids: [B] int64, the user of each row, for samplers that take candidates from
                the batch. None: every row belongs to another user.
            query: [B, D] float32, detached, scaled so that its dot product with an item vector
                given to ``refresh`` is the logit; for samplers that follow the model.
            generator: source of randomness, on the device of ``positive_ids``; the same state
                gives the same candidates. None: the global generator of the device.

        Returns:
            the candidates, shared by all rows or for each row, with their expected counts.
        """

    @abstractmethod
    def log_expected_count_of(
        self,
        ids: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """Return the log expected count of any items, as a sample for the same batch states it.

        Args:
            ids: int64, any shape; [B] or [B, n] for samplers with a sample for each row.
            positive_ids: as for ``sample``.
            user_ids: as for ``sample``.
            query: as for ``sample``.

        Returns:
            float32, shape of ``ids``; -inf for an item that can never be a candidate.
        """

    def count_parts(
        self,
        ids: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
    ) -> CountParts:
        """Return the expected counts of items by source, for a mixture that contains the sampler.

        By default all candidates are independent of the batch. A sampler that takes rows of the
        batch overrides it.

        Args:
            ids: as for ``log_expected_count_of``.
            positive_ids: as for ``sample``.
            user_ids: as for ``sample``.
            query: as for ``sample``.
        """
        return CountParts(self.log_expected_count_of(ids, positive_ids, user_ids, query))

    @property
    def parts(self) -> Mapping[str, Sampler]:
        """The samplers inside this one, by name; the hooks below reach them all."""
        return {}

    @property
    def reads_query(self) -> bool:
        """Whether ``sample`` reads the query vectors, so that several processes gather them.

        By default True, or whether a part does.
        """
        parts = self.parts.values()
        return any(part.reads_query for part in parts) if parts else True

    @property
    def is_set(self) -> bool:
        """Whether the candidates, or those of a part, are a set of distinct items."""
        return any(part.is_set for part in self.parts.values())

    @property
    def refresh_every(self) -> int | None:
        """R, the number of steps between refreshes; None: the sampler reads no item vectors."""
        intervals = [part.refresh_every for part in self.parts.values()]
        return min((every for every in intervals if every is not None), default=None)

    def refresh(self, item_vectors: Tensor) -> None:
        """Replace the item vectors that the sampler follows.

        Between refreshes the vectors grow stale. That increases the variance of the estimate
        but adds no bias: expected counts are those of the sample that was drawn.

        Args:
            item_vectors: [V, D] float32, detached; the dot product with a query is the logit.
                The sampler keeps the tensor: do not write to it afterwards.

        Raises:
            ConfigError: not [V, D].
            ArtifactError: a vector is not finite; names the item.
        """
        for part in self.parts.values():
            part.refresh(item_vectors)

    def observe(self, positive_ids: Tensor, user_ids: Tensor | None = None) -> None:
        """Record a training batch; called once a step, after ``sample``.

        Args:
            positive_ids: [B] int64.
            user_ids: [B] int64, or None.
        """
        for part in self.parts.values():
            part.observe(positive_ids, user_ids)

    def metrics(self) -> dict[str, float]:
        """Return numbers to log beside the loss, as of the last step."""
        return {
            f"{name}/{key}": value
            for name, part in self.parts.items()
            for key, value in part.metrics().items()
        }

    def support(self, is_positive: Tensor) -> Tensor:
        """Return which items can be candidates.

        Args:
            is_positive: [V] bool on the CPU, whether an item is ever the positive of a row.

        Returns:
            [V] bool on the CPU; by default every item.
        """
        return torch.ones_like(is_positive)

    def excluding(self, ids: Tensor) -> Sampler:
        """Return a sampler of the same size without some items, Q renormalised.

        A sampler that cannot leave out items returns itself, as does one that has no other
        items. A loss then drops the samples of these items; where a row has no other samples,
        the estimate misses all other items.

        Args:
            ids: [H] int64.
        """
        return self

    def __copy__(self) -> Self:
        """Return a sampler that shares the tables, but whose attributes can be set apart."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        for name in ("_buffers", "_modules"):
            other.__dict__[name] = dict(self.__dict__[name])
        return other


def sample_groups(
    sampler: Sampler,
    num_groups: int,
    positive_ids: Tensor,
    user_ids: Tensor | None = None,
    query: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Candidates:
    """Sample independently for equal parts of the batch's rows.

    Args:
        sampler: source of the candidates.
        num_groups: number of samples, at least 1; never more than one for each row.
        positive_ids: as for ``Sampler.sample``.
        user_ids: as for ``Sampler.sample``.
        query: as for ``Sampler.sample``.
        generator: as for ``Sampler.sample``.

    Returns:
        one sample as the sampler returned it, several with ids [G, N]. A sampler with a sample
        for each row is called once: its rows are independent already.
    """
    num_rows = len(positive_ids)
    rows_per_group = max(1, -(-num_rows // num_groups))
    num_samples = max(1, -(-num_rows // rows_per_group))
    first = sampler.sample(positive_ids, user_ids, query, generator)
    if num_samples == 1 or first.ids.ndim > 1:
        return first
    samples = [first]
    for _ in range(num_samples - 1):
        samples.append(sampler.sample(positive_ids, user_ids, query, generator))
    sources = [sample.source_rows for sample in samples if sample.source_rows is not None]
    owners = [sample.owner for sample in samples if sample.owner is not None]
    row_counts = [sample.row_counts for sample in samples if sample.row_counts is not None]
    return replace(
        first,
        ids=pad_sequence([sample.ids for sample in samples], batch_first=True),
        log_expected_count=pad_sequence(
            [sample.log_expected_count for sample in samples],
            batch_first=True,
            padding_value=float("inf"),
        ),
        owner=pad_sequence(owners, batch_first=True, padding_value=-1) if owners else None,
        source_rows=(
            pad_sequence(sources, batch_first=True, padding_value=-1) if sources else None
        ),
        row_counts=_row_counts_of_groups(row_counts, rows_per_group) if row_counts else None,
    )


def _row_counts_of_groups(groups: Sequence[RowCounts], rows_per_group: int) -> RowCounts:
    """Combine the counts of independent samples: vectors [G, N], numbers of each row's group."""
    positive = groups[0].log_expected_count_positive
    row = torch.arange(len(positive), device=positive.device)
    return RowCounts.joined(
        groups,
        of_items=lambda values: pad_sequence(values, batch_first=True),
        of_rows=lambda values: torch.stack(values)[row // rows_per_group, row],
    )
