"""Damage to any file of an artifact: refused in one sentence with the file, or without effect."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import candid
from candid.checksums import verification, write_sealed_json
from candid.cli import run as cli
from candid.errors import ArtifactError, ConfigError
from candid.export import ExportInput, export, read_export
from candid.index import FaissIndex, open_snapshot, save_changes, write_snapshot
from candid.runs.earlier_run import open_earlier_run
from candid.runs.folder import read_manifest
from candid.serve.update_file import to_record
from candid.verification import verify

USERS, ITEMS, LENGTH = 12, 9, 6


def interactions():
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(USERS), LENGTH),
            "item_id": np.concatenate([rng.permutation(ITEMS)[:LENGTH] for _ in range(USERS)]),
            "t": np.tile(np.arange(LENGTH), USERS),
        }
    )


def item_table():
    return pl.DataFrame(
        {
            "item_id": np.arange(ITEMS),
            "title": [f"Film {n}" for n in range(ITEMS)],
            "genre": [["noir", "war", "music"][n % 3] for n in range(ITEMS)],
        }
    )


RECIPE = {
    "device": "cpu",
    "batches": {"batch_size": 8, "max_length": 6},
    "features": {"item": {"genre": {"type": "categorical"}}},
    "model": {
        "query_tower": {"type": "causal_transformer", "dim": 4, "num_blocks": 1, "num_heads": 1},
        "item_tower": {"type": "item_features", "dim": 4},
    },
    "loss": {"type": "full_softmax"},
    "training": {"epochs": 3, "warmup_steps": 0, "checkpoint_every": 1},
    "evaluation": {"ks": [3], "metric": "ndcg@3", "intervals": False},
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """A folder with one artifact of each kind."""
    root = tmp_path_factory.mktemp("artifacts")
    data = candid.prepare(
        interactions(),
        time="t",
        items={"table": item_table(), "title": "title", "attributes": ["genre"]},
        out=root / "data",
    )
    run = candid.train(data, RECIPE, out=root / "run", quiet=True, measure=False)
    candid.fit_baseline(data, "item_knn", tuning=False).save(root / "baseline")
    export(ExportInput.from_run(run), root / "export", ["parquet", "npy"])
    source_ids, vectors = run.item_vectors()
    config = FaissIndex.Config(kind="flat")
    items = torch.from_numpy(vectors)
    write_snapshot(
        root / "index", config.build(items), items, source_ids, config=config, fingerprint="f"
    )
    snapshot = open_snapshot(root / "index")
    snapshot.put([100, 3], torch.ones(2, 4))
    save_changes(snapshot)
    return root


def answers_of_data(folder):
    dataset = candid.open_dataset(folder / "data")
    arrays = [dataset.item_ids, dataset.user_offsets, dataset.roles, dataset.timestamps]
    tables = [dataset.users.write_json(), dataset.items.write_json()]
    return [array.tolist() for array in arrays], tables, dataset.fingerprint


def answers_of_run(folder):
    run = candid.load_run(folder / "run", folder / "data")
    lists = run.recommend(users=[0, 5], k=4).rows()
    ids = open_earlier_run(folder / "run").ids
    return lists, ids.items.rows(), ids.users.rows(), run.manifest["config"]


def answers_of_baseline(folder):
    baseline = candid.load(folder / "baseline", folder / "data")
    return baseline.recommend(users=[0, 5], k=4).rows(), baseline.settings


def answers_of_index(folder):
    snapshot = open_snapshot(folder / "index")
    found = snapshot.index.search(torch.eye(4), k=5)
    return found.item_ids.tolist(), found.scores.tolist(), snapshot.source_ids.added.to_list()


def answers_of_export(folder):
    read_export(folder / "export")
    damaged = [check for check in verify(folder / "export") if not check.is_ok]
    if damaged:
        raise ArtifactError(f"{damaged[0].path} {damaged[0].fault}")
    return 0


ANSWERS = {
    "data": answers_of_data,
    "run": answers_of_run,
    "baseline": answers_of_baseline,
    "index": answers_of_index,
    "export": answers_of_export,
}
READ_ON_REQUEST = {"run": {"last.safetensors", "previous.safetensors", "metrics.jsonl"}}
"""Files that ``load_run`` does not read; the first two are read on resume and by ``verify``."""


def files_of(folder, kind):
    skipped = READ_ON_REQUEST.get(kind, set())
    paths = sorted(path for path in (folder / kind).rglob("*") if path.is_file())
    return [path for path in paths if path.name not in skipped and path.name != ".lock"]


def damaged(content, rng):
    """Return other bytes: a flipped bit, a cut end, more at the end, or a zeroed block."""
    content = bytearray(content)
    way = rng.choice(["flip", "flip", "flip", "cut", "extend", "zero"])
    if way == "flip":
        bit = rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
    elif way == "cut":
        del content[rng.randrange(len(content)) :]
    elif way == "extend":
        content += rng.randbytes(rng.randrange(1, 30))
    else:
        start = rng.randrange(len(content))
        content[start : start + 16] = bytes(len(content[start : start + 16]))
    return bytes(content)


def check_mutations(folder, kind, count, seed=0):
    whole, rng, num_refused = ANSWERS[kind](folder), random.Random(seed), 0
    for path in files_of(folder, kind):
        content = path.read_bytes()
        for _ in range(count):
            path.write_bytes(damaged(content, rng))
            message = None
            try:
                answers = ANSWERS[kind](folder)
            except ArtifactError as error:
                message = str(error)
            finally:
                path.write_bytes(content)
            if message is None:
                assert answers == whole, path
                continue
            num_refused += 1
            is_named = str(path) in message or (
                path.suffix == ".json" and str(path.parent) in message
            )
            assert is_named, message
            assert "\n" not in message
    assert num_refused > 0
    assert ANSWERS[kind](folder) == whole


@pytest.mark.parametrize("kind", ANSWERS)
def test_damaged_file_is_refused_or_changes_no_answer(artifacts, kind):
    check_mutations(artifacts, kind, 5)


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ANSWERS)
def test_many_damaged_files_are_refused_or_change_no_answer(artifacts, kind):
    check_mutations(artifacts, kind, 40, seed=1)


def test_verify_reads_every_file(artifacts):
    checks = verify(artifacts)
    assert all(check.is_ok for check in checks)
    expected = {
        path
        for path in artifacts.rglob("*")
        if path.is_file() and path.name not in ("metrics.jsonl", ".lock")
    }
    assert {check.path for check in checks} == expected
    for check in checks:
        assert check.bytes == check.path.stat().st_size


@pytest.mark.parametrize("name", ["best", "last", "previous"])
def test_verify_finds_damage_of_any_checkpoint(artifacts, tmp_path, name):
    shutil.copytree(artifacts / "run", tmp_path / "run")
    path = tmp_path / "run" / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)
    [check] = [check for check in verify(tmp_path) if not check.is_ok]
    assert check.path == path
    assert check.fault.startswith("differs from its checksum")
    [check] = verify(path)
    assert not check.is_ok


def test_verify_finds_a_missing_checkpoint(artifacts, tmp_path):
    shutil.copytree(artifacts / "run", tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    path.unlink()
    [check] = [check for check in verify(tmp_path / "run") if not check.is_ok]
    assert (check.path, check.fault) == (path, "is missing")
    with pytest.raises(ArtifactError, match=r"best\.safetensors is missing; restore it"):
        candid.load_run(tmp_path / "run", artifacts / "data")


MANIFESTS = {
    "data": "manifest.json",
    "run": "run.json",
    "index": "index.json",
    "baseline": "baseline.json",
    "export": "export.json",
}


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 900, b"{", b"\xff\xfe", pytest.param(b"[" * 100_000, id="nested")]
)
@pytest.mark.parametrize("kind", MANIFESTS)
def test_verify_finds_a_manifest_without_content(artifacts, tmp_path, kind, content):
    shutil.copytree(artifacts / kind, tmp_path / kind)
    path = tmp_path / kind / MANIFESTS[kind]
    path.write_bytes(content)
    damaged = [check for check in verify(tmp_path) if not check.is_ok]
    assert [check.path for check in damaged] == [path]
    assert damaged[0].fault.startswith("is damaged")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", pytest.param(b"[" * 100_000, id="nested")])
def test_verify_finds_a_damaged_manifest_of_a_checkpoint_of_sharded_tables(tmp_path, content):
    (tmp_path / "shared.safetensors").touch()
    (tmp_path / "manifest.json").write_bytes(content)
    [check] = [check for check in verify(tmp_path) if check.path.name == "manifest.json"]
    assert check.fault.startswith("is damaged")


@pytest.mark.parametrize("is_finished", [True, False])
def test_verify_finds_shards_without_a_manifest_in_a_finished_run(artifacts, tmp_path, is_finished):
    run = tmp_path / "run"
    shutil.copytree(artifacts / "run", run)
    step = run / "checkpoints" / "step-4"
    step.mkdir(parents=True)
    shutil.copy(run / "last.safetensors", step / "shared.safetensors")
    if not is_finished:
        manifest = read_manifest(run)
        del manifest["result"], manifest["checksum"]
        write_sealed_json(run / "run.json", manifest)
    damaged = [(check.path, check.fault) for check in verify(run) if not check.is_ok]
    assert damaged == ([(step / "manifest.json", "is missing")] if is_finished else [])


@pytest.mark.parametrize("kind", ["data", "run", "index", "baseline"])
def test_verify_finds_a_missing_manifest(artifacts, tmp_path, kind):
    shutil.copytree(artifacts / kind, tmp_path / kind)
    path = tmp_path / kind / MANIFESTS[kind]
    path.unlink()
    damaged = [check for check in verify(tmp_path) if not check.is_ok]
    assert [(check.path, check.fault) for check in damaged] == [(path, "is missing")]


def test_verify_finds_checkpoints_without_a_manifest(artifacts, tmp_path):
    shutil.copy(artifacts / "run" / "best.safetensors", tmp_path / "best.safetensors")
    assert [(check.path.name, check.fault) for check in verify(tmp_path)] == [
        ("run.json", "is missing"),
        ("best.safetensors", None),
    ]


def test_verify_accepts_a_start_that_was_cut(artifacts, tmp_path):
    shutil.copytree(artifacts / "data", tmp_path / "data")
    (tmp_path / "run").mkdir()
    for name in ("trained_items.parquet", "trained_users.parquet"):
        shutil.copy(artifacts / "run" / name, tmp_path / "run" / name)
    shutil.copytree(artifacts / "index", tmp_path / "index")
    (tmp_path / "index" / "index.json").unlink()
    (tmp_path / "index" / ".lock").touch()
    assert all(check.is_ok and check.path.parent.name == "data" for check in verify(tmp_path))


def test_verify_finds_damaged_item_updates_in_a_folder(artifacts, tmp_path):
    shutil.copytree(artifacts / "data", tmp_path / "data")
    record = to_record({"model": "films", "item": 5, "update": None})
    (tmp_path / "served").mkdir()
    path = tmp_path / "served" / "updates.jsonl"
    path.write_bytes(record + record.replace(b"films", b"filmz") + record)
    (tmp_path / "served" / "films.jsonl").write_text('{"title": "M", "length": 99, "entry": {}}\n')
    damaged = [check for check in verify(tmp_path) if not check.is_ok]
    assert [check.path for check in damaged] == [path]


def test_verify_follows_links_and_reads_each_folder_once(artifacts, tmp_path):
    shutil.copytree(artifacts / "run", tmp_path / "elsewhere" / "run")
    served = tmp_path / "served"
    served.mkdir()
    (served / "current").symlink_to(tmp_path / "elsewhere" / "run")
    (served / "current again").symlink_to(tmp_path / "elsewhere" / "run")
    (served / "loop").symlink_to(served)
    (served / "itself").symlink_to(served / "itself")
    (tmp_path / "elsewhere" / "run" / "best.safetensors").write_bytes(b"")
    damaged = [check for check in verify(served) if not check.is_ok]
    assert [check.path for check in damaged] == [served / "current" / "best.safetensors"]
    (served / "a link").symlink_to(served / "current")
    shutil.copytree(artifacts / "data", served / "data")
    assert {check.path.parent.name for check in verify(served)} == {"a link", "data"}


def test_verify_finds_a_missing_last_checkpoint(artifacts, tmp_path):
    shutil.copytree(artifacts / "run", tmp_path / "run")
    for name in ("last", "previous"):
        (tmp_path / "run" / f"{name}.safetensors").unlink()
    [check] = [check for check in verify(tmp_path) if not check.is_ok]
    assert (check.path.name, check.fault) == ("last.safetensors", "is missing")


def test_verify_reports_links_to_nothing(artifacts, tmp_path):
    shutil.copytree(artifacts / "run", tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.unlink()
    path.symlink_to(tmp_path / "gone.json")
    (tmp_path / "run" / "updates.jsonl").symlink_to(tmp_path / "gone.jsonl")
    for named in (tmp_path, path):
        assert [check.path for check in verify(named) if not check.is_ok] == [path]


def test_file_that_cannot_be_read_is_damaged(tmp_path, monkeypatch):
    path = tmp_path / "updates.jsonl"
    path.write_bytes(to_record({"model": "films", "item": 5, "update": None}))

    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refused)
    [check] = verify(path)
    assert check.fault == "cannot be read: permission denied; give this user read permission"


@pytest.fixture
def open_folder():
    """A folder that every user may search, unlike those of pytest; files of root are removed."""
    folder = Path(tempfile.mkdtemp(prefix="candid-verify-"))
    folder.chmod(0o755)
    yield folder
    for path in folder.iterdir():
        path.chmod(0o755)
    shutil.rmtree(folder)


@contextmanager
def without_privileges():
    """Run a block as a user whom permissions bind; root reads everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_verify_reports_what_this_user_cannot_read_and_reads_the_rest(
    artifacts, open_folder, capsys
):
    for name in ("run", "data", "index", "baseline", "export"):
        shutil.copytree(artifacts / name, open_folder / name)
    (open_folder / "link to the run").symlink_to(open_folder / "run")
    (open_folder / "run").chmod(0)
    (open_folder / "data").chmod(0o444)  # names of files without their content
    (open_folder / "index").chmod(0o111)  # content without names
    (open_folder / "baseline" / "items.parquet").chmod(0)
    names = ["run", "data/manifest.json", "index", "baseline/items.parquet"]
    with without_privileges():
        checks = verify(open_folder)
        named = [open_folder / name for name in ("run/run.json", "data/roles.npy", "index")]
        of_named = verify(named)
        assert cli(["verify", str(open_folder / "run"), str(open_folder / "export"), "-q"]) == 4
    reason = "cannot be read: permission denied; give this user read permission"
    failures = {check.path: check.fault for check in checks if not check.is_ok}
    assert failures == {open_folder / name: reason for name in names}
    read = {check.path.relative_to(open_folder).parts[0] for check in checks if check.is_ok}
    assert read == {"baseline", "export"}
    assert {check.path: check.fault for check in of_named} == dict.fromkeys(named, reason)
    output = capsys.readouterr()
    assert output.out == f"damaged  {open_folder / 'run'}: {reason}\n"
    assert f"is damaged: {open_folder / 'run'};" in output.err


