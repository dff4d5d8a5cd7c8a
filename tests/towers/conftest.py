"""Feature values built by hand, without columns or fitting."""

import pytest
import torch

from candid.features import Bags, Codes, FeatureTable, Numbers


def make_values(num_rows, seed=0):
    """One feature of each form, with hashes and empty bags; "type" is a valid name."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (num_rows,), generator=generator)
    lengths[0] = 0
    return {
        "type": Codes(torch.randint(0, 6, (num_rows, 1), generator=generator), 6),
        "a.b": Codes(torch.randint(0, 9, (num_rows, 3), generator=generator), 9),
        "genres": Bags(
            torch.randint(0, 5, (int(lengths.sum()),), generator=generator),
            torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
            5,
        ),
        "age": Numbers(torch.randn(num_rows, 2, generator=generator)),
    }


@pytest.fixture
def values_of():
    """``values_of(n, seed)``: values of n rows."""
    return make_values


@pytest.fixture
def table_of():
    """``table_of(n, seed)``: a feature table of n rows."""
    return lambda num_rows, seed=0: FeatureTable({}, {}, make_values(num_rows, seed))
