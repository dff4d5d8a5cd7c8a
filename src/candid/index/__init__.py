"""Search over item vectors: used by proposals (the exact head), evaluation and serving.

Adding an index: one file with a class that follows ``Index`` and owns a ``Config``, and one
line in ``INDEXES``.
"""

from candid.index.exact import ExactIndex
from candid.index.protocol import Exclusions, Hits, Index

INDEXES: dict[str, type[ExactIndex]] = {
    "exact": ExactIndex,
}
"""Name in recipes and on the command line → class."""

__all__ = ["INDEXES", "ExactIndex", "Exclusions", "Hits", "Index"]
