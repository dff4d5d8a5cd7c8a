"""A synthetic world with a known true conditional distribution, written as ordinary files."""

from candid.synthetic.config import SyntheticConfig
from candid.synthetic.world import MODES, World

__all__ = ["MODES", "SyntheticConfig", "World"]
