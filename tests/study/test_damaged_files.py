"""Damaged files in the folder of a study: timed or counted again, or named in one sentence."""

import copy
import json
import runpy
from pathlib import Path

import pytest

from candid.errors import ArtifactError, Interrupted
from candid.study import parse_study, run_study
from candid.study.cell import STARTS, read_curve
from candid.study.cost import TIMINGS
from candid.study.folder import STUDY as STUDY_FILE
from candid.study.folder import open_folder

SMALL = runpy.run_path(str(Path(__file__).with_name("small_study.py")))
DEEP = b"[" * 100_000
DAMAGE = pytest.mark.parametrize(
    "content", [b"{", b"\xff", b"[1]", pytest.param(DEEP, id="nested")]
)


def small_study():
    table = copy.deepcopy(SMALL["STUDY"]) | {"grids": [{"arms": ["full_softmax"]}]}
    return parse_study(table, "study")


@DAMAGE
def test_damaged_description_of_a_study_is_named(tmp_path, content):
    (tmp_path / STUDY_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"study\.json is damaged; remove the folder"):
        open_folder(small_study(), tmp_path)


def test_damaged_times_and_starts_are_replaced(tmp_path, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("candid.study.cell.train_run", interrupt)
    with pytest.raises(Interrupted):
        run_study(small_study(), tmp_path)
    times = json.loads((tmp_path / TIMINGS).read_text())
    [starts] = (tmp_path / "cells").rglob(STARTS)
    counted = starts.read_text()
    assert json.loads(counted)["count"] == 0  # a signal does not count
    for content in (DEEP, b"[1]", json.dumps({name: "x" for name in times}).encode()):
        (tmp_path / TIMINGS).write_bytes(content)
        starts.write_bytes(content)
        with pytest.raises(Interrupted):
            run_study(small_study(), tmp_path)
        assert json.loads((tmp_path / TIMINGS).read_text()).keys() == times.keys()
        assert starts.read_text() == counted


def test_curve_has_the_validations_and_the_mean_weights_before_them(tmp_path):
    lines = [
        {"step": 1, "sample_weight": 2},
        {"step": 2, "sample_weight": 4},
        {"step": 2, "cpu_seconds": 0.5, "validation/ndcg@10": 0.1},
        {"step": 4, "cpu_seconds": 1.5, "validation/ndcg@10": 0.2, "validation/nll": 3.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    first, second = read_curve(tmp_path)
    assert (first.step, first.cpu_seconds, first.ndcg, first.nll) == (2, 0.5, 0.1, None)
    assert first.sample_weight == 3
    assert (second.step, second.nll, second.sample_weight) == (4, 3.0, None)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"\xff",
        b"3",
        pytest.param(DEEP, id="nested"),
        b'{"validation/ndcg@10": 0.1}',
        b'{"sample_weight": "x"}',
    ],
)
def test_damaged_line_of_a_curve_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl: line 2 is damaged; run the cell"):
        read_curve(tmp_path)


def test_missing_log_of_a_curve_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl cannot be read: no such file"):
        read_curve(tmp_path)
