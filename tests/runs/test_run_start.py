"""The start of a training in its folder: one process, and a start that was cut begins again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from candid.batches import offsets_of
from candid.checksums import write_sealed_json
from candid.config import parse_config
from candid.data import PreparedDataset, Role
from candid.errors import ArtifactError, ConfigError
from candid.locks import acquire, stored_purpose
from candid.runs import MANIFEST, check_is_free, train_run
from candid.runs.folder import BEFORE_REFIT, DATA, FORMAT
from candid.runs.run_start import JOB, is_restart, run_folder, training_folder
from candid.training import BEST, LAST, TrainState


def dataset():
    roles = np.tile([Role.TRAIN] * 3 + [Role.VALIDATION, Role.TEST], 8)
    return PreparedDataset(
        item_ids=(np.arange(40) % 7).astype(np.int32),
        user_offsets=offsets_of(np.full(8, 5)),
        roles=roles.astype(np.uint8),
        users=pl.DataFrame({"source_id": np.arange(8)}),
        items=pl.DataFrame({"source_id": np.arange(7)}),
        manifest={"fingerprint": "small"},
    )


def config():
    tower = {"type": "causal_transformer", "dim": 4, "num_blocks": 1, "num_heads": 1}
    table = {
        "name": "small",
        "device": "cpu",
        "batches": {"batch_size": 8, "max_length": 4, "num_workers": 0},
        "model": {"query_tower": tower, "item_tower": {"type": "item_embedding", "dim": 4}},
        "loss": "full_softmax",
        "training": {"epochs": 1, "trackers": ["jsonl"]},
        "evaluation": {"ks": [1, 5], "metric": "ndcg@5", "intervals": False},
    }
    return parse_config(table, "test")


class Notes:
    """The sentences of a training."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_start(self, targets: str) -> None:
        self.lines.append(targets)

    def on_step(self, *state: object) -> None: ...

    def on_validation(self, *state: object) -> None: ...


ARGUMENTS = {"init": None, "refit": False, "stored_data": True}
"""Those of a training on a dataset in memory, as its lock file has them."""


def cut(out: Path, *names: str, purpose: dict[str, object] | None = ARGUMENTS) -> Path:
    """Leave what a killed training leaves: its lock, and files."""
    out.mkdir()
    with acquire(out / ".lock", purpose) as lock:
        lock.keeps_file = True
    for name in names:
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == MANIFEST:
            begun(path)
        else:
            path.write_text("{}")
    return out


def begun(path: Path, data: str = DATA) -> None:
    """Write the ``run.json`` of a training that has not ended."""
    facts = {"fingerprint": "small", "path": data}
    write_sealed_json(path, {"format": FORMAT, "config": {}, "dataset": facts})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


TEMPORARY = f".{MANIFEST}.{'0123456789abcdef' * 2}.tmp"


@pytest.mark.parametrize(
    "files",
    [
        (),
        ("trained_items.parquet",),
        ("features.json", "trained_items.parquet", TEMPORARY),
        (f"{DATA}/manifest.json",),
        ("trained_items.parquet", MANIFEST, "metrics.jsonl", "tensorboard/events"),
        (f"{BEFORE_REFIT}/features.json",),
        (f"{BEFORE_REFIT}/{MANIFEST}",),
    ],
)
def test_interrupted_start_begins_again(tmp_path, files):
    out, notes = cut(tmp_path / "run", *files), Notes()
    check_is_free(out)
    train_run(config(), dataset(), out, progress=notes)
    assert names(out) == {
        MANIFEST,
        "trained_items.parquet",
        "trained_users.parquet",
        DATA,
        "metrics.jsonl",
        *(BEST, LAST),
    }
    assert "result" in json.loads((out / MANIFEST).read_text())
    assert notes.lines[0].startswith("stopped before the first checkpoint") == bool(files)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (("features.json", "notes.txt"), "is not empty"),
        ((MANIFEST, "notes.txt"), "already holds a run"),
        ((MANIFEST, LAST), "already holds a run"),
        ((MANIFEST, BEST), "already holds a run"),
        ((f"{BEFORE_REFIT}/{MANIFEST}", f"{BEFORE_REFIT}/{LAST}"), "already holds a run"),
    ],
)
def test_folder_with_weights_or_other_files_is_refused(tmp_path, files, reason):
    out = cut(tmp_path / "run", *files)
    before = {str(path) for path in out.rglob("*")}
    with pytest.raises(ConfigError, match=reason):
        train_run(config(), dataset(), out)
    assert {str(path) for path in out.rglob("*")} == before


