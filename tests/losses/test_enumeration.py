"""Every correction with every sampler, against the enumeration of all positives and samples.

A catalog of four items, float64. Row 0 has the positive p. The samplers return every possible
sample, and the other rows of the batch and of the memory have every possible positive. Expected
values come from the sampled items and from counts written out here, never from a sampler's record.
"""

import functools
import itertools
import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from candid import sampled_softmax, with_negatives
from candid.losses import sampled
from candid.losses.correction import corrections_for
from candid.samplers import (
    CrossBatchMemory,
    ExactPopular,
    InBatch,
    Mixture,
    Popularity,
    Uniform,
)

COUNTS = torch.tensor([5.0, 1.0, 3.0, 2.0], dtype=torch.float64)
V = len(COUNTS)
Q = (COUNTS / COUNTS.sum()).tolist()
UNIFORM = [1 / V] * V
SCORES = [0.4, 1.9, -0.8, 0.9]
S = torch.tensor(SCORES, dtype=torch.float64)
P = S.softmax(dim=0)
EYE = torch.eye(V, dtype=torch.float64)


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """Samplers state counts in float32: in float64, exactness shows to the last digits."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "float32", torch.float64)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def without(q, items):
    rest = [0.0 if item in items else share for item, share in enumerate(q)]
    return [share / sum(rest) for share in rest]


def included(q, n):
    return [1 - (1 - share) ** n for share in q]


def times(q, n):
    return [n * share for share in q]


def plus(*counts):
    return [sum(of_item) for of_item in zip(*counts, strict=True)]


@dataclass
class Case:
    """A sampler, what is random about it, and the expected counts of row 0.

    Attributes:
        sampler: a new sampler.
        count: expected count of each item among the candidates that row 0 is compared with, but
            for hits of its positive.
        users: of the rows of the batch; row 0 is the first.
        hides_users: the sampler gets no users.
        memory_users: of the rows in memory.
        given_q: distribution of each sample of the samplers inside, in their order.
        own_is_sampled: rows of the own user are candidates, so that they are samples from Q.
        is_set: a part is a set of distinct items.
        is_pure: samples with replacement from one source, which ``refined`` renormalizes.
        exact: items that are compared exactly.
        negatives: given negatives of every row; they are in ``exact`` too.
        q: e(d) / n for n samples of all users, where it is not ``count`` / n.
        drift: bound on the drift of logq with kept hits, in nats; 0 where it is exact.
    """

    sampler: Callable[[], object]
    count: list[float]
    users: tuple = (7,)
    hides_users: bool = False
    memory_users: tuple = ()
    given_q: tuple = ()
    own_is_sampled: bool = False
    is_set: bool = False
    is_pure: bool = True
    exact: tuple = ()
    negatives: tuple = ()
    q: list | None = None
    drift: float = 0.0


def uniform(n, **settings):
    return Uniform(V, num_candidates=n, **settings)


def popular(n, **settings):
    return Popularity(COUNTS, num_candidates=n, **settings)


USERS = (7, 7, 8, 9)
"""Users of four rows: that of row 0 has two."""
OWN = 3
"""Positive of the other rows with the user of row 0, which are masked: it may be anything."""


def mean_of(*counts):
    total = plus(*counts)
    return [count / sum(total) for count in total]


CASES = {
    "uniform": Case(lambda: uniform(3), times(UNIFORM, 3), given_q=(UNIFORM,) * 3),
    "popularity": Case(lambda: popular(3), times(Q, 3), given_q=(Q,) * 3),
    "uniform set": Case(
        lambda: uniform(3, distinct=True),
        included(UNIFORM, 3),
        given_q=(UNIFORM,) * 3,
        is_set=True,
    ),
    "popularity set": Case(
        lambda: popular(3, distinct=True),
        included(Q, 3),
        given_q=(Q,) * 3,
        is_set=True,
        drift=5e-5,
    ),
    "in-batch": Case(lambda: InBatch(COUNTS), times(Q, 3), users=(1, 2, 3, 4)),
    "in-batch without users": Case(
        lambda: InBatch(COUNTS), times(Q, 3), users=(1, 2, 3, 4), hides_users=True
    ),
    "in-batch with own rows": Case(lambda: InBatch(COUNTS), times(Q, 2), users=USERS),
    "in-batch with all users": Case(
        lambda: InBatch(COUNTS, exclude_same_user=False),
        times(Q, 3),
        users=USERS,
        own_is_sampled=True,
    ),
    "in-batch set": Case(
        lambda: InBatch(COUNTS, distinct=True),
        included(Q, 2),
        users=USERS,
        is_set=True,
        drift=3e-5,
    ),
    "memory": Case(
        lambda: CrossBatchMemory(COUNTS, size=2), times(Q, 3), users=(7, 9), memory_users=(5, 6)
    ),
    "memory with own rows": Case(
        lambda: CrossBatchMemory(COUNTS, size=3),
        times(Q, 3),
        users=(7, 8),
        memory_users=(7, 5, 9),
    ),
    "mixture": Case(
        lambda: Mixture([uniform(1), popular(2)]),
        plus(times(UNIFORM, 1), times(Q, 2)),
        given_q=(UNIFORM, Q, Q),
        is_pure=False,
        drift=5e-5,
    ),
    "mixture with in-batch": Case(
        lambda: Mixture([uniform(2), InBatch(COUNTS)]),
        plus(times(UNIFORM, 2), times(Q, 2)),
        users=USERS,
        given_q=(UNIFORM,) * 2,
        is_pure=False,
        q=mean_of(times(UNIFORM, 2), times(Q, 4)),
        drift=5e-5,
    ),
    "mixture with in-batch of one user": Case(
        lambda: Mixture([uniform(2), InBatch(COUNTS)]),
        times(UNIFORM, 2),
        users=(7, 7, 7),
        given_q=(UNIFORM,) * 2,
        is_pure=False,
        q=mean_of(times(UNIFORM, 2), times(Q, 3)),
    ),
    "mixture with in-batch without users": Case(
        lambda: Mixture([InBatch(COUNTS), uniform(1)]),
        plus(times(UNIFORM, 1), times(Q, 2)),
        users=(1, 2, 3),
        hides_users=True,
        given_q=(UNIFORM,),
        is_pure=False,
        q=mean_of(times(UNIFORM, 1), times(Q, 3)),
        drift=5e-5,
    ),
    "mixture with memory": Case(
        lambda: Mixture([CrossBatchMemory(COUNTS, size=2), uniform(2)]),
        plus(times(UNIFORM, 2), times(Q, 2)),
        users=(7, 8),
        memory_users=(7, 5),
        given_q=(UNIFORM,) * 2,
        is_pure=False,
        q=mean_of(times(UNIFORM, 2), times(Q, 4)),
        drift=5e-5,
    ),
    "mixture with two in-batch parts": Case(
        lambda: Mixture([InBatch(COUNTS, exclude_same_user=False), uniform(1), InBatch(COUNTS)]),
        plus(times(UNIFORM, 1), times(Q, 2), times(Q, 1)),
        users=(7, 7, 8),
        own_is_sampled=True,
        given_q=(UNIFORM,),
        is_pure=False,
        q=mean_of(times(UNIFORM, 1), times(Q, 6)),
        drift=1e-3,
    ),
    "nested mixture": Case(
        lambda: Mixture([Mixture([popular(1), InBatch(COUNTS)]), uniform(1)]),
        plus(times(UNIFORM, 1), times(Q, 1), times(Q, 2)),
        users=USERS,
        given_q=(Q, UNIFORM),
        is_pure=False,
        q=mean_of(times(UNIFORM, 1), times(Q, 5)),
        drift=5e-5,
    ),
    "mixture with a set": Case(
        lambda: Mixture([uniform(2, distinct=True), InBatch(COUNTS)]),
        plus(included(UNIFORM, 2), times(Q, 2)),
        users=USERS,
        given_q=(UNIFORM,) * 2,
        is_set=True,
        is_pure=False,
        drift=1e-3,
    ),
    "mixture with an in-batch set": Case(
        lambda: Mixture([uniform(1), InBatch(COUNTS, distinct=True)]),
        plus(times(UNIFORM, 1), included(Q, 2)),
        users=USERS,
        given_q=(UNIFORM,),
        is_set=True,
        is_pure=False,
        drift=5e-4,
    ),
    "exact popular": Case(
        lambda: ExactPopular(COUNTS, num_exact=1, rest=uniform(3)),
        times(without(UNIFORM, [0]), 3),
        given_q=(without(UNIFORM, [0]),) * 3,
        exact=(0,),
    ),
    "exact popular with in-batch": Case(
        lambda: ExactPopular(COUNTS, num_exact=1, rest=InBatch(COUNTS)),
        times(Q, 2),
        users=USERS,
        exact=(0,),
    ),
    "exact popular with a set": Case(
        lambda: ExactPopular(COUNTS, num_exact=1, rest=InBatch(COUNTS, distinct=True)),
        included(Q, 2),
        users=USERS,
        is_set=True,
        exact=(0,),
        drift=5e-4,
    ),
    "exact popular with a mixture": Case(
        lambda: ExactPopular(COUNTS, num_exact=1, rest=Mixture([uniform(2), InBatch(COUNTS)])),
        plus(times(without(UNIFORM, [0]), 2), times(Q, 2)),
        users=USERS,
        given_q=(without(UNIFORM, [0]),) * 2,
        is_pure=False,
        exact=(0,),
        drift=5e-4,
    ),
    "negatives with a mixture": Case(
        lambda: Mixture([uniform(1), InBatch(COUNTS)]),
        plus(times(UNIFORM, 1), times(Q, 2)),
        users=USERS,
        given_q=(UNIFORM,),
        is_pure=False,
        exact=(2,),
        negatives=(2,),
        drift=5e-3,
    ),
}

Outcome = namedtuple("Outcome", "probability positive candidates compared")


def leaves(sampler):
    """The samplers inside that draw, in order."""
    inner = [leaf for part in sampler.parts.values() for leaf in leaves(part)]
    return inner if sampler.parts else [sampler] * hasattr(sampler, "_sample_ids")


@functools.cache
def outcomes(name):
    """Every positive of row 0 with all samples: their probability, record, and compared items."""
    return list(enumerate_outcomes(CASES[name]))


def enumerate_outcomes(case):
    sampler = case.sampler()
    is_own = [user == case.users[0] for user in case.users]
    free = [r for r in range(1, len(is_own)) if not is_own[r] or case.own_is_sampled]
    memory_free = [r for r, user in enumerate(case.memory_users) if user != case.users[0]]
    sources = [Q] * (len(free) + len(memory_free)) + list(case.given_q)
    supports = [[d for d in range(V) if q[d] > 0] for q in sources]
    users = None if case.hides_users else torch.tensor(case.users)
    for items in itertools.product(*supports):
        probability = math.prod(q[d] for q, d in zip(sources, items, strict=True))
        batch_items, rest = items[: len(free)], items[len(free) :]
        memory_items, drawn = rest[: len(memory_free)], rest[len(memory_free) :]
        if case.memory_users:
            stored = filled(len(case.memory_users), memory_free, memory_items, OWN)
            sampler.observe(torch.tensor(stored), torch.tensor(case.memory_users))
        give(sampler, drawn)
        compared = compared_items(sampler, case, batch_items, memory_items, drawn, free)
        for positive in range(V):
            ids = torch.tensor(filled(len(is_own), [0, *free], [positive, *batch_items], OWN))
            batch = sampler.sample(ids, users)
            if case.negatives:
                negatives = torch.tensor(case.negatives).expand(len(is_own), -1)
                batch = with_negatives(batch, negatives, sampler, ids, users)
            yield Outcome(probability, positive, batch.of_rows(slice(0, 1)), compared)


def filled(length, positions, items, other):
    row = [other] * length
    for position, item in zip(positions, items, strict=True):
        row[position] = item
    return row


def give(sampler, drawn):
    """Let the samplers inside return given samples."""
    drawn = list(drawn)
    for leaf in leaves(sampler):
        ids = torch.tensor(drawn[: leaf.num_candidates])
        del drawn[: leaf.num_candidates]
        leaf._sample_ids = lambda *_, ids=ids: ids


def compared_items(sampler, case, batch_items, memory_items, drawn, free):
    """The items that row 0 is compared with, hits of its positive included, as (source, item)."""
    drawn = list(drawn)

    def of(part):
        if part.parts:
            return [item for inner in part.parts.values() for item in of(inner)]
        if hasattr(part, "_sample_ids"):
            items = drawn[: part.num_candidates]
            del drawn[: part.num_candidates]
        else:
            is_excluded = part.exclude_same_user
            of_rows = [
                item
                for row, item in zip(free, batch_items, strict=True)
                if not (is_excluded and case.users[row] == case.users[0])
            ]
            items = of_rows + (list(memory_items) if hasattr(part, "size") else [])
        return sorted(set(items)) if getattr(part, "distinct", False) else items

    return of(sampler)


def softmax(outcome, **settings):
    scores = S[None].clone().requires_grad_()
    positive = torch.tensor([outcome.positive])
    return scores, sampled_softmax(scores, EYE, positive, outcome.candidates, **settings)


def is_rest(case, item, positive):
    return item != positive and item not in case.exact


@pytest.mark.parametrize("name", CASES)
def test_expected_counts_are_those_among_the_compared_candidates(name):
    """The counts written out here are those of the enumeration: the oracle of this module."""
    case = CASES[name]
    seen = [0.0] * V
    for outcome in outcomes(name):
        for item in outcome.compared:
            seen[item] += outcome.probability / V
    for item in range(V):
        if item not in case.exact:
            assert seen[item] == pytest.approx(case.count[item], abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_estimate_of_z_of_refined_is_exact_on_average(name):
    """A renormalized row without valid samples has no estimate: its probability is left out."""
    case = CASES[name]
    mean, with_samples = [0.0] * V, [0.0] * V
    for outcome in outcomes(name):
        _, out = softmax(outcome, correction="refined")
        mean[outcome.positive] += outcome.probability * out.log_z.exp().item()
        if any(is_rest(case, item, outcome.positive) for item in outcome.compared):
            with_samples[outcome.positive] += outcome.probability
    for positive in range(V):
        rest = sum(math.exp(SCORES[d]) for d in range(V) if is_rest(case, d, positive))
        exact = sum(math.exp(SCORES[d]) for d in case.exact if d != positive)
        if case.is_pure and not case.is_set:
            rest *= with_samples[positive]
        assert mean[positive] == pytest.approx(exact + rest, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_mean_gradient_of_logq_is_zero_at_the_distribution_of_the_model(name):
    """Positives from the model: 0 for samples with replacement, small for mixtures and sets."""
    case = CASES[name]
    mean = torch.zeros(V)
    for outcome in outcomes(name):
        scores, out = softmax(outcome, correction="logq")
        weight = outcome.probability * P[outcome.positive]
        mean += weight * torch.autograd.grad(out.loss.sum(), scores)[0][0]
    drift = float((mean.square() / P).sum() / 2)
    assert drift < (case.drift or 1e-24)


@pytest.mark.parametrize("distinct", [False, True])
def test_mean_gradient_of_logq_is_zero_where_only_exact_candidates_are_left(distinct):
    """Without another user's row a positive that is not exact can never be sampled."""
    sampler = ExactPopular(COUNTS, num_exact=2, rest=InBatch(COUNTS, distinct=distinct))
    mean = torch.zeros(V)
    for positive in range(V):
        ids, users = torch.tensor([positive, OWN]), torch.tensor([7, 7])
        record = sampler.sample(ids, users).of_rows(slice(0, 1))
        scores, out = softmax(Outcome(1.0, positive, record, None), correction="logq")
        mean += P[positive] * torch.autograd.grad(out.loss.sum(), scores)[0][0]
        assert (out.loss.item() > 0) == (positive in (0, 2))
    assert float((mean.square() / P).sum() / 2) < 1e-24


