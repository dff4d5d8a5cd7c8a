"""The registry of indexes."""

from __future__ import annotations

from typing import Any, Final

from candid.component import Registry

INDEXES: Final = Registry(
    {
        "bfloat16": "candid.index.bfloat16:Bfloat16Index",
        "exact": "candid.index.exact:ExactIndex",
        "faiss": "candid.index.faiss:FaissIndex",
        "kernel_lsh": "candid.index.kernel_lsh:KernelLsh",
        "usearch": "candid.index.usearch:UsearchIndex",
    }
)
"""Indexes by the name used in recipes and with ``--set index.type=``."""

EXHAUSTIVE = 50_000
"""Catalogs below this size are searched exactly by default: a query takes less than 1 ms."""


def default_config(num_items: int) -> Any:
    """Return the config of the index that is built if the user names none.

    Args:
        num_items: V.
    """
    if num_items < EXHAUSTIVE:
        return INDEXES["exact"].Config()
    return INDEXES["faiss"].Config(kind="pq")
