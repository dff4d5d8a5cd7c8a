"""Exact candidates near the queries: the choice of items, and an unbiased Z'."""

import itertools
import math
from collections import namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.candidates import Candidates, ExactCandidates
from candid.errors import ArtifactError, ConfigError
from candid.index import INDEXES, SearchResult
from candid.losses import full_softmax, sampled_softmax
from candid.samplers import (
    ExactNearest,
    InBatch,
    Mixture,
    Popularity,
    Quadratic,
    Sampler,
    Uniform,
    sample_groups,
)
from candid.samplers.exact_nearest import highest_variance

Rows = namedtuple("Rows", "positive_ids user_ids query", defaults=(None,))

V, D = 9, 3


def batch_of(query, positive_ids=None):
    ids = torch.arange(len(query)) if positive_ids is None else positive_ids
    return Rows(ids, torch.arange(len(query)), query)


def axes(*of_rows):
    """Queries along axes: with item vectors ``torch.diag``, a row's scores are its own."""
    return torch.tensor(of_rows, dtype=torch.float32)


class TestExactCandidates:
    def test_are_the_union_of_the_nearest_items_of_all_rows(self):
        sampler = ExactNearest(5, num_exact=5, rest=Uniform(5, num_candidates=4), k=2)
        sampler.refresh(torch.eye(5))
        sampled = sampler.sample(*batch_of(axes([5, 4, 0, 0, 0], [0, 4, 5, 0, 0])))
        assert sampled.exact.ids.tolist() == [0, 1, 2]
        assert set(sampled.ids.tolist()) <= {3, 4}
        assert sampled.log_expected_count.exp().tolist() == pytest.approx([2.0] * 4)
        assert sampled.num_samples == 4

    def test_have_the_highest_variance_of_the_items_found(self):
        # Shares 1/2, 1/4, 1/4 in the first row and 3/4, 1/4 in the second; -1 is padding.
        nearest = SearchResult(
            torch.tensor([[7, 2, 4], [4, 5, -1], [-1, -1, -1]]),
            torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0], [0, 0, 0]]).log(),
        )
        # 4: 1/16 + 9/16, 7: 1/4, 2 and 5: 1/16, where the lower id wins.
        for num_items, highest in enumerate([[4], [4, 7], [2, 4, 7], [2, 4, 5, 7]], start=1):
            assert highest_variance(nearest, num_items).tolist() == highest
        assert highest_variance(nearest, 9).tolist() == [2, 4, 5, 7]

    def test_ranks_items_by_the_sum_of_squared_probabilities(self):
        # Item 1: P = 1/2 in one row, Σ P² = 1/4. Item 2: P = 3/10 in two rows, Σ P = 6/10 but
        # Σ P² = 18/100 only.
        nearest = SearchResult(
            torch.tensor([[1, 2, 3], [2, 4, 5]]),
            torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.35, 0.35]]).log(),
        )
        assert highest_variance(nearest, 1).tolist() == [1]
        assert highest_variance(nearest, 2).tolist() == [1, 2]

    def test_belong_to_each_row_when_not_shared(self):
        rest = Popularity(torch.arange(5, 0, -1), num_candidates=6)
        sampler = ExactNearest(5, num_exact=1, rest=rest, k=2, shared=False, num_queries=1)
        sampler.refresh(torch.eye(5))
        batch = batch_of(axes([5, 4, 0, 0, 0], [0, 0, 3, 0, 4]))
        sampled = sampler.sample(*batch, torch.Generator().manual_seed(1))
        assert sampled.exact.ids.tolist() == [[0, 1], [4, 2]]
        assert torch.equal(
            sampled.exact.log_expected_count, rest.log_expected_count_of(sampled.exact.ids, *batch)
        )
        assert torch.equal(sampled.ids, rest.sample(*batch, torch.Generator().manual_seed(1)).ids)

    def test_are_chosen_by_evenly_spaced_rows(self):
        sampler = ExactNearest(
            8, num_exact=8, rest=Uniform(8, num_candidates=4), k=1, num_queries=4
        )
        sampler.refresh(torch.eye(8))
        assert sampler.sample(*batch_of(torch.eye(8))).exact.ids.tolist() == [0, 2, 4, 6]
        assert sampler.sample(*batch_of(torch.eye(8)[:3])).exact.ids.tolist() == [0, 1, 2]

    def test_are_searched_once_for_all_samples_of_a_batch(self, monkeypatch):
        sampler, searches = ExactNearest(5, num_exact=2, rest=Uniform(5, num_candidates=4), k=1), []
        sampler.refresh(torch.eye(5))
        index = sampler.item_vectors.structure
        search = index.search
        monkeypatch.setattr(index, "search", lambda *a: searches.append(0) or search(*a))
        batch = batch_of(torch.eye(5)[1:3])
        sampled = sample_groups(sampler, 2, *batch, torch.Generator())
        assert sampled.ids.shape == (2, 4)
        assert sampled.exact.ids.tolist() == [1, 2]
        sampler.log_expected_count_of(torch.arange(5), *batch)
        assert len(searches) == 1
        sampler.sample(*batch_of(torch.eye(5)[:1]))
        assert len(searches) == 2
        sampler.refresh(torch.eye(5).flip(0))
        assert sampler.sample(*batch).exact.ids.tolist() == [2, 3]

    def test_have_counts_of_each_row_if_the_rest_samples_per_row(self):
        class EachRow(Sampler):
            """Row r samples item r alone."""

            def sample(self, positive_ids, user_ids=None, query=None, generator=None):
                ids = torch.arange(len(query))[:, None].expand(-1, 2)
                return Candidates(
                    ids,
                    self.log_expected_count_of(ids, positive_ids, query=query),
                    self.log_expected_count_of(positive_ids, positive_ids, query=query),
                    2,
                )

            def log_expected_count_of(self, ids, positive_ids, user_ids=None, query=None):
                of_row = torch.arange(len(query)).view(-1, *[1] * (ids.ndim - 1))
                return torch.where(ids == of_row, math.log(2), -math.inf)

        sampler = ExactNearest(4, num_exact=2, rest=EachRow(4), k=1)
        sampler.refresh(torch.eye(4))
        sampled = sampler.sample(*batch_of(torch.eye(4)[[1, 3]], torch.tensor([3, 2])))
        assert sampled.exact.ids.tolist() == [1, 3]
        assert sampled.exact.log_expected_count.exp().tolist() == [[0, 0], [2, 0]]
        out = sampled_softmax(
            torch.eye(4)[[1, 3]], torch.eye(4), torch.tensor([3, 2]), sampled, correction="refined"
        )
        # Row 0: exact item 1, and item 0, which is certain; row 1: exact items only.
        assert out.log_z.exp().tolist() == pytest.approx([math.e + 1, 1 + math.e])


