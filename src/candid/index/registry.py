"""The registry of indexes."""

from __future__ import annotations

from typing import Final

from candid.component import Registry

INDEXES: Final = Registry(
    {
        "bfloat16": "candid.index.bfloat16:Bfloat16Index",
        "exact": "candid.index.exact:ExactIndex",
        "faiss": "candid.index.faiss:FaissIndex",
        "int8": "candid.index.int8:Int8Index",
        "kernel_lsh": "candid.index.kernel_lsh:KernelLsh",
        "usearch": "candid.index.usearch:UsearchIndex",
    }
)
"""Indexes by the name used in recipes and with ``--set index.type=``."""
