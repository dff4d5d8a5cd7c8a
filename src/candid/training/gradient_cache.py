"""The gradient cache: the exact gradient of a batch whose encoding does not fit into memory.

Gao, Zhang, Han & Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup", RepL4NLP 2021 (arXiv 2101.06983), section 3.2. Vectors are computed a part at a time
without a graph; the loss is computed from all of them; then each part is encoded again, with a
graph, and the gradient of its vectors is propagated. In memory at once are the vectors, the loss,
and the graph of one part. Accumulated gradients of smaller batches would be those of another loss:
rows of one batch are compared with candidates of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from candid.batches import Queries, parts_of, without_rows
from candid.distributed import Group
from candid.towers import RetrievalModel

Encode = Callable[[Queries], Tensor]


class WholeBatch:
    """Encodes a batch at once, with a graph.

    Args:
        model: the towers.
        encode_queries: from queries to [B, D].
    """

    def __init__(self, model: RetrievalModel, encode_queries: Encode) -> None:
        self._model = model
        self._encode_queries = encode_queries

    def queries(self, queries: Queries) -> Tensor:
        """Encode B queries: [B, D]."""
        return self._encode_queries(queries.to(self._model.device))

    def items(self, item_ids: Tensor) -> Tensor:
        """Encode items [n] int64: [n, D]."""
        return self._model.encode_items(item_ids)

    def catalog(self) -> Tensor:
        """Encode every item: [V, D]."""
        return self._model.encode_catalog()

    def own_items(self) -> Tensor:
        """Encode the items of this process, where others have the rest: [n, D]."""
        return self._model.encode_own_items()

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the parameters."""
        loss.backward()


class GradientCache(WholeBatch):
    """Encodes a batch in parts, and encodes each part again for its gradient.

    Random numbers of a step belong to rows (``towers.row_noise``), so that the second encoding has
    those of the first, and the batch those of an uncut one. The random state of torch is restored
    for towers that draw from it; these have other numbers than uncut.

    Items are encoded in parts if their tower computes more than a look-up.

    With sharded tables every process encodes as many parts as the one with most of them: look-ups
    are collectives. Its further parts are empty.

    Args:
        model: the towers.
        encode_queries: from queries to [B, D].
        size: units of a part.
        group: processes that encode their queries at the same time.
    """

    def __init__(
        self, model: RetrievalModel, encode_queries: Encode, size: int, group: Group
    ) -> None:
        super().__init__(model, encode_queries)
        self._size = size
        self._group = group
        self._cached: list[_Cached] = []

    def queries(self, queries: Queries) -> Tensor:
        """Encode B queries: [B, D], with a gradient of its own."""
        device = self._model.device
        if not len(queries) and not self._model.is_sharded:
            return super().queries(queries)
        parts = list(parts_of(queries, self._size)) if len(queries) else []
        rows = torch.cat([torch.empty(0, dtype=torch.int64), *(part.rows for part in parts)])
        rows = rows.to(device)
        encodings = [_encoding(self._encode_queries, part.queries, device) for part in parts]
        empty = _encoding(self._encode_queries, without_rows(queries), device)
        vectors = self._cache(encodings, empty)
        return vectors.index_select(0, rows.argsort())

    def items(self, item_ids: Tensor) -> Tensor:
        """Encode items [n] int64: [n, D]; a tower that computes encodes distinct items in parts."""
        if self._model.item_tower.table is not None or not torch.is_grad_enabled():
            return self._model.encode_items(item_ids)
        distinct, inverse = torch.unique(item_ids, return_inverse=True)
        return F.embedding(inverse, self._cache_items(distinct))

    def catalog(self) -> Tensor:
        """Encode every item: [V, D]."""
        if self._model.item_tower.table is not None or not torch.is_grad_enabled():
            return self._model.encode_catalog()
        num_items = self._model.item_tower.num_items
        item_ids = torch.arange(num_items, device=self._model.device)
        return self._cache_items(item_ids)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of the parameters; the cached vectors are freed."""
        loss.backward()
        cached, self._cached = self._cached, []
        for one in cached:
            one.backward()

    def _cache_items(self, item_ids: Tensor) -> Tensor:
        def encoding(part: Tensor) -> Callable[[], Tensor]:
            return lambda: self._model.encode_items(part)

        encodings = [encoding(part) for part in item_ids.split(self._size)]
        return self._cache(encodings, encoding(item_ids[:0]))

    def _cache(
        self, encodings: Sequence[Callable[[], Tensor]], empty: Callable[[], Tensor]
    ) -> Tensor:
        states, vectors = [], []
        if self._model.is_sharded:
            (most,) = self._group.largest([len(encodings)], "number of parts")
            encodings = [*encodings, *[empty] * (int(most) - len(encodings))]
        with torch.no_grad():
            for encode in encodings:
                states.append(_random_states(self._model.device))
                vectors.append(encode())
        cached = _Cached(
            encodings, states, torch.cat(vectors).requires_grad_(), self._model.is_sharded
        )
        self._cached.append(cached)
        return cached.vectors


@dataclass(frozen=True, slots=True)
class _Cached:
    """Vectors without a graph, and the way to compute them again.

    Attributes:
        encodings: of each part.
        states: random states before each part.
        vectors: of all parts, a leaf.
        is_collective: whether other processes encode at the same time.
    """

    encodings: Sequence[Callable[[], Tensor]]
    states: Sequence[list[Tensor]]
    vectors: Tensor
    is_collective: bool

    def backward(self) -> None:
        gradient = self.vectors.grad
        if gradient is None:
            if not self.is_collective:
                return  # the loss did not depend on them
            gradient = torch.zeros_like(self.vectors)
        after = _random_states(self.vectors.device)
        begin = 0
        for encode, state in zip(self.encodings, self.states, strict=True):
            _restore(state, self.vectors.device)
            again = encode()
            again.backward(gradient[begin : begin + len(again)])
            begin += len(again)
        _restore(after, self.vectors.device)


def _encoding(encode: Encode, queries: Queries, device: torch.device) -> Callable[[], Tensor]:
    return lambda: encode(queries.to(device))


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _restore(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