def mean_z(sampler, batch, row, scores, q):
    """Return E[Z'] of a row over all samples beside its exact candidates, by enumeration.

    Args:
        q: [V], probability of a sample without exact candidates.
    """
    sampled = sampler.sample(*batch)
    n, positive = sampled.num_samples, batch.positive_ids[row]
    exact_ids, log_expected_count = sampled.exact.ids, sampled.exact.log_expected_count
    if sampler.shared:
        excluding = q.index_fill(0, exact_ids, 0.0)
        q = excluding / excluding.sum() if bool(excluding.any()) else q
    else:
        exact_ids, log_expected_count = exact_ids[row], log_expected_count[row]
    samples = torch.tensor(list(itertools.product(range(V), repeat=n)))
    chance = q[samples].prod(dim=1)
    # A sample with exact candidates and the positive only has no estimate of the rest.
    is_known = (torch.isin(samples, exact_ids) | (samples == positive)).all(dim=1)
    has_estimate = ~is_known & (chance > 0)
    samples, chance = samples[has_estimate], chance[has_estimate]
    candidates = Candidates(
        ids=samples,
        log_expected_count=sampler.log_expected_count_of(torch.arange(V), *batch)[samples],
        log_expected_count_positive=sampled.log_expected_count_positive[row].expand(len(samples)),
        num_samples=n,
        exact=ExactCandidates(exact_ids, log_expected_count),
    )
    out = sampled_softmax(
        scores[row].expand(len(samples), -1),
        torch.eye(V, dtype=torch.float64),
        positive.expand(len(samples)),
        candidates,
        correction="refined",
    )
    return float(out.log_z.exp() @ chance / chance.sum()), len(samples) > 0


