"""Draws for audited rows: what is random of a sampler, given the row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from candid.audit.subject import Subject
from candid.candidates import Candidates, ExactCandidates
from candid.samplers import (
    AdaptiveSampler,
    Compound,
    CrossBatchMemory,
    EncodedBatch,
    InBatch,
    Observer,
    Sampler,
)

LEARNT_BATCHES = 100
"""Batches shown, before the first draw, to a sampler that learns from the stream."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Audited rows that stand in one batch.

    Attributes:
        query: [B, D].
        positive_ids: [B] int64.
        user_ids: [B] int64.
    """

    query: Tensor
    positive_ids: Tensor
    user_ids: Tensor

    @classmethod
    def of(cls, subject: Subject, rows: slice | Tensor) -> Rows:
        """Take some of a subject's rows."""
        return cls(subject.query[rows], subject.positive_ids[rows], subject.user_ids[rows])


class AuditSampler:
    """Draws the candidates of audited rows again and again.

    Given the row, the draws of most samplers are all that is random. An in-batch sampler has
    no draws: there the *other rows of the batch* are random, ``batch_rows`` of them for each
    draw, taken from the training rows independently and with replacement, as the item frequency
    that corrects them supposes. The audited rows share them; a row of the same user is masked.
    A memory of earlier batches is filled anew for each draw, from the training rows likewise.

    Args:
        sampler: built for the subject's catalog; one that follows the model is given its item
            vectors here.
        subject: what is audited.
        batch_rows: other rows of a batch, for samplers that take candidates from it.
        generator: source of randomness.
    """

    def __init__(
        self, sampler: Sampler, subject: Subject, batch_rows: int, generator: torch.Generator
    ) -> None:
        self._sampler = sampler
        self._subject = subject
        self._batch_rows = batch_rows
        self._generator = generator
        parts = list(_parts(sampler))
        in_batch = [part for part in parts if isinstance(part, InBatch)]
        memories = [part for part in parts if isinstance(part, CrossBatchMemory)]
        self.takes_from_batch = bool(in_batch or memories)
        self._num_remembered = max((part.size for part in memories), default=0)
        self._last: tuple[Rows, EncodedBatch] | None = None
        self._needs_guest = any(part.distinct for part in in_batch)
        if isinstance(sampler, AdaptiveSampler):
            sampler.refresh(subject.item_vectors)
        if isinstance(sampler, Observer) and self.takes_from_batch:
            warm_up = max((part.warm_up for part in memories), default=0)
            for _ in range(LEARNT_BATCHES + warm_up):
                sampler.observe(self._training_rows(batch_rows))

    def sample(self, rows: Rows) -> Candidates:
        """The candidates of one step for these rows."""
        if not self.takes_from_batch:
            if self._last is None or self._last[0] is not rows:
                # One object for all draws of the rows: what is settled before the draws, such
                # as a head near the queries, is then settled once.
                encoded = EncodedBatch(rows.positive_ids, rows.user_ids, rows.query)
                self._last = rows, encoded
            return self._sampler.sample(self._last[1], self._generator)
        if self._num_remembered and isinstance(self._sampler, Observer):
            self._sampler.observe(self._training_rows(self._num_remembered))
        others = self._other_rows()
        drawn = self._sampler.sample(others, self._generator)
        return replace(
            drawn,
            log_expected_count_positive=self._sampler.log_expected_count_of(
                rows.positive_ids, others
            ),
            row_user_ids=None if drawn.owner is None else rows.user_ids,
        )

    def _training_rows(self, num_rows: int) -> EncodedBatch:
        subject = self._subject
        chosen = torch.randint(
            len(subject.training_positive_ids), (num_rows,), generator=self._generator
        )
        return EncodedBatch(
            subject.training_positive_ids[chosen],
            subject.training_user_ids[chosen],
            subject.query[:0],
        )

    def _other_rows(self) -> EncodedBatch:
        rows = self._training_rows(self._batch_rows)
        if not self._needs_guest:
            return rows
        # A set counts the rows of other users from the rows there are, the audited row among
        # them. It stands in for itself by an item that the batch has already and a user that
        # nobody is, which leaves the set as it was.
        return replace(
            rows,
            positive_ids=torch.cat([rows.positive_ids, rows.positive_ids[:1]]),
            user_ids=torch.cat([rows.user_ids, torch.full_like(rows.user_ids[:1], -2)]),
        )


def part_of(candidates: Candidates, rows: slice) -> Candidates:
    """What some of the rows of a draw see of it."""
    owner, exact = candidates.owner, candidates.exact
    row_user_ids = candidates.row_user_ids
    return replace(
        candidates,
        ids=_cut(candidates.ids, rows),
        log_expected_count=_cut(candidates.log_expected_count, rows),
        log_expected_count_positive=candidates.log_expected_count_positive[rows],
        owner=None if owner is None else _cut(owner, rows),
        row_user_ids=None if row_user_ids is None else row_user_ids[rows],
        exact=None if exact is None else _head_part(exact, rows),
    )


def exact_ids(exact: ExactCandidates, num_rows: int) -> Tensor:
    """[B, H] int64, the items of a head in the order of its scores; 0 where it is filled up."""
    ids = [part.ids.clamp(min=0) for part in exact.parts]
    return torch.cat([part.expand(num_rows, part.shape[-1]) for part in ids], dim=1)


def _head_part(exact: ExactCandidates, rows: slice) -> ExactCandidates:
    row_candidates = (
        None if exact.row_candidates is None else _head_part(exact.row_candidates, rows)
    )
    return ExactCandidates(
        _cut(exact.ids, rows), _cut(exact.log_expected_count, rows), row_candidates
    )


def _cut(values: Tensor, rows: slice) -> Tensor:
    return values if values.ndim == 1 else values[rows]


def _parts(sampler: Sampler) -> Iterator[Sampler]:
    yield sampler
    if isinstance(sampler, Compound):
        for part in sampler.parts.values():
            yield from _parts(part)
