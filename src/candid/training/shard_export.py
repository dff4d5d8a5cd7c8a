"""Export of a checkpoint of sharded tables as one file, which serving reads, block by block."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from candid.atomic import replacing
from candid.checksums import SEAL
from candid.errors import ArtifactError
from candid.training.checkpoint import FORMAT, hash_entry
from candid.training.shard_files import ShardFiles

BLOCK_BYTES: Final = 64 << 20
"""Approximate size of the rows in memory at once."""

_DTYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in the header of a safetensors file."""


def export_shards(
    path: Path | str,
    out: Path | str,
    *,
    weights_only: bool = True,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Write a checkpoint of sharded tables as the one file that ``read_checkpoint`` opens.

    The rows of sharded tables are read and written block by block: memory does not grow with the
    tables. One process calls it; the others need not run.

    Args:
        path: folder of the checkpoint, ``step-N``.
        out: the file, such as ``best.safetensors`` in the folder of a run.
        weights_only: leave out the states of optimizer, loss and random generators, as in the
            checkpoint of the best validation; False: all that an exact resume needs.
        block_bytes: approximate size of a block.

    Raises:
        DamagedCheckpointError: the checkpoint is damaged.
        ArtifactError: the file cannot be written.
    """
    with ShardFiles(path) as files:
        shared = files.shared()
        is_kept = _is_weight if weights_only else _is_any
        tensors = {name: t for name, t in shared.tensors.items() if is_kept(name)}
        sources = {name: _Shared(tensor) for name, tensor in tensors.items()} | {
            name: _Sharded(files, name, shape, block_bytes)
            for name, shape in files.tables.items()
            if is_kept(name)
        }
        meta = {k: v for k, v in shared.meta.items() if not (weights_only and k == "position")}
        _write(Path(out), sources, meta)


def _is_weight(name: str) -> bool:
    return name.startswith("model/")


def _is_any(name: str) -> bool:
    return True


class _Shared:
    """A tensor in memory, as the source of a file."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.contiguous()
        self.dtype, self.shape = tensor.dtype, list(tensor.shape)

    def blocks(self) -> Iterator[Tensor]:
        yield self._tensor


class _Sharded:
    """A tensor whose rows are in several files, as the source of a file."""

    def __init__(self, files: ShardFiles, name: str, shape: list[int], block_bytes: int) -> None:
        self._files, self._name = files, name
        self.dtype, self.shape = files.dtype(name), shape
        row_bytes = _num_bytes(self.dtype, [1, *shape[1:]])
        self._max_rows = max(block_bytes // max(row_bytes, 1), 1)

    def blocks(self) -> Iterator[Tensor]:
        return self._files.blocks(self._name, range(self.shape[0]), self._max_rows)


def _write(out: Path, sources: Mapping[str, _Shared | _Sharded], meta: Mapping[str, Any]) -> None:
    """Write a safetensors file with the metadata and the checksum of ``write_checkpoint``."""
    content = {"format": FORMAT, **meta}
    digest = hashlib.sha256(json.dumps(content).encode())
    for name, source in sorted(sources.items(), key=itemgetter(0)):
        digest.update(hash_entry(name, source.dtype, source.shape))
        for block in source.blocks():
            digest.update(_bytes(block))
    text = json.dumps({**content, SEAL: digest.hexdigest()})
    header: dict[str, Any] = {"__metadata__": {"candid": text}}
    # Wide numbers first, so that each tensor is aligned to its numbers.
    order = sorted(sources, key=lambda name: (-sources[name].dtype.itemsize, name))
    begin = 0
    for name in order:
        source = sources[name]
        stop = begin + _num_bytes(source.dtype, source.shape)
        offsets = [begin, stop]
        header[name] = {
            "dtype": _DTYPES[source.dtype], "shape": source.shape, "data_offsets": offsets
        }  # fmt: skip
        begin = stop
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with replacing(out) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in order:
            _write_blocks(file, sources[name].blocks())
        if file.tell() != 8 + len(encoded) + begin:
            raise ArtifactError(f"{out} was not written: the rows of the shards have other sizes")


def _write_blocks(file: BinaryIO, blocks: Iterator[Tensor]) -> None:
    for block in blocks:
        file.write(_bytes(block))


def _bytes(block: Tensor) -> memoryview:
    # As bytes: NumPy has no bfloat16.
    view: memoryview = block.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return view


def _num_bytes(dtype: torch.dtype, shape: list[int]) -> int:
    return dtype.itemsize * torch.Size(shape).numel()
