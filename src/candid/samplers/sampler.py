"""The protocol of a sampler, and independent samples for groups of rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from candid.candidates import Candidates, Positives


def sample_groups(
    sampler: Sampler,
    batch: Positives,
    num_groups: int,
    generator: torch.Generator | None = None,
) -> Candidates:
    """Independent draws of a sampler, each shared by an equal part of the batch's rows.

    Args:
        sampler: where they come from.
        batch: see ``Sampler.draw``.
        num_groups: how many, at least 1; no more than one for each row are made.
        generator: see ``Sampler.draw``.

    Returns:
        one draw as the sampler made it, several as ids [G, N]. A sampler that draws for each
        row apart has no more independent draws to give: its first is returned.
    """
    num_rows = len(batch.positive_ids)
    size = max(1, -(-num_rows // num_groups))
    first = sampler.sample(batch, generator)
    num_sampled_groups = max(1, -(-num_rows // size))
    if num_sampled_groups == 1 or first.ids.ndim > 1:
        return first
    draws = [first, *(sampler.sample(batch, generator) for _ in range(num_sampled_groups - 1))]
    owners = [sample.owner for sample in draws if sample.owner is not None]
    return replace(
        first,
        ids=pad_sequence([sample.ids for sample in draws], batch_first=True),
        log_expected_count=pad_sequence(
            [sample.log_expected_count for sample in draws],
            batch_first=True,
            padding_value=float("inf"),
        ),
        owner=pad_sequence(owners, batch_first=True, padding_value=-1) if owners else None,
    )


class Sampler(Protocol):
    """Where candidates come from."""

    def sample(self, batch: Positives, generator: torch.Generator | None = None) -> Candidates:
        """Draw the candidates of one step.

        Args:
            batch: ``positive_ids`` [B] and ``user_ids`` [B]; the candidates live on the
                device of ``positive_ids``.
            generator: source of randomness, on that device; same state, same candidates.
        """
        ...

    def log_expected_count_of(self, ids: Tensor, batch: Positives) -> Tensor:
        """Log expected count of any items, as a draw for ``batch`` would state it.

        Args:
            ids: int64, any shape.
            batch: as for ``draw``.

        Returns:
            float32, shape of ``ids``; -inf for an item that can never be proposed.
        """
        ...
