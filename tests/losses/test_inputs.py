"""Bad input of a loss is refused in one sentence."""

import pytest
import torch

from candid import (
    InBatchSoftmaxLoss,
    SampledSoftmaxLoss,
    full_softmax,
    in_batch_softmax,
    sampled_softmax,
)
from candid.candidates import Candidates
from candid.errors import ConfigError, DataError
from candid.losses import LOSSES
from candid.samplers import InBatch, Mixture, Uniform

V, B, D = 6, 4, 3
IDS = torch.arange(B)


def some_candidates(num_rows=B):
    generator = torch.Generator().manual_seed(0)
    return Uniform(V, num_candidates=5).sample(IDS[:num_rows], generator=generator)


def embed_two(ids):
    return torch.ones(2, D)


BAD_SHAPES = {
    "sequence that is not flattened": (
        (torch.ones(2, B, D), torch.ones(V, D), IDS, some_candidates()),
        r"query must be \[B, D\], got \[2, 4, 3\]: flatten a sequence",
    ),
    "fewer positives than rows": (
        (torch.ones(B, D), torch.ones(V, D), IDS[:3], some_candidates()),
        r"positive_ids must be 4 integers, one for each row of query, got \[3\]",
    ),
    "positives that are not integers": (
        (torch.ones(B, D), torch.ones(V, D), IDS.float(), some_candidates()),
        r"positive_ids must be 4 integers, .* of torch.float32",
    ),
    "candidates of another batch": (
        (torch.ones(B, D), torch.ones(V, D), IDS, some_candidates(3)),
        "sampled for 3 rows, but query has 4",
    ),
    "counts of other candidates": (
        (torch.ones(B, D), torch.ones(V, D), IDS, Candidates(IDS, torch.zeros(3), torch.zeros(B))),
        r"log_expected_count of the same shape, got \[4\] and \[3\]",
    ),
    "another width": (
        (torch.ones(B, D), torch.ones(V, D + 1), IDS, some_candidates()),
        r"item vectors must be \[9, 3\], one per row and as wide as query, got \[9, 4\]",
    ),
    "callable that returns too few vectors": (
        (torch.ones(B, D), embed_two, IDS, some_candidates()),
        r"item vectors must be \[9, 3\].* got \[2, 3\]",
    ),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_shapes_that_do_not_fit_are_refused(name):
    arguments, sentence = BAD_SHAPES[name]
    with pytest.raises(ConfigError, match=sentence):
        sampled_softmax(*arguments)


def test_full_softmax_refuses_shapes_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"query must be \[B, D\]"):
        full_softmax(torch.ones(B), torch.ones(V, D), IDS)
    with pytest.raises(ConfigError, match=r"item vectors must be \[6, 3\].* got \[6, 2\]"):
        full_softmax(torch.ones(B, D), torch.ones(V, 2), IDS)


@pytest.mark.parametrize("bad", [V, -1])
def test_candidate_ids_outside_the_catalog_are_refused(bad):
    candidates = Candidates(torch.tensor([1, bad, 2]), torch.zeros(3), torch.zeros(B))
    with pytest.raises(DataError, match=f"item id {bad} is outside the catalog: .* 0 to 5"):
        sampled_softmax(torch.ones(B, D), torch.ones(V, D), IDS, candidates)


def with_bad(shape, row, value=float("nan")):
    vectors = torch.randn(shape)
    vectors[row, 1] = value
    return vectors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_queries_that_are_not_finite_are_named_by_row(value):
    table = torch.randn(V, D)
    sentence = "query row 2 holds NaN or infinite values, as do 1 of 4 in all"
    with pytest.raises(DataError, match=sentence):
        sampled_softmax(with_bad((B, D), 2, value), table, IDS, some_candidates())
    with pytest.raises(DataError, match=sentence):
        SampledSoftmaxLoss(Uniform(V, num_candidates=5))(with_bad((B, D), 2, value), table, IDS)
    with pytest.raises(DataError, match=sentence):
        in_batch_softmax(
            with_bad((B, D), 2, value), torch.randn(B, D), IDS, frequency=torch.ones(V)
        )


def test_item_vectors_that_are_not_finite_are_named_by_item():
    query, table = torch.randn(B, D), with_bad((V, D), 3)
    with pytest.raises(DataError, match="the vector of item 3 holds NaN"):
        sampled_softmax(query, table, IDS, some_candidates())
    with pytest.raises(DataError, match="the vector of item 3 holds NaN"):
        sampled_softmax(query, lambda ids: table[ids], IDS, some_candidates())
    with pytest.raises(DataError, match="row of positive_vectors 3 holds NaN"):
        in_batch_softmax(query, table[:B], IDS, frequency=torch.ones(V))


def test_large_finite_vectors_are_accepted():
    """Their sum overflows, but every value is finite."""
    table = torch.full((V, D), 3e38)
    out = sampled_softmax(torch.zeros(B, D), table, IDS, some_candidates())
    assert bool(torch.isfinite(out.loss).all())


def test_vectors_are_not_checked_with_check_finite_false():
    bad = with_bad((B, D), 2)
    out = sampled_softmax(bad, torch.randn(V, D), IDS, some_candidates(), check_finite=False)
    assert out.loss.isnan().tolist() == [False, False, True, False]
    loss = LOSSES["sampled_softmax"].Config().build(V)
    assert loss(bad, torch.randn(V, D), IDS, some_candidates()).loss[2].isnan()


BAD_USERS = {
    "too few": (torch.tensor([1, 2]), ConfigError, r"user_ids must be 4 integers, .* got \[2\]"),
    "a column": (IDS[:, None], ConfigError, r"user_ids must be 4 integers, .* got \[4, 1\]"),
    "not integers": (IDS.float(), ConfigError, r"user_ids must be 4 integers, .* torch.float32"),
    "no user": (torch.tensor([3, 5, -1, -1]), DataError, "user_ids holds -1 in row 2, .* another"),
}


@pytest.mark.parametrize("name", BAD_USERS)
def test_user_ids_that_do_not_fit_are_refused(name):
    """A row of user -1 would lose all candidates that come from no user."""
    user_ids, error, sentence = BAD_USERS[name]
    query, table = torch.ones(B, D), torch.ones(V, D)
    mixture = Mixture([Uniform(V, num_candidates=5), InBatch(torch.ones(V))])
    with pytest.raises(error, match=sentence):
        SampledSoftmaxLoss(mixture)(query, table, IDS, user_ids)
    with pytest.raises(error, match=sentence):
        InBatchSoftmaxLoss(torch.ones(V))(query, table[IDS], IDS, user_ids)


def test_user_ids_may_be_any_other_numbers():
    query, table = torch.randn(B, D), torch.randn(V, D)
    loss = InBatchSoftmaxLoss(torch.ones(V))
    hashes = torch.tensor([-(2**62), 7, 7, -2])
    expected = loss(query, table[IDS], IDS, torch.tensor([0, 1, 1, 2]))
    assert torch.equal(loss(query, table[IDS], IDS, hashes), expected)
