import math
from pathlib import Path

import pytest
import torch

import candid
from candid.candidates import Candidates, ExactCandidates
from candid.errors import ConfigError, UnknownNameError
from candid.losses.correction import (
    corrections_for,
    shifts_of,
    shifts_of_counts,
    why_no_probability,
)

COUNTS = torch.tensor([0.5, -1.0, 2.0])
COUNTS_POSITIVE = torch.tensor([-0.7, -2.0])


@pytest.mark.parametrize(
    ("correction", "shifts_positive", "shifts_candidates"),
    [("none", False, False), ("logq", True, True), ("refined", False, True)],
)
def test_shifts_follow_the_table(correction, shifts_positive, shifts_candidates):
    row = torch.tensor([0.1, 0.2])
    shifts = shifts_of_counts(correction, COUNTS, COUNTS_POSITIVE, row)
    assert (shifts.positive is COUNTS_POSITIVE) == shifts_positive
    assert (shifts.candidates is COUNTS) == shifts_candidates
    assert (shifts.row is row) == shifts_candidates
    if not shifts_positive:
        assert shifts.positive is None
    if not shifts_candidates:
        assert shifts.candidates is shifts.row is None


def test_refined_alone_renormalizes_and_is_defined_beside_exact_candidates():
    candidates = Candidates(torch.tensor([3, 1, 3]), COUNTS, COUNTS_POSITIVE, num_samples=4)

    def refuse():
        raise AssertionError("valid candidates were counted")

    for correction in ("none", "logq"):
        assert shifts_of(correction, candidates, num_valid=refuse).row is None
    row = shifts_of("refined", candidates, num_valid=lambda: torch.tensor([3, 0])).row
    # (n_valid / n) / (1 - Q(p)), and no shift for a row without valid candidates.
    expected = math.log(3 / 4) - math.log1p(-math.exp(-0.7) / 4)
    assert row.tolist() == [pytest.approx(expected, rel=1e-6), 0.0]
    assert set(corrections_for(has_exact=False)) == {"none", "logq", "refined"}
    assert corrections_for(has_exact=True) == ("refined",)


def test_sets_are_not_renormalized():
    candidates = Candidates(torch.tensor([3, 1, 0]), COUNTS, COUNTS_POSITIVE, num_samples=None)
    assert shifts_of("refined", candidates, num_valid=lambda: torch.tensor([3, 3])).row is None


def test_renormalization_excludes_the_exact_candidates():
    exact = ExactCandidates(torch.tensor([5, 6]), torch.tensor([-1.0, -2.0]))
    candidates = Candidates(
        torch.tensor([3, 1, 3]), COUNTS, COUNTS_POSITIVE, num_samples=4, exact=exact
    )
    shifts = shifts_of(
        "refined",
        candidates,
        num_valid=lambda: torch.tensor([3, 2]),
        exact_accidental_hits=torch.tensor([[False, False], [True, False]]),
        positive_in_exact=torch.tensor([False, True]),
    )
    for row, (positive, n, items) in enumerate(((-0.7, 3, (-1.0, -2.0)), (-2.0, 2, (-2.0,)))):
        share = sum(math.exp(count) / 4 for count in (positive, *items))
        expected = math.log(n / 4) - math.log(1 - share)
        assert shifts.row[row].item() == pytest.approx(expected, abs=1e-6)


def test_exact_positive_is_expected_once():
    exact = ExactCandidates(torch.tensor([5]), torch.tensor([-1.0]))
    candidates = Candidates(torch.tensor([3, 1, 3]), COUNTS, COUNTS_POSITIVE, 3, exact=exact)
    is_exact = torch.tensor([False, True])
    shifts = shifts_of("logq", candidates, num_valid=lambda: is_exact, positive_in_exact=is_exact)
    assert shifts.positive.tolist() == [pytest.approx(-0.7), 0.0]


def test_only_an_uncorrected_softmax_gives_no_probability():
    assert "uncorrected" in why_no_probability("none")
    assert why_no_probability("logq") is None
    assert why_no_probability("refined") is None


def test_missing_count_and_unknown_correction_are_refused():
    with pytest.raises(ConfigError, match="'logq' needs log_expected_count_positive"):
        shifts_of_counts("logq", COUNTS)
    with pytest.raises(UnknownNameError, match="'refined'"):
        shifts_of_counts("refine", COUNTS)


def test_corrections_are_named_in_one_module():
    """Other modules may describe the names in prose, but do not compare with them."""
    root = Path(candid.__file__).parent
    modules = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if '"logq"' in path.read_text()
    }
    assert modules == {"losses/correction.py"}
