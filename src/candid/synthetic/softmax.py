"""Mode ``softmax``: P(d | q) ∝ exp(<q, v_d> + b_d), exactly what two towers can represent.

The bias b_d = -exponent · log(rank + 1) makes popularity follow Zipf's law: vectors all have
length 1 and topics are spread evenly over the ranks, so the dot product favours no rank.

Sampling does not compute the catalog. Items are grouped by first topic; within group g every
score is at most <q, m_g> + |q| · r_g (centre and radius of the group's vectors). CandidateSource a
group by that envelope, an item of it by popularity, and accepting with probability
exp(score - envelope) is rejection sampling: exact, at a cost that does not grow with V. Rows
still empty-handed when that costs more than the catalog does are drawn afresh from their
exact distribution.

Where items are released over time, the softmax is over those released by the time of the
choice: the others score -inf, and a try that draws one is refused.
"""

from __future__ import annotations

import numpy as np

from candid.synthetic.catalog import Catalog, Ints
from candid.synthetic.choice import Choice, log_sum_exp, unit
from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counters import Floats, Keys, derive, normal, root_key, uniform

_SPREAD = 0.6
"""Length of an item's own part beside its topics' part of length 1, before normalising."""

_TRIES = 8
_ITEMS_PER_ROUND = 192
"""Scoring about so many items costs as much as one more round of tries."""
_BLOCK = 1 << 22
"""Scores held at a time by the exact computations: 32 MiB in float64."""


