"""The audit of in-batch candidates against batches of the loader, scored one by one."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from candid.audit import Estimator, SamplingBudget, sampler_config
from candid.audit.audit_sampler import AuditSampler
from candid.audit.full_softmax import compute_full_softmax
from candid.audit.measurement import measure
from candid.batches import BatchesConfig, Loader, target_counts

from .conftest import clustered_dataset, clustered_input

IN_BATCH = sampler_config({"type": "in_batch"})


@dataclass
class Iterated:
    """Statistics of the refined loss over the rows of an audit, from iterated batches."""

    loss_bias: float
    loss_bias_error: float
    z_mean: float
    z_sd: float
    mse: float


def iterate(data, dataset, config, q, *, epochs):
    """Score every audited row where it stands in the batches of a loader, by the formula (2)."""
    scores = (data.query.double() @ data.item_vectors.double().T).numpy()
    row_of_user = {user: row for row, user in enumerate(data.user_ids.tolist())}
    log_q = np.log(q, where=q > 0, out=np.full(len(q), -np.inf))
    loss, z_ratio, errors = ([[] for _ in scores] for _ in range(3))
    loader = Loader(dataset, config, seed=5)
    for epoch in range(epochs):
        for step in range(loader.num_batches):
            batch = loader.batch(epoch, step)
            items, users = batch.positive_ids.numpy(), batch.user_ids.numpy()
            for user in set(users.tolist()):
                row = row_of_user[user]
                positive = int(data.positive_ids[row])
                exact = np.exp(scores[row])
                others = items[(users != user) & (items != positive)]
                log_e = np.log(len(others)) + log_q[others] - np.log1p(-q[positive])
                terms = np.exp(scores[row, others] - log_e)
                z = terms.sum()
                loss[row].append(np.log1p(z / exact[positive]) if len(others) else 0.0)
                z_ratio[row].append(z / (exact.sum() - exact[positive]))
                gradient = np.bincount(others, terms, len(exact)) / (z + exact[positive])
                gradient[positive] -= z / (z + exact[positive])
                expected = exact / exact.sum() - np.eye(len(exact))[positive]
                errors[row].append(((gradient - expected) ** 2).sum())
    nll = -np.log(np.exp(scores).T / np.exp(scores).sum(1)).T[
        np.arange(len(scores)), data.positive_ids.numpy()
    ]
    by_epoch = np.array(loss).mean(axis=0)
    return Iterated(
        loss_bias=float(by_epoch.mean() - nll.mean()),
        loss_bias_error=float(by_epoch.std(ddof=1) / math.sqrt(epochs)),
        z_mean=float(np.mean(z_ratio)),
        z_sd=float(np.sqrt(np.var(z_ratio, axis=1, ddof=1).mean())),
        mse=float(np.mean(errors)),
    )


def audited(data, config=IN_BATCH, *, repeats=600, batch_rows=1):
    generator = torch.Generator().manual_seed(3)
    sampler = AuditSampler(config, data, batch_rows=batch_rows, generator=generator)
    budget = SamplingBudget(repeats=repeats)
    reference = compute_full_softmax(data)
    (means,) = measure(data, reference, sampler, (Estimator("refined"),), budget)
    return means.statistics(), float(reference.squared_norm.mean())


@pytest.mark.parametrize("batch_size", [6, 14])
def test_audit_of_real_batches_agrees_with_iterated_batches(batch_size):
    dataset = clustered_dataset(num_users=70)
    config = BatchesConfig(batch_size=batch_size)
    data = clustered_input(dataset, config)
    q = target_counts(dataset, config)
    real = iterate(data, dataset, config, q / q.sum(), epochs=120)
    result, exact_square = audited(data)
    error = math.hypot(real.loss_bias_error, result.loss_bias_error)
    assert abs(result.loss_bias - real.loss_bias) < 3 * error
    assert abs(result.loss_bias) > 4 * error  # the agreement is not that of two zeros
    assert result.z_sd == pytest.approx(real.z_sd, rel=0.08)
    assert result.z_mean == pytest.approx(real.z_mean, abs=0.03)
    assert result.rmse**2 * exact_square == pytest.approx(real.mse, rel=0.08)
    if batch_size > 6:
        return  # a fifth of all units: without replacement they vary as little as independent rows
    # Independent rows of the same number do not agree: units of one user vary more.
    rows = round(data.batches.mean_other_rows)
    independent, _ = audited(replace(data, batches=None), batch_rows=rows)
    assert independent.z_sd < 0.95 * real.z_sd
