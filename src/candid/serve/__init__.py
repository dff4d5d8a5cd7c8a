"""Answers for people: recommendations for users of a dataset or for a typed history."""

from candid.serve.recommend import NewItems, Recommendations, recommend

__all__ = ["NewItems", "Recommendations", "recommend"]
