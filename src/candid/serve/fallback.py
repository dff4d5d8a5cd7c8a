"""Answers of a fallback: popular items for users about whom the model has no information."""

from __future__ import annotations

import numpy as np

from candid.errors import CandidError
from candid.runs.fallback import FallbackModels
from candid.serve.errors import RequestError
from candid.serve.search import Bools, CatalogSearch, Ints, TopItems


class FallbackAnswers:
    """The fallbacks of a served model.

    Args:
        fallbacks: of the training data.
        search: over the items that can be recommended.
    """

    def __init__(self, fallbacks: FallbackModels, search: CatalogSearch) -> None:
        self._fallbacks = fallbacks
        self._search = search

    def load(self, name: str) -> None:
        """Fit a fallback before the first request.

        Raises:
            DataError: the training data has no target.
        """
        self._fallbacks.get(name)

    def top(
        self, name: str, k: int, allowed: Ints | None, filtered: Bools | None, excluded: Ints
    ) -> TopItems | RequestError:
        """Return the best items that can be recommended; none of those added after training.

        Args:
            name: of the fallback.
            k: number of items.
            allowed: [n] int64, only these items; None: all.
            filtered: [m] bool, items that the filters of the request allow; None: all.
            excluded: none of these items.
        """
        try:
            scores = self._fallbacks.get(name).scores
        except CandidError as error:
            return RequestError("unsupported", str(error)[:500], "fallback")
        mask = self._search.live_mask()[: len(scores)]
        if allowed is not None:
            in_list = np.zeros(len(mask), dtype=np.bool_)
            in_list[allowed[allowed < len(mask)]] = True
            mask &= in_list
        if filtered is not None:
            mask &= filtered[: len(mask)]
        mask[excluded[excluded < len(mask)]] = False
        item_ids = np.flatnonzero(mask)
        return self._search.top(item_ids, scores[item_ids], k)
