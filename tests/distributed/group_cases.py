"""Cases of test_group.py, run as a program: GROUP_CASES FOLDER."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import run_ranks

from candid.distributed import (
    Group,
    PeerError,
    ProcessGroupError,
    connected,
    current_group,
    gather_with_gradient,
    on_main,
    open_group,
)
from candid.errors import ConfigError, DataError

ROWS = {2: [3, 0], 3: [2, 0, 5]}


def values(rank, world_size):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(ROWS[world_size][rank], 4, generator=generator, dtype=torch.float64)


def collectives(rank, world_size):
    with open_group(20) as group:
        assert current_group() is group
        with open_group(20) as inner:
            assert inner is group
        rows = values(rank, world_size).requires_grad_()
        gathered = gather_with_gradient(rows, group)
        weight = torch.arange(gathered.numel(), dtype=torch.float64).view_as(gathered) + rank
        (gathered.sin() * weight).sum().backward()
        narrow = torch.full((2,), rank, dtype=torch.int64)
        group.broadcast_([narrow])
        result = {
            "gathered": gathered.detach(),
            "gradient": rows.grad,
            "sum": group.sum(torch.tensor([1.0 + rank, 2.0])),
            "largest": group.largest([rank, -rank]),
            "counts": group.gather_counts([rank, 7]),
            "json": group.broadcast_json({"text": f"from {rank} ü", "number": 1.5}),
            "none": group.broadcast_json(None),
            "broadcast": narrow,
            "empty": group.gather_rows(torch.zeros(0, 2)).shape,
        }
        group.check_same({"dataset": "a", "settings": "b"})
        group.traffic.clear()
        group.sum_(torch.zeros(10))
        group.gather_rows(torch.zeros(2, 3), [2] * world_size)
        result["traffic"] = group.traffic.to_json()
    assert current_group().is_single
    with open_group(20) as group:  # a second use of the same processes
        result["again"] = group.sum(torch.tensor([1.0]))
        try:
            group.check_same({"dataset": "a", "settings": str(rank == 1)})
        except ConfigError as error:
            result["differs"] = str(error)
    return result


def given(rank, folder):
    """The program has opened the default group of torch itself."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    with connected(), open_group(20) as group:
        sums = group.sum(torch.tensor([1.0 + rank])).tolist()
        place = group.rank, group.world_size, group.local_rank
    return sums, place, current_group().is_single, dist.is_initialized()


def failing(rank):
    """Process 1 fails while the others wait for it."""
    try:
        with open_group(20) as group:
            if rank == 1:
                raise DataError("interactions.csv, row 7: the user is missing")
            group.barrier()
    except (PeerError, DataError) as error:
        return type(error).__name__, error.exit_code, str(error)


def waiting(rank, folder):
    """Process 0 works longer than the timeout; the others wait for it."""
    with connected():
        on_main(lambda: (time.sleep(2), (folder / "prepared").write_text(str(rank))))
        prepared = (folder / "prepared").read_text()
        with open_group(20) as group:
            return prepared, group.largest([rank])


def failing_together(rank):
    """All processes fail for the same reason: one reports it."""
    try:
        with connected():
            raise ConfigError("unknown config key 'model.towers'")
    except (PeerError, ConfigError) as error:
        return type(error).__name__, error.exit_code, str(error)


def killed(rank):
    with open_group(20) as group:
        group.barrier()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            group.barrier()
        except ProcessGroupError as error:
            return error.exit_code, str(error)


def late(rank):
    """Process 1 comes later than the timeout allows."""
    try:
        with open_group(1.5) as group:
            if rank == 1:
                time.sleep(4)
            group.barrier()
    except (ProcessGroupError, PeerError) as error:
        return type(error).__name__, str(error)


def stuck(rank):
    """Process 1 fails while the other is in a call that does not return."""
    from candid.distributed import watchdog

    watchdog.GRACE = 0.5
    with open_group(20) as group:
        group.barrier()
        if rank == 1:
            raise DataError("row 7 is damaged")
        time.sleep(30)


def main(folder):
    codes = {}
    for world_size in ROWS:
        codes[f"collectives-{world_size}"] = run_ranks(
            world_size, partial(collectives, world_size=world_size), folder / f"w{world_size}"
        )
    codes["waiting"] = run_ranks(2, partial(waiting, folder=folder), folder / "waiting")
    codes["given"] = run_ranks(2, partial(given, folder=folder), folder / "given")
    for case in (failing, failing_together, killed, late, stuck):
        codes[case.__name__] = run_ranks(2, case, folder / case.__name__)
    (folder / "codes.json").write_text(json.dumps(codes))
    assert Group().is_single


if __name__ == "__main__":
    main(Path(sys.argv[1]))