@pytest.mark.parametrize("in_tiles", [False, True], ids=["dense", "tiles"])
@pytest.mark.parametrize("name", CASES)
def test_value_equals_the_formula(name, in_tiles, monkeypatch):
    """Every correction with masked hits, from the sampled items and plain Python."""
    if in_tiles:
        monkeypatch.setattr(sampled, "DENSE_SCORES", -1)
    case = CASES[name]
    corrections = corrections_for(has_exact=bool(case.exact), is_set=case.is_set)
    for number, outcome in enumerate(outcomes(name)):
        if number % 7:
            continue
        for correction in corrections:
            _, out = softmax(outcome, correction=correction, accidental_hits="mask")
            assert out.loss.item() == pytest.approx(
                by_formula(case, outcome, correction), abs=1e-12
            )


def by_formula(case, outcome, correction):
    p = outcome.positive
    terms = [d for d in outcome.compared if is_rest(case, d, p)]
    count, own = list(case.count), case.count[p]
    if correction == "refined":
        own = 1.0
        if case.is_pure and not case.is_set:
            q = [share / sum(count) for share in count]
            share = sum(q[d] for d in {p, *case.exact})
            count = [len(terms) * q[d] / (1 - share) for d in range(V)]
    elif correction == "none":
        own, count = 1.0, [1.0] * V
    elif correction == "published_code":
        own = 1.0
        count = case.q or [share / sum(case.count) for share in case.count]
    elif p in case.exact:
        own = 1.0
    z = sum(math.exp(SCORES[d]) / count[d] for d in terms)
    z += sum(math.exp(SCORES[d]) for d in case.exact if d != p)
    positive = math.exp(SCORES[p]) / own
    return -math.log(positive / (positive + z))
