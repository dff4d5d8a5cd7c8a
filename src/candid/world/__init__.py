"""A synthetic world with a known true conditional distribution, written as ordinary files."""

from candid.world.config import WorldConfig
from candid.world.world import MODES, World

__all__ = ["MODES", "World", "WorldConfig"]
