"""The log partition function of the softmax over item vectors, in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from candid.index import RunningLogSumExp

BLOCK_ROWS = 256
BLOCK_ITEMS = 4096
"""Queries and items scored at once on a CPU: the scores of a block stay in its cache."""
GPU_BLOCK_ITEMS = 16384
"""Items scored at once on a GPU, for all queries: [B, GPU_BLOCK_ITEMS] scores."""


@torch.no_grad()
def log_partition(query: Tensor, item_vectors: Tensor, *, block_items: int | None = None) -> Tensor:
    """Compute log Σ_d exp(q · v_d) over all items, without gradients.

    The running maximum of a row is subtracted before ``exp``. Scores are float32; on a CPU sums are
    float64 and the result does not depend on the order of the items, on a GPU the sums of a block
    are float32.

    Args:
        query: [B, D] float32.
        item_vectors: [V, D] float32.
        block_items: items scored at once; None: 4,096 on a CPU, 16,384 on a GPU.

    Returns:
        [B] float64.
    """
    is_cpu, num_items = query.device.type == "cpu", len(item_vectors)
    block_items = block_items or (BLOCK_ITEMS if is_cpu else GPU_BLOCK_ITEMS)
    block_rows = BLOCK_ROWS if is_cpu else max(1, len(query))
    log_z = torch.empty(len(query), dtype=torch.float64, device=query.device)
    for first in range(0, len(query), block_rows):
        rows = query[first : first + block_rows]
        sums = RunningLogSumExp(len(rows), num_columns=num_items, device=query.device)
        # One buffer for all tiles: fresh memory costs as much as the sums.
        buffer = rows.new_empty(len(rows) * min(block_items, num_items))
        for begin in range(0, num_items, block_items):
            vectors = item_vectors[begin : begin + block_items]
            tile = buffer[: len(rows) * len(vectors)].view(len(rows), len(vectors))
            sums.add(torch.mm(rows, vectors.T, out=tile))
        log_z[first : first + block_rows] = sums.result()
    return log_z