def test_verify_ignores_a_folder_that_is_removed_meanwhile(artifacts, tmp_path, monkeypatch):
    shutil.copytree(artifacts / "data", tmp_path / "data")
    (tmp_path / "gone").mkdir()

    def scandir(path, scan=os.scandir):
        if str(path).endswith("gone"):
            shutil.rmtree(tmp_path / "gone")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert {check.path.parent.name for check in verify(tmp_path)} == {"data"}


def test_manifest_stands_for_its_artifact(artifacts):
    expected = [check.path for check in verify(artifacts / "run")]
    assert [check.path for check in verify(artifacts / "run" / "run.json")] == expected


def test_missing_path_is_a_wrong_argument(tmp_path, capsys):
    for name in ("gone", "gone.safetensors", "run.json", "gone.jsonl"):
        assert cli(["verify", str(tmp_path / name)]) == 2
        assert f"{name} does not exist: check the path" in capsys.readouterr().err


@pytest.mark.parametrize("paths", [[], (), b"run1", [b"run1"], None, [1]])
def test_paths_of_another_type_are_refused(paths):
    with pytest.raises(ConfigError, match="path"):
        verify(paths)


def test_verb_counts_one_damaged_file(artifacts, tmp_path, capsys):
    path = shutil.copy(artifacts / "run" / "best.safetensors", tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert cli(["verify", str(path)]) == 4
    assert f"error: 1 of 1 file is damaged: {path};" in capsys.readouterr().err


@pytest.fixture(scope="module")
def another_run(artifacts, tmp_path_factory):
    """A run of the same recipe and data with another seed."""
    folder = tmp_path_factory.mktemp("another") / "run"
    candid.train(artifacts / "data", RECIPE, out=folder, quiet=True, measure=False, seed=7)
    return folder


@pytest.mark.parametrize("name", ["best", "last", "previous"])
def test_checkpoint_of_another_run_is_refused(artifacts, another_run, tmp_path, name):
    shutil.copytree(artifacts / "run", tmp_path / "run")
    path = tmp_path / "run" / f"{name}.safetensors"
    shutil.copy(another_run / path.name, path)
    [check] = [check for check in verify(tmp_path) if not check.is_ok]
    assert check.path == path
    assert check.fault.startswith("is not of the run that run.json beside it describes")
    if name == "best":
        with pytest.raises(ArtifactError, match=r"best\.safetensors is not of the run"):
            candid.load_run(tmp_path / "run", artifacts / "data")
        candid.load_run(tmp_path / "run", artifacts / "data", verify=False)


def test_training_resumes_from_the_previous_checkpoint_if_the_last_is_of_another_run(
    artifacts, another_run, tmp_path
):
    shutil.copytree(artifacts / "run", tmp_path / "run")
    before = json.loads((tmp_path / "run" / "run.json").read_text())["run"]
    shutil.copy(another_run / "last.safetensors", tmp_path / "run")
    longer = RECIPE | {"training": RECIPE["training"] | {"epochs": 4}}
    settings = {"out": tmp_path / "run", "resume": True, "quiet": True, "measure": False}
    with pytest.warns(RuntimeWarning, match="training continues from .*previous"):
        candid.train(artifacts / "data", {"name": "run", **longer}, **settings)
    assert all(check.is_ok for check in verify(tmp_path))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["run"] == before


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("data", "manifest.json"),
        ("run", "run.json"),
        ("baseline", "baseline.json"),
        ("index", "index.json"),
        ("export", "export.json"),
    ],
)
def test_manifest_that_is_a_link_to_itself_is_one_sentence(artifacts, tmp_path, capsys, kind, name):
    for artifact in ("data", "run", kind):
        shutil.copytree(artifacts / artifact, tmp_path / artifact, dirs_exist_ok=True)
    path = tmp_path / kind / name
    path.unlink()
    path.symlink_to(name)
    with pytest.raises(ArtifactError, match="too many levels of symbolic links"):
        ANSWERS[kind](tmp_path)
    assert cli(["verify", str(tmp_path), "--quiet"]) == 4
    output = capsys.readouterr()
    assert f"damaged  {path}: cannot be read: too many levels of symbolic links" in output.out
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1


