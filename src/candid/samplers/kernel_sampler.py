"""Base of samplers that draw from a kernel of query and item."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Final

import torch
from torch import Tensor

from candid.candidates import Candidates
from candid.errors import ArtifactError, ConfigError
from candid.samplers.item_vectors import ItemVectors, checked_item_vectors
from candid.samplers.kernel_tree import Kernel, KernelTree
from candid.samplers.sampler import Sampler

BLOCK_SIZE: Final = 32
"""Default of ``block_size``."""

REFRESH_EVERY: Final = 100
"""Default of ``refresh_every``."""


class KernelSampler(Sampler):
    """n samples for each row from Q(d|u), a kernel of the row's query and the item vectors.

    Expected count n·Q(d|u). The sampler follows the model: ``refresh`` builds a tree over the
    item vectors, ``update`` replaces some of them. Every item can be sampled, for any vectors.

    Args:
        num_items: V.
        num_candidates: n, samples for each row.
        block_size: S, items that a leaf of the tree weighs exactly.
        refresh_every: R, steps between refreshes.

    Raises:
        ConfigError: one of these numbers is less than 1.
    """

    def __init__(
        self, num_items: int, *, num_candidates: int, block_size: int, refresh_every: int
    ) -> None:
        if min(num_items, num_candidates, block_size, refresh_every) < 1:
            raise ConfigError(
                "num_items, num_candidates, block_size and refresh_every must be at least 1, got "
                f"{num_items}, {num_candidates}, {block_size} and {refresh_every}"
            )
        super().__init__(num_items)
        self.num_candidates = num_candidates
        self.block_size = block_size
        self._refresh_every = refresh_every
        self.item_vectors: ItemVectors[KernelTree] = ItemVectors(num_items, self._build_tree)

    @abstractmethod
    def kernel(self, width: int, device: torch.device) -> Kernel:
        """Return the kernel for vectors [.., D] of ``width`` D."""

    @property
    def refresh_every(self) -> int:
        """R, steps between refreshes."""
        return self._refresh_every

    def refresh(self, item_vectors: Tensor) -> None:
        """Build the tree over item vectors [V, D]; see ``Sampler.refresh``."""
        self.item_vectors.set(item_vectors)
        # The tree has a copy of its own; holding the given one too would double the memory.
        self.item_vectors.vectors = self.item_vectors.structure.item_vectors

    def update(self, item_ids: Tensor, item_vectors: Tensor) -> None:
        """Replace the vectors of some items; the time for each grows with log V.

        Args:
            item_ids: [m] int64, distinct.
            item_vectors: [m, D].

        Raises:
            ConfigError: before the first refresh, or not a vector for each item.
            ArtifactError: a vector is not finite; names the row.
        """
        tree = self.item_vectors.structure
        width = self.item_vectors.vectors.shape[1]
        if item_vectors.shape != (len(item_ids), width):
            raise ConfigError(
                f"{len(item_ids)} items need vectors [{len(item_ids)}, {width}], got "
                f"{list(item_vectors.shape)}"
            )
        vectors = checked_item_vectors(item_vectors, len(item_ids))
        self.item_vectors.vectors[item_ids] = vectors
        tree.update(item_ids, vectors)

    def sample(
        self,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Candidates:
        """Sample for each row; see ``Sampler.sample``.

        Raises:
            ConfigError: there is no query, or there was no refresh yet.
            ArtifactError: a query is not finite; names the row (checked on the CPU, where it
                needs no device synchronisation).
        """
        checked = _finite_query(query)
        ids, log_q = self.item_vectors.structure.sample(checked, self.num_candidates, generator)
        return Candidates(
            ids=ids,
            log_expected_count=log_q + math.log(self.num_candidates),
            log_expected_count_positive=self.log_expected_count_of(
                positive_ids, positive_ids, query=query
            ),
            num_samples=self.num_candidates,
        )

    def log_expected_count_of(
        self,
        ids: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """Return log expected counts among the samples of a row; see ``Sampler``.

        Args:
            ids: int64: [B], one item for each row; [B, n], several; or [1, n], the same for
                all rows.
            positive_ids: not used.
            user_ids: not used.
            query: [B, D].

        Returns:
            float32: [B] for [B], [B, n] otherwise.

        Raises:
            ConfigError: ids of another shape, and as ``sample``.
        """
        checked = _finite_query(query)
        num_rows = len(checked)
        if ids.ndim not in (1, 2) or len(ids) not in (num_rows, 1 if ids.ndim == 2 else -1):
            raise ConfigError(
                f"a sampler with a sample for each row needs ids [{num_rows}], [{num_rows}, n] "
                f"or [1, n], got {list(ids.shape)}"
            )
        ids_by_row = ids.reshape(len(ids), -1).expand(num_rows, -1)
        log_q = self.item_vectors.structure.log_q(checked, ids_by_row)
        log_counts = log_q + math.log(self.num_candidates)
        return log_counts if ids.ndim == 2 else log_counts[:, 0]

    def _build_tree(self, item_vectors: Tensor) -> KernelTree:
        kernel = self.kernel(item_vectors.shape[1], item_vectors.device)
        return KernelTree(item_vectors, kernel, self.block_size)


def check_query(query: Tensor | None) -> Tensor:
    """Return the query of a sampler that follows the model.

    Raises:
        ConfigError: ``query`` is None.
    """
    if query is None:
        raise ConfigError("this sampler follows the model: pass query [B, D] with the batch")
    return query


def _finite_query(query: Tensor | None) -> Tensor:
    checked = check_query(query).float()
    if checked.device.type == "cpu" and not bool(torch.isfinite(checked.sum())):
        bad = torch.nonzero(~torch.isfinite(checked).all(dim=1))
        if len(bad):
            raise ArtifactError(
                f"the query of row {int(bad[0])} holds NaN or infinite values: the model has "
                "diverged; lower the learning rate or start from an earlier checkpoint"
            )
    return checked
