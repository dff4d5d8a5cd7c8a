"""Tuning: a search for the settings of a recipe by the validation metric, within a budget.

trials.json    all trials with their values and validations; the search resumes from it
best.toml      the recipe of the best trial, with its evidence as comments
trials/NNNN    the runs of the best trials and of the base recipe (trial 0)
"""

from candid.tuning.base_recipe import BaseRecipe
from candid.tuning.loop import SearchResult, search
from candid.tuning.space import Choices, Dimension, Range, Space
from candid.tuning.space_defaults import default_space
from candid.tuning.space_file import parse_space, read_space
from candid.tuning.trial_progress import SearchProgress
from candid.tuning.trials import History, Trial, TrialStatus, read_history

__all__ = [
    "BaseRecipe",
    "Choices",
    "Dimension",
    "History",
    "Range",
    "SearchProgress",
    "SearchResult",
    "Space",
    "Trial",
    "TrialStatus",
    "default_space",
    "parse_space",
    "read_history",
    "read_space",
    "search",
]
