"""The time since the last interaction in a query vector: a scale and a shift."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from candid.towers.row_noise import HiddenValues

HIDDEN: Final = 64
"""Width of the hidden layer, which reads one number."""

UNKNOWN_RATE: Final = 0.1
"""Share of training rows whose time is hidden, so that a query without times has a trained vector
as well."""


class QueryGap(nn.Module):
    """Scale and shift query vectors by the time since the last interaction.

    FiLM (Perez et al., 2018, arXiv 1709.07871, eq. 1): gamma · vector + beta, where gamma and beta
    are outputs of a small network that reads the logarithm of the time, and not rows of a table of
    buckets: the longest times are rare in training, and a table would share nothing between them.
    It starts as the identity.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden_gaps = HiddenValues(UNKNOWN_RATE)
        self.hidden = nn.Linear(2, HIDDEN)
        self.out = nn.Linear(HIDDEN, 2 * dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, vectors: Tensor, gaps: Tensor) -> Tensor:
        """Apply to vectors [B, D].

        Args:
            vectors: [B, D].
            gaps: [B] int32, from ``time_gaps.query_gaps_plus_one``; below 1 is an unknown time.
        """
        gaps = self.hidden_gaps.replace(gaps)
        is_known = (gaps >= 1).float()
        # In units of about its standard deviation; 0 is a gap of some minutes.
        logs = (gaps.clamp(min=1).float().log() / 5 - 1) * is_known
        inputs = torch.stack([is_known, logs], dim=1).to(self.hidden.weight.dtype)
        film: Tensor = self.out(nn.functional.gelu(self.hidden(inputs)))
        scale, shift = film.chunk(2, dim=1)
        return vectors * (1 + scale) + shift
