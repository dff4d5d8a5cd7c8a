"""The page of an audit."""

import torch

from candid.audit import (
    ALL_ESTIMATORS,
    AuditCase,
    AuditInput,
    DriftSampling,
    SamplingBudget,
    audit,
    sampler_config,
)
from candid.report.audit_page import write_audit_page


def test_audit_page_has_recommendation_table_and_four_figures(tmp_path):
    generator = torch.Generator().manual_seed(0)
    items = torch.arange(6)
    data = AuditInput(
        name="<model>",
        query=torch.randn(4, 3, generator=generator),
        item_vectors=torch.randn(6, 3, generator=generator),
        positive_ids=torch.arange(4),
        user_ids=torch.arange(4),
        counts=torch.arange(1, 7),
        training_positive_ids=items,
        training_user_ids=items,
    )
    cases = [
        AuditCase(
            "popularity",
            sampler_config({"type": "popularity", "num_candidates": n}),
            num_candidates=n,
            estimators=ALL_ESTIMATORS,
        )
        for n in (2, 4)
    ]
    report = audit(
        [data],
        cases,
        sampling=SamplingBudget(repeats=16),
        drift=DriftSampling(repeats=16),
        cost_rows=4,
    )
    write_audit_page(tmp_path / "audit.html", report)
    page = (tmp_path / "audit.html").read_text()
    assert page.count("<svg") == 4
    assert "&lt;model&gt;" in page
    assert "<model>" not in page
    assert "Without a budget, choose the full softmax" in page
    assert page.count("refined + jackknife") >= 2
    assert "logq, hits masked" in page
    assert "drift, nats" in page
    assert "chi2" in page
    assert "biases of opposite sign cancel" in page
    # By sampler, the drift is that of refined: logq has none with any of them.
    assert "Drift against the number of candidates, all with the correction refined," in page
    assert "Error of the gradient of one step, all with the correction logq:" in page
    assert "<script" not in page