@pytest.mark.parametrize("manifest", ['{"result": {}}', '{"resu', "null", "3", "true", "[]"])
def test_run_whose_weights_were_moved_is_not_removed(tmp_path, manifest):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / MANIFEST).write_text(manifest)
    with pytest.raises(ConfigError, match="already holds a run"):
        train_run(config(), dataset(), tmp_path / "run")
    assert (tmp_path / "run" / MANIFEST).read_text() == manifest


def test_files_of_a_user_with_the_names_of_a_start_stay(tmp_path):
    """A name is not enough: the checksum of run.json or the arguments in the lock file are."""

    def folder(name: str, lock: str | None = None) -> Path:
        (tmp_path / name / DATA).mkdir(parents=True)
        (tmp_path / name / DATA / "mine.csv").write_text("precious")
        if lock is not None:
            (tmp_path / name / ".lock").write_text(lock)
        return tmp_path / name

    foreign_manifest = folder("manifest")
    (foreign_manifest / MANIFEST).write_text('{"experiment": 1}')
    without_arguments = cut(tmp_path / "none", f"{DATA}/mine.csv", purpose=None)
    other_arguments = cut(tmp_path / "other", f"{DATA}/mine.csv", purpose={"index": "x"})
    elsewhere = {"init": None, "refit": False, "stored_data": False}
    data_elsewhere = cut(tmp_path / "elsewhere", f"{DATA}/mine.csv", purpose=elsewhere)
    of_an_earlier_version = {"init": None, "refit": False}
    unknown = cut(tmp_path / "unknown", f"{DATA}/mine.csv", purpose=of_an_earlier_version)
    in_first_pass = cut(
        tmp_path / "first", f"{BEFORE_REFIT}/{DATA}/mine.csv", purpose=of_an_earlier_version
    )
    other_first_pass = cut(tmp_path / "notes", f"{BEFORE_REFIT}/notes.txt")
    changed = cut(tmp_path / "changed", "features.json")
    (changed / MANIFEST).write_text('{"experiment": 1}')
    foreign_lock = tmp_path / "foreign-lock"
    foreign_lock.mkdir()
    (foreign_lock / ".lock").write_text("mine")
    for out in (
        folder("empty-lock", lock=""),
        folder("list-lock", lock="[]"),
        *(foreign_manifest, without_arguments, other_arguments, data_elsewhere, unknown),
        *(in_first_pass, other_first_pass, changed, foreign_lock),
    ):
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for _ in range(2):  # a refusal leaves no evidence
            with pytest.raises(ConfigError, match=f"{out.name} is not empty: name a new or empty"):
                train_run(config(), dataset(), out)
        after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert after == before, out.name


@pytest.mark.parametrize(("data", "is_refused"), [(DATA, False), ("/elsewhere", True)])
def test_run_json_decides_whether_the_dataset_belongs_to_the_start(tmp_path, data, is_refused):
    out = tmp_path / "run"
    (out / DATA).mkdir(parents=True)
    (out / DATA / "manifest.json").write_text("{}")
    begun(out / MANIFEST, data)
    if is_refused:
        with pytest.raises(ConfigError, match="already holds a run"):
            train_run(config(), dataset(), out)
        assert (out / DATA / "manifest.json").read_text() == "{}"
    else:
        train_run(config(), dataset(), out)
        assert (out / DATA / "manifest.json").read_text() != "{}"


def test_start_that_begins_again_still_has_its_dataset(tmp_path):
    """A second kill, before the files of the first start were removed, leaves its record."""
    out = cut(tmp_path / "run", f"{DATA}/manifest.json")
    stored = dataset().save(tmp_path / "data")
    with training_folder(out, stored, None, resume=False, refit=False):
        assert stored_purpose(out / ".lock") == ARGUMENTS


def test_failed_second_pass_leaves_files_that_were_there(tmp_path):
    class AtStart:
        state = TrainState()

    def fail() -> None:
        with run_folder(tmp_path, AtStart()):
            (tmp_path / "features.json").write_text("{}")
            raise KeyboardInterrupt

    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == {"notes.txt"}


def test_files_without_a_lock_are_not_taken_for_a_start(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "features.json").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        train_run(config(), dataset(), tmp_path / "run")
    assert names(tmp_path / "run") == {"features.json"}


@pytest.mark.parametrize("resume", [True, False])
def test_second_process_is_refused_and_changes_nothing(tmp_path, resume):
    train_run(config(), dataset(), tmp_path / "run")
    before = names(tmp_path / "run")
    with acquire(tmp_path / "run" / ".lock"):
        with pytest.raises(ConfigError, match=r"another process is writing .*run \(pid \d+ on"):
            train_run(config(), dataset(), tmp_path / "run", resume=resume)
        with pytest.raises(ConfigError, match="another process is writing"):
            check_is_free(tmp_path / "run")
    assert names(tmp_path / "run") == before


