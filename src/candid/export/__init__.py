"""Export of a model to other programs: graphs of its towers, and item vectors.

name           files
elasticsearch  a mapping and bulk requests
milvus         a collection and its rows as requests
npy            vectors and source ids as arrays
onnx           the towers as ONNX graphs
parquet        source ids, titles, attributes and vectors in one table
pgvector       a file for COPY and the SQL that loads it
qdrant         a collection and its points as requests
torch          the towers as programs of ``torch.export``

An export is written into a temporary folder beside the target, which is renamed to the target
when all files are complete and on disk.
"""

from candid.export.context import ExportContext
from candid.export.elasticsearch import write_elasticsearch
from candid.export.export_input import ExportInput, FeatureSet
from candid.export.folder import EXPORT, export, read_export
from candid.export.milvus import write_milvus
from candid.export.npy import write_npy
from candid.export.parquet import write_items_parquet
from candid.export.pgvector import write_pgvector
from candid.export.program import write_onnx, write_torch
from candid.export.qdrant import write_qdrant
from candid.export.registry import FORMATS

__all__ = [
    "EXPORT",
    "FORMATS",
    "ExportContext",
    "ExportInput",
    "FeatureSet",
    "export",
    "read_export",
    "write_elasticsearch",
    "write_items_parquet",
    "write_milvus",
    "write_npy",
    "write_onnx",
    "write_pgvector",
    "write_qdrant",
    "write_torch",
]
