"""Names of the fallbacks: lists for users about whom a model has no information."""

from typing import Literal

Fallback = Literal["popular", "recent"]