def test_folder_is_held_during_the_training(tmp_path):
    class Second(Notes):
        def on_validation(self, *state: object) -> None:
            with pytest.raises(ConfigError, match="another process is writing"):
                train_run(config(), dataset(), tmp_path / "run")
            self.lines.append("refused")

    second = Second()
    train_run(config(), dataset(), tmp_path / "run", progress=second)
    assert second.lines[-1] == "refused"
    assert ".lock" not in names(tmp_path / "run")


def test_resume_of_a_start_without_manifest_has_its_arguments(tmp_path):
    purpose = {"init": str(tmp_path / "earlier"), "refit": False}
    out = cut(tmp_path / "run", "features.json", purpose=purpose)
    with training_folder(out, dataset(), None, resume=True, refit=False) as start:
        assert (start.resume, start.init) == (False, str(tmp_path / "earlier"))
        assert start.begins_again
        assert names(out) == {".lock"}
    for init, refit, reason in (
        (tmp_path / "other", False, "was started from"),
        (None, True, "was started without --refit"),
    ):
        out = cut(tmp_path / f"run{refit}", "features.json", purpose=purpose)
        for _ in range(2):  # a refusal leaves the start as it is
            with (
                pytest.raises(ConfigError, match=reason),
                training_folder(out, dataset(), init, resume=True, refit=refit),
            ):
                pass


def test_resume_of_a_start_without_arguments_is_refused(tmp_path):
    out = cut(tmp_path / "run", purpose=None)
    for _ in range(2):
        with pytest.raises(ConfigError, match="run the same command without --resume"):
            train_run(config(), dataset(), out, resume=True)
    train_run(config(), dataset(), out)


@pytest.mark.parametrize("lock", [True, False])
@pytest.mark.parametrize("manifest", ["run.json", "before-refit/run.json", None])
def test_resume_in_a_folder_of_another_program_changes_nothing(tmp_path, manifest, lock):
    out = tmp_path / "run"
    stale = f".notes.{'0' * 32}.tmp"
    files = {stale: "mine"} | ({".lock": "1234\n"} if lock else {})
    files |= {} if manifest is None else {manifest: '{"name": 1}'}
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)
    for refit in (False, True):
        with pytest.raises((ArtifactError, ConfigError)):
            train_run(config(), dataset(), out, resume=True, refit=refit)
    found = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in found.items()} == files


def test_resume_in_a_run_with_a_foreign_lock_file_names_it(tmp_path):
    train_run(config(), dataset(), tmp_path / "run")
    (tmp_path / "run" / ".lock").write_text("1234\n")
    with pytest.raises(ConfigError, match=r"\.lock is a file that candid did not write"):
        train_run(config(), dataset(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / ".lock").read_text() == "1234\n"


def test_resume_of_no_run_leaves_no_folder(tmp_path):
    with pytest.raises(ArtifactError, match="is not a run"):
        train_run(config(), dataset(), tmp_path / "run", resume=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="is not a run"):
        train_run(config(), dataset(), tmp_path / "empty", resume=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def interrupt(out: Path, *names: str) -> None:
    """Fail in the block after files were written."""
    with training_folder(out, dataset(), None, resume=False, refit=False):
        for name in names:
            (out / name).write_text("{}")
        raise KeyboardInterrupt


def test_failure_that_leaves_files_leaves_the_mark_of_a_start(tmp_path):
    """A second Ctrl-C may end the removal of the files of a failed start."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        interrupt(out, "features.json")
    assert names(out) == {".lock", "features.json"}
    train_run(config(), dataset(), out)
    with pytest.raises(KeyboardInterrupt):
        interrupt(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_dataset_that_an_interrupted_start_stored_can_be_trained_on(tmp_path):
    out = cut(tmp_path / "run")
    stored = dataset().save(out / DATA)
    train_run(config(), stored, out)
    assert (out / DATA / "manifest.json").exists()


@pytest.mark.parametrize("folder", [".", BEFORE_REFIT])
@pytest.mark.parametrize(
    ("job", "expected"), [("films", True), ("others", False), ("none", False), (None, False)]
)
def test_folder_of_the_same_job_is_a_restart(tmp_path, monkeypatch, folder, job, expected):
    (tmp_path / folder).mkdir(exist_ok=True)
    facts = {"fingerprint": "small", "path": DATA}
    manifest = {"format": FORMAT, "config": {}, "dataset": facts, JOB: "films"}
    write_sealed_json(tmp_path / folder / MANIFEST, manifest)
    if job is None:
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    else:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
    assert is_restart(tmp_path) is expected


def test_folder_without_the_job_is_not_a_restart(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "films")
    assert not is_restart(tmp_path)
    begun(tmp_path / MANIFEST)
    assert not is_restart(tmp_path)
