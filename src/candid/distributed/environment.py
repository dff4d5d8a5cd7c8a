"""The place of this process in a training of several, from the environment that torchrun sets."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from candid.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Environment:
    """Environment variables of a process that torchrun or another launcher has started.

    Attributes:
        rank: number of the process, from 0 (``RANK``).
        world_size: number of processes (``WORLD_SIZE``).
        local_rank: number of the process on its machine (``LOCAL_RANK``), which is that of its
            CUDA device.
        local_world_size: number of processes on its machine (``LOCAL_WORLD_SIZE``).
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @classmethod
    def read(cls, variables: Mapping[str, str] | None = None) -> Environment | None:
        """Read the variables; None: this process trains alone.

        Args:
            variables: None: those of this process.

        Raises:
            ConfigError: a variable is missing or wrong.
        """
        values = os.environ if variables is None else variables
        if values.get("WORLD_SIZE", "1") == "1" or "RANK" not in values:
            return None
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not values.get(name):
                raise ConfigError(
                    f"WORLD_SIZE is {values['WORLD_SIZE']}, but {name} is not set: start the "
                    "processes with torchrun, or unset WORLD_SIZE to use one process"
                )
        world_size, rank = _number(values, "WORLD_SIZE"), _number(values, "RANK")
        if rank >= world_size:
            raise ConfigError(
                f"RANK is {rank}, but there are {world_size} processes (WORLD_SIZE): start the "
                "processes with torchrun"
            )
        # A launcher without them has all processes on one machine.
        local_rank = _number({"LOCAL_RANK": str(rank), **values}, "LOCAL_RANK")
        local_world_size = _number(
            {"LOCAL_WORLD_SIZE": str(world_size), **values}, "LOCAL_WORLD_SIZE"
        )
        return cls(rank, world_size, local_rank, local_world_size)


def job_id(variables: Mapping[str, str] | None = None) -> str | None:
    """Return the id of the job of torchrun, the same after it has restarted its processes.

    Args:
        variables: None: those of this process.

    Returns:
        the id; None: torchrun has not started this process.
    """
    values = os.environ if variables is None else variables
    if "TORCHELASTIC_RUN_ID" not in values:
        return None
    run_id = values["TORCHELASTIC_RUN_ID"]
    # Without --rdzv-id every job has the same one; its agent is the parent of the processes.
    return f"{socket.gethostname()}-{os.getppid()}" if run_id in ("", "none") else run_id


def _number(values: Mapping[str, str], name: str) -> int:
    if not values[name].isdecimal():
        raise ConfigError(
            f"{name} must be a number, got {values[name]!r}: start the processes with torchrun"
        )
    return int(values[name])