def test_verify_compares_although_the_caller_does_not(artifacts, tmp_path):
    shutil.copytree(artifacts / "data", tmp_path / "data")
    path = tmp_path / "data" / "roles.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with verification(False):
        assert [check.path for check in verify(tmp_path) if not check.is_ok] == [path]


def test_verify_reads_item_updates(tmp_path):
    entry = {"model": "films", "item": 5, "update": None}
    record = to_record(entry)
    path = tmp_path / "updates.jsonl"
    path.write_bytes(record * 3)
    assert [check.is_ok for check in verify(path)] == [True]
    path.write_bytes(record * 3 + record[:20])  # as a kill leaves it
    assert [check.is_ok for check in verify(path)] == [True]
    path.write_bytes(record + record.replace(b"films", b"filmz") + record)
    [check] = verify(path)
    assert "damaged bytes" in check.fault


def test_verify_ignores_files_of_other_programs(artifacts, tmp_path):
    shutil.copytree(artifacts / "data", tmp_path / "data")
    (tmp_path / "web").mkdir()
    for name in ("manifest.json", "index.json"):
        (tmp_path / "web" / name).write_text('{"name": "shop"}')
    assert all(check.path.parent.name == "data" for check in verify(tmp_path))
    with pytest.raises(ArtifactError, match="web contains nothing that candid wrote"):
        verify([tmp_path / "data", tmp_path / "web"])
    with pytest.raises(ConfigError, match="gone does not exist"):
        verify(tmp_path / "gone")


