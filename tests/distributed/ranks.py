"""Processes of a test: forked from one that has imported torch, so that it is imported once."""

import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # Optimizers import it, which takes seconds: once here, not on every rank.


def run_ranks(world_size, function, folder, seconds=600):
    """Call ``function(rank)`` in ``world_size`` processes and save what each returns.

    Returns:
        exit codes by rank; negative for a signal.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            os._exit(_run(rank, world_size, port, function, folder))
        pids.append(pid)
    return _wait(pids, time.monotonic() + seconds)


def _run(rank, world_size, port, function, folder):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        torch.save(function(rank), folder / f"{rank}.pt")
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        return getattr(error, "exit_code", 1)
    return 0


def _wait(pids, deadline):
    codes = {}
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]
