"""A head of what is near the queries: which items it holds, and that it never biases Z'."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candid.errors import ArtifactError, ConfigError
from candid.index import INDEXES, Hits
from candid.losses import full_softmax, sampled_softmax
from candid.proposals import (
    Candidates,
    EncodedBatch,
    Head,
    InBatch,
    Mixture,
    NearestHead,
    Popularity,
    Uniform,
    several_draws,
)
from candid.proposals.nearest_head import noisiest

V, D = 9, 3


def batch_of(query, positive_ids=None):
    ids = torch.arange(len(query)) if positive_ids is None else positive_ids
    return EncodedBatch(ids, torch.arange(len(query)), query)


def axes(*of_rows):
    """Queries along axes: with item vectors ``torch.diag``, a row's scores are its own."""
    return torch.tensor(of_rows, dtype=torch.float32)


class TestTheHead:
    def test_is_the_union_of_the_rows_nearest(self):
        proposal = NearestHead(5, Uniform(5, 4), num_head=5, k=2)
        proposal.refresh(torch.eye(5))
        drawn = proposal.draw(batch_of(axes([5, 4, 0, 0, 0], [0, 4, 5, 0, 0])))
        assert drawn.head.ids.tolist() == [0, 1, 2]
        assert set(drawn.ids.tolist()) <= {3, 4}
        assert drawn.log_count.exp().tolist() == pytest.approx([2.0] * 4)
        assert drawn.num_draws == 4

    def test_keeps_those_that_would_be_noisiest(self):
        # Shares of the first row 1/2, 1/4, 1/4; of the second 3/4, 1/4; the rest is not there.
        hits = Hits(
            torch.tensor([[7, 2, 4], [4, 5, -1], [-1, -1, -1]]),
            torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0], [0, 0, 0]]).log(),
        )
        # 4: 1/16 + 9/16, 7: 1/4, 2 and 5: 1/16, where the lower id is kept.
        for num_items, kept in enumerate([[4], [4, 7], [2, 4, 7], [2, 4, 5, 7]], start=1):
            assert noisiest(hits, num_items).tolist() == kept
        assert noisiest(hits, 9).tolist() == [2, 4, 5, 7]

    def test_may_be_each_row_s_own(self):
        tail = Popularity(torch.arange(5, 0, -1), 6)
        proposal = NearestHead(5, tail, num_head=1, k=2, shared=False, num_queries=1)
        proposal.refresh(torch.eye(5))
        batch = batch_of(axes([5, 4, 0, 0, 0], [0, 0, 3, 0, 4]))
        drawn = proposal.draw(batch, torch.Generator().manual_seed(1))
        assert drawn.head.ids.tolist() == [[0, 1], [4, 2]]
        assert torch.equal(drawn.head.log_count, tail.log_count_of(drawn.head.ids, batch))
        assert torch.equal(drawn.ids, tail.draw(batch, torch.Generator().manual_seed(1)).ids)

    def test_is_chosen_by_rows_spread_over_the_batch(self):
        proposal = NearestHead(8, Uniform(8, 4), num_head=8, k=1, num_queries=4)
        proposal.refresh(torch.eye(8))
        assert proposal.draw(batch_of(torch.eye(8))).head.ids.tolist() == [0, 2, 4, 6]
        assert proposal.draw(batch_of(torch.eye(8)[:3])).head.ids.tolist() == [0, 1, 2]

    def test_is_found_once_for_all_draws_of_a_batch(self, monkeypatch):
        proposal, searches = NearestHead(5, Uniform(5, 4), num_head=2, k=1), []
        proposal.refresh(torch.eye(5))
        index, search = proposal._index, proposal._index.search
        monkeypatch.setattr(index, "search", lambda *a: searches.append(0) or search(*a))
        batch = batch_of(torch.eye(5)[1:3])
        drawn = several_draws(proposal, batch, 2, torch.Generator())
        assert drawn.ids.shape == (2, 4)
        assert drawn.head.ids.tolist() == [1, 2]
        proposal.log_count_of(torch.arange(5), batch)
        assert len(searches) == 1
        proposal.draw(batch_of(torch.eye(5)[:1]))
        assert len(searches) == 2
        proposal.refresh(torch.eye(5).flip(0))
        assert proposal.draw(batch).head.ids.tolist() == [2, 3]

    def test_covers_a_tail_that_draws_for_each_row(self):
        class EachRow:
            """Row r draws item r alone."""

            def draw(self, batch, generator=None):
                ids = torch.arange(len(batch.query))[:, None].expand(-1, 2)
                return Candidates(
                    ids,
                    self.log_count_of(ids, batch),
                    self.log_count_of(batch.positive_ids, batch),
                    2,
                )

            def log_count_of(self, ids, batch):
                of_row = torch.arange(len(batch.query)).view(-1, *[1] * (ids.ndim - 1))
                return torch.where(ids == of_row, math.log(2), -math.inf)

        proposal = NearestHead(4, EachRow(), num_head=2, k=1)
        proposal.refresh(torch.eye(4))
        drawn = proposal.draw(batch_of(torch.eye(4)[[1, 3]], torch.tensor([3, 2])))
        assert drawn.head.ids.tolist() == [1, 3]
        assert drawn.head.log_count.exp().tolist() == [[0, 0], [2, 0]]
        out = sampled_softmax(torch.eye(4)[[1, 3]], torch.eye(4), torch.tensor([3, 2]), drawn)
        # Row 0: item 1 of the head and item 0 drawn for sure; row 1: the head alone.
        assert out.log_z.exp().tolist() == pytest.approx([math.e + 1, 1 + math.e])


