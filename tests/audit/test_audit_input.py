import pytest
import torch

from candid.audit.audit_input import popularity_thirds
from candid.errors import ArtifactError, ConfigError, DataError

from .conftest import tiny_input


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            {"query": torch.tensor([[0.0] * 3, [float("nan")] * 3, [0.0] * 3])},
            ArtifactError,
            r"query of row 1 \(user 1\) has NaN",
        ),
        (
            {"item_vectors": torch.full((4, 3), float("inf"))},
            ArtifactError,
            "vector of item 0 .* NaN or infinite",
        ),
        (
            {"positive_ids": torch.tensor([0, 4, 1])},
            DataError,
            "positive of row 1 is item 4, outside the catalog: ids must be 0 to 3",
        ),
        (
            {"training_positive_ids": torch.tensor([0, -1])},
            DataError,
            "training positive of row 1 is item -1",
        ),
        (
            {"training_positive_ids": torch.tensor([], dtype=torch.int64)},
            DataError,
            "no training rows",
        ),
        ({"query": torch.zeros(3, 2)}, ConfigError, r"query must be \[Q, 3\]"),
        ({"user_ids": torch.arange(2)}, ConfigError, "3 queries need 3 positive_ids"),
    ],
)
def test_audit_input_with_invalid_tensors_is_refused(changes, error, sentence):
    with pytest.raises(error, match=sentence):
        tiny_input(**changes)


def test_popularity_thirds_have_equal_shares_of_training_rows():
    counts = torch.tensor([1] * 30 + [10] * 3 + [30])
    thirds = popularity_thirds(counts)
    assert thirds.tolist() == [0] * 30 + [1] * 3 + [2]
    assert popularity_thirds(torch.tensor([5, 5, 0])).tolist() == [1, 1, 0]


def test_audit_input_detaches_parameters():
    table = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.float64))
    data = tiny_input(item_vectors=table)
    assert not data.item_vectors.requires_grad
    assert data.item_vectors.dtype == torch.float32


def test_slices_are_by_popularity_of_the_positive():
    # Counts 8, 4, 3, 1 of 16: the middles of their cumulative shares are .75, .375, .16, .03.
    assert tiny_input().slices().tolist() == [1, 2, 0]
