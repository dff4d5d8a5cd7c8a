import math
from pathlib import Path

import pytest
import torch

import candid
from candid.candidates import Candidates, ExactCandidates
from candid.errors import ConfigError, UnknownNameError
from candid.losses import corrected_log_softmax, sampled_softmax
from candid.losses.correction import (
    corrections_for,
    hit_rule,
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


def test_refined_alone_renormalizes_and_none_alone_is_undefined_beside_exact_candidates():
    candidates = Candidates(torch.tensor([3, 1, 3]), COUNTS, COUNTS_POSITIVE, num_samples=4)

    def refuse():
        raise AssertionError("valid candidates were counted")

    for correction in ("none", "logq"):
        assert shifts_of(correction, candidates, num_valid=refuse).row is None
    row = shifts_of("refined", candidates, num_valid=lambda: torch.tensor([3, 0])).row
    # (n_valid / n) / (1 - Q(p)), and no shift for a row without valid candidates.
    expected = math.log(3 / 4) - math.log1p(-math.exp(-0.7) / 4)
    assert row.tolist() == [pytest.approx(expected, rel=1e-6), 0.0]
    assert corrections_for(has_exact=False) == ("none", "logq", "refined", "published_code")
    assert corrections_for(has_exact=False, is_set=True) == ("none", "logq", "refined")
    assert corrections_for(has_exact=True) == ("logq", "refined")


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


def test_published_code_shifts_candidates_by_the_log_of_q_alone():
    """The positive's score is raw, and log n is missing: negatives - log Q."""
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    ids, n = torch.tensor([0, 2, 1, 0]), 4
    scores = torch.tensor([[0.3, -1.0, 0.8]], dtype=torch.float64)
    candidates = Candidates(ids, (n * q[ids]).log(), (n * q[1:2]).log(), num_samples=n)
    out = sampled_softmax(
        scores,
        torch.eye(3, dtype=torch.float64),
        torch.tensor([1]),
        candidates,
        correction="published_code",
    )
    # The third sample is the positive, which is masked.
    others = 2 * math.exp(0.3) / 0.5 + math.exp(0.8) / 0.2
    positive = math.exp(-1.0)
    assert out.loss.item() == pytest.approx(-math.log(positive / (positive + others)), abs=1e-12)
    assert out.sample_weight.item() == pytest.approx(others / (positive + others), abs=1e-12)


def test_published_code_is_refused_for_sets_and_beside_exact_candidates():
    exact = ExactCandidates(torch.tensor([5]), torch.tensor([-1.0]))
    ids = torch.tensor([3, 1, 3])
    for candidates, reason in (
        (Candidates(ids, COUNTS, COUNTS_POSITIVE, 3, exact=exact), "exact candidates"),
        (Candidates(ids, COUNTS, COUNTS_POSITIVE, None), "a set of distinct items"),
    ):
        with pytest.raises(ConfigError, match=f"'published_code'.* not for {reason}"):
            shifts_of("published_code", candidates, num_valid=lambda: torch.tensor([3, 3]))
    with pytest.raises(ConfigError, match="exact candidates"):
        corrected_log_softmax(
            positive=torch.zeros(1),
            candidates=torch.zeros(1, 3),
            log_expected_count=COUNTS,
            exact=torch.zeros(1, 1),
            correction="published_code",
        )


def test_corrections_with_a_wrong_sum_give_no_probability():
    assert "uncorrected" in why_no_probability("none")
    assert "published code" in why_no_probability("published_code")
    assert why_no_probability("logq") is None
    assert why_no_probability("refined") is None


def test_hit_rule_is_the_default_of_the_correction_or_the_requested_one():
    assert [hit_rule(name) for name in ("none", "logq", "refined")] == ["mask", "keep", "mask"]
    assert hit_rule("logq", "mask") == "mask"
    for correction in ("none", "refined", "published_code"):
        with pytest.raises(
            ConfigError, match=f"'keep' is not defined for correction '{correction}"
        ):
            hit_rule(correction, "keep")
    with pytest.raises(UnknownNameError, match="did you mean 'keep'"):
        hit_rule("logq", "keeps")


def test_positive_that_replaces_a_sample_renormalizes_the_counts():
    exact = ExactCandidates(torch.tensor([5]), torch.tensor([-1.0]))
    candidates = Candidates(torch.tensor([3, 1, 3]), COUNTS, COUNTS_POSITIVE, 4, exact=exact)
    shifts = shifts_of(
        "logq",
        candidates,
        num_valid=lambda: torch.zeros(2),
        positive_in_exact=torch.tensor([False, True]),
        num_of_others=lambda: torch.tensor([3, 0]),
    )
    assert shifts.row.tolist() == [pytest.approx(math.log(3 / 4)), 0.0]
    assert shifts.positive.tolist() == [pytest.approx(-0.7 + math.log(3 / 4)), 0.0]


def test_missing_count_and_unknown_correction_are_refused():
    with pytest.raises(ConfigError, match="'logq' needs log_expected_count_positive"):
        shifts_of_counts("logq", COUNTS)
    with pytest.raises(UnknownNameError, match="'refined'"):
        shifts_of_counts("refine", COUNTS)


def test_corrections_are_named_in_one_module():
    """Other modules may describe the names in prose, but do not compare with them.

    The demo and the arms of a study list the corrections that they train with.
    """
    root = Path(candid.__file__).parent
    modules = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if '"logq"' in path.read_text()
    }
    assert modules - {"demo/regimes.py", "study/arms.py"} == {"losses/correction.py"}
