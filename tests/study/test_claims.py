"""Verdicts of the claims on records with planted differences."""

from __future__ import annotations

import json

import numpy as np
import pytest

from candid.study.claims import CLAIMS, judge_claims
from candid.study.drift_cells import drift_cells
from candid.study.grid import Setting
from candid.study.study_cells import StudyCells
from candid.study.verdicts import Evidence, judge_all

POINTS = [("popularity", n) for n in (16, 64, 256)]
DRIFTS = {16: 0.3, 64: 0.1, 256: 0.02}


@pytest.fixture(scope="module")
def study(tmp_path_factory, planted_study, planted_arm):
    """Return a function that writes a study as predicted, with changes, and judges its claims."""

    def write(changes=None, **settings):
        points = {}
        for sampler, n in POINTS:
            drift = DRIFTS[n]
            points[sampler, n] = {
                "none": planted_arm(ndcg=-0.25, nll=0.6, drift=0.5 + 1 / n, gradient_bias=0.5),
                "published_code": planted_arm(
                    ndcg=-0.05, nll=0.4, drift=0.4 + 1 / n, gradient_bias=0.2
                ),
                "logq_kept": planted_arm(drift=0.0, gradient_bias=0.6, cpu_seconds=20),
                "refined": planted_arm(
                    ndcg=-drift / 10, nll=drift, drift=drift, gradient_bias=drift / 10
                ),
                "refined_jackknife": planted_arm(
                    nll=drift / 2, drift=drift / 2, gradient_bias=0.01
                ),
                **(changes or {}).get(n, {}),
            }
        folder = tmp_path_factory.mktemp("study")
        planted_study(points, **settings).write(folder)
        return {one["name"]: one for one in judge_claims(StudyCells(folder))}

    return write


@pytest.fixture(scope="module")
def predicted(study):
    """The claims on a study that came out as predicted."""
    return study()


def findings(claim):
    return [one["verdict"] for one in claim["findings"]]


@pytest.fixture(scope="module")
def huge(study):
    """The same with a catalog of 1,000,000 items."""
    return study(num_items=1_000_000)


@pytest.mark.parametrize("name", ["C1", "C2", "C3", "C4", "C6", "C7"])
def test_claim_is_supported_where_its_effect_is_planted(predicted, huge, name):
    claims = huge if name == "C7" else predicted
    assert claims[name]["verdict"] == "supported"
    assert set(findings(claims[name])) == {"supported"}


@pytest.mark.parametrize("change", [{"ndcg": -0.02}, {"nll": 0.1}, {"cpu_seconds": 90}], ids=str)
@pytest.mark.parametrize(("name", "num_items"), [("C6", 60_000), ("C7", 1_000_000)])
def test_cost_claim_is_against_where_the_largest_n_is_behind_or_slow(
    study, planted_arm, name, num_items, change
):
    behind = planted_arm(**{"cpu_seconds": 20, **change})
    claim = study({256: {"logq_kept": behind}}, num_items=num_items)[name]
    assert claim["verdict"] == "against"
    assert findings(claim) == ["against"]


def test_every_claim_without_its_cells_is_not_decided(tmp_path):
    for one in judge_claims(StudyCells(tmp_path)):
        assert one["verdict"] == "not decided"
        assert one["name"] == "C5" or one["reason"] == "the study has no cell that the test needs"
        assert one["prediction"]
        assert one["needs"]
        assert one["test"]
    assert [claim.name for claim in CLAIMS] == [f"C{number}" for number in range(1, 8)]


def test_catalogs_beside_the_sizes_of_a_claim_are_the_reason_that_it_is_not_decided(
    predicted, huge
):
    at_least = "no catalog of the study has at least"
    for claim, reason in (
        (predicted["C7"], f"{at_least} 1,000,000 items"),
        (huge["C6"], f"{at_least} 50,000 and fewer than 1,000,000 items"),
    ):
        assert claim["verdict"] == "not decided"
        assert claim["findings"] == []
        assert claim["reason"] == reason


