"""Features of users, items and questions: from columns of a table to values that a tower reads.

A feature is fitted on the rows that training sees and stored with the model. To add a type:
a file with the class and its nested ``Config``, and one line in ``FEATURES``.

name         a value becomes
bag          codes of any number of members out of a vocabulary
categorical  the code of a value out of a vocabulary
clock        the place of a moment in the day and in the week
hashed       several codes, without a vocabulary
number       a number on a common scale, or the code of its bucket
text         the vector of a sentence encoder
vector       itself, the numbers of a column of lists
"""

from candid.features.bag import Bag
from candid.features.categorical import Categorical
from candid.features.clock import Clock
from candid.features.config import FeatureComponent, FeaturesConfig
from candid.features.context import Context, fit_context, no_context
from candid.features.hashed import Hashed
from candid.features.number import Number
from candid.features.protocol import Feature, FeatureConfig
from candid.features.registry import FEATURES
from candid.features.table import FeatureTable, fit_table, restore_table
from candid.features.text import Text
from candid.features.values import Bags, Codes, Numbers, Values
from candid.features.vector import Vector

__all__ = [
    "FEATURES",
    "Bag",
    "Bags",
    "Categorical",
    "Clock",
    "Codes",
    "Context",
    "Feature",
    "FeatureComponent",
    "FeatureConfig",
    "FeatureTable",
    "FeaturesConfig",
    "Hashed",
    "Number",
    "Numbers",
    "Text",
    "Values",
    "Vector",
    "fit_context",
    "fit_table",
    "no_context",
    "restore_table",
]
