"""A trained model for other programs: graphs of its towers, and the vectors of its items.

name           what is written
elasticsearch  a mapping and bulk requests
milvus         a collection and a parquet file to import
npy            vectors and source ids as arrays
onnx           the towers as ONNX graphs
parquet        source ids, titles, attributes and vectors in one table
pgvector       a file for COPY and the SQL that loads it
qdrant         a collection and its points as requests
torch          the towers as programs of ``torch.export``

Everything is written into a folder beside the one asked for, which takes its name when all of it
is there and on the disk.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from candid.export.elasticsearch import write_elasticsearch
from candid.export.folder import EXPORT, export
from candid.export.material import Material
from candid.export.milvus import write_milvus
from candid.export.npy import write_npy
from candid.export.parquet import write_items_parquet
from candid.export.parts import ExportParts, Side
from candid.export.pgvector import write_pgvector
from candid.export.program import write_onnx, write_torch
from candid.export.qdrant import write_qdrant

FORMATS: Final[dict[str, Callable[[Material, Path], dict[str, Any]]]] = {
    "elasticsearch": write_elasticsearch,
    "milvus": write_milvus,
    "npy": write_npy,
    "onnx": write_onnx,
    "parquet": write_items_parquet,
    "pgvector": write_pgvector,
    "qdrant": write_qdrant,
    "torch": write_torch,
}
"""What writes each format into a folder and says what it wrote, by the name used with --format."""

__all__ = [
    "EXPORT",
    "FORMATS",
    "ExportParts",
    "Material",
    "Side",
    "export",
    "write_elasticsearch",
    "write_items_parquet",
    "write_milvus",
    "write_npy",
    "write_onnx",
    "write_pgvector",
    "write_qdrant",
    "write_torch",
]
