"""Features of users, items and context: columns of a table as values that a tower reads.

A feature is fitted on training rows and stored with the model. To add a type, write a file with
the class and its nested ``Config``, and one line in ``registry.py``.

name         encoding of a value
bag          codes of any number of members from a vocabulary
categorical  code of a value from a vocabulary
clock        position of a time in the day and in the week
hashed       several codes, without a vocabulary
number       number on a common scale, or code of its bucket
text         vector of a sentence encoder
vector       the numbers of a list
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
from candid.features.table import FeatureTable, extend_table, fit_table, restore_table
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
    "extend_table",
    "fit_context",
    "fit_table",
    "no_context",
    "restore_table",
]
