"""Membership of ids in a set, as on an accelerator."""

import pytest
import torch

from candid.candidates import _is_among_sorted, is_among


@pytest.mark.parametrize("shape", [(50,), (7, 9), (0,)])
@pytest.mark.parametrize("num_others", [1, 20])
def test_membership_by_binary_search(shape, num_others):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(-1, 40, shape, generator=generator)
    others = torch.randint(40, (num_others,), generator=generator)
    expected = [value in set(others.tolist()) for value in ids.flatten().tolist()]
    for ordered in (others.sort().values, others.int().sort().values):
        assert _is_among_sorted(ids, ordered).flatten().tolist() == expected
        assert _is_among_sorted(ids.mT if ids.ndim == 2 else ids, ordered).sum() == sum(expected)
    assert is_among(ids, others).flatten().tolist() == expected


def test_membership_in_an_empty_set():

    assert is_among(torch.arange(3), torch.empty(0, dtype=torch.int64)).tolist() == [False] * 3
