"""How many times n draws are expected to show an item, in log space."""

from __future__ import annotations

import torch
from torch import Tensor


def log_expected_count(log_q: Tensor, num_samples: int | Tensor, distinct: bool) -> Tensor:
    """Log expected count of an item of probability Q among n independent draws.

    log(n·Q) for the draws themselves, log(1 - (1 - Q)^n), the inclusion probability, for the
    set of distinct items among them. Worked in float64, where both are accurate to rounding
    for any Q from 1e-300 to 1 and any n.

    Args:
        log_q: log Q, any shape; -inf where Q = 0.
        num_samples: n, an integer or a scalar tensor (an average may be fractional).
        distinct: whether repeated draws were removed.

    Returns:
        float32, shape of ``log_q``.
    """
    log_q = log_q.double()
    n = torch.as_tensor(num_samples, dtype=torch.float64, device=log_q.device)
    if not distinct:
        return (n.log() + log_q).float()
    # 0 · log(1 - 1) would be nan: no draw includes nothing, whatever Q is.
    log_miss = torch.where(n > 0, n * torch.log1p(-log_q.exp()), 0.0)
    return torch.log(-torch.expm1(log_miss)).float()
