"""candid: honest sampled softmax for retrieval models."""

__version__ = "0.1.0"
