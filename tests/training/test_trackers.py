"""Trackers: written metrics can be read back."""

import json
import shutil
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from candid.errors import ArtifactError, ConfigError, UnknownNameError
from candid.training.trackers import open_trackers


def log_steps(folder, names, steps, from_step=None):
    trackers = open_trackers(names, folder, "run", from_step)
    for tracker in trackers:
        for step in steps:
            tracker.log(step, {"loss": step / 2, "note": "text"})
        tracker.close()


def steps_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_jsonl_has_no_step_twice_after_a_resume(tmp_path):
    log_steps(tmp_path, ("jsonl",), [1, 2, 3, 4])
    log_steps(tmp_path, ("jsonl",), [3, 4, 5], from_step=2)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_log_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(
        "candid.training.trackers.replacing", lambda path: nullcontext(Path("/dev/null"))
    )
    (tracker,) = open_trackers(("jsonl",), tmp_path, "run", None)
    for act in (lambda: tracker.log(1, {"loss": 1.0}), tracker.close):
        with pytest.raises(ArtifactError, match=r"cannot write .*metrics\.jsonl: no space left"):
            act()


def test_tensorboard_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    (tracker,) = open_trackers(("tensorboard",), tmp_path, "run", None)
    shutil.rmtree(tmp_path / "tensorboard")
    (tmp_path / "tensorboard").write_text("in the way")

    def log_on() -> None:
        for step in range(3000):  # the writer is a thread, which fails later
            tracker.log(step, {"loss": 1.0})
            time.sleep(0.001)

    for act in (log_on, tracker.close):
        with pytest.raises(ArtifactError, match=r"cannot write .*tensorboard: "):
            act()


def test_jsonl_drops_a_truncated_line(tmp_path):
    log_steps(tmp_path, ("jsonl",), [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    log_steps(tmp_path, ("jsonl",), [3], from_step=2)
    assert steps_of(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\n",
        b'{"step": 3, "lo\xff',
        b'{"step": 2, "loss": 1}',
        b"[1]\n",
        b"3\n",
        b"\n",
        pytest.param(b"[" * 100_000 + b"\n", id="nested"),
        pytest.param(b'{"step": 1' + b"0" * 400 + b"}\n", id="large"),
    ],
)
def test_jsonl_drops_damaged_lines(tmp_path, damage):
    """Also a last line that is whole but for its end: the next one would be appended to it."""
    log_steps(tmp_path, ("jsonl",), [1, 2])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(damage)
    log_steps(tmp_path, ("jsonl",), [3], from_step=2)
    assert steps_of(tmp_path) == [1, 2, 3]


def test_new_run_starts_a_new_log(tmp_path):
    log_steps(tmp_path, ("jsonl",), [1, 2])
    log_steps(tmp_path, ("jsonl",), [1])
    assert steps_of(tmp_path) == [1]


def test_tensorboard_can_read_the_scalars(tmp_path):
    log_steps(tmp_path, ("tensorboard",), [1, 2])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.0)]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_server_trackers_send_metrics(tmp_path, monkeypatch, name):
    """The calls of their documented interface; the packages are not needed."""
    calls = []
    run = SimpleNamespace(
        log=lambda metrics, step: calls.append((step, metrics)), finish=lambda: calls.append("end")
    )
    package = SimpleNamespace(
        start_run=lambda run_name: calls.append(run_name),
        log_metrics=lambda metrics, step: calls.append((step, metrics)),
        end_run=lambda: calls.append("end"),
        init=lambda project, name, dir, resume: calls.append(name) or run,
    )
    monkeypatch.setitem(sys.modules, name, package)
    (tracker,) = open_trackers((name,), tmp_path, "walk", None)
    tracker.log(3, {"validation/ndcg@10": 0.5, "note": "text"})
    tracker.close()
    expected = {
        # MLflow allows no "@" in names and no text among metrics.
        "mlflow": {"validation/ndcg_at_10": 0.5},
        "wandb": {"validation/ndcg@10": 0.5, "note": "text"},
    }
    assert calls == ["walk", (3, expected[name]), "end"]


def test_tracker_that_cannot_open_closes_the_earlier_ones(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    closed = []
    monkeypatch.setattr(
        "candid.training.trackers.JsonlTracker.close", lambda self: closed.append(self)
    )
    with pytest.raises(ConfigError, match="mlflow"):
        open_trackers(("jsonl", "mlflow"), tmp_path, "run", None)
    closed[0]._file.close()


def test_unknown_and_missing_trackers_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="known: jsonl, mlflow, tensorboard, wandb"):
        open_trackers(("comet",), tmp_path, "run", None)
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match=rf"pip install .candid-retrieval\[{name}\]"):
            open_trackers((name,), tmp_path, "run", None)
