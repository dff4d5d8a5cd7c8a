"""Answers for people: recommendations from the command line, and a server for applications.

The server's parts: ``parts`` is what it needs of a run; ``served`` one generation of a model;
``models`` which generation answers; ``batcher`` the queues; ``gate`` what every request passes;
``app`` the routes; ``process`` the process. They need ``candid[serve]`` and load only for it.
"""

from candid.serve.parts import ServedParts
from candid.serve.recommend import NewItems, Recommendations, recommend

__all__ = ["NewItems", "Recommendations", "ServedParts", "recommend"]
