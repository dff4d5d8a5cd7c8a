"""How interactions become batches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from candid.component import ComponentConfig


class BatchesConfig(ComponentConfig):
    """How interactions become batches."""

    unit: Literal["sequence", "interaction"] = Field(
        "sequence",
        description="what a batch is made of: windows of user histories, every position a "
        "row (history towers), or single interactions (id towers)",
    )
    batch_size: int = Field(128, ge=1, description="units in a batch")
    max_length: int = Field(200, ge=1, description="longest history, in interactions")
    windows: Literal["last", "all"] = Field(
        "last",
        description="sequence units: only each user's most recent window, or windows over "
        "the whole history",
    )
    max_negatives: int = Field(
        20,
        ge=0,
        description="items shown and not chosen that a row is compared with, at most: those shown "
        "last; 0: none",
    )
    num_workers: int = Field(1, ge=0, description="threads that prepare batches ahead of use")
    drop_last: bool = Field(
        False, description="leave out the last batch of an epoch where it is smaller"
    )
