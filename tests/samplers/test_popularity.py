import time
from collections import namedtuple

import pytest
import torch

from candid.errors import ConfigError, DataError
from candid.samplers import Popularity

Rows = namedtuple("Rows", "positive_ids user_ids query", defaults=(None,))
ROWS = Rows(torch.tensor([0]), torch.tensor([0]))


def test_items_without_a_count_are_never_sampled():
    for exponent in (0.0, 0.5, 1.0):
        sampler = Popularity(torch.tensor([0, 3, 0, 1, 0]), num_candidates=5000, exponent=exponent)
        assert set(sampler.sample(*ROWS, torch.Generator().manual_seed(1)).ids.tolist()) == {1, 3}
        log_expected_count = sampler.log_expected_count_of(torch.arange(5), *ROWS)
        assert log_expected_count.isneginf().tolist() == [True, False, True, False, True]


def test_exponent_tempers_the_counts():
    sampler = Popularity(torch.tensor([1, 16]), num_candidates=10, exponent=0.5)
    expected = torch.tensor([10 / 5, 10 * 4 / 5])
    torch.testing.assert_close(
        sampler.log_expected_count_of(torch.arange(2), *ROWS).exp(), expected
    )


def test_huge_counts_do_not_overflow():
    sampler = Popularity(
        torch.tensor([1e300, 1e-300], dtype=torch.float64), num_candidates=4, exponent=3.0
    )
    assert sampler.sample(*ROWS).ids.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (torch.tensor([1.0, -2.0]), "count of item 1 is -2"),
        (torch.tensor([float("nan")]), "count of item 0 is nan"),
        (torch.tensor([0, 0]), "no item has a positive count"),
        (torch.ones(2, 2), "must be a vector"),
    ],
)
def test_bad_counts_are_named(counts, message):
    with pytest.raises(DataError, match=message):
        Popularity(counts, num_candidates=3)


@pytest.mark.parametrize("settings", [{"num_candidates": 0}, {"exponent": -1.0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        Popularity(torch.ones(3), **{"num_candidates": 2, **settings})


def test_sampling_from_twenty_million_items_is_fast():
    # torch.multinomial stops at 2^24; a linear scan would take tens of milliseconds per sample.
    num_items = 20_000_000
    sampler = Popularity(torch.ones(num_items, dtype=torch.int32), num_candidates=4096)
    start = time.process_time()
    ids = sampler.sample(*ROWS, torch.Generator().manual_seed(0)).ids
    assert time.process_time() - start < 0.5
    assert ids.double().mean().item() == pytest.approx(num_items / 2, rel=0.05)
