import copy

import pytest
import torch

from candid.errors import ArtifactError, ConfigError
from candid.samplers import checked_item_vectors
from candid.samplers.item_vectors import ItemVectors


def test_checked_vectors_name_the_item_that_is_not_finite():
    vectors = torch.randn(6, 3)
    vectors[4, 1], vectors[5, 0] = float("nan"), float("inf")
    with pytest.raises(ArtifactError, match=r"item 4 \(row 4 .*as do 2 of 6 in total"):
        checked_item_vectors(vectors, 6)


def test_checked_vectors_accept_a_sum_that_overflows():
    vectors = torch.full((4, 2), 3e38)
    assert torch.equal(checked_item_vectors(vectors, 4), vectors)


@pytest.mark.parametrize("shape", [(5, 3), (6,), (6, 3, 1)])
def test_checked_vectors_of_another_catalog_are_refused(shape):
    with pytest.raises(ConfigError, match=r"\[6, D\].*got \[.*\]"):
        checked_item_vectors(torch.zeros(shape), 6)


def test_structure_is_built_again_after_load_move_and_copy():
    built = []

    def build(vectors):
        built.append(vectors)
        return vectors.sum()

    stored = ItemVectors(3, build)
    with pytest.raises(ConfigError, match="no item vectors yet: call refresh"):
        _ = stored.structure
    assert stored.state_dict() == {}
    stored.set(torch.eye(3))
    assert stored.structure == 3
    assert stored.structure == 3
    assert len(built) == 1
    loaded = ItemVectors(3, build)
    loaded.load_state_dict(stored.state_dict())
    for other in (loaded, copy.deepcopy(stored), stored.to("cpu")):
        assert other.structure == 3
    assert len(built) == 4
    assert loaded.vectors is not stored.vectors
    with pytest.raises(ArtifactError, match="has 3 item vectors, but the catalog has 4 items"):
        ItemVectors(4, build).load_state_dict(stored.state_dict())
