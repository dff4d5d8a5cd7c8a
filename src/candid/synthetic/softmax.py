"""Mode ``softmax``: P(d | q) ∝ exp(<q, v_d> + b_d), a softmax that two towers can represent.

The bias b_d = -exponent · log(rank + 1) makes popularity follow Zipf's law: all vectors have
length 1 and topics are spread evenly over the ranks, so the dot product favours no rank.

Sampling does not score the whole catalog. Items are grouped by first topic; within group g every
score is at most <q, m_g> + |q| · r_g (centre and radius of the group's vectors). Rejection
sampling chooses a group by that envelope, then an item of the group by popularity, and accepts
it with probability exp(score - envelope). The samples are exact, and the cost does not grow with
V. Rows that are still rejected when the attempts have cost as much as scoring the catalog are
sampled from their exact distribution.

With release times, the softmax is over the items released by the time of the choice: the other
items score -inf, and rejection sampling never accepts them.
"""

from __future__ import annotations

import numpy as np

from candid.synthetic.choice_model import ChoiceModel, log_sum_exp, unit
from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counter_rng import Floats, Ints, Keys, derive, normal, root_key, uniform
from candid.synthetic.items import SyntheticItems

_OWN_WEIGHT = 0.6
"""Length of an item's individual component, relative to its topic component of length 1."""

_TRIES = 8
_ITEMS_PER_ROUND = 192
"""One more round of attempts costs about as much as scoring this many items."""
_BLOCK = 1 << 22
"""Number of scores in memory at a time in the exact computations: 32 MiB in float64."""


