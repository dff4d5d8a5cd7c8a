import pytest
import torch

from candid.audit import DriftSampling
from candid.errors import ConfigError

from .conftest import tiny_input


def users_of(num_items, sampling, num_rows=64):
    data = tiny_input(
        query=torch.zeros(num_rows, 1),
        item_vectors=torch.zeros(num_items, 1),
        positive_ids=torch.zeros(num_rows, dtype=torch.int64),
        user_ids=torch.arange(num_rows),
        counts=torch.ones(num_items, dtype=torch.int64),
    )
    return sampling.users_of(data)


@pytest.mark.parametrize(("num_items", "expected"), [(100, 32), (16_384, 16), (200_000, 8)])
def test_default_number_of_users_falls_with_the_catalog(num_items, expected):
    users = users_of(num_items, DriftSampling())
    assert len(users.query) == len(users.user_ids) == expected


def test_number_of_users_is_at_most_that_of_the_rows():
    assert len(users_of(100, DriftSampling(users=5)).query) == 5
    assert len(users_of(100, DriftSampling(), num_rows=3).query) == 3


def test_default_repeats_fall_with_the_number_of_candidates():
    sampling = DriftSampling()
    repeats = [sampling.budget(32, n, seed=0).repeats for n in (16, 256, 1024, 10**6)]
    assert repeats == [2048, 512, 128, 16]
    assert sampling.budget(32, 16, seed=0, samples_per_row=True).repeats == 512
    assert DriftSampling(repeats=40).budget(32, 16, seed=3).repeats == 40


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"users": 0}, "--drift-users 0 must be at least 1"),
        ({"repeats": 15}, "--drift-repeats 15 must be at least 16"),
        ({"num_positives": 0}, "num_positives of at least 1"),
    ],
)
def test_too_small_numbers_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        DriftSampling(**settings)
