"""One generation of a served model: takes requests in, and answers batches of them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic_core import to_json
from torch import Tensor

from candid.errors import DataError
from candid.serve.admission import check_attributes, check_choice, microseconds
from candid.serve.catalog import Catalog, Ranked
from candid.serve.config import ServeConfig
from candid.serve.filters import AttributeFilters
from candid.serve.items import ItemTable, SourceIds
from candid.serve.parts import ServedParts
from candid.serve.problems import Problem, shown
from candid.serve.questions import (
    NOTHING,
    Asker,
    asker_of_history,
    asker_of_user,
    encoded,
)
from candid.serve.schemas import Event, Id, RecommendRequest, SimilarRequest

Ints = npt.NDArray[np.int64]
Result = bytes | Problem

FAST_K = 200
"""A larger k goes the slow way, so that nobody else's search has to go as deep."""


@dataclass(frozen=True, slots=True)
class Question:
    """One query for one generation.

    Attributes:
        served: the generation.
        asker: for whom; None: items near ``item_id`` are asked for.
        item_id: see ``asker``.
        k: how many items.
        allowed: only these items; None: all.
        excluded: [n] int64, none of these items.
        filters: by attribute.
        probability: whether to compute it.
        attributes: whether to answer with attributes.
        ignored: items of the history that are not known.
    """

    served: Served
    asker: Asker | None
    item_id: int
    k: int
    allowed: Ints | None
    excluded: Ints
    filters: Mapping[str, Any]
    probability: bool
    attributes: bool
    ignored: int = 0

    @property
    def is_slow(self) -> bool:
        """Whether it costs many times what most questions cost."""
        return (
            self.asker is None
            or self.allowed is not None
            or bool(self.filters)
            or self.k > FAST_K
            or (self.probability and not self.served.is_cheap)
        )


