"""Measurements of the estimator of a cell: which users each of them has."""

import numpy as np
import pytest
import torch

from candid.audit import AuditCase, AuditInput, AuditSampler, Estimator, sampler_config
from candid.audit import proposal_distance as distance_of
from candid.study.measure import estimator_at

ITEMS, USERS = 40_000, 200
"""With so many items an audit measures 8 users."""


@pytest.fixture(scope="module")
def data():
    """A model whose first users are undecided and whose later ones are confident."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(ITEMS)
    scale = torch.linspace(0.1, 3.0, USERS)[:, None]
    return AuditInput(
        name="planted",
        query=scale * torch.randn(USERS, 4, generator=generator),
        item_vectors=torch.randn(ITEMS, 4, generator=generator),
        positive_ids=ids[:USERS],
        user_ids=ids[:USERS],
        counts=1 + ids % 7,
        training_positive_ids=ids,
        training_user_ids=ids,
    )


def test_chi2_and_bias_have_all_rows_and_drift_64_users_of_any_catalog(data):
    config = sampler_config({"type": "popularity", "num_candidates": 16})
    case = AuditCase("planted", config, num_candidates=16, estimators=(Estimator("refined"),))
    measured = estimator_at(case, data)
    assert (measured.users, measured.drift_users) == (USERS, 64)
    generator = torch.Generator().manual_seed(1)
    chi2 = distance_of(data, AuditSampler(config, data, batch_rows=16, generator=generator)).chi2
    levels = np.quantile(chi2.numpy(), (0.1, 0.5, 0.9))
    found = measured.chi2
    np.testing.assert_allclose((found.p10, found.p50, found.p90), levels)
    assert found.p50 > 2 * float(chi2[:64].median())
    assert measured.drift.value > 0
