"""Machines that are lost in the middle of a training: torchrun and its process are killed.

A machine is a torchrun with an address of the loopback and one process. Training is in float64,
and the step of the loss is random.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import candid
from candid.data import DataConfig, prepare_folder
from candid.training import LAST, read_checkpoint

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(sys.platform != "linux", reason="addresses of the loopback of Linux"),
]

SOURCE = Path(candid.__file__).parents[1]
PROGRAM = Path(__file__).with_name("lost_machine_cases.py")
TIMEOUT = 10
GRACE = 10
"""Seconds beyond ``training.timeout_seconds`` within which the processes that are left end."""
DEADLINE = 240
"""Seconds for a start or for a whole training, on a busy machine."""
AGENT_SECONDS = 60
"""Seconds in which torchrun ends after its process, on a busy machine."""
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""For machines that return: torchrun otherwise names a store to them that others do not use."""
STEPS_PER_EPOCH = 12
EPOCHS = 5
RECIPE = f"""
name = "lost"
device = "cpu"
batches = {{ batch_size = 16, max_length = 4 }}
loss = {{ type = "sampled_softmax" }}
sampler = {{ type = "in_batch" }}
training = {{ epochs = {EPOCHS}, log_every = 1, timeout_seconds = {TIMEOUT} }}
evaluation = {{ ks = [5], metric = "ndcg@5" }}
[model]
query_tower = {{ type = "causal_transformer", dim = 8, num_blocks = 1, dropout = 0.3 }}
item_tower = {{ type = "item_embedding", dim = 8 }}
"""
TRAIN = ("train", "recipe.toml", "--data", "data", "--quiet", "--no-baselines", "--out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")
    rng = np.random.default_rng(0)
    rows = [
        (user, int(item), step)
        for user in range(96)
        for step, item in enumerate(rng.integers(0, 30, 9))
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row")
    frame.write_parquet(folder / "log.parquet")
    config = DataConfig(interactions=str(folder / "log.parquet"), time="t")
    prepare_folder(config, folder / "data")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def environment(**variables):
    fixed = {
        "PYTHONPATH": str(SOURCE),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    return os.environ | fixed | variables


@pytest.fixture(scope="module")
def whole(folder):
    """Checkpoint of one process that nothing cuts."""
    command = [sys.executable, PROGRAM, *TRAIN, "whole"]
    variables = environment(STEPS=str(folder / "whole.txt"), WORLD_SIZE="1", RANK="0")
    subprocess.run(command, cwd=folder, env=variables, check=True, timeout=DEADLINE)
    return read_checkpoint(folder / "whole" / LAST)


class Machine:
    """A torchrun with one process; machines differ by their address of the loopback."""

    def __init__(self, folder, run, number):
        self.folder, self.run, self.number = folder, run, number
        self.agent = None

    @property
    def log(self):
        return self.folder / f"{self.run}-{self.number}.log"

    def start(self, *options, resume=False, **variables):
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1"),
            *(f"--local-addr=127.0.0.{self.number + 1}", *options, PROGRAM, *TRAIN, self.run),
            *(["--resume"] if resume else []),
        ]
        steps = str(self.folder / f"{self.run}-{self.number}.txt")
        with self.log.open("a") as log:
            self.agent = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment(STEPS=steps, **variables),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def steps(self):
        """Return number of processes, rank and number of each step that this machine took."""
        path = self.folder / f"{self.run}-{self.number}.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(map(int, line.split())) for line in lines]

    def processes(self):
        """Return the ids of the training processes, also of those whose torchrun was killed."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                environ = (path / "environ").read_bytes().split(b"\0")
                line = (path / "cmdline").read_bytes()
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue  # It has ended meanwhile.
            own = f"STEPS={self.folder / f'{self.run}-{self.number}.txt'}".encode()
            if own in environ and b"torch.distributed" not in line and state not in "ZX":
                found.append(int(path.name))
        return found

    def errors(self):
        return [line for line in self.log.read_text().splitlines() if line.startswith("error: ")]

    def kill(self):
        if self.agent is not None:
            self.agent.kill()
            self.agent.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def machines(folder, request):
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_")).strip("-")
    machines = [Machine(folder, name, number) for number in range(2)]
    yield machines
    for machine in machines:
        machine.kill()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(condition, seconds=DEADLINE):
    """Wait until a condition holds; return the seconds that it took, None if it never did."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if condition():
            return time.monotonic() - started
        time.sleep(0.1)
    return None


def random_step(early):
    """Return a step before the first checkpoint, or in a later epoch."""
    step = random.randint(2, STEPS_PER_EPOCH - 1)
    step += 0 if early else STEPS_PER_EPOCH * random.randint(1, 2)
    sys.stdout.write(f"lost at step {step}\n")
    return step


def check_weights(folder, run, whole):
    found = read_checkpoint(folder / run / LAST)
    assert found.meta["state"]["step"] == whole.meta["state"]["step"] == EPOCHS * STEPS_PER_EPOCH
    assert found.tensors.keys() == whole.tensors.keys()
    for key, tensor in whole.tensors.items():
        torch.testing.assert_close(found.tensors[key], tensor, rtol=1e-9, atol=1e-9)
    assert any(tensor.dtype == torch.float64 for tensor in whole.tensors.values())


def wait_until_lost(lost, left):
    """Wait for the loss; the process of the other machine ends in time with one sentence."""
    pids = []

    def is_lost():
        pids[:] = left.processes() or pids
        return lost.agent.poll() is not None

    assert wait_for(is_lost) is not None
    assert lost.agent.returncode == -signal.SIGKILL, lost.log.read_text()
    assert pids
    ended = wait_for(lambda: not set(pids) & set(left.processes()), TIMEOUT + GRACE)
    assert ended is not None, left.log.read_text()
    (sentence,) = left.errors()
    assert "lost the connection to the other processes" in sentence
    assert sentence.endswith("continue with --resume")
    assert f'File "{SOURCE}' not in left.log.read_text()  # no traceback of ours
    assert lost.errors() == []


def start_fixed(machines, resume=False, variables_of=None):
    port = free_port()
    for machine in machines:
        machine.start(
            *("--nnodes=2", f"--node-rank={machine.number}"),
            *("--master-addr=127.0.0.1", f"--master-port={port}"),
            resume=resume,
            **(variables_of or {}).get(machine.number, {}),
        )


@pytest.mark.parametrize("lost", [0, 1], ids=["first machine", "second machine"])
def test_fixed_machines_end_and_resume(folder, machines, whole, lost):
    step = random_step(early=lost)
    start_fixed(machines, variables_of={lost: {"LOST_AT": str(step)}})
    left = machines[1 - lost]
    wait_until_lost(machines[lost], left)
    assert left.agent.wait(AGENT_SECONDS) == 1
    assert [machine.steps()[-1] for machine in machines] == [(2, 0, step), (2, 1, step)]
    start_fixed(machines, resume=True)
    for machine in machines:
        assert machine.agent.wait(DEADLINE) == 0, machine.log.read_text()
    check_weights(folder, left.run, whole)


def start_elastic(machine, host, port, **variables):
    """Start torchrun for one or two machines; ``host`` has the store of the rendezvous."""
    settings = f"is_host={int(machine.number == host)},last_call_timeout=4,keep_alive_interval=2"
    machine.start(
        *("--nnodes=1:2", "--max-restarts=3", "--rdzv-backend=c10d", f"--rdzv-id={machine.run}"),
        f"--rdzv-endpoint=127.0.0.{host + 1}:{port}",
        f"--rdzv-conf={settings}",
        **variables,
    )


@pytest.mark.parametrize(
    ("lost", "returns"),
    [(0, False), (0, True), (1, True)],
    ids=["rank 0", "rank 0 returns", "rank 1 returns"],
)
def test_machine_that_is_left_continues(folder, machines, whole, lost, returns):
    port, left, other = free_port(), machines[1 - lost], machines[lost]
    step = random_step(early=not returns)
    waits = {"WAITS_AT": str(step + 3)} if returns else {}
    start_elastic(left, left.number, port, **waits, **OWN_STORE)
    start_elastic(other, left.number, port, LOST_AT=str(step), **OWN_STORE)
    wait_until_lost(other, left)
    if returns:
        is_alone = wait_for(lambda: any(size == 1 for size, *_ in left.steps())) is not None
        assert is_alone, left.log.read_text()
        start_elastic(other, left.number, port, **OWN_STORE)
        assert other.agent.wait(DEADLINE) == 0, left.log.read_text() + other.log.read_text()
        assert other.steps()[-1] == (2, lost, EPOCHS * STEPS_PER_EPOCH)
    assert left.agent.wait(DEADLINE) == 0, left.log.read_text()
    assert {size for size, *_ in left.steps()} == {1, 2}
    check_weights(folder, left.run, whole)


def test_loss_of_the_machine_with_the_store_ends_the_other(folder, machines, whole):
    """The same commands then continue, without --resume: the job has the same id."""
    port, (other, left) = free_port(), machines
    for machine, variables in ((other, {"LOST_AT": str(random_step(early=False))}), (left, {})):
        start_elastic(machine, other.number, port, **variables, **OWN_STORE)
    wait_until_lost(other, left)
    assert left.agent.wait(AGENT_SECONDS) == 1
    port = free_port()
    for machine in machines:
        start_elastic(machine, other.number, port, **OWN_STORE)
    for machine in machines:
        assert machine.agent.wait(DEADLINE) == 0, machine.log.read_text()
    check_weights(folder, left.run, whole)


def test_killed_process_starts_again_on_both_machines(folder, machines, whole):
    """In the store of torchrun; the one whose process was killed counts one restart more."""
    port, (left, other) = free_port(), machines
    start_elastic(left, left.number, port)
    start_elastic(other, left.number, port, KILLED_AT=str(random_step(early=False)))
    for machine in machines:
        assert machine.agent.wait(DEADLINE) == 0, machine.log.read_text()
    assert "exitcode: -9" in other.log.read_text()
    check_weights(folder, left.run, whole)
