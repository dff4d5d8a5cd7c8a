"""Where candidates come from, and how often each was expected.

Stub of the package docstring: the owner of this package replaces this file.
"""

from candid.proposals.candidates import Candidates, Positives, Proposal

__all__ = ["Candidates", "Positives", "Proposal"]
