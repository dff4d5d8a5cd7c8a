"""What does not fit is said in one sentence."""

from types import SimpleNamespace

import pytest
import torch

from candid import SampledSoftmaxLoss, full_softmax, in_batch_softmax, sampled_softmax
from candid.candidates import Candidates
from candid.errors import ConfigError, DataError
from candid.losses import LOSSES
from candid.samplers import Uniform

V, B, D = 6, 4, 3
IDS = torch.arange(B)
ROWS = SimpleNamespace(positive_ids=IDS, user_ids=IDS)


def sampled(num_rows=B):
    rows = SimpleNamespace(positive_ids=IDS[:num_rows], user_ids=IDS[:num_rows])
    return Uniform(V, 5).sample(rows, torch.Generator().manual_seed(0))


def embed_two(ids):
    return torch.ones(2, D)


BAD_SHAPES = {
    "a sequence is not flattened": (
        (torch.ones(2, B, D), torch.ones(V, D), IDS, sampled()),
        r"query must be \[B, D\], got \[2, 4, 3\]: make every position",
    ),
    "fewer positives than rows": (
        (torch.ones(B, D), torch.ones(V, D), IDS[:3], sampled()),
        r"positive_ids must be 4 integers, one for each row of query, got \[3\]",
    ),
    "positives are no ids": (
        (torch.ones(B, D), torch.ones(V, D), IDS.float(), sampled()),
        r"positive_ids must be 4 integers, .* of torch.float32",
    ),
    "candidates of another batch": (
        (torch.ones(B, D), torch.ones(V, D), IDS, sampled(3)),
        "drawn for 3 rows, but query has 4",
    ),
    "counts of other candidates": (
        (torch.ones(B, D), torch.ones(V, D), IDS, Candidates(IDS, torch.zeros(3), torch.zeros(B))),
        r"log_expected_count of the same shape, got \[4\] and \[3\]",
    ),
    "another width": (
        (torch.ones(B, D), torch.ones(V, D + 1), IDS, sampled()),
        r"item vectors must be \[9, 3\], one a row and as wide as query, got \[9, 4\]",
    ),
    "a callable that returns too few": (
        (torch.ones(B, D), embed_two, IDS, sampled()),
        r"item vectors must be \[9, 3\].* got \[2, 3\]",
    ),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_shapes_that_do_not_fit(name):
    arguments, sentence = BAD_SHAPES[name]
    with pytest.raises(ConfigError, match=sentence):
        sampled_softmax(*arguments)


def test_the_full_softmax_says_the_same():
    with pytest.raises(ConfigError, match=r"query must be \[B, D\]"):
        full_softmax(torch.ones(B), torch.ones(V, D), IDS)
    with pytest.raises(ConfigError, match=r"item vectors must be \[6, 3\].* got \[6, 2\]"):
        full_softmax(torch.ones(B, D), torch.ones(V, 2), IDS)


@pytest.mark.parametrize("bad", [V, -1])
def test_candidate_ids_outside_the_catalog(bad):
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
        sampled_softmax(with_bad((B, D), 2, value), table, IDS, sampled())
    with pytest.raises(DataError, match=sentence):
        SampledSoftmaxLoss(V)(with_bad((B, D), 2, value), table, IDS)
    with pytest.raises(DataError, match=sentence):
        in_batch_softmax(
            with_bad((B, D), 2, value), torch.randn(B, D), IDS, frequency=torch.ones(V)
        )


def test_item_vectors_that_are_not_finite_are_named_by_item():
    query, table = torch.randn(B, D), with_bad((V, D), 3)
    with pytest.raises(DataError, match="the vector of item 3 holds NaN"):
        sampled_softmax(query, table, IDS, sampled())
    with pytest.raises(DataError, match="the vector of item 3 holds NaN"):
        sampled_softmax(query, lambda ids: table[ids], IDS, sampled())
    with pytest.raises(DataError, match="row of positive_vectors 3 holds NaN"):
        in_batch_softmax(query, table[:B], IDS, frequency=torch.ones(V))


def test_large_but_finite_vectors_pass():
    """Their sum overflows; none of them is infinite."""
    table = torch.full((V, D), 3e38)
    out = sampled_softmax(torch.zeros(B, D), table, IDS, sampled())
    assert bool(torch.isfinite(out.loss).all())


def test_who_looks_at_the_loss_need_not_look_at_vectors():
    bad = with_bad((B, D), 2)
    out = sampled_softmax(bad, torch.randn(V, D), IDS, sampled(), check_finite=False)
    assert out.loss.isnan().tolist() == [False, False, True, False]
    assert LOSSES["sampled_softmax"]()(bad, torch.randn(V, D), IDS, sampled()).loss[2].isnan()
