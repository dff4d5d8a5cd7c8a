"""A map of the items: their vectors' directions at two principal components."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.serve.items import Ints
from candid.serve.schemas import Id
from candid.serve.served import Served

SAMPLE = 5000
"""The components are those of so many of the most popular items."""


@dataclass(frozen=True)
class Layout:
    """Where the items of one generation lie.

    Attributes:
        version: of the table of items that it was made from.
        item_ids: [n] int64, live items, most popular first, ``SAMPLE`` at most.
        mean: [D] float64, of their unit vectors.
        basis: [D, 2] float64, principal components, the larger first.
        explained: share of the variance of the unit vectors that the two components hold, 0 to 1.
    """

    version: int
    item_ids: npt.NDArray[np.int64]
    mean: Tensor
    basis: Tensor
    explained: float


class ItemMaps:
    """Maps of the generations that answer now; each is worked out when first asked for."""

    def __init__(self) -> None:
        self._layouts: WeakKeyDictionary[Served, Layout] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def map_of(self, served: Served, limit: int, source_ids: Sequence[Id]) -> dict[str, Any]:
        """Place items; a place depends on the generation alone, not on what else is asked for.

        Args:
            served: the generation.
            limit: that many of the most popular items.
            source_ids: these items as well, in their order.

        Returns:
            An ``ItemMap``.

        Raises:
            Problem: no such item.
        """
        also = [served.live_item(source_id, "item") for source_id in source_ids]
        with self._lock:
            layout = self._layouts.get(served)
            if layout is None or layout.version != served.items.version:
                layout = self._layouts[served] = _layout(served)
        first = layout.item_ids[:limit].tolist()
        wanted = np.array(list(dict.fromkeys([*first, *also])), dtype=np.int64)
        ids, vectors = _unit_vectors(served, wanted)
        entries = served.items.describe(ids.tolist(), with_attributes=False)
        places = ((vectors - layout.mean) @ layout.basis).tolist()
        return {
            "model": served.name,
            "explained": layout.explained,
            "items": [
                entry | {"x": x, "y": y} for entry, (x, y) in zip(entries, places, strict=True)
            ],
        }


def _layout(served: Served) -> Layout:
    version = served.items.version
    counts = served.parts.dataset.train_counts
    live = served.catalog.is_live()[: len(counts)]
    ranked = np.argsort(-counts, kind="stable")
    ids, vectors = _unit_vectors(served, ranked[live[ranked]][:SAMPLE])
    dim = vectors.shape[1]
    mean = vectors.mean(0) if len(ids) else torch.zeros(dim, dtype=torch.float64)
    centred = vectors - mean
    variances, components = torch.linalg.eigh(centred.T @ centred)
    basis = torch.zeros(dim, 2, dtype=torch.float64)
    basis[:, : min(dim, 2)] = components[:, -2:].flip(1)
    # The sign of an eigenvector is anybody's choice: the largest entry is positive.
    signs = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    total = float(variances.sum())
    explained = min(1.0, float(variances[-2:].sum()) / total) if total > 0 else 0.0
    return Layout(version, ids, mean, basis * signs, explained)


def _unit_vectors(served: Served, item_ids: Ints) -> tuple[Ints, Tensor]:
    """Live items of some, and their directions [m, D] float64: length tells of popularity."""
    ids, vectors = served.catalog.live_vectors(item_ids)
    return ids, torch.nn.functional.normalize(vectors.double(), dim=1)