def test_catalog_has_the_items_that_are_compared_and_ranked(study, planted_arm):
    """V is twice as large: it has items that training never has as a target."""
    assert study(num_items=49_999)["C6"]["reason"].startswith("no catalog of the study has")
    (finding,) = study({256: {"logq_kept": planted_arm(nll=0.5)}}, num_items=50_000)["C6"][
        "findings"
    ]
    assert finding["detail"].startswith("popularity, n = 256")


def test_share_of_the_candidates_is_that_of_the_compared_items(
    tmp_path, planted_study, planted_arm
):
    """600 candidates are 1 % of 60,000 items; 601 to 1,200 are only 1 % of V."""
    points = {
        ("popularity", n): {"logq_kept": planted_arm(cpu_seconds=20)} for n in (600, 601, 1200)
    }
    planted_study(points, users=50).write(tmp_path)
    claims = {one["name"]: one for one in judge_claims(StudyCells(tmp_path))}
    (finding,) = claims["C6"]["findings"]
    assert finding["detail"].startswith("popularity, n = 600")


def test_catalog_of_unknown_size_may_be_in_the_range_of_a_claim(tmp_path):
    claims = judge(tmp_path, [("none", 0, "full_softmax"), ("popularity", 16, "logq_kept")])
    for name in ("C6", "C7"):
        (finding,) = claims[name]["findings"]
        assert finding["detail"] == "no cell is finished: the catalog is unknown"


def test_verdicts_are_plain_json(predicted):
    assert json.loads(json.dumps(predicted, allow_nan=False))["C1"]["verdict"] == "supported"


def test_planted_counterexamples_are_against(study, planted_arm):
    """One grid point that contradicts is enough, and the others stay supported."""
    claims = study(
        {
            16: {
                "none": planted_arm(ndcg=-0.1, drift=0.5),
                "refined": planted_arm(ndcg=0.02, nll=-0.3, drift=0.3),
                "logq_kept": planted_arm(cpu_seconds=20),
            },
            256: {"logq_kept": planted_arm(nll=0.1, cpu_seconds=90)},
        }
    )
    for name in ("C1", "C2", "C3", "C4", "C6"):
        assert claims[name]["verdict"] == "against", name
    assert findings(claims["C1"]) == ["against", "supported", "supported"]
    assert findings(claims["C4"]) == ["against", "supported", "supported"]
    assert claims["C1"]["reason"] == (
        "of 3 grid points: supported at 2, against at 1, not decided at 0"
    )


def test_small_study_decides_nothing(study):
    claims = study(users=12, seeds=5, noise=0.3)
    assert claims["C3"]["verdict"] == "not decided"
    assert "against" not in findings(claims["C3"])


def test_claim_without_enough_seeds_is_not_decided(study, planted_arm):
    claims = study(seeds=4)
    for name in ("C1", "C2", "C3", "C4", "C6"):
        assert claims[name]["verdict"] == "not decided"
        assert claims[name]["reason"].endswith("no arms to compare with 5 planned seeds")
    claims = study({16: {"logq_kept": planted_arm(failed=(0, 1, 2, 3), cpu_seconds=20)}})
    assert claims["C3"]["findings"][0]["detail"] == "1 common seed finished; needs 5"
    assert claims["C1"]["findings"][0]["detail"] == "1 common seed finished; needs 5"
    assert claims["C1"]["verdict"] == claims["C3"]["verdict"] == "not decided"


def test_grid_points_with_too_few_planned_seeds_are_left_out(tmp_path, planted_study, planted_arm):
    """A wide grid with one seed beside a grid point with five does not block the claim."""
    arms = {"logq_kept": planted_arm(), "refined": planted_arm(nll=0.1)}
    few = {name: planted_arm(seeds=1) for name in arms}
    points = {("popularity", 16): arms, ("popularity", 64): few}
    planted_study(points).write(tmp_path)
    planned = {
        Setting("films", "time", "small", "popularity", n, arm): tuple(range(seeds))
        for n, seeds in ((16, 5), (64, 1))
        for arm in arms
    }
    judged = {one["name"]: one for one in judge_claims(StudyCells(tmp_path, planned=planned))}
    assert judged["C3"]["verdict"] == "supported"
    assert judged["C3"]["reason"].endswith(
        "; 1 grid point has no arms to compare with 5 planned seeds"
    )
    assert [one["label"] for one in judged["C2"]["findings"]] == [
        "films, time, small, popularity, n = 16, against logq_kept"
    ]


