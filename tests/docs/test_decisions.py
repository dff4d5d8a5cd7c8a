"""The figures of the page of decisions against the results that they come from."""

import json
import re
from pathlib import Path
from statistics import fmean

import pytest
import torch

from candid.losses import corrected_log_softmax
from candid.losses.correction import DEFAULT_CORRECTION, hit_rule

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "decisions.md").read_text()
TEXT = re.sub(r"\s+", " ", PAGE)
NAMES = {"synthetic": "synthetic", "diginetica": "Diginetica", "ml1m": "MovieLens-1M"}


def results(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def excess():
    """Excess NLL of trained models, by data, estimator and n."""
    cells = results("drift_training")["cells"]
    return {(one["data"], one["label"], one["n"]): one["excess"] for one in cells}


def test_table_of_the_default_correction_matches_its_results(excess):
    block = re.search(r"<!-- default-correction -->\n(.*?)<!--", PAGE, re.DOTALL).group(1)
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in block.splitlines()[2:]
    ]
    assert rows == [
        [
            NAMES[data],
            *(
                f"{excess[data, label, n]:.3f}"
                for n in (16, 256)
                for label in ("logq, hits kept", "refined")
            ),
        ]
        for data in NAMES
    ]


def test_default_correction_is_never_worse_than_refined_in_trained_models(excess):
    assert (DEFAULT_CORRECTION, hit_rule(DEFAULT_CORRECTION)) == ("logq", "keep")
    pairs = [
        (excess[data, "logq, hits kept", n], excess[data, "refined", n])
        for data in NAMES
        for n in (16, 64, 256)
    ]
    assert len(pairs) == 9
    assert all(logq <= refined for logq, refined in pairs)
    at_256 = [excess[data, "logq, hits kept", 256] for data in NAMES]
    assert f"at n = 256 is at most {max(at_256):.3f} nats" in TEXT


def test_figures_of_known_choices_match_their_results():
    best = {
        one["estimator"]: min(fmean(values) for values in one["excess_nll"].values())
        for one in results("estimator_search")["tables"]
        if (one["chi2"], one["n"]) == (100, 16)
    }
    text = f"`logq` ends at {best['logq']:.3f} nats and `refined` at {best['refined']:.3f}"
    assert text in TEXT


def test_drift_beside_clusters_matches_its_results():
    names = ("logq", "refined", "logq + jackknife over users", "refined + jackknife over users")
    measured = {
        one["estimator"]: one["drift"]
        for one in results("jackknife")["results"]
        if one["windows"] == 16 and "drift" in one
    }
    drifts = [f"{measured[name]:.4f}" for name in names]
    assert f"{drifts[0]} nats for 16 windows" in TEXT
    assert f"where `refined` has {drifts[1]}," in TEXT
    assert f"jackknife over users {drifts[2]} and {drifts[3]}" in TEXT


def drift_of_refined(n, p, q):
    """Drift from every count vector of n samples of three items, in nats."""
    counts = torch.tensor([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)])
    counts = counts.double()
    log_share = torch.lgamma(torch.tensor(n + 1.0, dtype=torch.double)) - counts.add(
        1
    ).lgamma().sum(1)
    share = (log_share + counts @ q.log()).exp()
    mean = torch.zeros(3, dtype=torch.double)
    for positive in range(3):
        # Without a valid sample the loss and its gradient are 0.
        is_valid = counts[:, positive] < n
        valid, weight = counts[is_valid], share[is_valid] * p[positive]
        scores = p.log().expand(len(valid), 3).clone().requires_grad_()
        output = corrected_log_softmax(
            positive=scores[:, positive],
            candidates=scores + valid.log(),
            log_expected_count=(n - valid[:, positive, None]).log() + (q / (1 - q[positive])).log(),
            accidental_hits=(torch.arange(3) == positive).expand(len(valid), 3),
            correction="refined",
        )
        mean += torch.autograd.grad((weight * output.loss).sum(), scores)[0].sum(0)
    return float((mean.square() / p).sum() / 2)


def test_drift_of_refined_falls_with_the_square_of_n():
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.double)
    q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.double)
    drifts = [drift_of_refined(n, p, q) for n in (32, 64, 128)]
    assert drifts[0] / drifts[1] == pytest.approx(4, rel=0.1)
    assert drifts[1] / drifts[2] == pytest.approx(4, rel=0.05)
    assert "falls like (chi2 / n)² above" in TEXT