def mean_z(proposal, batch, row, scores, q):
    """E[Z'] of a row over all draws that can be made beside its head, by enumeration.

    Args:
        q: [V], probability of a draw where it is not restricted to what is outside the head.
    """
    drawn = proposal.draw(batch)
    n, positive = drawn.num_draws, batch.positive_ids[row]
    head_ids, log_count = drawn.head.ids, drawn.head.log_count
    if proposal.shared:
        outside = q.index_fill(0, head_ids, 0.0)
        q = outside / outside.sum() if bool(outside.any()) else q
    else:
        head_ids, log_count = head_ids[row], log_count[row]
    draws = torch.tensor(list(itertools.product(range(V), repeat=n)))
    chance = q[draws].prod(dim=1)
    # Where no draw is outside the head and none but the positive, nothing is said of the rest.
    tells = ~(torch.isin(draws, head_ids) | (draws == positive)).all(dim=1) & (chance > 0)
    draws, chance = draws[tells], chance[tells]
    candidates = Candidates(
        ids=draws,
        log_count=proposal.log_count_of(torch.arange(V), batch)[draws],
        log_count_positive=drawn.log_count_positive[row].expand(len(draws)),
        num_draws=n,
        head=Head(head_ids, log_count),
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
    num_head=st.integers(1, 6),
    k=st.integers(1, 4),
    uniform=st.booleans(),
    staleness=st.sampled_from([0.0, 1.0, 100.0]),
    loves_positive=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_expected_z_is_exact_however_stale_the_head_is(
    shared, counts, positives, num_head, k, uniform, staleness, loves_positive, seed
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
    tail = Uniform(V, 3) if uniform else Popularity(counts, 3)
    proposal = NearestHead(V, tail, num_head, k, shared)
    proposal.refresh(items + staleness * torch.randn(V, D, generator=generator))
    batch = batch_of(query, positive_ids)
    for row in range(3):
        z, tells = mean_z(proposal, batch, row, scores, q)
        exact = float(scores[row].exp().sum() - scores[row, positives[row]].exp())
        assert not tells or z == pytest.approx(exact, rel=1e-5)


def test_the_positive_in_the_head_counts_once():
    """The head is the catalog and the loss that of the full softmax, gradient and all."""
    query = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    items = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    for shared in (True, False):
        proposal = NearestHead(V, Uniform(V, 4), num_head=V, k=V, shared=shared)
        proposal.refresh(items)
        batch = batch_of(query.detach().float(), torch.tensor([0, 5, 5]))
        drawn = proposal.draw(batch)
        sampled = sampled_softmax(query, items, batch.positive_ids, drawn)
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
        proposal = NearestHead(5, Uniform(5, 4), num_head=2, k=1)
        assert proposal.state() == {}
        proposal.refresh(torch.eye(5))
        other = NearestHead(5, Uniform(5, 4), num_head=2, k=1)
        other.restore(proposal.state())
        batch = batch_of(torch.eye(5)[1:3])
        assert other.draw(batch).head.ids.tolist() == [1, 2]
        other.restore({})  # of a run that was cut before its first step
        assert other.draw(batch).head.ids.tolist() == [1, 2]

    def test_holds_what_its_tail_needs(self):
        inner = NearestHead(5, Uniform(5, 4), num_head=2, k=1, refresh_every=7)
        proposal = NearestHead(5, Mixture([Uniform(5, 4)]), num_head=2, k=1, refresh_every=9)
        assert proposal.refresh_every == 9
        proposal.parts = {"tail": inner}
        assert proposal.refresh_every == 7
        proposal.refresh(torch.eye(5))
        assert proposal.state().keys() == {"item_vectors", "tail/item_vectors"}


class TestItRefuses:
    @pytest.mark.parametrize("key", ["k", "num_head"])
    @pytest.mark.parametrize("value", [0, 11])
    def test_more_than_the_catalog(self, counts, key, value):
        settings = {"num_head": 4, "k": 2, key: value}
        with pytest.raises(ConfigError, match=f"{key} must be between 1 and the 10 .*got {value}"):
            NearestHead(10, Popularity(counts, 4), **settings)

    def test_intervals_and_rows_below_one(self):
        for wrong in ({"refresh_every": 0}, {"num_queries": 0}):
            with pytest.raises(ConfigError, match="must be at least 1"):
                NearestHead(5, Uniform(5, 4), 2, 2, **wrong)

    def test_a_draw_before_the_first_refresh(self, rows):
        proposal = NearestHead(10, Uniform(10, 4), 2, 2)
        with pytest.raises(ConfigError, match=r"call refresh\(item_vectors\) before"):
            proposal.draw(rows)

    def test_a_batch_without_queries(self, rows):
        proposal = NearestHead(10, Uniform(10, 4), 2, 2)
        proposal.refresh(torch.eye(10))
        rows.query = None
        with pytest.raises(ConfigError, match="EncodedBatch"):
            proposal.draw(rows)

    def test_vectors_that_are_no_numbers_or_of_another_catalog(self):
        proposal = NearestHead(5, Uniform(5, 4), 2, 2)
        with pytest.raises(ArtifactError, match="vector of item 3"):
            proposal.refresh(torch.eye(5).index_fill(0, torch.tensor([3]), math.nan))
        with pytest.raises(ConfigError, match=r"\[5, D\]"):
            proposal.refresh(torch.eye(4))

    def test_heads_that_nest(self):
        inner = NearestHead(5, Uniform(5, 4), 2, 2)
        with pytest.raises(ConfigError, match="cannot have a head of its own"):
            NearestHead(5, inner, 2, 2)


@pytest.mark.parametrize("index", sorted(INDEXES))
def test_a_recipe_s_table_becomes_a_nearest_head(counts, rows, index):
    table = {"num_head": 4, "k": 3, "index": index, "tail": {"type": "uniform"}}
    config = NearestHead.Config.model_validate(table)
    assert config.model_dump()["index"]["type"] == index
    proposal = config.build(counts)
    proposal.refresh(torch.eye(10)[:, :4])
    drawn = proposal.draw(rows)
    assert 3 <= len(drawn.head.ids) <= 4
    assert drawn.num_draws == 256


def test_where_all_draws_fall_into_the_head_the_tail_is_missed_and_nothing_breaks():
    """A tail that cannot avoid the head: here the batch's own positives, all of them near."""
    proposal = NearestHead(5, InBatch(torch.ones(5)), num_head=3, k=1)
    proposal.refresh(torch.eye(5))
    batch = batch_of(torch.eye(5)[:3])
    out = sampled_softmax(batch.query, torch.eye(5), batch.positive_ids, proposal.draw(batch))
    assert out.log_z.exp().tolist() == pytest.approx([2.0] * 3)
