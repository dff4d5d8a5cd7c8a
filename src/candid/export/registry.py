"""The registry of export formats."""

from __future__ import annotations

from typing import Final

from candid.component import Registry

FORMATS: Final = Registry(
    {
        "elasticsearch": "candid.export.elasticsearch:write_elasticsearch",
        "milvus": "candid.export.milvus:write_milvus",
        "npy": "candid.export.npy:write_npy",
        "onnx": "candid.export.program:write_onnx",
        "parquet": "candid.export.parquet:write_items_parquet",
        "pgvector": "candid.export.pgvector:write_pgvector",
        "qdrant": "candid.export.qdrant:write_qdrant",
        "torch": "candid.export.program:write_torch",
    }
)
"""The writer of each format by the name used with ``--format``.

A writer takes an ``ExportContext`` and an empty folder, writes its files there and returns a
description of them, which becomes its entry in ``export.json``.
"""
