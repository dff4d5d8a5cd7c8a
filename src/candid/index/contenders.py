"""The indexes that a comparison builds, by the names of its table."""

from __future__ import annotations

from typing import Final

from candid.index.bfloat16 import Bfloat16Index
from candid.index.exact import ExactIndex
from candid.index.faiss import FaissIndex
from candid.index.kernel_lsh import KernelLsh
from candid.index.protocol import IndexConfig
from candid.index.usearch import UsearchIndex

CONTENDERS: Final[dict[str, IndexConfig]] = {
    "exact": ExactIndex.Config(),
    "bfloat16": Bfloat16Index.Config(),
    "faiss flat": FaissIndex.Config(kind="flat"),
    "faiss ivf": FaissIndex.Config(kind="ivf"),
    "faiss pq": FaissIndex.Config(kind="pq"),
    "faiss sq": FaissIndex.Config(kind="sq"),
    "faiss hnsw, products": FaissIndex.Config(kind="hnsw", augment=False),
    "faiss hnsw, distances": FaissIndex.Config(kind="hnsw", augment=True),
    "usearch, products": UsearchIndex.Config(augment=False),
    "usearch, distances": UsearchIndex.Config(augment=True),
    "kernel_lsh": KernelLsh.Config(),
}
"""Graphs stand here twice: which of their two metrics is right depends on the vectors."""

EXHAUSTIVE = 50_000
"""Catalogs of fewer items are searched exactly unless an index is named: it takes under 1 ms."""


def default_config(num_items: int) -> IndexConfig:
    """What is built where nobody names an index."""
    return ExactIndex.Config() if num_items < EXHAUSTIVE else FaissIndex.Config(kind="pq")