def test_grid_point_without_enough_seeds_is_counted_once(tmp_path):
    """Of two grid points, one has a test against kept hits alone, and the other has none."""
    arms = ("refined", "logq_kept", "logq_masked")
    seeds = {("popularity", n, arm): 1 if n == 16 else 5 for n in (16, 64) for arm in arms}
    seeds["popularity", 64, "logq_masked"] = 1
    assert judge_plan(tmp_path, seeds)["C2"]["reason"] == (
        "of 1 grid point: supported at 0, against at 0, not decided at 1; 1 grid point has no arms "
        "to compare with 5 planned seeds"
    )


def test_uniform_samples_are_not_counted_as_left_out(tmp_path):
    for sampler, reason in (
        ("popularity", "1 grid point has no arms to compare with 5 planned seeds"),
        ("uniform", "the study has no cell that the test needs"),
    ):
        seeds = dict.fromkeys([(sampler, 16, "none"), (sampler, 16, "logq_kept")], 1)
        assert judge_plan(tmp_path, seeds)["C1"]["reason"] == reason


def judge(folder, planned):
    """Judge a study in which five seeds of each (sampler, n, arm) are planned."""
    return judge_plan(folder, dict.fromkeys(planned, 5))


def judge_plan(folder, seeds):
    """Judge a study with the planned number of seeds of each (sampler, n, arm)."""
    settings = {
        Setting("films", "time", "small", *place): tuple(range(number))
        for place, number in seeds.items()
    }
    return {one["name"]: one for one in judge_claims(StudyCells(folder, planned=settings))}


def test_planned_arm_without_finished_seeds_blocks_a_verdict_on_all_arms(
    tmp_path, planted_study, planted_arm
):
    arms = {"logq_kept": planted_arm(), "refined": planted_arm(nll=0.1)}
    points = {("popularity", n): arms for n in (16, 64)}
    planted_study(points).write(tmp_path)
    planned = [("popularity", n, arm) for n in (16, 64) for arm in arms]
    assert judge(tmp_path, planned)["C3"]["verdict"] == "supported"
    for missing in (("popularity", 64, "none"), ("popularity", 64, "logq_distinct")):
        claim = judge(tmp_path, [*planned, missing])["C3"]
        assert claim["verdict"] == "not decided"
        assert findings(claim) == ["supported", "not decided"]
    unstarted = [("popularity", 256, arm) for arm in arms]
    claim = judge(tmp_path, [*planned, *unstarted])["C3"]
    assert claim["verdict"] == "not decided"
    assert claim["findings"][2]["detail"] == "0 common seeds finished; needs 5"


def test_cost_claim_reads_the_largest_n_all_samplers_and_blocks_of_the_plan(
    tmp_path, planted_study, planted_arm
):
    full = ("none", 0, "full_softmax")
    level, behind = tmp_path / "level", tmp_path / "behind"
    for folder, ndcg in ((level, 0.0), (behind, -0.1)):
        folder.mkdir()
        points = {("popularity", 16): {"logq_kept": planted_arm(ndcg=ndcg, cpu_seconds=20)}}
        planted_study(points, users=300).write(folder)
    planned = [full, ("popularity", 16, "logq_kept")]
    assert judge(level, planned)["C6"]["verdict"] == "supported"
    assert judge(behind, planned)["C6"]["verdict"] == "against"
    # A larger n of the same sampler that is planned, but not finished.
    for folder in (level, behind):
        claim = judge(folder, [*planned, ("popularity", 256, "logq_kept")])["C6"]
        assert findings(claim) == ["not decided"]
    # Another sampler may still be level; with a level one, it is one more chance.
    for more in (("uniform", 16, "logq_kept"), ("in_batch", 0, "logq_kept")):
        assert findings(judge(behind, [*planned, more])["C6"]) == ["not decided"]
        assert findings(judge(level, [*planned, more])["C6"]) == ["supported"]
    # An n above 1 % of the 60,000 items does not take part.
    assert judge(level, [*planned, ("uniform", 1024, "logq_kept")])["C6"]["verdict"] == "supported"
    # Another dataset without a finished cell.
    settings = {
        Setting(name, "time", "small", *place): tuple(range(5))
        for name in ("films", "songs")
        for place in planned
    }
    judged = {one["name"]: one for one in judge_claims(StudyCells(level, planned=settings))}
    assert findings(judged["C6"]) == ["supported", "not decided"]
    assert judged["C6"]["verdict"] == "not decided"
    assert judged["C6"]["findings"][1]["detail"] == "no cell is finished: the catalog is unknown"


