"""A head of what is near the queries: which items it holds, and that it never biases Z'."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.candidates import Candidates, ExactCandidates
from candid.errors import ArtifactError, ConfigError
from candid.index import INDEXES, SearchResult
from candid.losses import full_softmax, sampled_softmax
from candid.samplers import (
    EncodedBatch,
    ExactNearest,
    InBatch,
    Mixture,
    Popularity,
    Uniform,
    sample_groups,
)
from candid.samplers.exact_nearest import noisiest

V, D = 9, 3


def batch_of(query, positive_ids=None):
    ids = torch.arange(len(query)) if positive_ids is None else positive_ids
    return EncodedBatch(ids, torch.arange(len(query)), query)


def axes(*of_rows):
    """Queries along axes: with item vectors ``torch.diag``, a row's scores are its own."""
    return torch.tensor(of_rows, dtype=torch.float32)


class TestTheHead:
    def test_is_the_union_of_the_rows_nearest(self):
        sampler = ExactNearest(5, Uniform(5, 4), num_exact=5, k=2)
        sampler.refresh(torch.eye(5))
        sampled = sampler.sample(batch_of(axes([5, 4, 0, 0, 0], [0, 4, 5, 0, 0])))
        assert sampled.exact.ids.tolist() == [0, 1, 2]
        assert set(sampled.ids.tolist()) <= {3, 4}
        assert sampled.log_expected_count.exp().tolist() == pytest.approx([2.0] * 4)
        assert sampled.num_samples == 4

    def test_keeps_those_that_would_be_noisiest(self):
        # Shares of the first row 1/2, 1/4, 1/4; of the second 3/4, 1/4; the rest is not there.
        accidental_hits = SearchResult(
            torch.tensor([[7, 2, 4], [4, 5, -1], [-1, -1, -1]]),
            torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0], [0, 0, 0]]).log(),
        )
        # 4: 1/16 + 9/16, 7: 1/4, 2 and 5: 1/16, where the lower id is kept.
        for num_items, kept in enumerate([[4], [4, 7], [2, 4, 7], [2, 4, 5, 7]], start=1):
            assert noisiest(accidental_hits, num_items).tolist() == kept
        assert noisiest(accidental_hits, 9).tolist() == [2, 4, 5, 7]

    def test_may_be_each_row_s_own(self):
        rest = Popularity(torch.arange(5, 0, -1), 6)
        sampler = ExactNearest(5, rest, num_exact=1, k=2, shared=False, num_queries=1)
        sampler.refresh(torch.eye(5))
        batch = batch_of(axes([5, 4, 0, 0, 0], [0, 0, 3, 0, 4]))
        sampled = sampler.sample(batch, torch.Generator().manual_seed(1))
        assert sampled.exact.ids.tolist() == [[0, 1], [4, 2]]
        assert torch.equal(
            sampled.exact.log_expected_count, rest.log_expected_count_of(sampled.exact.ids, batch)
        )
        assert torch.equal(sampled.ids, rest.sample(batch, torch.Generator().manual_seed(1)).ids)

    def test_is_chosen_by_rows_spread_over_the_batch(self):
        sampler = ExactNearest(8, Uniform(8, 4), num_exact=8, k=1, num_queries=4)
        sampler.refresh(torch.eye(8))
        assert sampler.sample(batch_of(torch.eye(8))).exact.ids.tolist() == [0, 2, 4, 6]
        assert sampler.sample(batch_of(torch.eye(8)[:3])).exact.ids.tolist() == [0, 1, 2]

    def test_is_found_once_for_all_draws_of_a_batch(self, monkeypatch):
        sampler, searches = ExactNearest(5, Uniform(5, 4), num_exact=2, k=1), []
        sampler.refresh(torch.eye(5))
        index, search = sampler._index, sampler._index.search
        monkeypatch.setattr(index, "search", lambda *a: searches.append(0) or search(*a))
        batch = batch_of(torch.eye(5)[1:3])
        sampled = sample_groups(sampler, batch, 2, torch.Generator())
        assert sampled.ids.shape == (2, 4)
        assert sampled.exact.ids.tolist() == [1, 2]
        sampler.log_expected_count_of(torch.arange(5), batch)
        assert len(searches) == 1
        sampler.sample(batch_of(torch.eye(5)[:1]))
        assert len(searches) == 2
        sampler.refresh(torch.eye(5).flip(0))
        assert sampler.sample(batch).exact.ids.tolist() == [2, 3]

    def test_covers_a_tail_that_draws_for_each_row(self):
        class EachRow:
            """Row r draws item r alone."""

            def sample(self, batch, generator=None):
                ids = torch.arange(len(batch.query))[:, None].expand(-1, 2)
                return Candidates(
                    ids,
                    self.log_expected_count_of(ids, batch),
                    self.log_expected_count_of(batch.positive_ids, batch),
                    2,
                )

            def log_expected_count_of(self, ids, batch):
                of_row = torch.arange(len(batch.query)).view(-1, *[1] * (ids.ndim - 1))
                return torch.where(ids == of_row, math.log(2), -math.inf)

        sampler = ExactNearest(4, EachRow(), num_exact=2, k=1)
        sampler.refresh(torch.eye(4))
        sampled = sampler.sample(batch_of(torch.eye(4)[[1, 3]], torch.tensor([3, 2])))
        assert sampled.exact.ids.tolist() == [1, 3]
        assert sampled.exact.log_expected_count.exp().tolist() == [[0, 0], [2, 0]]
        out = sampled_softmax(torch.eye(4)[[1, 3]], torch.eye(4), torch.tensor([3, 2]), sampled)
        # Row 0: item 1 of the head and item 0 drawn for sure; row 1: the head alone.
        assert out.log_z.exp().tolist() == pytest.approx([math.e + 1, 1 + math.e])


