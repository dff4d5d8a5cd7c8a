import pytest
import torch

from candid.audit.subject import popularity_thirds
from candid.errors import ArtifactError, ConfigError, DataError

from .conftest import tiny_subject


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            {"query": torch.tensor([[0.0] * 3, [float("nan")] * 3, [0.0] * 3])},
            ArtifactError,
            r"query of row 1 \(user 1\) holds NaN",
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
        ({"training_positive_ids": torch.tensor([], dtype=torch.int64)}, DataError, "nothing"),
        ({"query": torch.zeros(3, 2)}, ConfigError, r"query must be \[Q, 3\]"),
        ({"user_ids": torch.arange(2)}, ConfigError, "3 queries need as many"),
    ],
)
def test_what_does_not_belong_is_refused_in_a_sentence(changes, error, sentence):
    with pytest.raises(error, match=sentence):
        tiny_subject(**changes)


def test_thirds_hold_a_third_of_the_training_rows_each():
    counts = torch.tensor([1] * 30 + [10] * 3 + [30])
    thirds = popularity_thirds(counts)
    assert thirds.tolist() == [0] * 30 + [1] * 3 + [2]
    assert popularity_thirds(torch.tensor([5, 5, 0])).tolist() == [1, 1, 0]


def test_parameters_of_a_model_are_taken_as_they_are():
    table = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.float64))
    subject = tiny_subject(item_vectors=table)
    assert not subject.item_vectors.requires_grad
    assert subject.item_vectors.dtype == torch.float32


def test_slices_are_those_of_the_positives():
    # Counts 8, 4, 3, 1 of 16: the middles of their shares are at .75, .375, .16 and .03.
    assert tiny_subject().slices().tolist() == [1, 2, 0]
