"""Negative log-likelihood of targets against a dense float64 log-softmax."""

from __future__ import annotations

import torch

from candid.evaluation.likelihood import target_nll


def test_target_nll_agrees_with_dense_float64():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(9, 16, generator=generator)
    items = torch.randn(301, 16, generator=generator)
    rows = torch.tensor([0, 0, 3, 8])
    ids = torch.tensor([5, 300, 5, 0])
    scores = query.double() @ items.double().T
    dense = torch.log_softmax(scores, 1)
    nll = target_nll(query, items, rows, ids, scores.logsumexp(1))
    torch.testing.assert_close(nll, -dense[rows, ids], atol=2e-6, rtol=0)
