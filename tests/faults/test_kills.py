"""Kills of every verb that writes: the same command works afterwards and gives the same files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from killable_verbs import KillableVerbs, WholeRun

PREPARE = ["prepare", "--interactions", "log.csv", "--order", "t"]
TRAIN = ["train", "tiny.toml", "--data", "data", "--out", "new", "--no-baselines"]
VERBS = {
    "prepare": [*PREPARE, "--out", "new"],
    "prepare_again": [*PREPARE, "--k-core", "2", "--out", "data"],
    "recipe": ["recipe", "--data", "data", "--out", "new.toml"],
    "train": TRAIN,
    "refit": [*TRAIN, "--refit"],
    "warm_start": [*TRAIN, "--init", "run"],
    "tune": ["tune", "tiny.toml", "--data", "data", "--out", "new", "--trials", "1"],
    "evaluate": ["evaluate", "run", "--split", "validation"],
    "evaluate_out": ["evaluate", "run", "--out", "new.json"],
    "baselines": ["baselines", "data", "--only", "item_knn", "--no-tune", "--save", "new"],
    "compare": ["compare", "run", "other", "--out", "new.json"],
    "recommend": ["recommend", "run", "--all-users", "--k", "3", "--out", "new.parquet"],
    "shards": ["recommend", "run", "--all-users", "--k", "3", "--out", "new.csv", "--shards", "2"],
    "similar": ["similar", "run", "--all-items", "--k", "3", "--out", "new.jsonl"],
    "index": ["index", "run", "--k", "3"],
    "export": ["export", "run", "--out", "new", "--format", "parquet"],
}
MOST = 25
"""States of a verb that the slow test continues from: enough for each kind of file."""
FULL = ("train", "export", "index", "recommend", "shards", "baselines")
"""Verbs that write large files."""
QUICK = ("prepare_again", "train", "index", "export")
"""Verbs whose files are written by different code."""


@pytest.fixture(scope="module")
def whole(
    verbs: KillableVerbs, start: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], WholeRun]:
    """Runs of the verbs to their end, each made once."""
    runs: dict[str, WholeRun] = {}

    def of(name: str) -> WholeRun:
        if name not in runs:
            folder = tmp_path_factory.mktemp(name)
            runs[name] = WholeRun.of(verbs, start, VERBS[name], folder)
        return runs[name]

    return of


@pytest.mark.parametrize("name", QUICK)
def test_command_after_a_kill_gives_the_same_files(name, verbs, whole):
    run = whole(name)
    kills = random.Random(name).sample(range(len(run.events)), 2)
    assert run.faults_after_kills(verbs, kills) == []


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.campaign) for name in FULL],
)
def test_full_disk_is_one_sentence_and_leaves_nothing(name, verbs, whole):
    assert whole(name).faults_of_full_disk(verbs, [600]) == []


@pytest.mark.campaign
@pytest.mark.parametrize("name", VERBS)
def test_command_after_any_kill_gives_the_same_files(name, verbs, whole):
    assert whole(name).faults_of_all_kills(verbs, most=MOST) == []
