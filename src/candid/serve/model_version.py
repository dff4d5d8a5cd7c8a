"""One version of a served model: checks requests and answers batches of queries."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.inference import RecommendQuery, tie_ranks
from candid.runs.fallback import MODEL
from candid.serve.answers import Result, write_answers
from candid.serve.bundle import ServingBundle
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.fallback import FallbackAnswers
from candid.serve.filters import AttributeFilters
from candid.serve.items import ItemTable, RequestIds
from candid.serve.query_builder import QueryBuilder
from candid.serve.requests import Id, RecommendRequest, SimilarRequest
from candid.serve.search import TopItems
from candid.serve.validation import check_limits

Ints = npt.NDArray[np.int64]
NO_ITEMS: Final[Ints] = np.zeros(0, dtype=np.int64)

MAX_FAST_K: Final = 200
"""Queries with a larger k are slow: the largest k of a batch is searched for all its queries."""


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """One checked query for one model version.

    Attributes:
        model_version: answers the query.
        query: to recommend for; None: the query is for items near ``item_id``.
        item_id: see ``query``; -1 without.
        k: number of items.
        allowed: [n] int64, only these items; None: all.
        excluded: [n] int64, none of these items.
        filters: by attribute.
        probability: whether the answer has probabilities.
        include_attributes: whether the answer has the attributes of the items.
        ignored: number of items of the history that are unknown.
        fallback: name of the fallback that answers the query; None: the model answers.
    """

    model_version: ModelVersion
    query: RecommendQuery | None
    item_id: int
    k: int
    allowed: Ints | None
    excluded: Ints
    filters: Mapping[str, Any]
    probability: bool
    include_attributes: bool
    ignored: int = 0
    fallback: str | None = None

    @property
    def is_slow(self) -> bool:
        """Whether the query costs many times as much as most queries."""
        return (
            self.query is None
            or self.allowed is not None
            or bool(self.filters)
            or self.k > MAX_FAST_K
            or (self.probability and not self.model_version.has_cheap_probability)
        )


class ModelVersion:
    """One version of a served model.

    Args:
        bundle: the opened run.
        name: of the model.
        number: of the version, from 1; each reload adds one.
        config: limits.

    Attributes:
        items: titles, attributes and source ids of items.
        users: source ids of users.
        queries: builds the query of a request.
        search: over the item vectors.
        filters: by attribute.
        has_few_items: whether log Z costs little, so that every answer may have probabilities.
        has_cheap_probability: whether answers without allowed items or filters may have them, also
            because their search sums log Z from its own scores.
    """

    def __init__(
        self, bundle: ServingBundle, *, name: str, number: int, config: ServeConfig
    ) -> None:
        self.name = name
        self.number = number
        self.bundle = bundle
        self.config = config
        self.loaded = datetime.datetime.now(datetime.UTC)
        self.items = ItemTable(
            bundle.dataset.items,
            bundle.added_ids,
            bundle.dataset.train_counts,
            model=name,
        )
        self.users = RequestIds(bundle.dataset.users["source_id"], kind="user", model=name)
        self.queries = QueryBuilder(
            bundle, self.items.ids, self.users, max_history=config.max_history
        )
        source_ids = bundle.dataset.items["source_id"]
        self.search = bundle.search_with(tie_ranks(bundle.dataset.train_counts, source_ids))
        self.filters = AttributeFilters(self.items)
        self.fallbacks = FallbackAnswers(bundle.fallbacks, self.search)
        if config.fallback is not None:
            self.fallbacks.load(config.fallback)
        self.has_few_items = bundle.index.num_items <= config.probability_items
        self.has_cheap_probability = self.has_few_items or self.search.scores_all_items

    def __repr__(self) -> str:
        return f"ModelVersion(name={self.name!r}, number={self.number})"

    def prepare(self, request: RecommendRequest) -> PreparedQuery:
        """Check a request for recommendations.

        Raises:
            RequestError: the request exceeds a limit, names something unknown, or needs something
                that the model does not support.
        """
        check_limits(request, self.config)
        self.filters.check(request.filters)
        if request.event_type is not None:
            self.queries.check_event_type(request.event_type, "event_type")
        bundle = self.bundle
        fallback = self.config.fallback if request.fallback is None else request.fallback
        fallback = None if fallback == "none" else fallback
        query, ignored, is_known = self.queries.build(request, has_fallback=fallback is not None)
        fallback = None if is_known else fallback
        if request.probability and bundle.why_no_probability is not None:
            raise RequestError("unsupported", bundle.why_no_probability, "probability")
        hides_seen = bundle.filter_seen if request.filter_seen is None else request.filter_seen
        probability = request.probability
        if probability is None:
            # With allowed items or filters the search does not score all items.
            is_restricted = request.allow is not None or bool(request.filters)
            probability = self.has_few_items if is_restricted else self.has_cheap_probability
        return PreparedQuery(
            self,
            query,
            -1,
            request.k,
            self._known_items(request.allow),
            self._excluded_items(request.deny, query.seen_ids if hides_seen else NO_ITEMS),
            request.filters,
            probability and bundle.why_no_probability is None,
            request.include_attributes,
            ignored,
            fallback,
        )

    def prepare_similar(self, request: SimilarRequest) -> PreparedQuery:
        """Check a request for items near an item; raises like ``prepare``."""
        if self.bundle.why_no_vectors is not None:
            raise RequestError("unsupported", self.bundle.why_no_vectors)
        check_limits(request, self.config)
        self.filters.check(request.filters)
        item_id = self.live_item(request.item, "item")
        return PreparedQuery(
            self,
            None,
            item_id,
            request.k,
            self._known_items(request.allow),
            self._excluded_items(request.deny, NO_ITEMS),
            request.filters,
            False,
            request.include_attributes,
        )

    def live_item(self, source_id: Id, field: str | None, code: str = "unknown_item") -> int:
        """Return the dense id of an item that can be recommended.

        Raises:
            RequestError: with ``code``: the item is unknown or deleted.
        """
        item_id = self.items.ids.find(source_id)
        if item_id is None or not bool(self.bundle.index.is_live(torch.tensor([item_id]))[0]):
            error = self.items.ids.unknown_error(source_id, field)
            raise RequestError(code, error.message, field)
        return item_id

    def answer(self, queries: Sequence[PreparedQuery]) -> list[Result]:
        """Answer queries that this version prepared; results in the same order."""
        size, results = self.search.max_queries, list[Result]()
        for begin in range(0, len(queries), size):
            results += self._answer(queries[begin : begin + size])
        return results

    def _answer(self, queries: Sequence[PreparedQuery]) -> list[Result]:
        recommend = [query.query for query in queries if query.query and query.fallback is None]
        vectors = torch.empty(0, self.bundle.dim)
        if recommend:
            vectors = self.bundle.encode(recommend)
        # A vector that is not finite cannot rank items.
        is_finite = vectors.abs().sum(1).isfinite().tolist()
        # Row of each query in ``vectors``, by position; similar items and fallbacks have none.
        with_vector = (p for p, query in enumerate(queries) if query.query and not query.fallback)
        row_of = {position: row for row, position in enumerate(with_vector)}
        results: dict[int, TopItems | RequestError] = {}
        unrestricted: list[int] = []
        log_z: dict[int, float] = {}
        for position, query in enumerate(queries):
            row = row_of.get(position)
            if query.fallback is not None:
                results[position] = self.fallbacks.top(
                    query.fallback,
                    query.k,
                    query.allowed,
                    self.filters.mask(query.filters) if query.filters else None,
                    query.excluded,
                )
            elif row is None:
                results[position] = self._similar(query)
            elif not is_finite[row]:
                results[position] = RequestError(
                    "invalid",
                    "the attributes or the history give a query vector that is not finite; check "
                    "the numbers",
                )
            elif query.allowed is not None or query.filters:
                results[position] = self._search_allowed(vectors[row], query)
            else:
                unrestricted.append(position)
        if unrestricted:
            answers, log_partitions = self._search_all(
                [queries[position] for position in unrestricted],
                vectors[[row_of[position] for position in unrestricted]],
            )
            results |= zip(unrestricted, answers, strict=True)
            log_z |= zip(unrestricted, log_partitions, strict=False)
        restricted = [p for p in row_of if queries[p].probability and p not in log_z]
        if restricted:
            log_partition = self.search.log_partition(vectors[[row_of[p] for p in restricted]])
            log_z |= zip(restricted, log_partition.tolist(), strict=True)
        return write_answers(
            [results[position] for position in range(len(queries))],
            items=self.items,
            model=self.name,
            version=self.number,
            include_attributes=[query.include_attributes for query in queries],
            ignored=[query.ignored for query in queries],
            log_z={p: value for p, value in log_z.items() if queries[p].probability},
            recommended_by=[query.fallback or MODEL for query in queries],
        )

    def _search_all(
        self, queries: Sequence[PreparedQuery], vectors: Tensor
    ) -> tuple[list[TopItems], list[float]]:
        """Return the best items of each query; and log Z of each, if any needs it, else none."""
        k = max(query.k for query in queries)
        excluded, log_z = [query.excluded for query in queries], list[float]()
        if any(query.probability for query in queries):
            results, log_partition = self.search.nearest_with_log_partition(vectors, k, excluded)
            log_z = log_partition.tolist()
        else:
            results = self.search.nearest(vectors, k, excluded)
        items = [
            (ids[: query.k], scores[: query.k])
            for (ids, scores), query in zip(results, queries, strict=True)
        ]
        return items, log_z

    def _search_allowed(self, vector: Tensor, query: PreparedQuery) -> TopItems:
        mask = None if not query.filters else self.filters.mask(query.filters)
        if query.allowed is None:
            assert mask is not None
            return self.search.nearest_allowed(vector, query.k, mask, query.excluded)
        is_live = self.bundle.index.is_live(torch.from_numpy(query.allowed)).numpy()
        ids = np.setdiff1d(query.allowed[is_live], query.excluded)
        if mask is not None:
            ids = ids[ids < len(mask)]
            ids = ids[mask[ids]]
        return self.search.best_of(vector, query.k, ids)

    def _similar(self, query: PreparedQuery) -> TopItems:
        allowed = self.filters.mask(query.filters) if query.filters else None
        if query.allowed is not None:
            in_list = np.zeros(len(self.items.ids), dtype=np.bool_)
            in_list[query.allowed] = True
            if allowed is not None:
                common = min(len(in_list), len(allowed))
                in_list[:common] &= allowed[:common]
                in_list[common:] = False
            allowed = in_list
        return self.search.similar(query.item_id, query.k, allowed, query.excluded)

    def _known_items(self, source_ids: Sequence[Id] | None) -> Ints | None:
        """Return the distinct dense ids of a list; unknown ones are left out."""
        if source_ids is None:
            return None
        item_ids = self.items.ids.find_all(source_ids)
        return np.array(sorted({i for i in item_ids if i is not None}), dtype=np.int64)

    def _excluded_items(self, deny: Sequence[Id], seen: Ints) -> Ints:
        denied = self._known_items(deny)
        return seen if denied is None or not len(denied) else np.concatenate([seen, denied])