class SoftmaxChoice(Choice):
    """One softmax over the catalog.

    Attributes:
        vectors: [V, D] float64, unit length.
        bias: [V] float64, normalised: the softmax of a zero query is exp(bias).
    """

    def __init__(
        self, config: SyntheticConfig, catalog: Catalog, releases: Ints | None = None
    ) -> None:
        super().__init__(config, catalog, releases)
        item_ids = np.arange(catalog.num_items)
        keys = derive(root_key(config.seed, "items"), item_ids)
        own = _SPREAD * unit(normal(keys, config.dim))
        self.vectors = unit(self.blend(item_ids) + own)
        self._contexts = unit(self.blend(item_ids, step=1) + own)
        bias = -config.zipf_exponent * np.log(catalog.rank(item_ids) + 1.0)
        self.bias = bias - log_sum_exp(bias)
        self._build_envelope()

    def _build_envelope(self) -> None:
        first, _ = self.catalog.topics(np.arange(self.catalog.num_items))
        self._by_topic = np.argsort(first, kind="stable")
        sizes = np.bincount(first, minlength=self.catalog.num_topics)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
        grouped = self.vectors[self._by_topic]
        self._group_centres = np.add.reduceat(grouped, starts[:-1]) / sizes[:, None]
        offset = grouped - np.repeat(self._group_centres, sizes, axis=0)
        self._group_radius = np.maximum.reduceat(np.linalg.norm(offset, axis=1), starts[:-1])
        mass = np.exp(self.bias[self._by_topic])
        self._cumulative = np.concatenate([np.zeros(1), np.cumsum(mass)])
        self._group_start = self._cumulative[starts[:-1]]
        self._group_mass = self._cumulative[starts[1:]] - self._group_start
        self._group_last = starts[1:] - 1
        self._group_first = starts[:-1]
        self._max_rounds = 4 + self.catalog.num_items // _ITEMS_PER_ROUND
        # A guide to the inverse CDF (Chen and Asau, 1974): each cell points at the first item
        # that can be meant; far faster than a binary search.
        self._cells = 4 * self.catalog.num_items
        edges = np.arange(self._cells) / self._cells * self._cumulative[-1]
        self._upper = np.append(self._cumulative[1:-1], np.inf)
        self._guide = np.searchsorted(self._upper, edges, side="right")

    def context(self, item_ids: Ints) -> Floats:
        """A choice draws the query to its own traits in the next topic: [..., D] float64."""
        return self._contexts[item_ids]

    def _scores(self, query: Floats, times: Ints | None) -> Floats:
        scores = np.asarray(query @ self.vectors.T + self.bias)
        if self.releases is None or times is None:
            return scores
        return np.where(self.releases <= times[:, None], scores, -np.inf)

    def _blocks(self, num_queries: int) -> list[slice]:
        size = max(1, _BLOCK // self.catalog.num_items)
        return [slice(start, start + size) for start in range(0, num_queries, size)]

    def log_prob(
        self, query: Floats, item_ids: Ints, rows: Ints, times: Ints | None = None
    ) -> Floats:
        """Score minus log partition function, the latter once a query, in blocks."""
        log_z = np.empty(len(query))
        for block in self._blocks(len(query)):
            log_z[block] = log_sum_exp(self._scores(query[block], _part(times, block)))
        score = np.einsum("md,md->m", query[rows], self.vectors[item_ids])
        log_prob = np.asarray(score + self.bias[item_ids] - log_z[rows])
        if self.releases is None or times is None:
            return log_prob
        return np.where(self.releases[item_ids] <= times[rows], log_prob, -np.inf)

    def log_probs(self, query: Floats, times: Ints | None = None) -> Floats:
        """The log softmax: [B, V] float64."""
        scores = self._scores(query, times)
        return scores - log_sum_exp(scores)[:, None]

    def entropy(self, query: Floats, times: Ints | None = None) -> Floats:
        """-Σ P log P over the catalog, in blocks."""
        entropy = np.empty(len(query))
        for block in self._blocks(len(query)):
            log_probs = self.log_probs(query[block], _part(times, block))
            # 0 · log 0 = 0, where numpy has nan.
            log_probs[log_probs == -np.inf] = 0.0
            entropy[block] = -(np.exp(log_probs) * log_probs).sum(axis=1)
        return entropy

    def sample(self, query: Floats, keys: Keys, times: Ints | None = None) -> Ints:
        """Rejection under the envelope of the module's docstring."""
        envelope = query @ self._group_centres.T
        envelope += np.linalg.norm(query, axis=1, keepdims=True) * self._group_radius
        relative = np.exp(envelope - envelope.max(axis=1, keepdims=True)) * self._group_mass
        cumulative = np.cumsum(relative, axis=1)
        chosen = np.full(len(query), -1, dtype=np.int64)
        pending = np.arange(len(query))
        for round_ in range(self._max_rounds):
            if len(pending) == 0:
                return chosen
            tries = derive(keys[pending, None], round_, np.arange(_TRIES))
            items, groups = self._propose(cumulative[pending], tries)
            score = np.einsum("btd,bd->bt", self.vectors[items], query[pending])
            log_accept = score - np.take_along_axis(envelope[pending], groups, axis=1)
            accepted = np.log(uniform(derive(tries, 2))) < log_accept
            if self.releases is not None and times is not None:
                accepted &= self.releases[items] <= times[pending, None]
            done = accepted.any(axis=1)
            chosen[pending[done]] = items[done, accepted[done].argmax(axis=1)]
            pending = pending[~done]
        for block in self._blocks(len(pending)):
            rows = pending[block]
            scores = self._scores(query[rows], _part(times, rows))
            chosen[rows] = _sample_exactly(scores, derive(keys[rows], self._max_rounds))
        return chosen

    def _propose(self, cumulative: Floats, tries: Keys) -> tuple[Ints, Ints]:
        """Items by group envelope, then popularity: items and groups, both [B, tries]."""
        pick = uniform(derive(tries, 0)) * cumulative[:, -1:]
        groups = np.zeros(pick.shape, dtype=np.int64)
        for column in cumulative.T[:-1]:
            groups += column[:, None] <= pick
        mass = self._group_start[groups] + uniform(derive(tries, 1)) * self._group_mass[groups]
        # Rounding may carry a draw over the edge of its group; keep it inside.
        place = np.clip(self._search(mass), self._group_first[groups], self._group_last[groups])
        return self._by_topic[place], groups

    def _search(self, mass: Floats) -> Ints:
        """Inverse CDF of popularity: the items whose stretch of the mass holds each value."""
        flat = mass.ravel()
        cells = (flat * (self._cells / self._cumulative[-1])).astype(np.int64)
        # One cell down, because rounding may have put the cell one too high.
        place = self._guide[np.clip(cells - 1, 0, self._cells - 1)]
        behind = np.flatnonzero(self._upper[place] <= flat)
        while len(behind):
            place[behind] += 1
            behind = behind[self._upper[place[behind]] <= flat[behind]]
        found: Ints = place.reshape(mass.shape)
        return found


def _part(times: Ints | None, rows: slice | Ints) -> Ints | None:
    return None if times is None else times[rows]


def _sample_exactly(scores: Floats, keys: Keys) -> Ints:
    cumulative = np.cumsum(np.exp(scores - scores.max(axis=1, keepdims=True)), axis=1)
    pick = uniform(keys) * cumulative[:, -1]
    places: Ints = (cumulative <= pick[:, None]).sum(axis=1)
    # Rounding may lift the pick to the total itself; the last item there is takes it.
    last: Ints = scores.shape[1] - 1 - np.argmax(scores[:, ::-1] > -np.inf, axis=1)
    return np.minimum(places, last)
