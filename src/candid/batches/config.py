"""How interactions become batches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

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
        description="items shown and not chosen (data.negatives) that a row is compared with "
        "beside its drawn candidates, at most: those shown last; 0: none. A loss over the whole "
        "catalog compares with them anyway",
    )
    empty_histories: bool = Field(
        False,
        description="sequence units: also teach each user's first target as if there were no "
        "history, so that someone of whom only features are known (or nothing) can be asked about",
    )
    num_workers: int = Field(1, ge=0, description="threads that prepare batches ahead of use")
    drop_last: bool = Field(
        False, description="leave out the last batch of an epoch where it is smaller"
    )

    @model_validator(mode="after")
    def _empty_histories_are_histories(self) -> BatchesConfig:
        if self.empty_histories and self.unit == "interaction":
            raise ValueError(
                "batches.empty_histories has no meaning with batches.unit = 'interaction', which "
                "reads no histories; leave it out"
            )
        return self
