"""The query of a request: its user, or its history and attributes, checked against the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from candid.errors import DataError
from candid.inference import (
    RecommendQuery,
    accepts_histories,
    query_for_history,
    query_for_user,
)
from candid.serve.bundle import ServingBundle
from candid.serve.errors import RequestError, short_repr
from candid.serve.items import RequestIds
from candid.serve.requests import Event, RecommendRequest
from candid.serve.validation import check_attributes, to_microseconds


class QueryBuilder:
    """Builds the queries of requests to one version of a model.

    Args:
        bundle: the opened run.
        items: source ids of items.
        users: source ids of users.
        max_history: longest history of a request.
    """

    def __init__(
        self, bundle: ServingBundle, items: RequestIds, users: RequestIds, *, max_history: int
    ) -> None:
        self._bundle = bundle
        self._items = items
        self._users = users
        self._max_history = max_history

    def build(
        self, request: RecommendRequest, *, has_fallback: bool
    ) -> tuple[RecommendQuery, int, bool]:
        """Return the query, the number of ignored history items, and whether the model answers.

        Args:
            request: checked against the limits.
            has_fallback: whether a fallback answers where the model has no information.

        Raises:
            RequestError: the request names something unknown, or needs something that the model
                does not support.
        """
        bundle, ignored = self._bundle, 0
        by_attributes = bundle.encode_users is not None and not bundle.model.needs_history
        if request.user is not None:
            self._users.check_type(request.user, "user")
        if has_fallback and self._is_blank(request):
            return query_for_history(bundle.dataset, [], max_length=bundle.max_length), 0, False
        if request.user is not None:
            query = query_for_user(
                bundle.dataset,
                self._users.require(request.user, "user"),
                max_length=bundle.max_length,
                time=None if request.time is None else to_microseconds(request.time),
                event_type=request.event_type,
            )
            is_known = bool(len(query.item_ids)) or by_attributes
        else:
            query, ignored = self._query_for_history(request)
            is_known = bool(len(query.item_ids)) or (by_attributes and bool(request.attributes))
        if has_fallback and not is_known:
            return query, ignored, False
        if bundle.model.needs_history and not len(query.item_ids):
            raise RequestError(
                "unsupported",
                "the model needs a history; name at least one item that was in the training data "
                "(items added later are not read), or a fallback",
                "user" if request.user is not None else "history",
            )
        return query, ignored, True

    def _is_blank(self, request: RecommendRequest) -> bool:
        """Whether a request describes no user: an unknown id, or neither history nor attributes."""
        if request.user is not None:
            return self._users.find(request.user) is None
        return not request.history and not request.attributes

    def _query_for_history(self, request: RecommendRequest) -> tuple[RecommendQuery, int]:
        """Return the query of an anonymous user, and the number of ignored history items."""
        bundle = self._bundle
        if not accepts_histories(bundle.model, with_features=request.attributes is not None):
            raise RequestError(
                "unsupported",
                "the model only supports users of its training data; name a user",
                "history" if request.attributes is None else "attributes",
            )
        if request.attributes is not None:
            self._check_user_attributes(request.attributes)
        history = request.history or []
        if len(history) > self._max_history:
            raise RequestError(
                "invalid", f"at most {self._max_history} items of history", "history"
            )
        item_ids: list[int] = []
        event_types: list[str | None] = []
        times: list[int | None] = []
        ignored, last_time = 0, None
        source_ids = [entry.item if isinstance(entry, Event) else entry for entry in history]
        dense_ids = self._items.find_all(source_ids)
        for position, (entry, item_id) in enumerate(zip(history, dense_ids, strict=True)):
            event = entry if isinstance(entry, Event) else None
            if event is not None and event.event_type is not None:
                self.check_event_type(event.event_type, f"history.{position}.event_type")
            if item_id is None:
                if not request.ignore_unknown:
                    raise self._items.unknown_error(source_ids[position], f"history.{position}")
                ignored += 1
                continue
            item_ids.append(item_id)
            event_types.append(None if event is None else event.event_type)
            if event is None or event.time is None:
                times.append(None)
                last_time = None
                continue
            time = to_microseconds(event.time)
            times.append(time)
            if last_time is not None and time < last_time:
                raise RequestError(
                    "invalid", "a history must be earliest first", f"history.{position}.time"
                )
            last_time = time
        query = query_for_history(
            bundle.dataset,
            item_ids,
            max_length=bundle.max_length,
            event_types=event_types,
            times=times,
            last_time=last_time,
            attributes=request.attributes,
            time=None if request.time is None else to_microseconds(request.time),
            event_type=request.event_type,
        )
        return query, ignored

    def _check_user_attributes(self, attributes: Mapping[str, Any]) -> None:
        bundle = self._bundle
        if bundle.encode_users is None:
            raise RequestError(
                "unsupported", "the model of this run reads no attributes of users", "attributes"
            )
        check_attributes(attributes, bundle.user_attributes, "users", "attributes")
        try:
            bundle.encode_users([attributes])
        except DataError as error:
            raise RequestError("invalid", str(error)[:500], "attributes") from None

    def check_event_type(self, event_type: str, field: str) -> None:
        """Check that the dataset has an event type.

        Args:
            event_type: of the request.
            field: of the request that has it.

        Raises:
            RequestError: it does not.
        """
        known = self._bundle.dataset.event_type_names
        if event_type not in known:
            names = ", ".join(known) or "none"
            raise RequestError(
                "invalid", f"unknown event type {short_repr(event_type)}; known: {names}", field
            )
