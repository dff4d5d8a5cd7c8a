"""Cases of test_stopped_process.py, run as a program: STOPPED_CASES FOLDER.

A process receives SIGSTOP where another one waits for it outside a process group. The store is in a
process of its own, as under torchrun, or in process 0, as with other launchers.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch.distributed as dist
from ranks import run_ranks

from candid.distributed import (
    ProcessGroupError,
    collect,
    connected,
    heartbeat,
    on_main,
    open_group,
    watchdog,
)

TIMEOUT = 1.5
WORK = 4.0
"""Seconds of work of process 0: more than the timeout and its margin."""
heartbeat.INTERVAL = 0.1
heartbeat.MARGIN = watchdog.MARGIN = 0.5


def stop():
    """Stop this process, until the test kills it."""
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_at_work(rank):
    on_main(stop, TIMEOUT)


def stop_before_others(rank):
    """Process 1 is stopped before it sends its value to process 0."""
    if rank == 1:
        stop()
    collect(rank, TIMEOUT)


def stop_before_the_group(rank):
    if rank == 0:
        stop()
    with open_group(TIMEOUT):
        pass


def work(rank):
    """Work that takes longer than the timeout."""
    on_main(lambda: time.sleep(WORK), TIMEOUT)
    return collect(rank, TIMEOUT)


def ended(rank, case, stopped, folder, port=None):
    """Run a case; the process that is left kills the one that is stopped."""
    if port is not None:
        os.environ |= {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    began = time.monotonic()
    if rank == stopped:
        (folder / "pid.tmp").write_text(str(os.getpid()))
        (folder / "pid.tmp").rename(folder / "pid")
    try:
        with connected():
            return case(rank)
    except ProcessGroupError as error:
        return {"seconds": time.monotonic() - began, "error": str(error)}
    finally:
        if rank != stopped and stopped is not None:
            os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


def start_store(folder):
    """Start a process with a store; return its id and its port."""
    pid = os.fork()
    if pid == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        (folder / "port.tmp").write_text(str(store.port))
        (folder / "port.tmp").rename(folder / "port")
        time.sleep(600)
        os._exit(1)
    while not (folder / "port").exists():
        time.sleep(0.01)
    return pid, (folder / "port").read_text()


def main(folder):
    codes = {}

    def run(name, case, stopped, port=None, seconds=120):
        (folder / name).mkdir()
        call = partial(ended, case=case, stopped=stopped, folder=folder / name, port=port)
        codes[name] = run_ranks(2, call, folder / name, seconds)

    run("store-in-0", stop_at_work, 0)
    # The watchdog ends process 1 at once, so that it cannot kill the other one.
    run("group", stop_before_the_group, 0, seconds=15)
    run("work", work, None)
    for name, case, stopped in (("at-work", stop_at_work, 0), ("before", stop_before_others, 1)):
        (folder / f"{name}-store").mkdir()
        pid, port = start_store(folder / f"{name}-store")
        try:
            run(name, case, stopped, port)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
