"""``candid study``: a run with its progress; page and summary from the records (``--report``)."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from candid.cli import app
from candid.component import toml_value
from candid.errors import ArtifactError
from candid.study import StudySummary, append_record, read_records, read_study
from candid.study.folder import Commits
from candid.study.grid import Grid

SMALLEST = runpy.run_path(str(Path(__file__).parents[1] / "study" / "small_study.py"))["STUDY"]
"""A study of seconds."""
STUDY = """
name = "small"
seeds = [0, 1]
budget = { cpu_hours = 1 }
pilot = { learning_rates = [0.01] }

[datasets.films]
synthetic = { num_users = 50, num_items = 20 }
splits = { time = { kind = "leave-one-out" } }

[towers.small.model]
query_tower = { type = "user_embedding", dim = 4 }
item_tower = { type = "item_embedding", dim = 4 }

[[grids]]
num_candidates = [16]
arms = ["none", "logq_kept", "refined", "full_softmax"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, planted_studies):
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY)
    out = folder / "out"
    out.mkdir()
    arm = planted_studies.PlantedArm
    arms = {"none": arm(ndcg=-0.3, drift=None), "logq_kept": arm(drift=None), "bce": arm()}
    points = {("popularity", 16): arms}
    planted_studies.PlantedStudy(points, users=30, seeds=3).write(out)
    grid, changed = Grid(read_study(folder / "study.toml")), {"training": {"max_steps": 7}}
    records = read_records(out)
    (out / "records.jsonl").unlink()
    for record in records:
        settings = grid.config(record.key).model_dump(mode="json")
        is_stale = (record.key.arm, record.key.seed) == ("logq_kept", 1)
        append_record(out, replace(record, settings=changed if is_stale else settings))
    return folder


def invoke(folder, *more):
    command = ["study", str(folder / "study.toml"), "--out", str(folder / "out"), "--report"]
    return CliRunner().invoke(app, [*command, *more])


def test_report_writes_page_and_summary_from_the_records(folder):
    result = invoke(folder, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["records_left_out"] == 1  # of other settings
    assert document["claims"]["C1"] == "not decided"  # it needs five seeds
    assert document["claims"]["C3"] == "not decided"
    assert document["page"] == str(folder / "out" / "study.html")
    assert "candid study: small" in (folder / "out" / "study.html").read_text()
    table = json.loads((folder / "out" / "summary.json").read_text())
    out = folder / "out"
    assert table.pop("command") == f"candid study {folder / 'study.toml'} --out {out}"
    counts = table.pop("records")
    assert [counts["phases"][phase]["finished"] for phase in ("pilot", "main")] == [0, 5]
    hours = sum(100 + seed for seed in (0, 1, 0, 0, 1)) / 3600
    assert counts["phases"]["main"]["training_cpu_hours"] == pytest.approx(hours)
    summary = StudySummary.from_json(table)
    assert summary.to_json() == table
    # bce is not in the study file, nor is seed 2; refined is, and has no record.
    assert {row.arm: row.seeds for row in summary.rows} == {
        "none": 2,
        "logq_kept": 1,
        "refined": 0,
        "full_softmax": 2,
    }


def test_report_without_records_is_refused_in_one_sentence(folder):
    (folder / "empty").mkdir()
    result = invoke(folder, "--out", str(folder / "empty"))
    assert isinstance(result.exception, ArtifactError)
    assert str(result.exception).endswith(
        "has no records of the study; run candid study without --report first"
    )


def test_study_runs_its_cells_and_shows_the_remaining_time(candid, tmp_path):
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text("".join(f"{key} = {toml_value(part)}\n" for key, part in SMALLEST.items()))
    git = ["git", "-c", "user.name=candid", "-c", "user.email=candid@localhost", "-C", tmp_path]
    for command in (["init", "-q"], ["add", file], ["commit", "-q", "-m", "Add a study"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    answer = candid("study", file, "--out", out)
    assert answer.code == 0, answer.err
    estimate = (
        r"about \S+ CPU hours for the missing cells of 3 in the pilot and 3 main ones, 0 spent"
    )
    assert re.search(estimate, answer.err)
    progress = [line for line in answer.err.splitlines() if " left)" in line]
    counts = [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (3, 3)]
    records = read_records(out)
    for line, record, (pilot, main) in zip(progress, records, counts, strict=True):
        assert line.startswith(f"{record.key.label}  ndcg@10 0.")
        status = rf"CPU (s|min) \(pilot {pilot}/3, main {main}/3, (\S+) CPU (s|min) left\)$"
        remaining = re.search(status, line)
        assert remaining, line
        assert (float(remaining[2]) == 0) == (main == 3)
        assert record.commit == head.stdout.strip()
        assert record.code_commit == Commits.of(tmp_path).code
    counts = json.loads((out / "summary.json").read_text())["records"]
    assert {phase: one["finished"] for phase, one in counts["phases"].items()} == {
        "pilot": 3,
        "main": 3,
    }
    assert counts["commits"] == [head.stdout.strip()]
    assert "complete: pilot 3/3, main 3/3, " in answer.out
    assert answer.out.splitlines()[-1] == f"page: {out / 'study.html'}"
    # The same command has nothing to run.
    answer = candid("study", file, "--out", out, "--json")
    assert answer.document["main"] == {"ended": 3, "cells": 3}
    assert answer.document["remaining_cpu_hours"] == 0
    assert answer.err == ""
    assert len(read_records(out)) == 6