@pytest.mark.parametrize("shared", [True, False])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 30), min_size=V, max_size=V),
    positives=st.lists(st.integers(0, V - 1), min_size=3, max_size=3),
    num_exact=st.integers(1, 6),
    k=st.integers(1, 4),
    uniform=st.booleans(),
    staleness=st.sampled_from([0.0, 1.0, 100.0]),
    loves_positive=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_expected_z_is_exact_with_stale_exact_candidates(
    shared, counts, positives, num_exact, k, uniform, staleness, loves_positive, seed
):
    """Also if an exact candidate is the positive, which the query may point at."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randn(V, D, generator=generator)
    query = torch.randn(3, D, generator=generator)
    positive_ids = torch.tensor(positives)
    if loves_positive:
        query = 3 * items[positive_ids]
    scores = (query @ items.T).double()
    counts = torch.tensor(counts)
    q = torch.full((V,), 1 / V).double() if uniform else counts.double() / counts.sum()
    rest = Uniform(V, num_candidates=3) if uniform else Popularity(counts, num_candidates=3)
    sampler = ExactNearest(V, num_exact=num_exact, rest=rest, k=k, shared=shared)
    sampler.refresh(items + staleness * torch.randn(V, D, generator=generator))
    batch = batch_of(query, positive_ids)
    for row in range(3):
        z, has_estimate = mean_z(sampler, batch, row, scores, q)
        exact = float(scores[row].exp().sum() - scores[row, positives[row]].exp())
        assert not has_estimate or z == pytest.approx(exact, rel=1e-5)


def test_positive_among_exact_candidates_counts_once():
    """With every item exact, loss and gradient are those of the full softmax."""
    query = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    items = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    for shared in (True, False):
        sampler = ExactNearest(
            V, num_exact=V, rest=Uniform(V, num_candidates=4), k=V, shared=shared
        )
        sampler.refresh(items)
        batch = batch_of(query.detach().float(), torch.tensor([0, 5, 5]))
        sampled = sampler.sample(*batch)
        sampled = sampled_softmax(query, items, batch.positive_ids, sampled, correction="refined")
        exact = full_softmax(query, items, batch.positive_ids)
        torch.testing.assert_close(sampled.loss, exact.loss)
        for one, other in zip(
            torch.autograd.grad(sampled.loss.sum(), (query, items)),
            torch.autograd.grad(exact.loss.sum(), (query, items)),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


class TestStateDict:
    def test_has_the_vectors_of_the_last_refresh(self):
        sampler = ExactNearest(5, num_exact=2, rest=Uniform(5, num_candidates=4), k=1)
        assert sampler.state_dict() == {}
        sampler.refresh(torch.eye(5))
        other = ExactNearest(5, num_exact=2, rest=Uniform(5, num_candidates=4), k=1)
        other.load_state_dict(sampler.state_dict())
        batch = batch_of(torch.eye(5)[1:3])
        assert other.sample(*batch).exact.ids.tolist() == [1, 2]

    def test_has_that_of_the_rest(self):
        def built(rest):
            return ExactNearest(5, num_exact=2, rest=Mixture([rest]), k=1, refresh_every=9)

        assert built(Uniform(5, num_candidates=4)).refresh_every == 9
        sampler = built(Quadratic(5, num_candidates=4, refresh_every=7))
        assert sampler.refresh_every == 7
        sampler.refresh(torch.eye(5))
        assert sampler.state_dict().keys() == {
            "item_vectors.vectors",
            "rest.components.0.item_vectors.vectors",
        }


class TestRefuses:
    @pytest.mark.parametrize("key", ["k", "num_exact"])
    @pytest.mark.parametrize("value", [0, 11])
    def test_sizes_larger_than_the_catalog(self, counts, key, value):
        settings = {"num_exact": 4, "k": 2, key: value}
        with pytest.raises(ConfigError, match=f"{key} must be between 1 and the 10 .*got {value}"):
            ExactNearest(10, rest=Popularity(counts, num_candidates=4), **settings)

    def test_intervals_and_rows_below_one(self):
        for wrong in ({"refresh_every": 0}, {"num_queries": 0}):
            with pytest.raises(ConfigError, match="must be at least 1"):
                ExactNearest(5, num_exact=2, rest=Uniform(5, num_candidates=4), k=2, **wrong)

    def test_sample_before_the_first_refresh(self, rows):
        sampler = ExactNearest(10, num_exact=2, rest=Uniform(10, num_candidates=4), k=2)
        with pytest.raises(ConfigError, match=r"call refresh\(item_vectors\) before"):
            sampler.sample(*rows)

    def test_batch_without_queries(self, rows):
        sampler = ExactNearest(10, num_exact=2, rest=Uniform(10, num_candidates=4), k=2)
        sampler.refresh(torch.eye(10))
        with pytest.raises(ConfigError, match=r"pass query \[B, D\]"):
            sampler.sample(rows.positive_ids, rows.user_ids)

    def test_vectors_that_are_not_finite_or_of_another_catalog(self):
        sampler = ExactNearest(5, num_exact=2, rest=Uniform(5, num_candidates=4), k=2)
        with pytest.raises(ArtifactError, match="vector of item 3"):
            sampler.refresh(torch.eye(5).index_fill(0, torch.tensor([3]), math.nan))
        with pytest.raises(ConfigError, match=r"\[5, D\]"):
            sampler.refresh(torch.eye(4))

    def test_exact_candidates_that_nest(self):
        inner = ExactNearest(5, num_exact=2, rest=Uniform(5, num_candidates=4), k=2)
        with pytest.raises(ConfigError, match="cannot have exact candidates itself"):
            ExactNearest(5, num_exact=2, rest=inner, k=2)


@pytest.mark.parametrize("index", sorted(INDEXES))
def test_recipe_table_builds_both_parts_with_any_index(counts, rows, index):
    table = {"num_exact": 4, "k": 3, "index": index, "rest": {"type": "uniform"}}
    config = ExactNearest.Config.model_validate(table)
    assert config.model_dump()["index"]["type"] == index
    sampler = config.build(counts)
    sampler.refresh(torch.eye(10)[:, :4])
    sampled = sampler.sample(*rows)
    assert 3 <= len(sampled.exact.ids) <= 4
    assert sampled.num_samples == 256


def test_samples_that_are_all_exact_candidates_leave_the_exact_sum():
    """The rest cannot exclude items: it samples the positives of the batch, all of them near."""
    sampler = ExactNearest(5, num_exact=3, rest=InBatch(torch.ones(5)), k=1)
    sampler.refresh(torch.eye(5))
    batch = batch_of(torch.eye(5)[:3])
    out = sampled_softmax(
        batch.query, torch.eye(5), batch.positive_ids, sampler.sample(*batch), correction="refined"
    )
    assert out.log_z.exp().tolist() == pytest.approx([2.0] * 3)
