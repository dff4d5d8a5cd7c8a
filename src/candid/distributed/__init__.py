"""Processes that work together: their group, sums and gathers, failures, and the launcher."""

from candid.distributed.connection import (
    collect,
    connected,
    current_environment,
    current_group,
    is_main,
    on_main,
    open_group,
    use_own_device,
)
from candid.distributed.environment import Environment, job_id
from candid.distributed.failures import Failure, PeerError, PeerInterrupted, ProcessGroupError
from candid.distributed.gather import gather_with_gradient
from candid.distributed.group import TIMEOUT_SECONDS, Group
from candid.distributed.traffic import Traffic

__all__ = [
    "TIMEOUT_SECONDS",
    "Environment",
    "Failure",
    "Group",
    "PeerError",
    "PeerInterrupted",
    "ProcessGroupError",
    "Traffic",
    "collect",
    "connected",
    "current_environment",
    "current_group",
    "gather_with_gradient",
    "is_main",
    "job_id",
    "on_main",
    "open_group",
    "use_own_device",
]
