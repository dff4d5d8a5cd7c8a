"""Tree that samples items from a kernel of query and item, for each query, in time log V.

A kernel that is a dot product of features, k(h, c) = φ(h)·φ(c), can be summed over items
before the query is known. A binary tree holds these sums: the root's is over the catalog, a
leaf's over a block of items. A sample goes down from the root, to one of two children in
proportion to their kernel mass, and weighs the items of the block exactly. Its probability is
the product of the branches taken, for any features: a poor kernel increases variance but never
adds bias (Blanc and Rendle, "Adaptive sampled softmax with kernel based sampling", ICML 2018).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_FLOATS_AT_ONCE = 1 << 23  # bounds what is gathered for one step of a descent: 32 MB
_DENSE = 32  # nodes of a level per sample, up to which one matrix product beats a gather
_DENSE_SLOTS = 8  # the same for the items of a catalog and those of the blocks gathered


class Kernel(Protocol):
    """A kernel of query h and item c, as a tree uses it."""

    def query_features(self, query: Tensor) -> Tensor:
        """Return features φ(h) [B, F] of queries [B, D]."""
        ...

    def block_sums(self, vectors: Tensor, is_item: Tensor) -> Tensor:
        """Return the sums of φ(c) over blocks of items.

        Args:
            vectors: [L, S, D].
            is_item: [L, S] bool, False where a vector is padding of a block.

        Returns:
            [L, F].
        """
        ...

    def mass(self, products: Tensor, num_items: Tensor) -> Tensor:
        """Return the kernel mass of nodes: a positive floor for each item at least, 0 if empty.

        Args:
            products: φ(h) · Σ φ(c), any shape.
            num_items: items below each node, float32, same shape.
        """
        ...

    def log_weight(self, logits: Tensor) -> Tensor:
        """Return the log weight of an item of logit h·c inside its block."""
        ...


class KernelTree:
    """Sums of item features in a binary tree over blocks of consecutive items.

    Args:
        item_vectors: [V, D] float32, finite.
        kernel: of query and item.
        block_size: S, items in a leaf.
    """

    def __init__(self, item_vectors: Tensor, kernel: Kernel, block_size: int) -> None:
        num_items, width = item_vectors.shape
        self.kernel = kernel
        self.num_items = num_items
        self.block_size = block_size
        num_blocks = -(-num_items // block_size)
        self.num_leaves = 1 << (num_blocks - 1).bit_length()
        self._vectors = item_vectors.new_zeros(num_blocks, block_size, width)
        self._vectors.view(-1, width)[:num_items] = item_vectors
        first_of_leaf = torch.arange(self.num_leaves, device=item_vectors.device) * block_size
        # Node 1 is the root, the children of node i are 2i and 2i + 1, leaves come last.
        counts = (num_items - first_of_leaf).clamp(min=0, max=block_size).float()
        self._num_items = torch.cat([torch.zeros_like(counts), counts])
        self._fill_upwards(self._num_items)
        leaves = torch.cat([self._block_sums(b) for b in self._blocks_at_once(num_blocks)])
        self._sums = leaves.new_zeros(2 * self.num_leaves, leaves.shape[1])
        self._sums[self.num_leaves : self.num_leaves + num_blocks] = leaves
        self._fill_upwards(self._sums)

    @property
    def item_vectors(self) -> Tensor:
        """The current vectors [V, D]; a view of the tree's own copy."""
        return self._vectors.flatten(0, 1)[: self.num_items]

    def update(self, item_ids: Tensor, item_vectors: Tensor) -> None:
        """Replace vectors and the sums above them: O(S·F + F·log V) for each block touched.

        Args:
            item_ids: [n] int64, distinct.
            item_vectors: [n, D].
        """
        self._vectors.view(-1, self._vectors.shape[2])[item_ids] = item_vectors
        blocks = torch.unique(item_ids // self.block_size)
        nodes = blocks + self.num_leaves
        self._sums[nodes] = self._block_sums(blocks)
        while len(nodes) and int(nodes[0]) > 1:
            nodes = torch.unique_consecutive(nodes // 2)
            # Sums are recomputed: updating them by differences would accumulate rounding errors.
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def sample(
        self, query: Tensor, num_samples: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sample items for each query, with replacement; a loop over levels, not over rows.

        Args:
            query: [B, D] float32.
            num_samples: n.
            generator: source of randomness.

        Returns:
            ids [B, n] int64 and log Q(d|u) [B, n] float32.
        """
        features = self.kernel.query_features(query)
        shape = (len(query), num_samples)
        nodes = torch.ones(shape, dtype=torch.int64, device=query.device)
        log_q = torch.zeros(shape, device=query.device)
        for level in range(self._depth):
            pair = self._mass_of_children(nodes, features, level)
            total = pair.sum(dim=2)
            point = torch.rand(shape, generator=generator, device=query.device) * total
            # A point that rounds up to the total must not enter a child without items.
            goes_right = ((point >= pair[..., 0]) & (pair[..., 1] > 0)).long()
            log_q += (_take(pair, goes_right) / total).log()
            nodes = 2 * nodes + goes_right
        log_weight = self._log_weights(nodes, query)
        cumulative = log_weight.softmax(dim=2).cumsum(dim=2)
        point = torch.rand(shape, generator=generator, device=query.device) * cumulative[..., -1]
        position = (cumulative <= point[..., None]).sum(dim=2)
        position = torch.minimum(position, self._num_items[nodes].long() - 1)
        log_q += _take(log_weight, position) - log_weight.logsumexp(dim=2)
        return (nodes - self.num_leaves) * self.block_size + position, log_q

    def log_q(self, query: Tensor, ids: Tensor) -> Tensor:
        """Return the log probability that ``sample`` gives each item.

        Args:
            query: [B, D] float32.
            ids: [B, n] int64.

        Returns:
            log Q(d|u) [B, n] float32.
        """
        features = self.kernel.query_features(query)
        leaves = ids // self.block_size + self.num_leaves
        log_q = torch.zeros(ids.shape, device=query.device)
        for level in range(self._depth):
            child = leaves >> (self._depth - 1 - level)
            pair = self._mass_of_children(child >> 1, features, level)
            log_q += (_take(pair, child & 1) / pair.sum(dim=2)).log()
        log_weight = self._log_weights(leaves, query)
        return log_q + _take(log_weight, ids % self.block_size) - log_weight.logsumexp(dim=2)

    @property
    def _depth(self) -> int:
        """Number of branches between the root and a leaf."""
        return self.num_leaves.bit_length() - 1

    def _mass_of_children(self, nodes: Tensor, features: Tensor, level: int) -> Tensor:
        """Return the mass [B, n, 2] of the children of nodes [B, n], ``level`` below the root."""
        num_rows, num_samples = nodes.shape
        width = 1 << level
        if 2 * width <= _DENSE * num_samples:
            products = features @ self._sums[2 * width : 4 * width].T
            position = (nodes - width)[..., None].expand(-1, -1, 2)
            products = products.view(num_rows, width, 2).gather(1, position)
        else:
            children = self._sums.view(self.num_leaves, -1)
            products = _products_in_pieces(children, nodes, features)
        return self.kernel.mass(products, self._num_items.view(-1, 2)[nodes])

    def _log_weights(self, leaves: Tensor, query: Tensor) -> Tensor:
        """Return the log weight [B, n, S] of the items of leaves [B, n]; -inf for padding."""
        blocks = leaves - self.num_leaves
        num_slots = self._vectors.shape[0] * self.block_size
        dense = _DENSE_SLOTS * leaves.shape[1] * self.block_size
        if num_slots <= min(dense, _FLOATS_AT_ONCE // max(1, len(query))):
            all_logits = query @ self._vectors.flatten(0, 1).T
            all_logits = all_logits.view(len(query), len(self._vectors), self.block_size)
            logits = all_logits.gather(1, blocks[..., None].expand(-1, -1, self.block_size))
        else:
            logits = _products_in_pieces(self._vectors.flatten(1), blocks, query)
        log_weight = self.kernel.log_weight(logits)
        position = torch.arange(self.block_size, device=query.device)
        return log_weight.masked_fill(position >= self._num_items[leaves][..., None], float("-inf"))

    def _blocks_at_once(self, num_blocks: int) -> tuple[Tensor, ...]:
        """Split all blocks into parts whose features fit into bounded memory."""
        width = self.kernel.query_features(self._vectors[:1, 0]).shape[1]
        size = max(1, _FLOATS_AT_ONCE // (width * self.block_size))
        return tuple(torch.arange(num_blocks, device=self._vectors.device).split(size))

    def _block_sums(self, blocks: Tensor) -> Tensor:
        """Return the sums [n, F] of the features of the items of blocks [n]."""
        position = torch.arange(self.block_size, device=blocks.device)
        is_item = position < self._num_items[blocks + self.num_leaves][:, None]
        return self.kernel.block_sums(self._vectors[blocks], is_item)

    def _fill_upwards(self, heap: Tensor) -> None:
        """Sum children into parents, from the leaves of a heap [2L, ...] to its root."""
        width = self.num_leaves // 2
        while width:
            children = heap[2 * width : 4 * width]
            heap[width : 2 * width] = children[0::2] + children[1::2]
            width //= 2


def _take(values: Tensor, position: Tensor) -> Tensor:
    """Return ``values`` [B, n, S] at ``position`` [B, n]."""
    return values.gather(2, position[..., None])[..., 0]


def _products_in_pieces(table: Tensor, positions: Tensor, row_vectors: Tensor) -> Tensor:
    """Return the products [B, n, S] of a row's vector and the S vectors at each position.

    Args:
        table: [P, S·W], S vectors of width W at each position.
        positions: [B, n].
        row_vectors: [B, W].
    """
    num_rows, width = row_vectors.shape
    size = max(1, _FLOATS_AT_ONCE // max(1, num_rows * table.shape[1]))
    products = []
    for piece in positions.split(size, dim=1):
        vectors = table[piece].view(num_rows, piece.shape[1] * (table.shape[1] // width), width)
        products.append((vectors @ row_vectors[:, :, None])[..., 0])
    return torch.cat(products, dim=1).view(*positions.shape, table.shape[1] // width)
