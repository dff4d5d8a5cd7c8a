"""Peak memory of the export of sharded tables: that of a block, not of a table."""

import sys
import threading
from pathlib import Path

import pytest
import torch

from candid.distributed import Group
from candid.towers import RowTable
from candid.training import read_checkpoint
from candid.training.checkpoint import Checkpoint, model_tensors
from candid.training.shard_checkpoint import write_shards
from candid.training.shard_export import export_shards

V, D = 1 << 19, 64
TABLE_MIB = V * D * 4 / 2**20
BLOCK_MIB = 4


def anonymous_mib():
    """Memory of this process without pages of files, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("/proc/self/status has no RssAnon")


def growth_while(work):
    """Return the most MiB that this process needs beyond those before the work."""
    before, peak, ended = anonymous_mib(), [0.0], threading.Event()

    def watch():
        while not ended.wait(0.001):
            peak[0] = max(peak[0], anonymous_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        ended.set()
        thread.join()
    return peak[0] - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_export_holds_blocks_of_a_table(on_ranks, tmp_path):
    def export(rank, num_ranks):
        model = torch.nn.ModuleDict({"table": RowTable(V, D, "item").shard(Group())})
        tensors = model_tensors(model)
        # The state of a row-wise optimizer is a table too.
        tensors["optimizer/table.weight/mean"] = torch.zeros(V, D)
        meta = {"run": "a run", "state": {"step": 1}}
        path = write_shards(tmp_path / "shards", 1, Checkpoint(tensors, meta), model, Group())
        del model, tensors
        out = tmp_path / "last.safetensors"
        small = tmp_path / "small.safetensors"
        export_shards(path, small, weights_only=True, block_bytes=BLOCK_MIB << 20)  # imports
        return growth_while(
            lambda: export_shards(path, out, weights_only=False, block_bytes=BLOCK_MIB << 20)
        )

    (growth,) = on_ranks(export, 1)
    assert read_checkpoint(tmp_path / "last.safetensors").tensors["model/table.weight"].shape == (
        V,
        D,
    )
    # A few copies of a block; torch maps the blocks of the shards, so that fewer are enough.
    assert growth < 8 * BLOCK_MIB < TABLE_MIB / 3