def mean_z(sampler, batch, row, scores, q):
    """E[Z'] of a row over all draws that can be made beside its head, by enumeration.

    Args:
        q: [V], probability of a draw where it is not restricted to what is outside the head.
    """
    sampled = sampler.sample(batch)
    n, positive = sampled.num_samples, batch.positive_ids[row]
    exact_ids, log_expected_count = sampled.exact.ids, sampled.exact.log_expected_count
    if sampler.shared:
        excluding = q.index_fill(0, exact_ids, 0.0)
        q = excluding / excluding.sum() if bool(excluding.any()) else q
    else:
        exact_ids, log_expected_count = exact_ids[row], log_expected_count[row]
    draws = torch.tensor(list(itertools.product(range(V), repeat=n)))
    chance = q[draws].prod(dim=1)
    # Where no draw is outside the head and none but the positive, nothing is said of the rest.
    tells = ~(torch.isin(draws, exact_ids) | (draws == positive)).all(dim=1) & (chance > 0)
    draws, chance = draws[tells], chance[tells]
    candidates = Candidates(
        ids=draws,
        log_expected_count=sampler.log_expected_count_of(torch.arange(V), batch)[draws],
        log_expected_count_positive=sampled.log_expected_count_positive[row].expand(len(draws)),
        num_samples=n,
        exact=ExactCandidates(exact_ids, log_expected_count),
    )
    out = sampled_softmax(
        scores[row].expand(len(draws), -1),
        torch.eye(V, dtype=torch.float64),
        positive.expand(len(draws)),
        candidates,
    )
    return float(out.log_z.exp() @ chance / chance.sum()), len(draws) > 0


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
def test_expected_z_is_exact_however_stale_the_head_is(
    shared, counts, positives, num_exact, k, uniform, staleness, loves_positive, seed
):
    """Also where the head holds the positive, since the query points right at it."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randn(V, D, generator=generator)
    query = torch.randn(3, D, generator=generator)
    positive_ids = torch.tensor(positives)
    if loves_positive:
        query = 3 * items[positive_ids]
    scores = (query @ items.T).double()
    counts = torch.tensor(counts)
    q = torch.full((V,), 1 / V).double() if uniform else counts.double() / counts.sum()
    rest = Uniform(V, 3) if uniform else Popularity(counts, 3)
    sampler = ExactNearest(V, rest, num_exact, k, shared)
    sampler.refresh(items + staleness * torch.randn(V, D, generator=generator))
    batch = batch_of(query, positive_ids)
    for row in range(3):
        z, tells = mean_z(sampler, batch, row, scores, q)
        exact = float(scores[row].exp().sum() - scores[row, positives[row]].exp())
        assert not tells or z == pytest.approx(exact, rel=1e-5)


def test_the_positive_in_the_head_counts_once():
    """The head is the catalog and the loss that of the full softmax, gradient and all."""
    query = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    items = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    for shared in (True, False):
        sampler = ExactNearest(V, Uniform(V, 4), num_exact=V, k=V, shared=shared)
        sampler.refresh(items)
        batch = batch_of(query.detach().float(), torch.tensor([0, 5, 5]))
        sampled = sampler.sample(batch)
        sampled = sampled_softmax(query, items, batch.positive_ids, sampled)
        exact = full_softmax(query, items, batch.positive_ids)
        torch.testing.assert_close(sampled.loss, exact.loss)
        for one, other in zip(
            torch.autograd.grad(sampled.loss.sum(), (query, items)),
            torch.autograd.grad(exact.loss.sum(), (query, items)),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


class TestItsState:
    def test_is_the_vectors_of_the_last_refresh(self):
        sampler = ExactNearest(5, Uniform(5, 4), num_exact=2, k=1)
        assert sampler.state() == {}
        sampler.refresh(torch.eye(5))
        other = ExactNearest(5, Uniform(5, 4), num_exact=2, k=1)
        other.restore(sampler.state())
        batch = batch_of(torch.eye(5)[1:3])
        assert other.sample(batch).exact.ids.tolist() == [1, 2]
        other.restore({})  # of a run that was cut before its first step
        assert other.sample(batch).exact.ids.tolist() == [1, 2]

    def test_holds_what_its_tail_needs(self):
        inner = ExactNearest(5, Uniform(5, 4), num_exact=2, k=1, refresh_every=7)
        sampler = ExactNearest(5, Mixture([Uniform(5, 4)]), num_exact=2, k=1, refresh_every=9)
        assert sampler.refresh_every == 9
        sampler.parts = {"rest": inner}
        assert sampler.refresh_every == 7
        sampler.refresh(torch.eye(5))
        assert sampler.state().keys() == {"item_vectors", "tail/item_vectors"}


class TestItRefuses:
    @pytest.mark.parametrize("key", ["k", "num_exact"])
    @pytest.mark.parametrize("value", [0, 11])
    def test_more_than_the_catalog(self, counts, key, value):
        settings = {"num_exact": 4, "k": 2, key: value}
        with pytest.raises(ConfigError, match=f"{key} must be between 1 and the 10 .*got {value}"):
            ExactNearest(10, Popularity(counts, 4), **settings)

    def test_intervals_and_rows_below_one(self):
        for wrong in ({"refresh_every": 0}, {"num_queries": 0}):
            with pytest.raises(ConfigError, match="must be at least 1"):
                ExactNearest(5, Uniform(5, 4), 2, 2, **wrong)

    def test_a_draw_before_the_first_refresh(self, rows):
        sampler = ExactNearest(10, Uniform(10, 4), 2, 2)
        with pytest.raises(ConfigError, match=r"call refresh\(item_vectors\) before"):
            sampler.sample(rows)

    def test_a_batch_without_queries(self, rows):
        sampler = ExactNearest(10, Uniform(10, 4), 2, 2)
        sampler.refresh(torch.eye(10))
        rows.query = None
        with pytest.raises(ConfigError, match="EncodedBatch"):
            sampler.sample(rows)

    def test_vectors_that_are_no_numbers_or_of_another_catalog(self):
        sampler = ExactNearest(5, Uniform(5, 4), 2, 2)
        with pytest.raises(ArtifactError, match="vector of item 3"):
            sampler.refresh(torch.eye(5).index_fill(0, torch.tensor([3]), math.nan))
        with pytest.raises(ConfigError, match=r"\[5, D\]"):
            sampler.refresh(torch.eye(4))

    def test_heads_that_nest(self):
        inner = ExactNearest(5, Uniform(5, 4), 2, 2)
        with pytest.raises(ConfigError, match="cannot have a head of its own"):
            ExactNearest(5, inner, 2, 2)


@pytest.mark.parametrize("index", sorted(INDEXES))
def test_a_recipe_s_table_becomes_a_nearest_head(counts, rows, index):
    table = {"num_exact": 4, "k": 3, "index": index, "rest": {"type": "uniform"}}
    config = ExactNearest.Config.model_validate(table)
    assert config.model_dump()["index"]["type"] == index
    sampler = config.build(counts)
    sampler.refresh(torch.eye(10)[:, :4])
    sampled = sampler.sample(rows)
    assert 3 <= len(sampled.exact.ids) <= 4
    assert sampled.num_samples == 256


def test_where_all_draws_fall_into_the_head_the_tail_is_missed_and_nothing_breaks():
    """A tail that cannot avoid the head: here the batch's own positives, all of them near."""
    sampler = ExactNearest(5, InBatch(torch.ones(5)), num_exact=3, k=1)
    sampler.refresh(torch.eye(5))
    batch = batch_of(torch.eye(5)[:3])
    out = sampled_softmax(batch.query, torch.eye(5), batch.positive_ids, sampler.sample(batch))
    assert out.log_z.exp().tolist() == pytest.approx([2.0] * 3)
