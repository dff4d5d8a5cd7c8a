"""Settings of batches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from candid.component import ComponentConfig


class BatchesConfig(ComponentConfig):
    """Settings of batches."""

    unit: Literal["sequence", "interaction"] = Field(
        "sequence",
        description="unit of a batch: 'sequence', a window of a user's history in which every "
        "position is a row (history towers), or 'interaction' (id towers)",
    )
    batch_size: int = Field(128, ge=1, le=2**31, description="units per batch")
    micro_batch: int | None = Field(
        None,
        ge=1,
        le=2**31,
        description="units encoded at once: a batch that does not fit into memory is encoded in "
        "parts, each of them twice, and has the gradient of the whole batch; none: all at once",
    )
    max_length: int = Field(200, ge=1, le=2**31, description="longest history, in interactions")
    windows: Literal["last", "all"] = Field(
        "all",
        description="sequence units: 'all', windows over the whole history, so that every "
        "interaction with a history is trained on, or 'last', each user's most recent window",
    )
    max_negatives: int = Field(
        20,
        ge=0,
        description="most items shown and not chosen (data.negatives) that are candidates of a "
        "row beside the sampled ones; the items shown last are used; 0: none. A loss over the "
        "whole catalog includes them anyway",
    )
    empty_histories: bool = Field(
        False,
        description="sequence units: also train on each user's first target with an empty history, "
        "so that the model can serve users without a history",
    )
    num_workers: int = Field(1, ge=0, description="threads that prepare batches in advance")
    drop_last: bool = Field(
        False, description="leave out the last batch of an epoch if it is smaller"
    )

    @model_validator(mode="after")
    def _empty_histories_are_histories(self) -> BatchesConfig:
        if self.empty_histories and self.unit == "interaction":
            raise ValueError(
                "batches.empty_histories has no effect with batches.unit = 'interaction', which "
                "reads no histories: remove it"
            )
        return self
