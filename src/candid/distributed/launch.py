"""The launcher of several processes on this machine, with the elastic agent of torchrun."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any, Final

from candid.errors import CandidError, ConfigError
from candid.temporary import TemporaryFolder

INTERRUPTED: Final = 130
LAUNCHER: Final = "CANDID_LAUNCHER"
"""Environment variable with the process id of the launcher, for the processes that it starts."""
PR_SET_PDEATHSIG: Final = 1
"""Of prctl(2)."""
ADVICE: Final = {
    "train": "lower batches.batch_size or use fewer processes; continue with --resume",
    "index": "use fewer processes; then start the command again",
}
"""What to do after a process was killed, by verb."""


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run ``candid`` with some arguments in several processes of this machine.

    It is ``torchrun --standalone --nproc-per-node N -m candid ARGUMENTS``, with the exit code of
    the process that failed first instead of 1. SIGINT and SIGTERM are passed on; the processes
    stop after the step at hand and write a checkpoint.

    Args:
        num_processes: N, at least 2.
        arguments: of the command line, the verb first.

    Returns:
        0, or the exit code of the process that failed first; 130 after a signal.

    Raises:
        ConfigError: the processes of a launcher cannot launch others.
        CandidError: a process was killed by a signal.
    """
    if "RANK" in os.environ:
        raise ConfigError(
            "this process was started by torchrun: leave out --processes, or start candid without "
            "torchrun"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // num_processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost connection is a page long
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    folder = TemporaryFolder("launch")  # The agent leaves its own behind.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder.path)),
    )
    verb = next(iter(arguments), "")
    agent: Any = elastic_launch(config, sys.executable)
    # The processes report their errors themselves; each logger of torch has a level of its own.
    logging.disable(logging.ERROR)
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        agent("-m", "candid", *arguments)
    except SignalException:
        return INTERRUPTED
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        raise CandidError(
            f"process {rank} was killed by signal {-failure.exitcode}: if the system ran out of "
            f"memory, {ADVICE.get(verb, 'use fewer processes')}"
        ) from None
    finally:
        folder.remove()
        del os.environ[LAUNCHER]
        logging.disable(logging.NOTSET)
    return 0


def end_with_launcher() -> None:
    """End this process with SIGTERM when the launcher that started it has ended, such as killed.

    A killed launcher passes no signal on, and its processes would wait for its store without end.
    A process of torchrun is left as it is. Linux only.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):  # it ended before the call
        signal.raise_signal(signal.SIGTERM)
