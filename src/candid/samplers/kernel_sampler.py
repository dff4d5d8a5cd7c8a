"""What the samplers that draw by a kernel have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from candid.candidates import Candidates, Positives
from candid.errors import ArtifactError, ConfigError
from candid.samplers.adaptive import checked_item_vectors, query_of
from candid.samplers.kernel_tree import Kernel, KernelTree


class KernelSampler(ABC):
    """n draws for each row from Q(d|u), by a kernel of the row's query and the items' vectors.

    Expected count n·Q(d|u). It follows the model: ``refresh`` builds a tree over the item
    vectors, ``update`` exchanges some of them. Every item can be drawn, whatever the vectors.

    Args:
        num_items: V.
        num_candidates: n, draws for each row.
        block_size: S, items that a leaf of the tree weighs exactly.
        refresh_every: R, steps between refreshes.

    Raises:
        ConfigError: one of them is less than 1.
    """

    def __init__(
        self, num_items: int, num_candidates: int, block_size: int, refresh_every: int
    ) -> None:
        if min(num_items, num_candidates, block_size, refresh_every) < 1:
            raise ConfigError(
                "num_items, num_candidates, block_size and refresh_every must be at least 1, got "
                f"{num_items}, {num_candidates}, {block_size} and {refresh_every}"
            )
        self.num_items = num_items
        self.num_candidates = num_candidates
        self.block_size = block_size
        self.refresh_every = refresh_every
        self._tree: KernelTree | None = None

    @abstractmethod
    def kernel(self, width: int, device: torch.device) -> Kernel:
        """The kernel for vectors [.., D] of ``width`` D."""

    def refresh(self, item_vectors: Tensor) -> None:
        """Take the item vectors [V, D] as they are now; see ``AdaptiveSampler.refresh``."""
        vectors = checked_item_vectors(item_vectors, self.num_items)
        kernel = self.kernel(vectors.shape[1], vectors.device)
        self._tree = KernelTree(vectors, kernel, self.block_size)

    def update(self, item_ids: Tensor, item_vectors: Tensor) -> None:
        """Exchange the vectors of some items, each in a time that grows with log V.

        Args:
            item_ids: [m] int64, distinct.
            item_vectors: [m, D].

        Raises:
            ConfigError: before the first refresh, or not a vector for each item.
            ArtifactError: a vector is not finite; names the row.
        """
        tree = self._drawn_from()
        if item_vectors.shape != (len(item_ids), tree.item_vectors.shape[1]):
            raise ConfigError(
                f"{len(item_ids)} items need vectors [{len(item_ids)}, "
                f"{tree.item_vectors.shape[1]}], got {list(item_vectors.shape)}"
            )
        tree.update(item_ids, checked_item_vectors(item_vectors, len(item_ids)))

    def sample(self, batch: Positives, generator: torch.Generator | None = None) -> Candidates:
        """Draw for each row of an ``EncodedBatch``; see ``Sampler.draw``.

        Raises:
            ConfigError: before the first refresh, or the batch has no queries.
            ArtifactError: a query is not finite; names the row (checked on the CPU, where it
                needs no device synchronisation).
        """
        query = self._query_of(batch)
        ids, log_q = self._drawn_from().sample(query, self.num_candidates, generator)
        return Candidates(
            ids=ids,
            log_expected_count=log_q + math.log(self.num_candidates),
            log_expected_count_positive=self.log_expected_count_of(batch.positive_ids, batch),
            num_samples=self.num_candidates,
        )

    def log_expected_count_of(self, ids: Tensor, batch: Positives) -> Tensor:
        """Log expected count of items among the draws of a row; see ``Sampler.log_expected_count_of``.

        Args:
            ids: int64: [B], one item for each row; [B, n], several; or [1, n], the same for
                all rows.
            batch: an ``EncodedBatch``.

        Returns:
            float32: [B] for [B], [B, n] otherwise.

        Raises:
            ConfigError: ids of another shape, and as ``draw``.
        """
        query = self._query_of(batch)
        if ids.ndim not in (1, 2) or len(ids) not in (len(query), 1 if ids.ndim == 2 else -1):
            raise ConfigError(
                f"a sampler that draws by the queries states counts of ids [{len(query)}], "
                f"[{len(query)}, n] or [1, n], a row each, got {list(ids.shape)}"
            )
        of_rows = ids.reshape(len(ids), -1).expand(len(query), -1)
        log_q = self._drawn_from().log_q(query, of_rows)
        log_expected_count = log_q + math.log(self.num_candidates)
        return log_expected_count if ids.ndim == 2 else log_expected_count[:, 0]

    def state(self) -> dict[str, Tensor]:
        """The item vectors that it draws by; see ``Stateful.state``."""
        return {} if self._tree is None else {"item_vectors": self._tree.item_vectors.clone()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Draw by the vectors of a state; see ``Stateful.restore``."""
        if "item_vectors" in state:
            if len(state["item_vectors"]) != self.num_items:
                raise ArtifactError(
                    f"the stored sampler is of {len(state['item_vectors'])} items, this one of "
                    f"{self.num_items}"
                )
            self.refresh(state["item_vectors"])

    def _drawn_from(self) -> KernelTree:
        if self._tree is None:
            raise ConfigError(
                "this sampler draws by the item vectors: give it those of the model with "
                "refresh(item_vectors) before the first draw"
            )
        return self._tree

    def _query_of(self, batch: Positives) -> Tensor:
        query = query_of(batch).float()
        if query.device.type == "cpu" and not bool(torch.isfinite(query.sum())):
            bad = torch.nonzero(~torch.isfinite(query).all(dim=1))
            if len(bad):
                raise ArtifactError(
                    f"the query of row {int(bad[0])} holds NaN or infinite values: the model has "
                    "diverged; lower the learning rate or start from an earlier checkpoint"
                )
        return query
