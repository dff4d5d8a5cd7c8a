"""Index; the owner of this package replaces this file."""

from candid.index.protocol import Exclusions, Hits, Index

__all__ = ["Exclusions", "Hits", "Index"]
