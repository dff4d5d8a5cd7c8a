"""Losses; the owner of this package replaces this file."""

from candid.losses.output import ItemEmbeddings, Loss, LossOutput

__all__ = ["ItemEmbeddings", "Loss", "LossOutput"]
