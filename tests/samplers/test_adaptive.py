import pytest
import torch

from candid.errors import ArtifactError, ConfigError
from candid.samplers import EncodedBatch, checked_item_vectors, query_of


def test_vectors_that_are_no_numbers_are_named_by_item():
    vectors = torch.randn(6, 3)
    vectors[4, 1], vectors[5, 0] = float("nan"), float("inf")
    with pytest.raises(ArtifactError, match=r"item 4 \(row 4 .*as do 2 of 6 in all"):
        checked_item_vectors(vectors, 6)


def test_a_sum_that_overflows_is_no_fault():
    vectors = torch.full((4, 2), 3e38)
    assert torch.equal(checked_item_vectors(vectors, 4), vectors)


@pytest.mark.parametrize("shape", [(5, 3), (6,), (6, 3, 1)])
def test_vectors_of_another_catalog_are_refused(shape):
    with pytest.raises(ConfigError, match=r"\[6, D\].*got \[.*\]"):
        checked_item_vectors(torch.zeros(shape), 6)


def test_a_sampler_that_draws_by_queries_says_so(rows):
    del rows.query
    with pytest.raises(ConfigError, match="EncodedBatch"):
        query_of(rows)
    query = torch.ones(6, 2)
    assert query_of(EncodedBatch(rows.positive_ids, rows.user_ids, query)) is query