def test_verb_prints_each_file_and_exits_4_for_damage(artifacts, tmp_path, capsys):
    shutil.copytree(artifacts / "data", tmp_path / "data")
    assert cli(["verify", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"ok       {tmp_path / 'data' / 'roles.npy'}" in lines
    assert lines[-1].endswith("no damage")
    assert cli(["verify", str(tmp_path), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")

    path = tmp_path / "data" / "roles.npy"
    path.write_bytes(path.read_bytes() + b"\0")
    assert cli(["verify", str(tmp_path), "--quiet"]) == 4
    output = capsys.readouterr()
    size = path.stat().st_size
    assert output.out == f"damaged  {path}: has {size} bytes, not {size - 1}\n"
    assert f"error: 1 of 7 files is damaged: {path};" in output.err

    assert cli(["verify", str(tmp_path), "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert document["damaged"] == 1
    assert [entry["path"] for entry in document["files"] if not entry["ok"]] == [str(path)]


def test_option_of_a_verb_skips_the_comparison(artifacts, tmp_path, capsys):
    for name in ("data", "run"):
        shutil.copytree(artifacts / name, tmp_path / name)
    path = tmp_path / "data" / "timestamps.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    command = ["recommend", str(tmp_path / "run"), "--data", str(tmp_path / "data"), "--user", "3"]
    assert cli(command) == 4
    assert "timestamps.npy differs from its checksum; prepare again" in capsys.readouterr().err
    assert cli([*command, "--no-verify"]) == 0
    assert cli(command) == 4, "the option holds for one command"


def test_prepare_skips_the_comparison_of_the_earlier_dataset(artifacts, tmp_path, capsys):
    shutil.copytree(artifacts / "data", tmp_path / "earlier")
    path = tmp_path / "earlier" / "users.parquet"
    pl.read_parquet(path).write_parquet(path, compression="uncompressed")
    manifest_path = path.with_name("manifest.json")
    manifest = json.loads(manifest_path.read_text())
    manifest["files"]["users.parquet"]["bytes"] = path.stat().st_size
    manifest_path.write_text(json.dumps(manifest))
    interactions().write_parquet(tmp_path / "log.parquet")
    command = ["prepare", "--interactions", str(tmp_path / "log.parquet"), "--time", "t"]
    command += ["--ids-from", str(tmp_path / "earlier"), "--out", str(tmp_path / "data")]
    assert cli(command) == 4
    assert "differs from its checksum" in capsys.readouterr().err
    assert cli([*command, "--no-verify"]) == 0
    assert (tmp_path / "data" / "manifest.json").exists()