class Served:
    """One generation of a model.

    Args:
        name: what requests call it.
        number: of the generation, from 1.
        parts: the opened run.
        config: limits.

    Attributes:
        items: titles, attributes and source ids.
        users: source ids.
        catalog: searches.
        filters: by attribute.
        is_cheap: whether every answer may carry probabilities.
    """

    def __init__(self, name: str, number: int, parts: ServedParts, config: ServeConfig) -> None:
        self.name = name
        self.number = number
        self.parts = parts
        self.config = config
        self.loaded = datetime.datetime.now(datetime.UTC)
        self.items = ItemTable(
            parts.dataset.items,
            parts.snapshot.source_ids.added,
            parts.dataset.train_counts,
            name,
        )
        self.users = SourceIds(parts.dataset.users["source_id"], "user", name)
        self.catalog = Catalog(parts.index)
        self.filters = AttributeFilters(self.items)
        self.is_cheap = parts.index.num_items <= config.probability_items

    def question(self, request: RecommendRequest) -> Question:
        """Take a request in.

        Raises:
            Problem: it is beyond a limit, asks for what the model cannot, or names what it does
                not know.
        """
        check_choice(request, self.config)
        self.filters.check(request.filters)
        if request.event_type is not None:
            self._check_kind(request.event_type, "event_type")
        time = None if request.time is None else microseconds(request.time)
        ignored = 0
        if request.user is not None:
            user_id = self.users.require(request.user, "user")
            asker = asker_of_user(self.parts, user_id, time, request.event_type)
        else:
            asker, ignored = self._somebody(request, time)
        if self.parts.model.needs_history and not len(asker.item_ids):
            raise Problem(
                "unsupported",
                "the model answers only from a history and there is none: name at least one item",
                "user" if request.user is not None else "history",
            )
        if request.probability and self.parts.no_probability is not None:
            raise Problem("unsupported", self.parts.no_probability, "probability")
        wants = self.is_cheap if request.probability is None else request.probability
        return Question(
            self,
            asker,
            -1,
            request.k,
            self._known(request.allow),
            self._excluded(request.deny, asker.seen if request.filter_seen else NOTHING),
            request.filters,
            wants and self.parts.no_probability is None,
            request.attributes,
            ignored,
        )

    def similar_question(self, request: SimilarRequest) -> Question:
        """Take a request for items near an item in; raises as ``question``."""
        check_choice(request, self.config)
        self.filters.check(request.filters)
        item_id = self.live_item(request.item, "item")
        return Question(
            self,
            None,
            item_id,
            request.k,
            self._known(request.allow),
            self._excluded(request.deny, NOTHING),
            request.filters,
            False,
            request.attributes,
        )

    def live_item(self, source_id: Id, field: str | None, code: str = "unknown_item") -> int:
        """The id of an item that may be recommended.

        Raises:
            Problem: with ``code``: there is none, or it is deleted.
        """
        found = self.items.ids.find(source_id)
        if found is None or not bool(self.parts.index.is_live(torch.tensor([found]))[0]):
            problem = self.items.ids.unknown(source_id, field)
            raise Problem(code, problem.message, field)
        return found

    def answer(self, questions: Sequence[Question]) -> list[Result]:
        """Answer questions for this generation, in their order; JSON, or what is wrong."""
        asked = [question for question in questions if question.asker is not None]
        askers = [question.asker for question in asked if question.asker is not None]
        query = encoded(self.parts, askers) if askers else torch.empty(0, self.parts.dim)
        # Beyond float32 no score can be told from another.
        is_good = query.abs().sum(1).isfinite().tolist()
        found: dict[int, Ranked | Problem] = {}
        plain: list[int] = []
        rows = {id(question): row for row, question in enumerate(asked)}
        for place, question in enumerate(questions):
            row = rows.get(id(question))
            if row is None:
                found[place] = self._similar(question)
            elif not is_good[row]:
                found[place] = Problem(
                    "invalid", "features or history give no finite query: check the numbers"
                )
            elif question.allowed is not None or question.filters:
                found[place] = self._among(query[row], question)
            else:
                plain.append(place)
        if plain:
            vectors = query[[rows[id(questions[place])] for place in plain]]
            found |= zip(plain, self._plain([questions[p] for p in plain], vectors), strict=True)
        log_z = self._log_partitions(questions, rows, query)
        return self._written(questions, [found[p] for p in range(len(questions))], log_z)

    def _plain(self, questions: Sequence[Question], query: Tensor) -> list[Ranked]:
        k = max(question.k for question in questions)
        ranked = self.catalog.nearest(query, k, [question.excluded for question in questions])
        return [(i[: q.k], s[: q.k]) for (i, s), q in zip(ranked, questions, strict=True)]

    def _among(self, query: Tensor, question: Question) -> Ranked:
        mask = None if not question.filters else self.filters.mask(question.filters)
        if question.allowed is None:
            assert mask is not None
            return self.catalog.nearest_allowed(query, question.k, mask, question.excluded)
        ids = self._live(question.allowed)
        ids = np.setdiff1d(ids, question.excluded)
        if mask is not None:
            ids = ids[ids < len(mask)]
            ids = ids[mask[ids]]
        return self.catalog.best_of(query, question.k, ids)

    def _similar(self, question: Question) -> Ranked | Problem:
        allowed = self.filters.mask(question.filters) if question.filters else None
        if question.allowed is not None:
            chosen = np.zeros(len(self.items.ids), dtype=np.bool_)
            chosen[question.allowed] = True
            if allowed is not None:
                both = min(len(chosen), len(allowed))
                chosen[:both] &= allowed[:both]
                chosen[both:] = False
            allowed = chosen
        return self.catalog.similar(question.item_id, question.k, allowed, question.excluded)

    def _log_partitions(
        self, questions: Sequence[Question], rows: Mapping[int, int], query: Tensor
    ) -> dict[int, float]:
        """Find log Z of the questions that want probabilities, by place."""
        places = [
            place
            for place, question in enumerate(questions)
            if question.probability and id(question) in rows
        ]
        if not places:
            return {}
        vectors = query[[rows[id(questions[place])] for place in places]]
        return dict(zip(places, self.catalog.log_partition(vectors).tolist(), strict=True))

    def _written(
        self,
        questions: Sequence[Question],
        found: Sequence[Ranked | Problem],
        log_z: Mapping[int, float],
    ) -> list[Result]:
        """Answers as JSON; the items of all of them are looked up at once."""
        flat: list[list[int]] = [[], []]
        for question, ranked in zip(questions, found, strict=True):
            if not isinstance(ranked, Problem):
                flat[question.attributes] += ranked[0].tolist()
        texts = [iter(self.items.written(ids, bool(which))) for which, ids in enumerate(flat)]
        head = to_json({"model": self.name, "generation": self.number}).decode()[:-1]
        results: list[Result] = []
        for place, (question, ranked) in enumerate(zip(questions, found, strict=True)):
            if isinstance(ranked, Problem):
                results.append(ranked)
                continue
            scores = ranked[1].astype(np.float64)
            columns = [islice(texts[question.attributes], len(scores)), scores.tolist()]
            if place in log_z:
                columns.append(np.exp(np.minimum(scores - log_z[place], 0.0)).tolist())
            form = _form(len(scores), place in log_z)
            items = form % tuple(chain.from_iterable(zip(*columns, strict=True)))
            results.append(f'{head},"items":[{items}],"ignored":{question.ignored}}}'.encode())
        return results

    def _somebody(self, request: RecommendRequest, time: int | None) -> tuple[Asker, int]:
        """Somebody who is no user of the dataset, and how many items are not known."""
        model, parts = self.parts.model, self.parts
        if model.needs_user or not (model.reads_history or request.features is not None):
            raise Problem(
                "unsupported",
                "the model knows the users it was trained on, not histories: name a user",
                "history" if request.features is None else "features",
            )
        if request.features is not None:
            self._check_features(request.features)
        history = request.history or []
        if len(history) > self.config.max_history:
            raise Problem(
                "invalid", f"at most {self.config.max_history} items of history", "history"
            )
        ids: list[int] = []
        kinds: list[str | None] = []
        ignored, last_time = 0, None
        names = [entry.item if isinstance(entry, Event) else entry for entry in history]
        known = self.items.ids.find_all(names)
        for place, (entry, source_id, found) in enumerate(zip(history, names, known, strict=True)):
            event = entry if isinstance(entry, Event) else None
            if event is not None and event.kind is not None:
                self._check_kind(event.kind, f"history.{place}.kind")
            if found is None:
                if not request.ignore_unknown:
                    raise self.items.ids.unknown(source_id, f"history.{place}")
                ignored += 1
                continue
            ids.append(found)
            kinds.append(None if event is None else event.kind)
            if event is not None and event.time is not None:
                moment = microseconds(event.time)
                if last_time is not None and moment < last_time:
                    raise Problem(
                        "invalid", "a history is written earliest first", f"history.{place}.time"
                    )
                last_time = moment
            else:
                last_time = None
        asker = asker_of_history(
            parts, ids, kinds, last_time, request.features, time, request.event_type
        )
        return asker, ignored

    def _check_features(self, features: Mapping[str, Any]) -> None:
        if self.parts.people is None:
            raise Problem(
                "unsupported", "the model of this run reads no features of users", "features"
            )
        known = self.parts.user_attributes
        check_attributes(features, known, "users", "features")
        try:
            self.parts.people([features])
        except DataError as error:
            raise Problem("invalid", str(error)[:500], "features") from None

    def _check_kind(self, kind: str, field: str) -> None:
        known = self.parts.dataset.event_type_names
        if kind not in known:
            listed = ", ".join(known) or "none"
            raise Problem(
                "invalid", f"no kind of interaction is {shown(kind)}; there are: {listed}", field
            )

    def _known(self, source_ids: Sequence[Id] | None) -> Ints | None:
        """Distinct ids of the items of a list that are known."""
        if source_ids is None:
            return None
        found = self.items.ids.find_all(source_ids)
        return np.array(sorted({one for one in found if one is not None}), dtype=np.int64)

    def _excluded(self, deny: Sequence[Id], seen: Ints) -> Ints:
        denied = self._known(deny)
        return seen if denied is None or not len(denied) else np.concatenate([seen, denied])

    def _live(self, ids: Ints) -> Ints:
        live: Ints = ids[self.parts.index.is_live(torch.from_numpy(ids)).numpy()]
        return live


@lru_cache(maxsize=128)
def _form(count: int, has_chances: bool) -> str:
    """How ``count`` ranked items are written, one %-format for all: text, score and probability.

    Nine digits tell any two float32 apart.
    """
    chance = "%.7g" if has_chances else "null"
    return ",".join(
        f'%s,"rank":{rank},"score":%.9g,"probability":{chance}}}' for rank in range(1, count + 1)
    )
