"""Two small runs, and a server process that serves them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
import torch

from candid.checksums import write_sealed_json
from candid.config import parse_config
from candid.data import PreparedDataset, Role, open_dataset
from candid.index import UsearchIndex, write_snapshot
from candid.runs import load_run, model_fingerprint, train_run
from candid.serve.bundle import open_bundle
from candid.serve.config import ServeConfig
from candid.serve.model_version import ModelVersion

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from serve_load import ADMIN, start_server

NUM_USERS, NUM_ITEMS, LENGTH = 40, 30, 8
DAY = 86_400_000_000
BEGIN = 1_600_000_000_000_000
KEY = "a key to read"


def dataset() -> PreparedDataset:
    """Films that users buy or view; user 40 has no history. Source ids of films begin at 100."""
    rng = np.random.default_rng(0)
    item_ids = np.concatenate([rng.permutation(NUM_ITEMS - 2)[:LENGTH] for _ in range(NUM_USERS)])
    offsets = np.append(np.arange(0, NUM_USERS * LENGTH + 1, LENGTH), NUM_USERS * LENGTH)
    genres = [["Drama"], ["Comedy", "Drama"], ["Horror"], []]
    return PreparedDataset(
        item_ids=item_ids.astype(np.int32),
        user_offsets=offsets.astype(np.int64),
        roles=np.full(len(item_ids), Role.TRAIN, dtype=np.uint8),
        users=pl.DataFrame(
            {
                "source_id": [f"u{user}" for user in range(NUM_USERS + 1)],
                "age": [20 + user for user in range(NUM_USERS + 1)],
            }
        ),
        items=pl.DataFrame(
            {
                "source_id": np.arange(NUM_ITEMS) + 100,
                "title": [None if i == 3 else f"The {i}th Film" for i in range(NUM_ITEMS)],
                "genres": [genres[i % 4] for i in range(NUM_ITEMS)],
                "tags": [["old|long", "new", None][i % 3] for i in range(NUM_ITEMS)],
                "year": [None if i == 5 else 1990 + i for i in range(NUM_ITEMS)],
                "score": [float("nan") if i == 7 else i / 10 for i in range(NUM_ITEMS)],
            }
        ),
        timestamps=BEGIN + np.cumsum(rng.integers(1, 90, len(item_ids))) * DAY,
        event_types=(np.arange(len(item_ids)) % 3 == 0).astype(np.uint8),
        event_type_names=("buy", "view"),
        target_event_types=("buy",),
    )


TRAINING = {"max_steps": 4, "trackers": [], "warmup_steps": 0, "lr": 0.05}
FILMS = {
    "name": "films",
    "threads": 1,
    "features": {
        "item": {"genres": {"type": "bag"}, "year": {"type": "number"}},
        "user": {"age": {"type": "number"}},
        "context": {
            "since": {"type": "number", "scale": "quantile"},
            "event_type": {"type": "categorical"},
            "last_event_type": {"type": "categorical"},
        },
    },
    "batches": {"max_length": 5, "batch_size": 32, "windows": "last"},
    "model": {
        "query_tower": {
            "type": "joined",
            "dim": 16,
            "towers": [
                {
                    "type": "causal_transformer",
                    "dim": 16,
                    "num_blocks": 1,
                    "time_bias": True,
                },
                {"type": "user_features", "id_mode": "none", "dim": 16},
                {"type": "context_features", "dim": 16},
            ],
        },
        "item_tower": {"type": "item_features", "dim": 16},
    },
    "loss": {"type": "full_softmax"},
    "training": TRAINING,
    "evaluation": {"ks": [10]},
}
BY_USER = {
    "name": "by-user",
    "threads": 1,
    "model": {
        "query_tower": {"type": "user_embedding", "dim": 8},
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "batches": {"unit": "interaction", "batch_size": 32},
    "loss": {"type": "bce"},
    "sampler": {"type": "uniform", "num_candidates": 4},
    "training": TRAINING,
    "evaluation": {"ks": [10]},
}


@dataclasses.dataclass
class Runs:
    """Folders of the runs."""

    films: Path
    by_user: Path


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Runs:
    root = tmp_path_factory.mktemp("serve")
    dataclasses.replace(dataset(), manifest={"config": {"order": None}}).save(root / "data")
    data = open_dataset(root / "data")
    for name, recipe in (("films", FILMS), ("by-user", BY_USER)):
        train_run(parse_config(recipe, name), data, root / name)
    return Runs(root / "films", root / "by-user")


@pytest.fixture(scope="session")
def write_index(runs):
    """Writes an index of USearch into the folder of a copy of the run ``films``."""

    def write(folder: Path) -> None:
        run = load_run(folder, runs.films.parent / "data", apply_threads=False)
        _, vectors = run.item_vectors()
        config = UsearchIndex.Config()
        write_snapshot(
            folder / "index",
            config.build(torch.from_numpy(vectors)),
            torch.from_numpy(vectors),
            run.dataset.items["source_id"],
            config=config,
            fingerprint=model_fingerprint(run),
        )

    return write


@pytest.fixture(scope="session")
def damage_index():
    """Breaks the graph of an index and corrects its checksum, as a faulty library would do."""

    def damage(folder: Path) -> None:
        path = next(folder.glob("index-*.bin"))
        content = bytearray(path.read_bytes())
        begin = len(content) * 3 // 10
        content[begin:] = b"\x7f" * (len(content) - begin)
        path.unlink()  # Not in place: a server may have mapped the file.
        path.write_bytes(content)
        manifest = json.loads((folder / "index.json").read_text())
        manifest["files"]["index"]["sha256"] = hashlib.sha256(content).hexdigest()
        write_sealed_json(folder / "index.json", manifest)

    return damage


@pytest.fixture(scope="session")
def films(runs) -> ModelVersion:
    """A model version that tests do not change."""
    return ModelVersion(open_bundle(runs.films), name="films", number=1, config=ServeConfig())


@pytest.fixture(scope="session")
def by_user(runs) -> ModelVersion:
    return ModelVersion(open_bundle(runs.by_user), name="by-user", number=1, config=ServeConfig())


@pytest.fixture
def fresh(runs) -> ModelVersion:
    """A model version that a test may change."""
    return ModelVersion(open_bundle(runs.films), name="films", number=1, config=ServeConfig())


@pytest.fixture(scope="session")
def server(runs):
    """A server of both runs that needs keys."""
    settings = ["--set", "max_body=20000", "--set", "max_history=50", "--set", "max_k=40"]
    both = (str(runs.films), str(runs.by_user))
    with start_server(*both, *settings, CANDID_API_KEY=KEY) as (process, address):
        yield process, address


@pytest.fixture(scope="session")
def client(server):
    with httpx.Client(base_url=server[1], headers={"x-api-key": KEY}) as http:
        yield http


@pytest.fixture(scope="session")
def admin(server):
    with httpx.Client(base_url=server[1], headers={"authorization": f"Bearer {ADMIN}"}) as http:
        yield http
