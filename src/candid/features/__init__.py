"""Features of users and items: from columns of a table to values that a tower reads.

A feature is fitted on the rows that training sees and stored with the model. To add a type:
a file with the class and its nested ``Config``, and one line in ``FEATURES``.
"""

from typing import Final

from candid.features.protocol import Feature, FeatureConfig
from candid.features.table import FeatureTable, fit_table, restore_table
from candid.features.values import Bags, Codes, Numbers, Values

FEATURES: Final[dict[str, type]] = {}
"""Types of feature by the name used in recipes."""

__all__ = [
    "FEATURES",
    "Bags",
    "Codes",
    "Feature",
    "FeatureConfig",
    "FeatureTable",
    "Numbers",
    "Values",
    "fit_table",
    "restore_table",
]
