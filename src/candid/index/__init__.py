"""Search over item vectors: used by proposals (the exact head), evaluation and serving.

Adding an index: one file with a class that follows ``Index`` and owns a ``Config``, and one
line in ``INDEXES``.
"""

from typing import Final

from candid.index.exact import ExactIndex
from candid.index.faiss import FaissIndex
from candid.index.protocol import Exclusions, Hits, Index, IndexComponent, IndexConfig

INDEXES: Final = {
    "exact": ExactIndex,
    "faiss": FaissIndex,
}
"""Indexes by the name used in recipes."""

__all__ = [
    "INDEXES",
    "ExactIndex",
    "Exclusions",
    "FaissIndex",
    "Hits",
    "Index",
    "IndexComponent",
    "IndexConfig",
]
