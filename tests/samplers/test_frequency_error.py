import pytest
import torch

from candid.samplers import ExactFrequency, Frequency, frequency_error


def test_exact_counts_have_no_error():
    counts = torch.tensor([5, 0, 1, 90])
    error = frequency_error(ExactFrequency(counts), counts)
    assert error.weighted == pytest.approx(0, abs=1e-6)
    assert max(error.by_band.values()) < 1e-6


def test_errors_are_weighted_by_occurrence_within_bands():
    # Shares .4, .3, .1, .1, .1: bands of one, one and three items.
    counts = torch.tensor([1, 3, 1, 4, 1, 0])

    class Off(Frequency):
        def log_q(self, ids):
            return torch.tensor([0.2, 0.3, 0.1, 0.3, 0.1, 0.7])[ids].log()

    error = frequency_error(Off(6), counts)
    assert error.by_band == pytest.approx({"head": 0.25, "middle": 0.0, "tail": 1 / 3}, abs=1e-6)
    assert error.weighted == pytest.approx(0.1 + 0.1)


def test_items_with_the_same_count_stay_together():
    counts = torch.ones(30, dtype=torch.int64)
    assert list(frequency_error(ExactFrequency(counts), counts).by_band) == ["middle"]
