"""A map of the items: the directions of their vectors at two principal components."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.serve.items import Ints
from candid.serve.model_version import ModelVersion
from candid.serve.requests import Id

MAX_SAMPLE: Final = 5000
"""Maximum number of items, the most popular ones, that the components are computed from."""


@dataclass(frozen=True)
class MapLayout:
    """Principal components of one model version.

    Attributes:
        revision: of the table of items at the time.
        item_ids: [n] int64, live items, most popular first, at most ``MAX_SAMPLE``.
        mean: [D] float64, of their unit vectors.
        basis: [D, 2] float64, principal components, the larger first.
        explained: share of the variance of the unit vectors in the two components, 0 to 1.
    """

    revision: int
    item_ids: npt.NDArray[np.int64]
    mean: Tensor
    basis: Tensor
    explained: float


class ItemMaps:
    """Maps of the model versions in use; each is computed at the first request for it."""

    def __init__(self) -> None:
        self._layouts: WeakKeyDictionary[ModelVersion, MapLayout] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def map_of(self, version: ModelVersion, limit: int, source_ids: Sequence[Id]) -> dict[str, Any]:
        """Place items; a place depends on the model version only, not on the other items.

        Args:
            version: the model version.
            limit: number of the most popular items to place.
            source_ids: further items to place, in this order.

        Returns:
            ``model``, ``explained`` and ``items``, each with ``x`` and ``y``.

        Raises:
            RequestError: an item is unknown.
        """
        further = [version.live_item(source_id, "item") for source_id in source_ids]
        with self._lock:
            layout = self._layouts.get(version)
            if layout is None or layout.revision != version.items.revision:
                layout = self._layouts[version] = _compute_layout(version)
        popular = layout.item_ids[:limit].tolist()
        item_ids = np.array(list(dict.fromkeys([*popular, *further])), dtype=np.int64)
        item_ids, vectors = _unit_vectors(version, item_ids)
        entries = version.items.describe(item_ids.tolist(), include_attributes=False)
        points = ((vectors - layout.mean) @ layout.basis).tolist()
        return {
            "model": version.name,
            "explained": layout.explained,
            "items": [
                entry | {"x": x, "y": y} for entry, (x, y) in zip(entries, points, strict=True)
            ],
        }


def _compute_layout(version: ModelVersion) -> MapLayout:
    revision = version.items.revision
    counts = version.bundle.dataset.train_counts
    live = version.search.live_mask()[: len(counts)]
    by_popularity = np.argsort(-counts, kind="stable")
    ids, vectors = _unit_vectors(version, by_popularity[live[by_popularity]][:MAX_SAMPLE])
    dim = vectors.shape[1]
    mean = vectors.mean(0) if len(ids) else torch.zeros(dim, dtype=torch.float64)
    centred = vectors - mean
    variances, components = torch.linalg.eigh(centred.T @ centred)
    basis = torch.zeros(dim, 2, dtype=torch.float64)
    basis[:, : min(dim, 2)] = components[:, -2:].flip(1)
    # The sign of an eigenvector is arbitrary: make its largest entry positive.
    signs = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    total = float(variances.sum())
    explained = min(1.0, float(variances[-2:].sum()) / total) if total > 0 else 0.0
    return MapLayout(revision, ids, mean, basis * signs, explained)


def _unit_vectors(version: ModelVersion, item_ids: Ints) -> tuple[Ints, Tensor]:
    """Return the live ones of some items and their unit vectors [m, D] float64.

    The length of a vector encodes popularity, which the map does not show.
    """
    ids, vectors = version.search.live_vectors(item_ids)
    return ids, torch.nn.functional.normalize(vectors.double(), dim=1)