def test_missing_cells_and_a_difference_at_the_margin_decide_nothing(study, planted_arm):
    claims = study({16: {"refined": planted_arm(ndcg=0.002, nll=0.3, drift=None)}}, full=None)
    # As far ahead as the margin: neither within it nor beyond it.
    assert findings(claims["C4"]) == ["not decided", "supported", "supported"]
    assert claims["C2"]["findings"][0]["detail"] == "drift was not measured"
    assert claims["C6"]["reason"] == "1 grid point has no arms to compare with 5 planned seeds"
    assert claims["C5"]["reason"].startswith("0 cells of 0 datasets with a drift; needs 10 cells")


def test_arms_without_a_common_seed_are_not_decided(study, planted_arm):
    claims = study({16: {"logq_kept": planted_arm(failed=(0, 1)), "refined": planted_arm(seeds=2)}})
    for name in ("C2", "C3", "C4"):
        assert claims[name]["findings"][0]["detail"].startswith("0 common seeds finished; needs")


def test_distinct_items_may_stand_for_kept_hits(study, planted_arm):
    behind = planted_arm(ndcg=-0.02, cpu_seconds=20)
    claims = study({n: {"logq_kept": behind, "logq_distinct": planted_arm()} for n in DRIFTS})
    assert claims["C3"]["verdict"] == "supported"
    assert claims["C3"]["findings"][0]["detail"].startswith("logq_distinct")


def ranked(folder, planted_study, planted_arm, sign=1, datasets=5, full=None):
    """Judge C5 on datasets where the excess NLL rises with the drift, or falls."""
    for number in range(datasets):
        arms = {
            name: planted_arm(
                nll=0.5 + sign * drift, drift=drift, gradient_bias=0.6 - sign * drift / 10
            )
            for name, drift in (("refined", 0.1 + number / 100), ("none", 0.4 + number / 100))
        }
        arms["logq_kept"] = planted_arm(nll=0.5, drift=0.0, gradient_bias=0.6)
        study = planted_study(
            {("popularity", 16): arms},
            dataset=f"films {number}",
            users=50,
            full=full or planted_arm(),
        )
        study.write(folder)
    return next(one for one in judge_claims(StudyCells(folder)) if one["name"] == "C5")


@pytest.mark.parametrize(("sign", "verdict"), [(1, "supported"), (-1, "against")])
def test_drift_that_ranks_the_excess_is_supported_and_its_opposite_against(
    tmp_path, planted_study, planted_arm, sign, verdict
):
    claim = ranked(tmp_path, planted_study, planted_arm, sign)
    assert claim["verdict"] == verdict
    assert claim["reason"].startswith("15 cells: rank correlation with the excess NLL ")


@pytest.mark.parametrize("few", ["datasets", "common seeds"])
def test_drift_of_few_datasets_or_common_seeds_is_not_decided(
    tmp_path, planted_study, planted_arm, few
):
    full = planted_arm(failed=(1,)) if few == "common seeds" else None
    datasets = 4 if few == "datasets" else 5
    claim = ranked(tmp_path, planted_study, planted_arm, datasets=datasets, full=full)
    assert claim["verdict"] == "not decided"


