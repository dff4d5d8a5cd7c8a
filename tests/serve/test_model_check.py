"""Checks of models in a process of their own: crashes, time limit, changed files, reloads."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
import torch

from candid.errors import ArtifactError
from candid.serve import model_check
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.metrics import Metrics
from candid.serve.model_check import ModelChecks
from candid.serve.model_files import ModelFiles
from candid.serve.models import Models
from candid.serve.requests import RecommendRequest
from candid.serve.update_log import ItemUpdates
from candid.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

pytestmark = pytest.mark.campaign  # Each check starts Python and imports torch.


@pytest.fixture(name="files")
def _files(runs, write_index, tmp_path):
    """A copy of the run that a test may damage, with an index of USearch."""
    folder = tmp_path / "films"
    shutil.copytree(runs.films, folder)
    write_index(folder)
    return ModelFiles(folder, data=runs.films.parent / "data")


def load(files, **settings):
    config, metrics = ServeConfig(**settings), Metrics()
    checks = ModelChecks({"films": files}, config=config)
    models = Models(
        {"films": files}, config=config, updates=ItemUpdates(), metrics=metrics, checks=checks
    )
    return models, metrics


def reload_reason(models):
    with pytest.raises(RequestError) as caught:
        models.reload(None)
    assert caught.value.code == "reload_failed"
    assert caught.value.message.endswith("; the current model keeps serving")
    return caught.value.message


def replace_check(monkeypatch, folder, code):
    """Let checks run another program."""
    (folder / "other_check.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(model_check, "MODULE", "other_check")


def test_index_that_crashes_its_library_fails_the_reload_only(files, damage_index, caplog):
    models, metrics = load(files)
    damage_index(files.run / "index")
    assert "in a process of its own crashed (SIG" in reload_reason(models)
    [record] = [r for r in caplog.records if r.getMessage() == "model check crashed"]
    assert any("usearch" in place for place in record.fields["at"])
    assert [r.fields["model"] for r in caplog.records if r.getMessage() == "reload failed"] == [
        "films"
    ]
    version = models.get(None)
    assert version.number == 1
    [answer] = version.answer([version.prepare(RecommendRequest(user="u3"))])
    assert json.loads(answer)["items"]
    assert 'candid_reloads_total{model="films",result="failed"} 1.0' in metrics.to_text().decode()


def test_sound_model_is_reloaded_and_threads_stay(files):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)  # The recipe has threads = 1.
    try:
        models, _ = load(files)
        assert models.reload("films")[0] == {"films": 2}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert models.get(None).number == 2


def test_weights_that_are_not_finite_are_refused_at_the_start_and_on_reload(files):
    models, _ = load(files)
    shutil.rmtree(files.run / "index")  # It belongs to the weights as they were.
    path = next(
        files.run / name
        for name in ("best.safetensors", "last.safetensors")
        if (files.run / name).exists()
    )
    _set_nan(path)
    reason = reload_reason(models)
    assert "hold NaN or infinite values" in reason or "not finite" in reason
    with pytest.raises(ArtifactError, match=r"NaN or infinite values|not finite"):
        load(files)
    assert ArtifactError.exit_code == 4


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was killed (SIGKILL), probably because memory"),
        ("import os; os.kill(os.getpid(), 11)", "crashed (SIGSEGV): a file is damaged"),
        ("import sys; sys.exit(3)", "ended with exit code 3"),
        ("raise RuntimeError", "ended with exit code 1"),
        ("print('no answer')", "ended with exit code 0"),
        ("print('[' * 100_000)", "ended with exit code 0"),
        ('print(\'{"error": "no memory", "at": []}\')', "no memory"),
        ("import time; time.sleep(60)", "took longer than 1 s; raise reload_timeout_ms"),
    ],
)
def test_check_that_does_not_end_well_has_a_reason(runs, tmp_path, monkeypatch, code, reason):
    models, metrics = load(ModelFiles(runs.films), reload_timeout_ms=1000)
    replace_check(monkeypatch, tmp_path, code)
    assert reason in reload_reason(models)
    assert models.get(None).number == 1
    assert 'result="failed"} 1.0' in metrics.to_text().decode()


def test_files_that_change_after_their_check_are_not_loaded(files, monkeypatch):
    models, _ = load(files)
    check = ModelChecks.check

    def check_and_touch(self, name):
        identity = check(self, name)
        vectors = next((files.run / "index").glob("vectors-*.npy"))
        vectors.write_bytes(vectors.read_bytes())
        return identity

    monkeypatch.setattr(ModelChecks, "check", check_and_touch)
    assert "changed between its check and its load" in reload_reason(models)
    monkeypatch.undo()
    assert models.reload(None)[0] == {"films": 2}


def test_failure_of_one_model_does_not_keep_the_others_from_their_reload(files, runs):
    both = {"films": files, "by-user": ModelFiles(runs.by_user)}
    config = ServeConfig()
    models = Models(
        both,
        config=config,
        updates=ItemUpdates(),
        metrics=Metrics(),
        checks=ModelChecks(both, config=config),
    )
    (files.run / "run.json").unlink()
    assert "model films: " in reload_reason(models)
    assert [models.get(name).number for name in both] == [1, 2]


def test_close_ends_a_running_check(runs, tmp_path, monkeypatch):
    models, _ = load(ModelFiles(runs.films))
    replace_check(monkeypatch, tmp_path, "import time; time.sleep(60)")
    closer = threading.Timer(0.5, models.close)
    closer.start()
    started = time.monotonic()
    assert "the server is shutting down" in reload_reason(models)
    assert time.monotonic() - started < 20
    closer.join()
    assert "the server is shutting down" in reload_reason(models)


def test_check_ends_with_the_process_that_started_it(tmp_path):
    os.mkfifo(tmp_path / "run.json")  # Reading it would wait for a writer forever.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", model_check.MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    request = {
        "files": ModelFiles(tmp_path).to_json(),
        "name": "films",
        "config": ServeConfig().model_dump(mode="json"),
    }
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    process.stdin.close()  # As when the server ends.
    assert process.wait(60) == 1


def _set_nan(path):
    checkpoint = read_checkpoint(path)
    name = next(n for n in sorted(checkpoint.tensors) if n.startswith("model/") and "norm" in n)
    tensors = {**checkpoint.tensors, name: torch.full_like(checkpoint.tensors[name], torch.nan)}
    write_checkpoint(path, Checkpoint(tensors, checkpoint.meta))
