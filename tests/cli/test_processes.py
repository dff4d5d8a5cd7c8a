"""Trainings of several processes, started by --processes and by torchrun."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import candid
from candid.cli import run
from candid.cli.processes import without_processes
from candid.data import DataConfig, prepare_folder
from candid.distributed.launch import LAUNCHER, end_with_launcher, launch
from candid.errors import CandidError, ConfigError
from candid.index import open_snapshot
from candid.training import LAST, read_checkpoint

SOURCE = Path(candid.__file__).parents[1]
RECIPE = """
name = "walk"
device = "cpu"
batches = { batch_size = 8, max_length = 4 }
loss = { type = "sampled_softmax" }
sampler = { type = "in_batch" }
training = { epochs = 3, warmup_steps = 2, log_every = 1 }
evaluation = { ks = [5], metric = "ndcg@5" }
[model]
query_tower = { type = "causal_transformer", dim = 8, num_blocks = 1, dropout = 0.3 }
item_tower = { type = "item_embedding", dim = 8 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    rng = np.random.default_rng(0)
    rows = [
        (user, int(item), step)
        for user in range(30)
        for step, item in enumerate(rng.integers(0, 12, 8))
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row")
    frame.write_parquet(folder / "log.parquet")
    config = DataConfig(interactions=str(folder / "log.parquet"), time="t")
    prepare_folder(config, folder / "data")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def call(folder, *command, **variables):
    """Run a command in the folder; all processes that it leaves behind are killed."""
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_two_processes_of_torchrun_write_the_weights_of_one(folder, monkeypatch):
    # Two steps: rounding does not grow. One process is this one, for time.
    arguments = ["train", "recipe.toml", "--data", "data", "--no-baselines"]
    arguments += ["--set", "training.max_steps=2", "--out"]
    monkeypatch.chdir(folder)
    assert run([*arguments, "one"]) == 0
    torchrun = "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    trained = call(folder, *torchrun, "-m", "candid", *arguments, "two")
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("trained in two") == 1
    one, two = (read_checkpoint(folder / name / LAST) for name in ("one", "two"))
    assert one.meta["state"]["step"] == two.meta["state"]["step"] == 2
    assert one.tensors.keys() == two.tensors.keys()
    for name, tensor in one.tensors.items():
        actual, expected = two.tensors[name], tensor
        if name.endswith("qkv.bias"):
            # A bias of the keys changes no weight of attention: its gradient is rounding alone.
            actual, expected = (torch.cat([v[:8], v[16:]]) for v in (actual, expected))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.campaign
def test_training_continues_after_a_process_was_killed(folder):
    """With the weights of a training of two processes that was not cut."""
    arguments = ["train", "recipe.toml", "--data", "data", "--no-baselines"]
    whole = call(folder, "candid", *arguments, "--out", "whole", "--processes", "2")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("trained in whole") == 1
    torchrun = "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"
    program = Path(__file__).with_name("torchrun_cases.py")
    command = [*torchrun, program, *arguments, "--out", "cut"]
    cut = call(folder, *command, KILLED_AT="11")
    assert cut.returncode == 0, cut.stderr
    assert "exitcode: -9" in cut.stderr
    assert "begins again" not in cut.stderr
    assert cut.stdout.count("trained in cut") == 1
    one, other = (read_checkpoint(folder / run / LAST) for run in ("whole", "cut"))
    assert one.meta["state"]["step"] == other.meta["state"]["step"] > 11
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


@pytest.mark.campaign
def test_index_stays_as_it_was_after_a_process_was_killed(folder):
    """Files of a killed rank 0 stay until the next build; those of others are removed."""
    train = ["train", "recipe.toml", "--data", "data", "--no-baselines", "--out", "indexed"]
    assert call(folder, "candid", *train).returncode == 0
    kind = ["--set", "index.type=faiss", "--set", "index.num_lists=2", "--seed"]
    for number in ("1", "2"):
        command = ["index", "indexed", "--processes", number, *kind, "0", "--quiet"]
        built = call(folder, "candid", *command)
        assert built.returncode == 0, built.stderr
    index = folder / "indexed" / "index"
    before = {path.name: path.read_bytes() for path in index.iterdir()}
    assert len(before) == 4
    torchrun = "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    program = Path(__file__).with_name("torchrun_cases.py")
    for killed in (1, 0):
        cut = call(folder, *torchrun, program, "index", "indexed", *kind, "1", KILLED=str(killed))
        assert "exitcode  : -9" in cut.stderr
        after = {path.name: path.read_bytes() for path in index.iterdir()}
        assert before.items() <= after.items()
        assert killed == 0 or len(after) == 4
        assert open_snapshot(index).index.num_items == 12
    assert call(folder, "candid", "index", "indexed", *kind, "2").returncode == 0
    assert len(list(index.iterdir())) == 4


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Processes run the shell script ``candid`` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    for name in ("OMP_NUM_THREADS", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))

    def write(script):
        (tmp_path / "candid").write_text(script)

    return write


def test_launcher_passes_arguments_and_returns_zero(shell, tmp_path):
    shell('echo "$RANK of $WORLD_SIZE: $*" > result-$RANK\n')
    assert launch(2, ["train", "a recipe.toml", "--quiet"]) == 0
    results = [(tmp_path / f"result-{rank}").read_text() for rank in range(2)]
    assert results == [f"{rank} of 2: train a recipe.toml --quiet\n" for rank in range(2)]


@pytest.mark.parametrize("code", [0, 3])
def test_launcher_leaves_no_temporary_folder(shell, tmp_path, monkeypatch, code):
    shell(f"exit {code}\n")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert launch(2, []) == code
    assert list((tmp_path / "temporary").iterdir()) == []


def test_launcher_returns_the_exit_code_of_the_process_that_failed(shell):
    shell("test $RANK = 0 && sleep 60\nexit 3\n")
    assert launch(2, []) == 3


def test_killed_process_is_reported(shell):
    shell("test $RANK = 0 && sleep 60\nkill -9 $$\n")
    with pytest.raises(CandidError, match="process 1 was killed by signal 9: "):
        launch(2, [])


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is of Linux")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("is_gone", [False, True], ids=["killed later", "killed before"])
def test_process_ends_when_its_launcher_was_killed(is_gone):
    reader, writer = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        os.environ[LAUNCHER] = str(1 << 30 if is_gone else os.getpid())
        rank = os.fork()
        if rank == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.alarm(30)  # nothing stays after a failure
            end_with_launcher()
            os.write(writer, b"1")
            signal.pause()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) + 100)
    os.close(writer)
    if not is_gone:
        assert os.read(reader, 1) == b"1"
        os.kill(launcher, signal.SIGKILL)
    assert select.select([reader], [], [], 20)[0]
    assert os.read(reader, 1) == b""  # all that held the pipe have ended
    code = os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])
    assert code == (100 - signal.SIGTERM if is_gone else -signal.SIGKILL)
    os.close(reader)


def test_processes_of_torchrun_launch_no_others(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="leave out --processes"):
        launch(2, [])


@pytest.mark.parametrize("given", [["--processes", "2"], ["--processes=2"]])
def test_processes_are_started_without_the_option(given):
    arguments = ["recipe.toml", *given, "--out", "run"]
    assert without_processes(arguments) == ["recipe.toml", "--out", "run"]
