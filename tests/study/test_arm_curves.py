"""Curves of the arms: means over seeds, pooled bins, and their JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from candid.study.arm_curves import ArmCurves, arm_curves
from candid.study.records import CalibrationBin, CurvePoint, Measured, PopularityGroup, read_records
from candid.study.study_cells import StudyCells

VALIDATIONS = (
    (CurvePoint(10, 1.0, 0.1, 6.0, 0.9), CurvePoint(20, 2.0, 0.2, 5.0, None)),
    (CurvePoint(10, 3.0, 0.3, 8.0, 0.7), CurvePoint(20, 4.0, 0.4, 5.0, 0.5)),
    (CurvePoint(10, 5.0, 0.5, None, 0.5),) * 3,
)
GROUPS = (
    (PopularityGroup("1", 7, Measured(0.1, 0.01), Measured(8.0)),),
    (PopularityGroup("1", 7, Measured(0.4, 0.01), Measured(5.0)),),
    (PopularityGroup("1", 7, Measured(0.1, 0.01), None),),
)
BINS = (
    (CalibrationBin(0.0, 0.1, 100, 0.05, 0.02), CalibrationBin(0.1, 1.0, 10, 0.5, 0.4)),
    (CalibrationBin(0.0, 0.1, 300, 0.01, 0.06),),
    (),
)


@pytest.fixture(scope="module")
def curves(tmp_path_factory, planted_study, planted_arm):
    folder = tmp_path_factory.mktemp("study")
    arms = {"refined": planted_arm(), "none": planted_arm(failed=(0, 1, 2))}
    planted_study({("popularity", 16): arms}, users=20, seeds=3).write(folder)
    records = [
        replace(
            one,
            curve=VALIDATIONS[one.key.seed],
            popularity=GROUPS[one.key.seed],
            calibration=BINS[one.key.seed],
        )
        for one in read_records(folder)
    ]
    return arm_curves(StudyCells(folder, records))


def test_curves_are_means_of_the_finished_seeds(curves):
    refined, full = curves
    assert (refined.arm, refined.point.num_candidates) == ("refined", 16)
    assert (full.arm, full.point.num_candidates) == ("full_softmax", 0)
    # The second validation is the last one of two of the seeds.
    one, two = refined.training
    assert (one.step, one.cpu_seconds, one.nll) == (10, pytest.approx(3.0), None)
    assert (one.ndcg, one.sample_weight) == pytest.approx((0.3, 0.7))
    assert (two.step, two.sample_weight) == (round(50 / 3), None)
    (group,) = refined.popularity
    assert (group.label, group.targets, group.nll) == ("1", 7, None)
    assert group.ndcg.value == pytest.approx(0.2)


def test_bins_of_calibration_are_pooled_over_pairs(curves):
    low, high = curves[0].calibration
    assert (low.low, low.high, low.pairs) == (0.0, 0.1, 400)
    assert (low.stated, low.observed) == pytest.approx((0.02, 0.05))
    assert high == BINS[0][1]


def test_curves_survive_json_with_five_digits(curves):
    for one in curves:
        table = json.loads(json.dumps(one.to_json(), allow_nan=False))
        read = ArmCurves.from_json(table)
        assert read.to_json() == table
        assert read.training[0].ndcg == pytest.approx(one.training[0].ndcg, rel=1e-5)
    assert curves[0].to_json()["training"][0]["cpu_seconds"] == 3.0
    third = replace(curves[0], calibration=(CalibrationBin(0.0, 1.0, 3, 1 / 3, 2 / 3),))
    assert third.to_json()["calibration"][0]["stated"] == 0.33333
