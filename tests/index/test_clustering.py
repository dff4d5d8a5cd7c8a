"""Spherical k-means, on groups of items with known centres."""

import torch
from torch.nn.functional import normalize

from candid.index import clustering
from candid.index.clustering import assign_lists, fit_centres


def groups(num_groups, per_group, dim, seed=0):
    """Items [V, D] around separate directions of different lengths, and the group of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(num_groups, dim, generator=generator))
    centres *= 1 + torch.arange(num_groups)[:, None] % 3
    labels = torch.arange(num_groups).repeat(per_group)
    noise = 0.02 * torch.randn(len(labels), dim, generator=generator)
    return centres[labels] + noise, labels


def test_restarts_give_nearly_every_group_a_list_of_its_own(monkeypatch):
    items, labels = groups(40, 50, 16)

    def mixed_lists():
        lists = assign_lists(items, fit_centres(items, 40))
        pairs = torch.stack([labels, lists], dim=1).unique(dim=0)
        return int((torch.bincount(pairs[:, 1], minlength=40) > 1).sum())

    assert mixed_lists() <= 3
    monkeypatch.setattr(clustering, "SPLIT_UNTIL", 0)
    assert mixed_lists() > 6


def test_centres_are_as_long_as_the_mean_product_of_their_items():
    items, _ = groups(5, 60, 8)
    centres = fit_centres(items, 5)
    lists = assign_lists(items, centres)
    for number, centre in enumerate(centres.double()):
        members = items[lists == number].double()
        direction = members.mean(0) / members.mean(0).norm()
        torch.testing.assert_close(
            centre, (members @ direction).mean() * direction, rtol=0.01, atol=0.01
        )


def test_items_join_the_nearest_centre_by_distance():
    generator = torch.Generator().manual_seed(0)
    items, centres = (torch.randn(n, 7, generator=generator) for n in (2500, 30))
    expected = torch.cdist(items.double(), centres.double()).argmin(1)
    assert torch.equal(assign_lists(items, centres), expected)


def test_equal_items_and_zeros_have_finite_centres():
    for items in (torch.ones(20, 3), torch.zeros(20, 3)):
        centres = fit_centres(items, 7)
        assert bool(torch.isfinite(centres).all())
        assert len(assign_lists(items, centres)) == 20
