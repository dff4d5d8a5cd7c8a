"""Answers for people: recommendations for users of a dataset or for a typed history."""

from candid.serve.recommend import Recommendations, recommend

__all__ = ["Recommendations", "recommend"]
