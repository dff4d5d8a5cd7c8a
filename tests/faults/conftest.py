"""Input of the tests about kills: a tiny log, its dataset, recipe and run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from killable_verbs import KillableVerbs

RECIPE = """
name = "tiny"
threads = 1
device = "cpu"
loss = {type = "full_softmax"}
[batches]
batch_size = 16
max_length = 4
num_workers = 0
[model.query_tower]
type = "causal_transformer"
dim = 4
num_blocks = 1
num_heads = 1
[model.item_tower]
type = "item_embedding"
dim = 4
[training]
epochs = 2
trackers = ["jsonl"]
log_every = 1
[evaluation]
ks = [1, 5]
metric = "ndcg@5"
intervals = false
"""


@pytest.fixture(scope="session")
def verbs() -> Iterator[KillableVerbs]:
    """A process that runs verbs and kills them."""
    with KillableVerbs() as running:
        yield running


@pytest.fixture(scope="session")
def start(verbs: KillableVerbs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, a recipe, the dataset ``data``, and two equal runs."""
    folder = tmp_path_factory.mktemp("start")
    rows = [f"{user},{(3 * user + step) % 8},{step}" for user in range(12) for step in range(6)]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,t", *rows]) + "\n")
    (folder / "tiny.toml").write_text(RECIPE)
    for command in (
        ["prepare", "--interactions", "log.csv", "--order", "t", "--out", "data"],
        ["train", "tiny.toml", "--data", "data", "--out", "run", "--no-baselines"],
    ):
        ended = verbs.run(folder, *command)
        assert ended.code == 0, ended.err
    shutil.copytree(folder / "run", folder / "other")
    return folder
