"""Synthetic interaction data with a known P(item | user, history), written as ordinary files."""

from candid.synthetic.config import SyntheticConfig
from candid.synthetic.data import CHOICE_MODELS, SyntheticData

__all__ = ["CHOICE_MODELS", "SyntheticConfig", "SyntheticData"]
