"""Reading, filtering, splitting and storing interactions."""

from candid.data.dataset import HeldOut, PreparedDataset, Role, held_out

__all__ = ["HeldOut", "PreparedDataset", "Role", "held_out"]
