"""Two machines whose link is cut in the middle of a training, as two network namespaces."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import candid
from candid.data import DataConfig, prepare_folder

pytestmark = pytest.mark.campaign

SOURCE = Path(candid.__file__).parents[1]
TIMEOUT = 10
GRACE = 10
"""Seconds beyond ``training.timeout_seconds`` within which the training processes of both machines
end."""
AGENT_SECONDS = 60
"""Seconds in which an agent of torchrun ends after its process, on a busy machine."""
START_SECONDS = 240
ADDRESSES = ("10.231.77.1", "10.231.77.2")
DEVICE = "veth"
RECIPE = f"""
name = "cut"
device = "cpu"
batches = {{ batch_size = 16, max_length = 4 }}
loss = {{ type = "sampled_softmax" }}
sampler = {{ type = "in_batch" }}
training = {{ epochs = 100000, log_every = 1, timeout_seconds = {TIMEOUT} }}
evaluation = {{ ks = [5], metric = "ndcg@5" }}
[model]
query_tower = {{ type = "causal_transformer", dim = 8, num_blocks = 1 }}
item_tower = {{ type = "item_embedding", dim = 8 }}
"""
STATIC = ("--nnodes=2", f"--master-addr={ADDRESSES[0]}", "--master-port=29400")
ELASTIC = (
    *("--nnodes=1:2", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=cut"),
    f"--rdzv-endpoint={ADDRESSES[0]}:29400",
)


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check)


def processes_of(namespace):
    """Return the processes of a namespace by id, also those whose parent has ended."""
    found = {}
    for pid in ip("netns", "pids", namespace, check=False).stdout.split():
        try:
            found[int(pid)] = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue  # It has ended meanwhile.
    return found


def trainings_of(namespace):
    """Return the training processes of a namespace, without the agent of torchrun."""
    return [p for p, line in processes_of(namespace).items() if b"torch.distributed" not in line]


@pytest.fixture
def machines():
    """Names of two network namespaces that a pair of virtual devices joins."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (iproute2)")
    names = [f"candid-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            added = ip("netns", "add", name, check=False)
            if added.returncode or ip("netns", "exec", name, "true", check=False).returncode:
                pytest.skip(f"network namespaces are not permitted here: {added.stderr.strip()}")
        ends = [("netns", name, "type", "veth") for name in names]
        ip("link", "add", DEVICE, *ends[0], "peer", "name", DEVICE, *ends[1][:2])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/30", "dev", DEVICE)
            ip("-n", name, "link", "set", DEVICE, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            for pid in processes_of(name):
                os.kill(pid, signal.SIGKILL)
            ip("netns", "delete", name, check=False)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        (user, int(item), step)
        for user in range(100)
        for step, item in enumerate(rng.integers(0, 30, 8))
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row")
    frame.write_parquet(tmp_path / "log.parquet")
    config = DataConfig(interactions=str(tmp_path / "log.parquet"), time="t")
    prepare_folder(config, tmp_path / "data")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def start(machines, folder):
    """Starts torchrun with one process on each machine, and waits until they train together."""
    agents = []

    def begin(options):
        for number, machine in enumerate(machines):
            place = (
                [f"--rdzv-conf=is_host={1 - number},last_call_timeout=5"]
                if options is ELASTIC
                else [f"--node-rank={number}"]
            )
            command = [
                *("ip", "netns", "exec", machine, sys.executable, "-m", "torch.distributed.run"),
                *("--nproc-per-node=1", f"--local-addr={ADDRESSES[number]}", *options, *place),
                *("-m", "candid", "train", "recipe.toml", "--data", "data", "--out", "run"),
                *("--quiet", "--no-baselines"),
            ]
            variables = {
                "PYTHONPATH": str(SOURCE),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": DEVICE,
                "TORCH_CPP_LOG_LEVEL": "ERROR",
            }
            with log_of(folder, number).open("w") as log:
                agents.append(
                    subprocess.Popen(
                        command, cwd=folder, env=os.environ | variables, stdout=log, stderr=log
                    )
                )
        together = wait_for(
            lambda: all(map(trainings_of, machines)) and steps_of(folder) > 30, START_SECONDS
        )
        assert together is not None, [log_of(folder, number).read_text() for number in range(2)]
        return agents

    yield begin
    for agent in agents:
        agent.kill()
        agent.wait()


def log_of(folder, number):
    return folder / f"machine-{number}.log"


def errors_of(folder, number):
    """Return the sentences that the processes of a machine printed."""
    lines = log_of(folder, number).read_text().splitlines()
    return [line for line in lines if line.startswith("error: ")]


def steps_of(folder):
    path = folder / "run" / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for(condition, seconds):
    """Wait until a condition holds; return the seconds that it took, None if it never did."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if condition():
            return time.monotonic() - started
        time.sleep(0.2)
    return None


def is_running(pid):
    """Whether a process runs: one that has ended stays until its parent reads its exit code."""
    try:
        state = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def cut_link(machines):
    """Cut the link; return the seconds until no training process of either machine is left.

    A training that torchrun starts afterwards is another process.
    """
    cut = [pid for machine in machines for pid in trainings_of(machine)]
    assert len(cut) >= len(machines)
    ip("-n", machines[0], "link", "set", DEVICE, "down")
    return wait_for(lambda: not any(map(is_running, cut)), TIMEOUT + GRACE)


def test_cut_link_ends_the_processes_of_both_machines(machines, folder, start):
    agents = start(STATIC)
    assert cut_link(machines) is not None
    assert wait_for(lambda: not any(map(processes_of, machines)), AGENT_SECONDS) is not None
    assert [agent.wait() for agent in agents] == [1, 1]
    for number in range(2):
        (sentence,) = errors_of(folder, number)
        assert sentence.endswith("continue with --resume")
        assert "lost the connection" in sentence or "has waited" in sentence
        assert "candid/" not in log_of(folder, number).read_text()  # no traceback of ours


def test_machine_that_is_left_continues_after_the_link_is_cut(machines, folder, start):
    start(ELASTIC)
    assert cut_link(machines) is not None
    (sentence,) = errors_of(folder, 1)
    assert "has waited" in sentence or "lost the connection" in sentence
    steps = steps_of(folder)
    # The agent waits until the other one is silent for 15 s, then for others to join.
    assert wait_for(lambda: steps_of(folder) > steps + 50, 120) is not None
    assert trainings_of(machines[0])
    assert not trainings_of(machines[1])