def test_drift_and_gradient_bias_are_those_of_the_common_seeds_and_follow_one_rule(
    tmp_path, planted_study, planted_arm
):
    arms = {"refined": planted_arm(drift=0.0015, gradient_bias=0.0015)}
    full = planted_arm(failed=(0, 1))
    planted_study({("popularity", 16): arms}, users=20, full=full).write(tmp_path)
    (cell,) = drift_cells(StudyCells(tmp_path))
    assert cell.seeds == 3
    for value, error in (
        (cell.drift, cell.drift_error),
        (cell.gradient_bias, cell.gradient_bias_error),
    ):
        assert (value, error) == pytest.approx((0.0015, 0.001))
    assert (cell.drift_is_above_its_error, cell.bias_is_above_its_error) == (False, False)
    assert (cell.chi2_users, cell.drift_users) == (256, 64)


def test_value_of_a_drift_below_twice_its_error_is_kept(tmp_path, planted_study, planted_arm):
    arms = {"refined": planted_arm(drift=0.0015), "refined_jackknife": planted_arm(drift=0.0025)}
    planted_study({("popularity", 16): arms}, users=20).write(tmp_path)
    cells = drift_cells(StudyCells(tmp_path))
    assert [one.drift for one in cells] == pytest.approx([0.0015, 0.0025])
    assert [one.drift_is_above_its_error for one in cells] == [False, True]


def test_small_drifts_rank_the_excess_as_measured_and_are_zero_beside_it(
    tmp_path, planted_study, planted_arm
):
    """All drifts are below twice their error of .001, and still in the order of the excess."""
    for number in range(5):
        arms = {
            name: planted_arm(nll=1000 * drift, drift=drift, gradient_bias=0.6 - drift)
            for name, drift in (
                ("refined", 0.0001 * (number + 1)),
                ("none", 0.0001 * (number + 6)),
            )
        }
        planted_study({("popularity", 16): arms}, dataset=f"films {number}", users=50).write(
            tmp_path
        )
    claim = next(one for one in judge_claims(StudyCells(tmp_path)) if one["name"] == "C5")
    assert claim["verdict"] == "supported"
    assert claim["reason"].startswith("10 cells: rank correlation with the excess NLL 1.00 ")
    assert (
        "; 10 drifts are below twice their error, as 0: nan (nan to nan); 0 gradient"
        in (claim["reason"])
    )


def test_datasets_of_one_source_are_drawn_together(tmp_path, planted_study, planted_arm):
    """Four datasets of one source agree; a fifth one that does not is drawn alone as often."""
    ranked(tmp_path, planted_study, planted_arm, datasets=4)
    arms = {
        name: planted_arm(nll=5 - drift, drift=drift, gradient_bias=0.1)
        for name, drift in (("refined", 0.1), ("none", 0.2), ("logq_kept", 0.3))
    }
    planted_study({("popularity", 16): arms}, dataset="other", users=50).write(tmp_path)
    sources = {f"films {number}": "films" for number in range(4)}
    reasons = [
        next(
            one for one in judge_claims(StudyCells(tmp_path, sources=given)) if one["name"] == "C5"
        )["reason"]
        for given in (None, sources)
    ]
    low = [float(reason.split(" (")[1].split(" to ")[0]) for reason in reasons]
    assert low[1] < low[0]
    assert low[1] == -1.0


def test_grid_points_are_adjusted_against_chance_but_not_for_support():
    many = [Evidence(f"{number}", "", 0.04, 0.03) for number in range(4)]
    assert {one.verdict for one in judge_all(many).findings} == {"supported"}
    assert judge_all([Evidence("one", "", 0.96, 0.03)]).verdict == "against"


def test_chance_alone_rarely_speaks_against_a_true_claim():
    """C4 with no difference between refined and logq_kept, 8 grid points, normal tests."""
    from scipy.stats import norm

    p = norm.cdf(np.random.default_rng(0).standard_normal((400, 8)))
    verdicts = [judge_all([Evidence("", "", 1 - x, x) for x in row]).verdict for row in p]
    assert np.mean([one == "against" for one in verdicts]) < 0.08