class SoftmaxChoice(ChoiceModel):
    """One softmax over the catalog.

    Attributes:
        vectors: [V, D] float64, unit length.
        bias: [V] float64, normalised: the softmax of a zero query is exp(bias).
    """

    def __init__(
        self, config: SyntheticConfig, items: SyntheticItems, release_times: Ints | None = None
    ) -> None:
        super().__init__(config, items, release_times)
        item_ids = np.arange(items.num_items)
        keys = derive(root_key(config.seed, "items"), item_ids)
        own = _OWN_WEIGHT * unit(normal(keys, config.dim))
        self.vectors = unit(self.blend(item_ids) + own)
        self._contexts = unit(self.blend(item_ids, step=1) + own)
        bias = -config.zipf_exponent * np.log(items.rank(item_ids) + 1.0)
        self.bias = bias - log_sum_exp(bias)
        self._build_envelope()

    def _build_envelope(self) -> None:
        first, _ = self.items.topics(np.arange(self.items.num_items))
        self._by_topic = np.argsort(first, kind="stable")
        sizes = np.bincount(first, minlength=self.items.num_topics)
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
        self._max_rounds = 4 + self.items.num_items // _ITEMS_PER_ROUND
        # Guide table of the inverse CDF (Chen and Asau, 1974): each cell holds the first item
        # that can match, which is much faster than a binary search.
        self._cells = 4 * self.items.num_items
        edges = np.arange(self._cells) / self._cells * self._cumulative[-1]
        self._upper = np.append(self._cumulative[1:-1], np.inf)
        self._guide = np.searchsorted(self._upper, edges, side="right")

    def context(self, item_ids: Ints) -> Floats:
        """Return the item's own component with the topics after its own: [..., D] float64."""
        return self._contexts[item_ids]

    def item_vectors(self, item_ids: Ints) -> Floats:
        """Return vector and popularity bias: [n, D + 1] float64."""
        return np.hstack([self.vectors[item_ids], self.bias[item_ids, None]])

    def _scores(self, query: Floats, times: Ints | None) -> Floats:
        scores = np.asarray(query @ self.vectors.T + self.bias)
        if self.release_times is None or times is None:
            return scores
        return np.where(self.release_times <= times[:, None], scores, -np.inf)

    def _blocks(self, num_queries: int) -> list[slice]:
        size = max(1, _BLOCK // self.items.num_items)
        return [slice(start, start + size) for start in range(0, num_queries, size)]

    def log_prob(
        self, query: Floats, item_ids: Ints, rows: Ints, times: Ints | None = None
    ) -> Floats:
        """Return score minus log partition function, computed once per query: [M] float64."""
        log_z = np.empty(len(query))
        for block in self._blocks(len(query)):
            log_z[block] = log_sum_exp(self._scores(query[block], _times_of(times, block)))
        score = np.einsum("md,md->m", query[rows], self.vectors[item_ids])
        log_prob = np.asarray(score + self.bias[item_ids] - log_z[rows])
        if self.release_times is None or times is None:
            return log_prob
        return np.where(self.release_times[item_ids] <= times[rows], log_prob, -np.inf)

    def log_probs(self, query: Floats, times: Ints | None = None) -> Floats:
        """Return the log softmax: [B, V] float64."""
        scores = self._scores(query, times)
        return scores - log_sum_exp(scores)[:, None]

    def entropy(self, query: Floats, times: Ints | None = None) -> Floats:
        """Return -Σ P log P over the catalog, computed in blocks: [B] float64."""
        entropy = np.empty(len(query))
        for block in self._blocks(len(query)):
            log_probs = self.log_probs(query[block], _times_of(times, block))
            # 0 · log 0 = 0, but numpy gives nan.
            log_probs[log_probs == -np.inf] = 0.0
            entropy[block] = -(np.exp(log_probs) * log_probs).sum(axis=1)
        return entropy

    def sample(self, query: Floats, keys: Keys, times: Ints | None = None) -> Ints:
        """Sample by rejection under the envelope (module docstring): [B] int64."""
        envelope = query @ self._group_centres.T
        envelope += np.linalg.norm(query, axis=1, keepdims=True) * self._group_radius
        relative = np.exp(envelope - envelope.max(axis=1, keepdims=True)) * self._group_mass
        cumulative = np.cumsum(relative, axis=1)
        chosen = np.full(len(query), -1, dtype=np.int64)
        pending = np.arange(len(query))
        for round_ in range(self._max_rounds):
            if len(pending) == 0:
                return chosen
            try_keys = derive(keys[pending, None], round_, np.arange(_TRIES))
            items, groups = self._sample_under_envelope(cumulative[pending], try_keys)
            score = np.einsum("btd,bd->bt", self.vectors[items], query[pending])
            log_accept = score - np.take_along_axis(envelope[pending], groups, axis=1)
            is_accepted = np.log(uniform(derive(try_keys, 2))) < log_accept
            if self.release_times is not None and times is not None:
                is_accepted &= self.release_times[items] <= times[pending, None]
            is_done = is_accepted.any(axis=1)
            chosen[pending[is_done]] = items[is_done, is_accepted[is_done].argmax(axis=1)]
            pending = pending[~is_done]
        for block in self._blocks(len(pending)):
            rows = pending[block]
            scores = self._scores(query[rows], _times_of(times, rows))
            chosen[rows] = _sample_from_scores(scores, derive(keys[rows], self._max_rounds))
        return chosen

    def _sample_under_envelope(self, cumulative: Floats, try_keys: Keys) -> tuple[Ints, Ints]:
        """Sample a group by envelope, then an item by popularity: both [B, tries] int64."""
        pick = uniform(derive(try_keys, 0)) * cumulative[:, -1:]
        groups = np.zeros(pick.shape, dtype=np.int64)
        for column in cumulative.T[:-1]:
            groups += column[:, None] <= pick
        mass = self._group_start[groups] + uniform(derive(try_keys, 1)) * self._group_mass[groups]
        # Rounding may move a sample past the edge of its group.
        positions = np.clip(
            self._invert_cdf(mass), self._group_first[groups], self._group_last[groups]
        )
        return self._by_topic[positions], groups

    def _invert_cdf(self, mass: Floats) -> Ints:
        """Return the position, in ``_by_topic``, of the item whose interval holds each mass."""
        flat = mass.ravel()
        cells = (flat * (self._cells / self._cumulative[-1])).astype(np.int64)
        # One cell down, because rounding may have made the cell one too high.
        positions = self._guide[np.clip(cells - 1, 0, self._cells - 1)]
        behind = np.flatnonzero(self._upper[positions] <= flat)
        while len(behind):
            positions[behind] += 1
            behind = behind[self._upper[positions[behind]] <= flat[behind]]
        shaped: Ints = positions.reshape(mass.shape)
        return shaped


def _times_of(times: Ints | None, rows: slice | Ints) -> Ints | None:
    return None if times is None else times[rows]


def _sample_from_scores(scores: Floats, keys: Keys) -> Ints:
    cumulative = np.cumsum(np.exp(scores - scores.max(axis=1, keepdims=True)), axis=1)
    pick = uniform(keys) * cumulative[:, -1]
    item_ids: Ints = (cumulative <= pick[:, None]).sum(axis=1)
    # Rounding may make the pick equal to the total: it then belongs to the last possible item.
    last: Ints = scores.shape[1] - 1 - np.argmax(scores[:, ::-1] > -np.inf, axis=1)
    return np.minimum(item_ids, last)
