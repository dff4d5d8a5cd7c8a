import pytest
import torch

from candid.audit import Effort, Plan, Subject, audit, sampler_config
from candid.report.audit_page import write_audit_page

pytest.importorskip("matplotlib")


def test_the_page_shows_the_recommendation_the_table_and_three_figures(tmp_path):
    generator = torch.Generator().manual_seed(0)
    items = torch.arange(6)
    subject = Subject(
        name="<model>",
        query=torch.randn(4, 3, generator=generator),
        item_vectors=torch.randn(6, 3, generator=generator),
        positive_ids=torch.arange(4),
        user_ids=torch.arange(4),
        counts=torch.arange(1, 7),
        training_positive_ids=items,
        training_user_ids=items,
    )
    plans = [
        Plan("popularity", sampler_config({"type": "popularity", "num_candidates": n}), n)
        for n in (2, 4)
    ]
    report = audit([subject], plans, effort=Effort(draws=16), cost_rows=4)
    write_audit_page(tmp_path / "audit.html", report)
    page = (tmp_path / "audit.html").read_text()
    assert page.count("<svg") == 3
    assert "&lt;model&gt;" in page
    assert "<model>" not in page
    assert "Without a budget the full softmax is the choice" in page
    assert page.count("refined + jackknife") >= 2
    assert "<script" not in page
