"""Co-visits: items that occur near those of a history, before or after them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from candid.baselines.baseline import Grid
from candid.baselines.markov import Markov


class CoVisits(Markov):
    """Pairs within a window in both directions: ``Markov`` without the direction of time.

    The default discount divides by the root of popularity, as the cosine does.
    """

    class Config(Markov.Config):
        """Settings of co-visits."""

        window: int = Field(10, ge=1, description="largest distance of a pair")
        popularity_discount: float = Field(
            0.5, ge=0, le=1, description="exponent of the item's count that divides the score"
        )

    grid: ClassVar[Grid] = {
        "decay": (0.2, 0.4, 0.6, 0.8, 0.9),
        "popularity_discount": (0.25, 0.5, 0.75),
        "window": (3, 10, 30),
        "distance_decay": (0.8, 1.0),
    }
    both_directions = True
