"""The merge of search results over parts of a catalog."""

from __future__ import annotations

import torch
from torch import Tensor

from candid.index.order import decode, encode
from candid.index.protocol import SearchResult


def merge_results(item_ids: Tensor, scores: Tensor, k: int) -> SearchResult:
    """Merge the best items of several parts of a catalog, such as those of several processes.

    If every part returned its k best items, or all of a part with fewer, the result is that of one
    exact search: larger scores first, and of equal ones the lower id.

    Args:
        item_ids: [S, B, n] int64, ids in the whole catalog, different in the S parts; -1 after the
            end of a shorter row.
        scores: [S, B, n] float32; -inf where the id is -1.
        k: results per query, at most S · n.

    Example:
        >>> import torch
        >>> from candid.index import merge_results
        >>> ids, scores = torch.tensor([[[0, 1]], [[4, 3]]]), torch.tensor([[[3.0, 1]], [[2.0, 1]]])
        >>> merge_results(ids, scores, k=3).item_ids
        tensor([[0, 4, 1]])
    """
    keys = encode(scores, item_ids).transpose(0, 1).flatten(1)
    ids, best = decode(torch.topk(keys, k, dim=1).values)
    return SearchResult(ids, best)
