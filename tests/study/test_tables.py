"""Rows of a study: means, differences to the reference, failed and missing cells."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from candid.study.grid import Setting
from candid.study.records import read_records
from candid.study.study_cells import GridPoint, StudyCells
from candid.study.tables import COLUMNS, ArmRow, arm_rows
from candid.study.user_values import UserValues, read_users, write_users


@pytest.fixture(scope="module")
def folder(tmp_path_factory, planted_study, planted_arm):
    folder = tmp_path_factory.mktemp("study")
    points = {
        ("popularity", 64): {
            "none": planted_arm(ndcg=-0.25, nll=1.0),
            "refined": planted_arm(ndcg=-0.01, nll=0.05),
            "logq_kept": planted_arm(),
            "bce": planted_arm(failed=(0, 1, 2, 3, 4)),
        },
        ("popularity", 16): {
            "logq_kept": planted_arm(),
            "refined": planted_arm(failed=(2,), seeds=4),
        },
    }
    planted_study(points, users=300).write(folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return {(row.point.num_candidates, row.arm): row for row in arm_rows(StudyCells(folder))}


def test_rows_are_ordered_by_n_and_end_with_the_whole_catalog(rows):
    assert list(rows) == [
        (16, "logq_kept"),
        (16, "refined"),
        (16, "full_softmax"),
        (64, "none"),
        (64, "logq_kept"),
        (64, "refined"),
        (64, "bce"),
        (64, "full_softmax"),
    ]


def test_planted_difference_is_in_its_interval(rows):
    for metric, value in (("ndcg", -0.25), ("nll", 1.0)):
        gap = rows[64, "none"].metrics[metric].difference
        assert gap.low < value < gap.high
        assert gap.adjusted_p_value < 0.001
        assert (gap.users, gap.seeds) == (300, 5)


def test_mean_and_sd_are_those_of_the_seeds(folder, rows):
    records = [one for one in read_records(folder) if one.key.arm == "none"]
    by_seed = [read_users(folder, one).ndcg.mean() for one in records]
    summary = rows[64, "none"].metrics["ndcg"]
    assert summary.mean == pytest.approx(np.mean(by_seed))
    assert summary.sd == pytest.approx(np.std(by_seed, ddof=1))
    assert rows[64, "none"].cpu_seconds == 102


def test_p_values_are_adjusted_over_all_differences_of_the_data(folder, rows):
    study = StudyCells(folder)
    gaps = {
        key: study.difference(row.point, row.arm, "logq_kept", "ndcg")
        for key, row in rows.items()
        if row.arm not in ("logq_kept", "bce")
    }
    smallest = min(gaps, key=lambda key: gaps[key].p_value)
    adjusted = rows[smallest].metrics["ndcg"].difference.adjusted_p_value
    assert adjusted == pytest.approx(len(gaps) * gaps[smallest].p_value)


def test_failed_and_missing_cells_are_shown(rows):
    assert rows[16, "refined"].cells[:3] == ["refined", "0.01", "3 of 5; 1 failed"]
    failed = dict(zip(COLUMNS, rows[64, "bce"].cells, strict=True))
    assert failed["seeds"] == "0 of 5; 5 failed"
    assert failed["NDCG@10"] == failed["CPU seconds"] == "–"
    assert rows[64, "bce"].errors[0] == "the loss is nan at step 3; lower the learning rate"
    reference = dict(zip(COLUMNS, rows[64, "logq_kept"].cells, strict=True))
    assert reference["NLL: difference"] == "reference"


def test_seeds_of_one_arm_alone_are_left_out_of_a_difference(folder):
    study = StudyCells(folder)
    point = GridPoint("films", "time", "small", "popularity", 16)
    values, seeds = study.values(point, ("refined", "logq_kept"), "nll")
    assert seeds == [0, 1, 3]
    assert values["refined"].shape == values["logq_kept"].shape == (300, 3)


def test_rate_of_the_whole_catalog_at_an_edge_is_marked_at_all_its_grid_points(folder):
    edges = [
        Setting("films", "time", "small", "none", 0, "full_softmax"),
        Setting("films", "time", "small", "popularity", 16, "refined"),
    ]
    marked = arm_rows(StudyCells(folder, at_edge=edges))
    assert [(row.point.num_candidates, row.arm) for row in marked if row.rate == "0.01*"] == [
        (16, "refined"),
        (16, "full_softmax"),
        (64, "full_softmax"),
    ]
    assert {row.rate_is_at_edge for row in marked} == {True, False}
    assert {row.rate_is_at_edge for row in arm_rows(StudyCells(folder))} == {None}


def test_rows_survive_json(rows):
    for row in rows.values():
        assert ArmRow.from_json(json.loads(json.dumps(row.to_json(), allow_nan=False))) == row


def test_users_are_matched_by_id_and_undefined_ones_left_out(tmp_path, planted_study, planted_arm):
    arms = {"refined": planted_arm(nll=0.5), "logq_kept": planted_arm()}
    planted_study({("popularity", 16): arms}, users=50, seeds=2, full=None).write(tmp_path)
    for record in read_records(tmp_path):
        if record.key.arm == "refined":
            read = read_users(tmp_path, record)
            kept = np.arange(10, 50)
            nll = read.nll[kept]
            nll[0] = np.nan
            write_users(
                tmp_path,
                record.key,
                UserValues(read.user_ids[kept], read.ndcg[kept], nll, read.decile[kept], nll),
            )
    point = GridPoint("films", "time", "small", "popularity", 16)
    gap = StudyCells(tmp_path).difference(point, "refined", "logq_kept", "nll")
    assert gap.users == 39
    assert gap.error < 0.05  # users differ by 1 nat: other pairs have a large error
    assert gap.low < 0.5 < gap.high


def test_cells_of_an_earlier_learning_rate_are_left_out(tmp_path, planted_study, planted_arm):
    planted_study({("popularity", 16): {"refined": planted_arm()}}, users=5, seeds=2).write(
        tmp_path
    )
    records = read_records(tmp_path)
    earlier = [replace(one, key=replace(one.key, lr=0.5)) for one in records]
    study = StudyCells(tmp_path, [*earlier, *records])
    assert {one.key.lr for one in study.cells(study.points[0], "refined")} == {0.01}
    assert study.arms(study.points[0]) == ["refined"]


def test_planned_cells_without_a_record_are_missing(tmp_path, planted_study, planted_arm):
    planted_study({("popularity", 16): {"refined": planted_arm()}}, users=5, seeds=2).write(
        tmp_path
    )
    planned = {
        Setting("films", "time", "small", sampler, n, arm): (0, 1, 2)
        for sampler, n, arm in (
            ("popularity", 16, "refined"),
            ("popularity", 16, "bce"),
            ("uniform", 16, "refined"),
            ("none", 0, "full_softmax"),
        )
    }
    rows = arm_rows(StudyCells(tmp_path, planned=planned))
    assert [(row.point.sampler, *row.cells[:3]) for row in rows] == [
        ("popularity", "refined", "0.01", "2 of 3"),
        ("popularity", "bce", "–", "missing"),
        ("popularity", "full_softmax", "0.01", "2 of 3"),
        ("uniform", "refined", "–", "missing"),
        ("uniform", "full_softmax", "0.01", "2 of 3"),
    ]
