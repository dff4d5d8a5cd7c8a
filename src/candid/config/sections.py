"""The sections of a recipe, described without loading the components that they configure."""

from __future__ import annotations

from typing import Final

SECTIONS: Final = {
    "data": "files and columns of the interactions, filters and split; not needed with --data",
    "features": "columns that the towers read in addition to ids: of items, users and the context",
    "batches": "unit and size of batches, length of histories",
    "model": "the query tower, the item tower and their similarity",
    "sampler": "source of the candidates of a sampled loss",
    "loss": "the objective",
    "training": "epochs, learning rate, optimizer, early stopping",
    "evaluation": "metrics, cutoffs and slices",
}
"""Section -> one line about it, in the order of ``RunConfig``."""
